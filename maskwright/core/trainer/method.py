"""Method: a way to pre-train, as a plain module. It knows no trainer, no files and no command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Encoder
from maskwright.core.loader import Loader
from maskwright.core.sample import Batch, InputSpec


@dataclass(frozen=True, eq=False)
class Step:
    """Result of one forward pass: the scalar to minimise, and its terms by name for the log."""

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a run is, for methods and maskings that follow a schedule. Both counts start at 0.

    Args:
        step, steps: optimiser step that is made, and all of the run.
        epoch, epochs: pass over the data that it belongs to, and all of the run.
    """

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1


@dataclass(frozen=True, eq=False)
class Panel:
    """One input before and after, for a picture.

    Args:
        original: (B, C, *size) in physical units.
        hidden: (B, *size) bool, True where it was hidden from the encoder.
        reconstruction: (B, C, *size) in physical units. Made without any statistic of hidden pixels.
        scattered: the input is a set of points: original (B, N, C), hidden (B, N), reconstruction (B, M, C), which may
            have another number of points.
    """

    original: Tensor
    hidden: Tensor
    reconstruction: Tensor
    scattered: bool = False


class Method(nn.Module, ABC):
    """A way to pre-train. Works in a five-line script:

        method = Croma()
        keys = sample_keys(torch.Generator().manual_seed(0), len(batch))
        method(batch, keys).loss.backward()

    Constructor keywords are the method's options, typed, with the paper's base configuration as defaults; a recipe is
    validated against that signature. A keyword named `masking` receives the recipe's masking.
    """

    encoder: Encoder
    summary: ClassVar[str] = ""
    default_masking: ClassVar[dict[str, Any]] = {"name": "random", "ratio": 0.75}
    """Masking section of a recipe that names none."""
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    """Sizes: `{"tiny": {"method": {option: value}, "trainer": {setting: value}}}`. "base" is the paper's."""
    progress: Progress = Progress()
    """Where the run is. Set by `start_step`."""

    @property
    def inputs(self) -> InputSpec:
        """What a loader must give."""
        return self.encoder.inputs

    @property
    def notes(self) -> list[str]:
        """Sentences that reports and model cards must print: what stands in for something of the paper, who taught."""
        return []

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """Constructor options that follow from the data, such as channel numbers. An explicit option wins over them."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, keys: Tensor) -> Step:
        """One step on a batch. `keys` (B,) from `sample_keys` decide all that is random about each sample."""

    @abstractmethod
    def encode(self, batch: Batch, keys: Tensor) -> Tensor | dict[str, Tensor]:
        """What the encoder makes of the tokens that are visible under `keys`: (B, V, D), or several by name.

        The contract tests change hidden inputs and check that not one bit of this changes.
        """

    @abstractmethod
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """What was hidden and how it was filled, for each input that a picture can be made of."""

    def settled(self, batch: Batch) -> Batch:
        """The batch with its tokens' layout written into it, where that follows from values which may be hidden.

        Patches of points move with the points. The contract tests change hidden values of the batch that this gives.
        """
        return batch

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        """Learn from the data what is no weight: the scaling of inputs, a tokenizer. Once, before the first step.

        Args:
            generator: decides what is random about it.
        """
        self.encoder.fit_normalizers(loader.statistics())

    def start_step(self, progress: Progress) -> None:
        """Called before each optimiser step, also of a resumed run. A masking is told the epoch."""
        self.progress = progress
        masking = getattr(self, "masking", None)
        if masking is not None:
            masking.epoch = progress.epoch

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after each optimiser step (moving averages, schedules)."""
        return None
