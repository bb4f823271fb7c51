"""Which number format is really faster here."""

from __future__ import annotations

import time

import torch

_WINS = 1.2
"""bf16 must be this much faster than fp32 to be chosen on a CPU."""


def resolve_accelerator(name: str) -> str:
    """`auto` is cuda where there is a usable GPU, else cpu."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def matmul_seconds(dtype: torch.dtype, size: int = 768, repeats: int = 5) -> float:
    """Shortest time of a square matrix product on the CPU."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return best


def resolve_precision(name: str, accelerator: str) -> str:
    """`auto` becomes bf16 or 32: by capability on CUDA, by a measurement of some milliseconds on a CPU."""
    if name != "auto":
        return name
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    return "bf16" if matmul_seconds(torch.float32) > _WINS * matmul_seconds(torch.bfloat16) else "32"


LIGHTNING_NAME = {"32": "32-true", "bf16": "bf16-mixed"}
