"""Teachers: a slow copy of a network, or a frozen one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from maskwright.core.errors import ConfigError


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode for good and no gradients. Returns the module itself."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


class EMATeacher(nn.Module):
    """Exponential moving average of a network: t <- decay * t + (1 - decay) * s after every step; buffers are copied.

    Args:
        student: the network to follow. It is copied, not kept.
        decay: in [0, 1); may be given anew at each `update` where it follows a schedule.
    """

    def __init__(self, student: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"The decay of a moving average must lie in [0, 1), not {decay}.")
        self.decay = decay
        self.module = freeze(copy.deepcopy(student))

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float | None = None) -> None:
        decay = self.decay if decay is None else decay
        ours: list[torch.Tensor] = list(self.module.parameters())
        theirs = [parameter.detach().to(own.dtype) for own, parameter in zip(ours, student.parameters(), strict=True)]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for own, buffer in zip(self.module.buffers(), student.buffers(), strict=True):
            own.copy_(buffer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.module(*args, **kwargs)
