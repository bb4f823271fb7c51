"""Sample, Meta, Batch, InputSpec: what flows from files to methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.errors import ConfigError


@dataclass(frozen=True)
class Meta:
    """Where a sample comes from. Travels unchanged to embeddings and predictions.

    Args:
        source: the file, or the first of the files, it was read from.
        group: scene, patient, speaker or scan. Splits never cut through a group.
        index: position in its loader.
        window: (row, column, height, width) in pixels of the source, or None for the whole of it.
        crs: coordinate reference system as WKT or `EPSG:n`.
        transform: affine (a, b, c, d, e, f) from (column, row) of this sample to CRS units.
        label: class, value or None.
        extra: whatever else the domain keeps (spacing, sample rate, frames per second ...), JSON-able.
    """

    source: str
    group: str = ""
    index: int = -1
    window: tuple[int, int, int, int] | None = None
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    label: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Named tensors of one place, scan, clip or row, and their `Meta`.

    `tensors` holds physical units as read, for example `optical` (12, H, W), `sar` (2, H, W), `volume` (1, D, H, W),
    `points` (N, 3), `waveform` (T,), `video` (3, T, H, W). Of those named in `variable` the last axis is as long as it
    happens to be; a batch fills the shorter ones up with zeros and keeps their lengths.
    """

    tensors: dict[str, Tensor]
    meta: Meta
    variable: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class BadFile:
    """A file that could not be used, with the reason."""

    path: str
    reason: str


@dataclass
class Batch:
    """Samples stacked: each tensor has a leading batch dimension B. `bad` lists what could not be read for it.

    `lengths` (B,) int64, by name, says how much of the last axis is real where samples differ in it; behind are zeros.
    """

    tensors: dict[str, Tensor]
    metas: list[Meta]
    bad: list[BadFile] = field(default_factory=list)
    lengths: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors, lengths = ({n: change(t) for n, t in part.items()} for part in (self.tensors, self.lengths))
        return replace(self, tensors=tensors, lengths=lengths)


def collate(samples: Sequence[Sample | BadFile]) -> Batch:
    """Stack samples into a batch. Bad files are set aside in `Batch.bad`, never replaced by another sample.

    Raises:
        ConfigError: samples whose tensors have other names or shapes than those of the first sample.
    """
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = [sample for sample in samples if isinstance(sample, BadFile)]
    if not good:
        return Batch({}, [], bad)
    first = good[0]
    for sample in good[1:]:
        if set(sample.tensors) != set(first.tensors):
            raise ConfigError(
                f"{sample.meta.source} holds {sorted(sample.tensors)}, but {first.meta.source} holds "
                f"{sorted(first.tensors)}. Samples of one batch must hold the same tensors."
            )
        for name, tensor in sample.tensors.items():
            axes = slice(-1) if name in first.variable else slice(None)
            if tensor.shape[axes] != first[name].shape[axes]:
                raise ConfigError(
                    f'"{name}" of {sample.meta.source} has shape {tuple(tensor.shape)}, but that of '
                    f"{first.meta.source} has {tuple(first[name].shape)}. Set the loader's window size "
                    f"(such as data.size=120), or trainer.batch_size=1."
                )
    lengths = {name: torch.tensor([sample[name].shape[-1] for sample in good]) for name in sorted(first.variable)}
    tensors = {}
    for name in first.tensors:
        parts = [sample[name] for sample in good]
        if name in lengths:
            longest = int(lengths[name].max())
            parts = [F.pad(part, (0, longest - part.shape[-1])) for part in parts]
        tensors[name] = torch.stack(parts)
    return Batch(tensors, [sample.meta for sample in good], bad, lengths)


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor that a loader gives or a method needs.

    Args:
        dims: names of its dimensions without the batch, such as "C H W".
        channels: names of the channels in order (`("VV", "VH")`), or their number, or None for any.
        unit: physical unit, for people ("dB", "reflectance x 10000", "HU").
        optional: a batch may lack it if it holds another; all samples of one batch hold the same tensors.
        variable: samples differ in the length of the last axis; or, of a method, it heeds `Batch.lengths`.
    """

    dims: str
    channels: tuple[str, ...] | int | None = None
    unit: str = ""
    optional: bool = False
    variable: bool = False

    @property
    def channel_count(self) -> int | None:
        return len(self.channels) if isinstance(self.channels, tuple) else self.channels


InputSpec = dict[str, TensorSpec]


def check_inputs(given: InputSpec, wanted: InputSpec, giver: str, wanter: str) -> None:
    """Compare what a loader gives with what a method needs, before anything is trained.

    Raises:
        ConfigError: all mismatches at once; each names both sides and the option that mends it.
    """
    problems = []
    if wanted and not set(wanted) & set(given) and all(want.optional for want in wanted.values()):
        any_of = " or ".join(f'"{name}" ({want.dims})' for name, want in wanted.items())
        problems.append(
            f"{wanter} needs {any_of}, but {giver} gives only {', '.join(sorted(given))}. "
            f"Choose another loader with data.loader=NAME (`maskwright list loader`)."
        )
    for name, want in wanted.items():
        if name not in given and want.optional:
            continue
        if name not in given:
            problems.append(
                f'{wanter} needs "{name}" ({want.dims}), but {giver} gives only {", ".join(sorted(given))}. '
                f"Choose another loader with data.loader=NAME (`maskwright list loader`)."
            )
            continue
        have = given[name]
        if have.optional and not want.optional:
            problems.append(
                f'{wanter} needs "{name}" of every sample, but {giver} gives it of some only. Read one kind of sample '
                f"alone, with the loader made for it (data.loader=NAME)."
            )
        elif have.variable and not want.variable:
            problems.append(
                f'{wanter} needs "{name}" of one length, but {giver} gives samples of various lengths. Set the loader\'s '
                f"length (such as data.seconds=2)."
            )
        elif have.dims != want.dims:
            problems.append(
                f'{wanter} needs "{name}" with dimensions ({want.dims}), but {giver} gives ({have.dims}). '
                f"Choose another loader with data.loader=NAME (`maskwright list loader`)."
            )
        elif want.channel_count is not None and have.channel_count != want.channel_count:
            names = f" ({', '.join(have.channels)})" if isinstance(have.channels, tuple) else ""
            problems.append(
                f'{wanter} was built for {want.channel_count} channels of "{name}", but {giver} gives '
                f"{have.channel_count}{names}. Leave the method's channel option out to take the data's number, or "
                f"choose channels in the loader's options."
            )
    if problems:
        raise ConfigError("\n".join(problems))
