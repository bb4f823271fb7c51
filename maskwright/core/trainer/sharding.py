"""Fully sharded training (FSDP2): each process keeps a share of every weight. Lightning sets up the processes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a method over `mesh`: every transformer block by itself, then the rest."""
    for name, child in list(module.named_modules()):
        parent, _, number = name.rpartition(".")
        if number.isdigit() and parent.endswith("blocks"):
            fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in state.items()}


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor laid out as `parameter` is; one number (an optimiser's step) stays as it is."""
    if isinstance(parameter, DTensor) and tensor.ndim:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device, copy=True)
