"""Weights of a backbone that somebody else pre-trained, under whatever prefix their trainer left on the names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.core.errors import DataError
from maskwright.core.weights import read_state

PREFIXES = ("encoder_q.", "online_network.encoder.", "model.", "module.", "")
"""MoCo; BYOL; SwAV and the released SparK; encoders of ours; bare names."""
HEADS = ("fc.", "head.fc.", "head.", "classifier.")
"""Names of classifiers: they are made anew for the task."""
NESTED = ("state_dict", "model", "module")
"""Entries of a checkpoint that hold the weights."""


@dataclass(frozen=True)
class Loaded:
    """What was taken over: tensors, of how many of the network (buffers included), and the prefix they had."""

    count: int
    total: int
    prefix: str


def load_backbone(network: nn.Module, weights: dict[str, Any] | str | Path) -> Loaded:
    """Copy all tensors of a network but its head's, and fail rather than start from scratch in silence.

    The prefix is that under which most names of the network are found. 318 of the 320 tensors of a ResNet-50 are
    loaded: all but weight and bias of its head.

    Args:
        weights: tensors by name, or a .safetensors, .pt or .pth file of them; a `state_dict` inside is found.

    Raises:
        DataError: unreadable, no name fits, or a tensor besides the head's is missing or of another shape.
    """
    where = str(weights) if isinstance(weights, (str, Path)) else "the weights"
    found = weights if isinstance(weights, dict) else read_state(Path(weights), "weights of a backbone")
    found = _unpacked(found)
    wanted = network.state_dict()
    body = {name: tensor for name, tensor in wanted.items() if not name.startswith(HEADS)}
    prefix = max(PREFIXES, key=lambda one: sum(one + name in found for name in body))
    missing = [name for name in body if prefix + name not in found]
    if len(missing) == len(body):
        raise DataError(
            where,
            f"has no tensor of this network, its first name is {next(iter(found), 'none')}",
            f"names such as {next(iter(body))}, bare or behind {', '.join(filter(None, PREFIXES))}",
            "Give weights of the same backbone, or rename them",
        )
    if missing:
        raise DataError(
            where,
            f"lacks {len(missing)} of {len(body)} tensors of this network, the first is {prefix}{missing[0]}",
            "all but the head's",
            "Give weights of the same backbone",
        )
    other = next((name for name, own in body.items() if found[prefix + name].shape != own.shape), None)
    if other is not None:
        raise DataError(
            where,
            f"{prefix}{other} has the shape {tuple(found[prefix + other].shape)}",
            f"{tuple(body[other].shape)}",
            "The backbone or its number of input channels differs",
        )
    with torch.no_grad():
        for name, own in body.items():
            own.copy_(found[prefix + name])  # a state dict shares memory with its network
    return Loaded(len(body), len(wanted), prefix)


def _unpacked(found: dict[str, Any]) -> dict[str, Tensor]:
    for name in NESTED:
        if isinstance(found.get(name), dict):
            return _unpacked(found[name])
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
