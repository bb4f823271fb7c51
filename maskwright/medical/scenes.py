"""Whole volumes as scenes: windows in, maps out on the grid of the source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maskwright.core.sample import Sample
from maskwright.core.scene import MapFormat, MapWriter, Scene, Window
from maskwright.medical.volume import View
from maskwright.medical.writers import header_for, restored, write_bands

if TYPE_CHECKING:
    from maskwright.medical.loaders import SliceLoader, VolumeLoader


class VolumeScene(Scene):
    """Volume `number` of a loader, (D, H, W) as the loader gives it out: turned, resampled, windowed."""

    suffix = ".nii.gz"

    def __init__(self, loader: VolumeLoader, number: int) -> None:
        view = loader.views[number]
        self.loader, self.number, self.view = loader, number, view
        self.name, self.sources = view.volume.name, list(view.volume.files)
        self.shape = view.shape[::-1]

    def read(self, window: Window) -> Sample:
        start, size = [part.start for part in window], [part.stop - part.start for part in window]
        values = self.loader._read(self.view, start[::-1], size[::-1], fill=False)
        return Sample({"volume": torch.from_numpy(values)}, self.loader._meta(self.number, self.view, start[::-1]))

    def writer(self, path: Path, form: MapFormat) -> Any:
        return write_map(path, self.view, form)


class SliceScene(Scene):
    """The slices of volume `number` of a loader, (slices, H, W), of which a model sees one at a time."""

    suffix, stacked = ".nii.gz", True

    def __init__(self, loader: SliceLoader, number: int) -> None:
        view = loader.views[number]
        self.loader, self.number, self.view = loader, number, view
        self.name, self.sources = view.volume.name, list(view.volume.files)
        self.shape = tuple(view.shape[axis] for axis in (loader.axis, loader.rows, loader.columns))

    def read(self, window: Window) -> Sample:
        (at, *starts), sizes = [part.start for part in window], [part.stop - part.start for part in window[1:]]
        return self.loader.read_slice(self.number, at, starts, sizes, fill=False)

    def writer(self, path: Path, form: MapFormat) -> Any:
        return write_map(path, self.view, form, self.loader.axis)


class _Slabs(MapWriter):
    def __init__(self, values: np.ndarray) -> None:
        self.values, self.filled = values, 0

    def write(self, window: Window, array: np.ndarray) -> None:
        rows, *rest = window
        if rows.start != self.filled or any(
            part != slice(0, size) for part, size in zip(rest, self.values.shape[2:], strict=True)
        ):
            raise ValueError(f"pieces must come in order: slice {self.filled} is next, not {window}")
        self.values[:, rows] = array
        self.filled = rows.stop


@contextmanager
def write_map(path: Path, view: View, form: MapFormat, axis: int = 2) -> Iterator[MapWriter]:
    """A NIfTI map on the source's grid; it waits in an unnamed file beside it, so that memory stays small.

    Args:
        axis: of the view (0 is x) that pieces follow one another along.

    Raises:
        DataError: it cannot be written. DiskFullError: no space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, shape = np.dtype(form.dtype), (len(form.bands), *view.shape[::-1])
    with tempfile.TemporaryFile(dir=path.parent) as waiting:
        values = np.memmap(waiting, dtype, "w+", shape=shape)
        slabs = _Slabs(np.moveaxis(values, 3 - axis, 1))
        yield slabs
        if slabs.filled != view.shape[axis]:
            raise ValueError(f"{path}: only {slabs.filled} of {view.shape[axis]} slices were given")
        header = header_for(view.volume, dtype, len(form.bands), path)
        header["descrip"] = ("model " + form.tags.get("model", ""))[:79].encode() if form.tags else b""
        back = restored(view)
        write_bands(path, header, (back(band) for band in values))
