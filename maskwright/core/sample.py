"""Sample, Meta, Batch, InputSpec: what flows from files to methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
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
    `points` (N, 3), `waveform` (T,), `video` (3, T, H, W).
    """

    tensors: dict[str, Tensor]
    meta: Meta

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class BadFile:
    """A file that could not be used, with the reason."""

    path: str
    reason: str


@dataclass
class Batch:
    """Samples stacked: each tensor has a leading batch dimension B. `bad` lists what could not be read for it."""

    tensors: dict[str, Tensor]
    metas: list[Meta]
    bad: list[BadFile] = field(default_factory=list)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors.items()}
        return replace(self, tensors=moved)

    def pin_memory(self) -> Batch:
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})


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
            if tensor.shape != first[name].shape:
                raise ConfigError(
                    f'"{name}" of {sample.meta.source} has shape {tuple(tensor.shape)}, but that of '
                    f"{first.meta.source} has {tuple(first[name].shape)}. Set the loader's window size "
                    f"(such as data.size=120), or trainer.batch_size=1."
                )
    tensors = {name: torch.stack([sample[name] for sample in good]) for name in first.tensors}
    return Batch(tensors, [sample.meta for sample in good], bad)


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor that a loader gives or a method needs.

    Args:
        dims: names of its dimensions without the batch, such as "C H W".
        channels: names of the channels in order (`("VV", "VH")`), or their number, or None for any.
        unit: physical unit, for people ("dB", "reflectance x 10000", "HU").
        optional: a batch may lack it if it holds another; all samples of one batch hold the same tensors.
    """

    dims: str
    channels: tuple[str, ...] | int | None = None
    unit: str = ""
    optional: bool = False

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
