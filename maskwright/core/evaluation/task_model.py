"""A model that predicts: an encoder, a head, and what the head's numbers mean."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.task import IGNORE, Targets
from maskwright.core.sample import Batch

HEAD_STD = 2e-5
"""Deviation of a new head's weights: it starts by saying the same of everything (MAE, fine-tuning)."""
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Head(nn.Module):
    """A fresh layer norm and a linear layer on the last axis: (..., D) to (..., K). MAE's `fc_norm` and head."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=HEAD_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class TaskModel(nn.Module):
    """An encoder and a head. Sample-level tasks take the encoder's pooled features, segmentation its tokens.

    Args:
        encoder: trained further, or frozen by whoever trains.
        targets: kind, classes, codes and colours; labels in it are not kept.

    Shapes:
        raw outputs (B, K): logits of classes, or numbers in the labels' own units. Segmentation: (B, K, *size) logits of
        each pixel, linear between the centres of tokens, or (B, K, P) of each point, see `between_centres`.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, encoder: Encoder, targets: Targets) -> None:
        super().__init__()
        self.encoder = encoder
        self.targets = Targets(targets.kind, targets.classes, codes=targets.codes, colours=targets.colours)
        self.head = Head(encoder.embed_dim, targets.outputs)
        self.register_buffer("target_mean", torch.zeros(targets.outputs))
        self.register_buffer("target_std", torch.ones(targets.outputs))
        self.label_smoothing = 0.0
        """Of the cross-entropy, in training."""
        self.losses: list[float] = []
        """Loss of each step of the training that made it."""

    @property
    def kind(self) -> str:
        return self.targets.kind

    @property
    def dense(self) -> bool:
        """Whether it predicts every pixel."""
        return self.kind == "segmentation"

    def fit_targets(self, values: np.ndarray) -> None:
        """Take mean and deviation of the labels (n, K) of a regression."""
        mean, std = torch.from_numpy(values).mean(0), torch.from_numpy(values).std(0, correction=0)
        self.target_mean.copy_(mean)
        self.target_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, batch: Batch) -> Tensor:
        embedding = self.encoder.embed_batch(batch)
        if not self.dense:
            out = self.head(embedding.pooled)
            return out * self.target_std + self.target_mean if self.kind == "regression" else out
        grid, size = embedding.grid, self.spatial(batch)
        logits = self.head(embedding.tokens).movedim(-1, 1)
        if grid.positions is not None:
            return between_centres(logits, grid.positions, self._first(batch))
        if grid.ndim != len(size):
            raise ConfigError(
                f"Segmentation needs tokens on a lattice of {len(size)} axes, like its input; this encoder's lie on "
                f"{grid.shape}."
            )
        logits = logits.unflatten(2, grid.shape)
        return F.interpolate(logits, size=size, mode=_LINEAR[grid.ndim], align_corners=False)

    def spatial(self, batch: Batch) -> tuple[int, ...]:
        """Pixels along each axis of the (first) input that the batch holds; of points, their number."""
        x = self._first(batch)
        points = next(spec.dims == "N C" for name, spec in self.encoder.inputs.items() if name in batch.tensors)
        return (x.shape[1],) if points else tuple(x.shape[2:])

    def _first(self, batch: Batch) -> Tensor:
        return next(batch[name] for name in self.encoder.inputs if name in batch.tensors)

    def loss(self, out: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy, binary cross-entropy a label, or squared error of standardised numbers; mean over what has one.

        Args:
            out: what `forward` gave.
            truth: (B,) or (B, *size) class numbers, -1 to ignore; (B, K) 0 or 1; (B, K) numbers.
        """
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(out, truth.float())
        if self.kind == "regression":
            return ((out - truth.float()) / self.target_std).square().mean()
        smoothing = self.label_smoothing if self.training else 0.0
        total = F.cross_entropy(out, truth, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        return total / (truth != IGNORE).sum().clamp_min(1)

    def probabilities(self, out: Tensor) -> Tensor:
        """Softmax of classes, sigmoid of labels; numbers as they are."""
        if self.kind == "regression":
            return out
        return out.sigmoid() if self.kind == "multilabel" else out.softmax(1)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Probabilities (B, K) or (B, K, *size), or numbers (B, K), in evaluation mode, on the CPU."""
        was_training = self.training
        self.eval()
        try:
            return self.probabilities(self(batch.to(self.target_mean.device)).float()).cpu()
        finally:
            self.train(was_training)


def between_centres(values: Tensor, centres: Tensor, points: Tensor, neighbours: int = 3) -> Tensor:
    """Values of scattered tokens at points: means of the three nearest, weighted by 1 / squared distance (PointNet++).

    Args:
        values: (B, K, N) of tokens.
        centres: (B, N, d) or (N, d), where tokens are.
        points: (B, P, d or more), coordinates first.

    Returns:
        (B, K, P).
    """
    at = points[..., : centres.shape[-1]].float()
    distance, index = torch.cdist(at, centres.float().expand(len(at), -1, -1)).topk(
        min(neighbours, centres.shape[-2]), largest=False
    )
    weights = 1 / (distance.square() + 1e-8)
    weights = (weights / weights.sum(-1, keepdim=True)).to(values.dtype)
    picked = torch.gather(values.transpose(1, 2), 1, index.flatten(1)[..., None].expand(-1, -1, values.shape[1]))
    return (picked.unflatten(1, index.shape[1:]) * weights[..., None]).sum(2).transpose(1, 2)
