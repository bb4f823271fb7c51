"""Encoder, Tokens, Embedding."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.loader import Statistics
from maskwright.core.masking.base import Grid, Mask
from maskwright.core.sample import Batch, InputSpec, Sample, collate


@dataclass(frozen=True, eq=False)
class Tokens:
    """Raw content of all tokens, (B, N, P) in network units, and their layout. Projected only where visible."""

    values: Tensor
    grid: Grid


@dataclass(frozen=True, eq=False)
class Embedding:
    """What an encoder says of a batch.

    Args:
        pooled: (B, D), one vector a sample.
        tokens: (B, N, D), one vector a token, in raster order of `grid`.
        grid: layout of the tokens.
        parts: further embeddings by name (CROMA: `optical`, `sar`).
    """

    pooled: Tensor
    tokens: Tensor
    grid: Grid
    parts: dict[str, Embedding] = field(default_factory=dict)


class Encoder(nn.Module, ABC):
    """What survives pre-training. Keeps its constructor's options in `options`, so that a run can build it again."""

    hides: ClassVar[frozenset[str]] = frozenset({"drop"})
    """Treatments of hidden tokens that `forward` supports: drop, replace."""
    options: dict[str, Any]
    inputs: InputSpec
    """What `embed` needs."""
    embed_dim: int
    """Width D of pooled and token embeddings."""
    normalizers: nn.ModuleDict
    """A `Normalizer` for each input."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        construct = cls.__dict__["__init__"]
        signature = inspect.signature(construct)

        @functools.wraps(construct)
        def record_options(self: Encoder, *args: Any, **named: Any) -> None:
            bound = signature.bind(self, *args, **named)
            bound.apply_defaults()
            options = {name: value for name, value in bound.arguments.items() if name != "self"}
            construct(self, *args, **named)
            if type(self).__init__ is record_options:  # and not the constructor of a base class
                self.options = options

        cls.__init__ = record_options  # type: ignore[method-assign, assignment]

    def add_normalizers(self, kind: Any) -> None:
        """Create the `normalizers` for `inputs`; to be called once by the constructor."""
        self.normalizers = nn.ModuleDict(
            {name: Normalizer(spec.channel_count or 1, kind) for name, spec in self.inputs.items()}
        )

    def fit_normalizers(self, statistics: dict[str, Statistics]) -> None:
        """Set every input's scaling from the statistics of a loader."""
        for name, normalizer in self.normalizers.items():
            if name in statistics:
                normalizer.fit(statistics[name])  # type: ignore[operator]

    def normalize(self, batch: Batch) -> dict[str, Tensor]:
        """Inputs in network units, by name; of optional ones those that the batch holds."""
        return {
            name: normalizer(batch[name])
            for name, normalizer in self.normalizers.items()
            if name in batch.tensors or not self.inputs[name].optional
        }

    @abstractmethod
    def tokenize(self, batch: Batch) -> Any:
        """`Tokens` of a batch, or a dict of them by input name where an encoder has several streams."""

    @abstractmethod
    def forward(self, tokens: Any, mask: Mask | None = None) -> Any:
        """Features of the visible tokens, (B, V, D)."""

    @abstractmethod
    def embed_batch(self, batch: Batch) -> Embedding:
        """Embed a batch without hiding anything."""

    @torch.no_grad()
    def embed(self, data: Sample | Batch) -> Embedding:
        """Embed one sample (B = 1) or a batch, in evaluation mode, without gradients, on the encoder's device."""
        batch = collate([data]) if isinstance(data, Sample) else data
        was_training = self.training
        self.eval()
        try:
            return self.embed_batch(batch.to(next(self.parameters()).device))
        finally:
            self.train(was_training)
