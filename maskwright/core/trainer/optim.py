"""AdamW and LAMB with decay and learning rate groups, and the schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from maskwright.core.trainer.lamb import Lamb


def lr_at(step: int, total: int, warmup: int, peak: float, min_ratio: float = 0.0) -> float:
    """Learning rate of optimiser step `step` (0-based): linear from 0 over `warmup` steps, then half a cosine down.

    Step 0 of a warm-up trains at peak / warmup, not at 0, so that no step is wasted; the last step ends just above
    `min_ratio * peak`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def weight_decay_at(step: int, total: int, start: float, end: float | None) -> float:
    """Weight decay of optimiser step `step` (0-based): half a cosine from `start` to `end` (DINO, GMML)."""
    if end is None:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, total)))


def depth_of(name: str) -> int | None:
    """Block number in a parameter's name (`encoder.blocks.3.attn...`), or None."""
    match = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


_EARLY = re.compile(r"embed|token|positions|\bstem\b")
"""What stands before the blocks."""


def layer_scales(names: Iterable[str], decay: float | None) -> dict[str, float]:
    """Factor on the learning rate of each parameter of a model whose encoder is called `encoder`.

    MAE's rule (He et al. 2022, after BEiT): of n blocks, block k gets decay ** (n - k), embeddings and tokens before them
    decay ** (n + 1), everything after them and the head 1. Each stack of blocks (CROMA: optical, radar, fusion) counts
    its own depth; what belongs to no stack counts the deepest. An encoder without blocks is one group, of factor 1.
    """
    names = list(names)
    depths: dict[str, int] = {}
    for name in names:
        depth = depth_of(name)
        if depth is not None and name.startswith("encoder."):
            stack = name.split("blocks.")[0]
            depths[stack] = max(depths.get(stack, 0), depth + 1)

    def scale(name: str) -> float:
        if decay is None or not depths or not name.startswith("encoder."):
            return 1.0
        depth = depth_of(name)
        if depth is not None:
            return decay ** (depths[name.split("blocks.")[0]] - depth)
        if not _EARLY.search(name):
            return 1.0
        own = [stack for stack in depths if name.startswith(stack)]
        return decay ** (1 + (depths[max(own, key=len)] if own else max(depths.values())))

    return {name: scale(name) for name in names}


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Groups for AdamW: `lr_scale` from `layer_scales` of the encoder, and `decays`, false for tensors of one axis."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, scale in layer_scales(named, layer_decay).items():
        decays = named[name].ndim > 1
        new = {"params": [], "weight_decay": weight_decay * decays, "lr_scale": scale, "decays": decays, "names": []}
        group = groups.setdefault((decays, scale), new)
        group["params"].append(named[name])
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(module: nn.Module, settings: Any) -> torch.optim.Optimizer:
    """AdamW, fused: fastest on CUDA and, measured, on CPUs too; or LAMB. The learning rate is set before every step."""
    groups = parameter_groups(module, settings.weight_decay, settings.layer_decay)
    if settings.optimizer == "lamb":
        return Lamb(groups, lr=0.0, betas=settings.betas)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)
