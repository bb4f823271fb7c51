"""Two protocols that train a small head on frozen features: MAE's linear probe, and an attentive probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.lars import Lars
from maskwright.core.evaluation.task import Kind
from maskwright.core.trainer.data import ORDER, derive_seed, generator_for
from maskwright.core.trainer.optim import lr_at

PUBLISHED_BATCH = 16384
"""Batch of MAE's linear probe; its peak rate is 0.1 * 16384 / 256 = 6.4."""
SMALL_BATCH, SMALL_STEPS = 256, 300
ATTENTION_BATCH = 64
_EVALUATION_BATCH = 4096


def batchnorm_lars_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    kind: Kind,
    outputs: int,
    seed: int,
    epochs: int = 90,
    base_lr: float = 0.1,
    batch: int | None = None,
) -> np.ndarray:
    """MAE's linear probe (He et al. 2022, appendix A.1): BatchNorm1d without affine, one linear layer, LARS.

    With `batch` given it is the published rule: lr = base_lr * batch / 256, momentum 0.9, trust 0.001, no decay, 10 of 90
    epochs of warm-up, then half a cosine to 0. A LARS step is `lr * trust` of the weights' norm whatever the data, so
    that the rule moves weights by next to nothing in the few steps that a small set allows. Without `batch`, two things
    are therefore scaled: batches are of at most 256 at the published peak rate, base_lr * 16384 / 256, and epochs are
    added until there are 300 steps (ImageNet's 90 epochs are 7000). Sets of 16384 and more follow the published rule.
    Features that are constant in training are left out.

    Args:
        train_x: (n, D) features.
        train_y: (n,) class numbers, or (n, K) 0 or 1.
        test_x: (m, D).
        outputs: K.

    Returns:
        (m, K) probabilities.

    Raises:
        ConfigError: a regression, for which steps of a fixed share of the weights do not converge.
    """
    if kind == "regression":
        raise ConfigError("The linear probe with BatchNorm and LARS is for classes and labels; use linear for numbers.")
    n = len(train_x)
    if batch is None and n < PUBLISHED_BATCH:
        batch, lr = min(n, SMALL_BATCH), base_lr * PUBLISHED_BATCH / 256
        epochs = max(epochs, -(-SMALL_STEPS // (n // batch)))
    else:
        batch = min(n, batch or PUBLISHED_BATCH)
        lr = base_lr * batch / 256
    train_x, test_x = np.asarray(train_x, np.float32), np.asarray(test_x, np.float32)
    varied = train_x.std(0) > 0  # a feature that never varied in training would be scaled a thousandfold in the test
    x, test_x = torch.from_numpy(train_x[:, varied]), test_x[:, varied]
    y, scale = _targets(train_y, kind)
    generator = generator_for(seed, n)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6)
    linear = _linear(x.shape[1], outputs, 0.01, generator)
    optimizer = Lars(linear.parameters(), lr=0.0)
    per_epoch = max(1, n // batch)
    steps, warmup = epochs * per_epoch, round(epochs * per_epoch / 9)
    for step, rows in _batches(n, batch, steps, seed):
        norm.train(len(rows) > 1)
        optimizer.param_groups[0]["lr"] = lr_at(step, steps, warmup, lr)
        optimizer.zero_grad()
        _loss(linear(norm(x[rows])), y[rows], kind).backward()
        optimizer.step()
    norm.eval()
    return _predict(lambda part: linear(norm(part)), test_x, kind, scale)


class AttentiveHead(nn.Module):
    """One learned query that looks at all tokens of a sample: (B, T, D) to (B, K).

    Cross-attention of a single query, a residual MLP, then a linear layer, as the frozen evaluations of the JEPA line
    of work do (Bardes et al. 2024, section 4.2), with one block.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.num_heads = next(heads for heads in (8, 4, 2, 1) if dim % heads == 0)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.linear = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        q = self._heads(self.q(self.query.expand(len(x), -1, -1)))
        pooled = F.scaled_dot_product_attention(q, self._heads(self.k(x)), self._heads(self.v(x)))
        z = self.query[0] + self.proj(pooled.transpose(1, 2).flatten(2))[:, 0]
        return self.linear(self.norm3(z + self.mlp(self.norm2(z))))


def attentive_probe(
    train_tokens: np.ndarray,
    train_y: np.ndarray,
    test_tokens: np.ndarray,
    kind: Kind,
    outputs: int,
    seed: int,
    steps: int = 300,
    lr: float | None = None,
    weight_decay: float = 0.01,
) -> np.ndarray:
    """An `AttentiveHead` trained by AdamW on frozen tokens (n, T, D); arguments and result as `batchnorm_lars_probe`.

    Also for regression: (n, K) numbers in, (m, K) numbers in the same units out.

    Batches of 64, a tenth of the steps is warm-up, then half a cosine to 0. The peak rate is that of the published
    probes for a width of 768, 1e-3, and more for narrow tokens: 1e-3 * sqrt(768 / D), at most 3e-3.
    """
    n, _, dim = train_tokens.shape
    peak = lr if lr is not None else min(3e-3, 1e-3 * (768 / dim) ** 0.5)
    y, scale = _targets(train_y, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, n, dim))
        head = AttentiveHead(dim, outputs)
    decayed = [p for p in head.parameters() if p.ndim > 1]
    plain = [p for p in head.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    for step, rows in _batches(n, min(n, ATTENTION_BATCH), steps, seed):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, steps // 10, peak)
        optimizer.zero_grad()
        part = torch.from_numpy(np.asarray(train_tokens[rows.numpy()], np.float32))
        _loss(head(part), y[rows], kind).backward()
        optimizer.step()
    return _predict(head, test_tokens, kind, scale, 256)


Scale = tuple[Tensor, Tensor]


def _targets(y: np.ndarray, kind: Kind) -> tuple[Tensor, Scale]:
    """Labels as a loss wants them, and (mean, deviation) of numbers."""
    none = (torch.zeros(1), torch.ones(1))
    if kind in ("classification", "segmentation", "retrieval"):
        return torch.from_numpy(np.asarray(y, np.int64)), none
    values = torch.from_numpy(np.asarray(y, np.float32)).reshape(len(y), -1)
    if kind == "multilabel":
        return values, none
    if kind == "regression":
        mean, std = values.mean(0), values.std(0, correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        return (values - mean) / std, (mean, std)
    raise ConfigError(f'There is no probe for tasks of the kind "{kind}".')


def _linear(dim: int, outputs: int, std: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with truncated N(0, std) weights and no bias at first; the global generator stays as it is."""
    layer = nn.utils.skip_init(nn.Linear, dim, outputs)
    nn.init.trunc_normal_(layer.weight, std=std, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _batches(n: int, batch: int, steps: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """(step, rows): fresh permutations, the rest of each left out."""
    per_epoch = max(1, n // batch)
    order = torch.empty(0)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(n, generator=generator_for(seed, ORDER, epoch))
        yield step, order[place * batch : (place + 1) * batch]


def _loss(out: Tensor, y: Tensor, kind: Kind) -> Tensor:
    if kind == "regression":
        return F.mse_loss(out, y)
    return F.binary_cross_entropy_with_logits(out, y) if kind == "multilabel" else F.cross_entropy(out, y)


@torch.no_grad()
def _predict(
    head: Callable[[Tensor], Tensor], x: np.ndarray, kind: Kind, scale: Scale, batch: int = _EVALUATION_BATCH
) -> np.ndarray:
    found = []
    for start in range(0, len(x), batch):
        out = head(torch.from_numpy(np.asarray(x[start : start + batch], np.float32)))
        if kind == "regression":
            out = out * scale[1] + scale[0]
        found.append(out.sigmoid() if kind == "multilabel" else out if kind == "regression" else out.softmax(1))
    return torch.cat(found).numpy()
