"""LAMB: layer-wise adaptive moments for large batches (You et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lamb(torch.optim.Optimizer):
    """Adam whose step for each decayed tensor is as long as the tensor itself, times the learning rate.

    With m and v the bias-corrected moments: u = m / (sqrt(v) + eps) + weight_decay * p, p <- p - lr * r * u, where
    r = ||p|| / ||u|| for tensors of groups that decay (1 where either norm is 0) and r = 1 for all others, as in the
    released code of SparK. Gradients are clipped by the trainer, before the moments. timm's Lamb does the same, but
    counts steps for a whole group, where a checkpoint keeps what belongs to single tensors.

    Args:
        groups: parameter groups; in each, `decays` says whether its tensors decay.
        lr, betas, eps: as in Adam.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "decays": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        step = float(state["step"])
        mean = state["exp_avg"] / (1 - first**step)
        root = (state["exp_avg_sq"] / (1 - second**step)).sqrt_()
        update = mean.div_(root.add_(group["eps"]))
        rate: float | torch.Tensor = 1.0
        if group["decays"]:
            update.add_(parameter, alpha=group["weight_decay"])
            length, change = parameter.norm(), update.norm()
            rate = torch.where((length > 0) & (change > 0), length / change, 1.0)
        parameter.sub_(update * (rate * group["lr"]))
