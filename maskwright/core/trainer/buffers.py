"""Buffers as they were before a step: a refused step must not leave its numbers in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BufferMemory:
    """Copies of a module's buffers, such as the running statistics of batch norms, which forward passes change.

    All are copied before each step: torch does not count what a batch norm writes into them as a change.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def keep(self, module: nn.Module) -> None:
        """Remember the buffers of a module as they are."""
        copies = {id(buffer): copy for buffer, copy in self._kept}
        kept = []
        for buffer in module.buffers():
            copy = copies.get(id(buffer))
            kept.append((buffer, buffer.clone() if copy is None else copy.copy_(buffer)))
        self._kept = kept

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the buffers the values that were kept."""
        for buffer, copy in self._kept:
            buffer.copy_(copy)
