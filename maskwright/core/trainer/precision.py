"""Which number format is really faster here."""

from __future__ import annotations

import time
from pathlib import Path

import torch

_WINS = 1.2
"""bf16 must be this much faster than fp32 to be chosen on a CPU."""


def resolve_accelerator(name: str) -> str:
    """`auto` is cuda where there is a usable GPU, else cpu."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bf16 numbers in hardware. Others are slower in bf16 than in fp32, always."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def bf16_gain(size: int = 768, rounds: int = 6) -> float:
    """How many times faster a bf16 matrix product is than an fp32 one: shortest times of interleaved rounds."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(rounds):
        for dtype in best:
            a = torch.ones(size, size, dtype=dtype)
            started = time.perf_counter()
            a @ a
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def resolve_precision(name: str, accelerator: str) -> str:
    """`auto` becomes bf16 or 32: by capability on CUDA; on a CPU with bf16 units by a measurement of milliseconds.

    The choice is written into the resolved recipe, so that a resumed run does not choose again.
    """
    if name != "auto":
        return name
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    return "bf16" if has_bf16_units() and bf16_gain() > _WINS else "32"


LIGHTNING_NAME = {"32": "32-true", "bf16": "bf16-mixed"}
