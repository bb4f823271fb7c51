"""LARS: momentum SGD whose step is a share of each tensor's own norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017) in the form of MAE's linear probe.

    For tensors of two or more axes: g <- g + wd * p, then g <- g * trust * |p| / |g| (1 where either norm is 0). Tensors
    of one axis: g as it is. Then mu <- momentum * mu + g and p <- p - lr * mu: the rate is outside of the momentum.

    Args:
        lr: learning rate; set anew before every step by whoever has a schedule.
        momentum: share of the last step that is kept.
        weight_decay: added to the gradient, not for tensors of one axis.
        trust: norm of a step as a share of the tensor's norm, at lr = 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                if p.ndim > 1:
                    g = g.add(p, alpha=group["weight_decay"])
                    size, slope = p.norm(), g.norm()
                    g = g * torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)
                state = self.state[p]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(p)
                state["mu"].mul_(group["momentum"]).add_(g)
                p.add_(state["mu"], alpha=-group["lr"])
        return loss
