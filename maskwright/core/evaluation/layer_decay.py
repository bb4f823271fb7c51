"""Learning rates that fall towards the input, for fine-tuning a pre-trained encoder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from maskwright.core.trainer.optim import depth_of

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


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """Groups for AdamW with `lr_scale`: no decay for tensors of one axis; `layer_scales` of the encoder."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, scale in layer_scales(named, layer_decay).items():
        decay = 0.0 if named[name].ndim <= 1 else weight_decay
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale, "names": []})
        group["params"].append(named[name])
        group["names"].append(name)
    return list(groups.values())
