"""The loaders `volumes` and `slices`: NIfTI files and DICOM series, in 3-D and slice by slice."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.sample import Sample
from maskwright.core.statistics import spread
from maskwright.medical import windows
from maskwright.medical.base import MedicalLoader
from maskwright.medical.series import DicomVolume
from maskwright.medical.volume import View

if TYPE_CHECKING:
    from maskwright.medical.scenes import SliceScene, VolumeScene

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Axis of a view that slices of each kind follow one another along."""


class VolumeLoader(MedicalLoader):
    """Volumes of NIfTI files (.nii, .nii.gz, .hdr and .img) and of DICOM series, whole or as crops.

    `volume` (C, D, H, W) holds HU of a CT, and otherwise the file's numbers after its own scaling. x runs along W, y
    along H and z along D. Slices of a series are put in order by where they lie; missing slices, slices at one place
    and a tilted gantry set a series aside. Of a header only geometry, scaling and modality are kept. The group is the
    patient: of a DICOM series a keyed hash of PatientID, of a NIfTI file what `group_pattern` finds in its path, or
    else the file. The label is the first folder below `path`.

    `meta.extra["affine"]` (4, 4) is from (column, row, slice) of the sample to millimetres towards right, anterior and
    superior (RAS+), as in NIfTI.

    Args:
        path: a file or folder.
        size: voxels of a crop, one number or [D, H, W]: at random with a generator, else from the middle. What reaches
            beyond the volume gets the lowest value in the crop. Left out, whole volumes are read.
        squash: bring whole volumes to `size` instead of cropping them, whatever their shape, resampled as `spacing` does.
        spacing: millimetres between voxels, one number or [x, y, z]; the volume is resampled (scipy.ndimage, linear,
            filtered first along axes that get coarser). Left out, voxels stay as they are.
        reading: further options, see `MedicalLoader`.
    """

    input_name, dims, single = "volume", "C D H W", False

    def __init__(
        self,
        path: str | Path,
        size: int | tuple[int, int, int] | None = None,
        spacing: float | tuple[float, float, float] | None = None,
        squash: bool = False,
        **reading: Any,
    ) -> None:
        self.size = _sizes(size, 3)
        if squash:
            if self.size is None or spacing is not None:
                raise ConfigError("data.squash brings whole volumes to data.size: give that, and no data.spacing.")
            self.whole = self.size[::-1]
        super().__init__(path, spacing if isinstance(spacing, (tuple, list)) else (spacing,) * 3, **reading)
        self._spec(self.channels)

    def _extent(self) -> dict[str, Any]:
        return {"size": self.size, "whole": self.whole}

    def __len__(self) -> int:
        return len(self.views)

    def _place(self, index: int) -> tuple[View, int]:
        return self.views[index], index

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        self._check_index(index)
        view = self.views[index]
        size = view.shape if self.size is None else self.size[::-1]
        start = corner(view.shape, size, generator)
        tensor = torch.from_numpy(self._read(view, start, size))
        return Sample({"volume": tensor}, self._meta(index, view, start))

    def bytes_per_sample(self) -> int:
        z, y, x = self.size or self.views[0].shape[::-1]
        return 4 * self.channels * z * y * x

    @classmethod
    def scene_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Whole volumes instead of crops."""
        return options if options.get("squash") else {**options, "size": None}

    def scenes(self) -> list[VolumeScene]:
        """Every volume as a whole, read in windows (D, H, W); maps of it are written on the source's own grid."""
        from maskwright.medical.scenes import VolumeScene

        return [VolumeScene(self, number) for number in range(len(self))]


class SliceLoader(MedicalLoader):
    """Slices of the volumes of NIfTI files and DICOM series, and single DICOM pictures: 2-D inputs from 3-D data.

    `image` (C, H, W) holds HU of a CT, and otherwise the file's numbers after its own scaling. For axial slices x runs
    along W and y along H, for coronal ones x and z, for sagittal ones y and z. A slice of a NIfTI file or of an
    uncompressed series is read alone. Group, label and affine are as in the loader `volumes`; the affine's third axis is
    the one that leads through the slices.

    Args:
        path: a file or folder.
        axis: axial, coronal or sagittal, after the volume was turned to `orientation`.
        slices: slices of each volume, evenly spread; left out, all.
        context: neighbours on either side that become channels, 2 * context + 1 in all; the ends are repeated.
        size: pixels of a crop, one number or [H, W]: at random with a generator, else from the middle. What reaches
            beyond the slice gets the lowest value in the crop. Left out, whole slices are read.
        spacing: millimetres between pixels within a slice, one number or [along W, along H]; resampled as in `volumes`.
        scale: "min-max" brings every slice by itself from its lowest and highest value to 0 and 255, whatever a crop shows
            of it; the scale in HU is lost. Left out, values stay in their unit.
        padding: number stored in DICOM files, such as -2000, that is taken as 0 before slope and intercept.
        reading: further options, see `MedicalLoader`.
    """

    input_name, dims, single = "image", "C H W", True

    def __init__(
        self,
        path: str | Path,
        axis: Literal["axial", "coronal", "sagittal"] = "axial",
        slices: int | None = None,
        context: int = 0,
        size: int | tuple[int, int] | None = None,
        spacing: float | tuple[float, float] | None = None,
        scale: Literal["min-max"] | None = None,
        padding: int | None = None,
        **reading: Any,
    ) -> None:
        if context < 0 or (slices is not None and slices < 1):
            raise ConfigError(f"data.context={context}, data.slices={slices}: 0 or more, and 1 or more, are needed.")
        self.size, self.context, self.axis, self._count = _sizes(size, 2), context, AXES[axis], slices
        self.columns, self.rows = [other for other in range(3) if other != self.axis]
        self._plane = (self.rows, self.columns)
        self.scale, self._padding = scale, padding
        within = spacing if isinstance(spacing, (tuple, list)) else (spacing, spacing)
        wanted: list[float | None] = [None, None, None]
        wanted[self.columns], wanted[self.rows] = within
        super().__init__(path, wanted, **reading)
        for view in self.views:
            if isinstance(view.volume, DicomVolume):
                view.volume.as_zero = padding
        depths = [view.shape[self.axis] for view in self.views]
        self.chosen = [spread(depth, depth if slices is None else slices) for depth in depths]
        self.ends = list(accumulate(map(len, self.chosen)))
        names = tuple(f"slice {at:+d}" if at else "slice" for at in range(-context, context + 1))
        self._spec(self.channels * len(names), names if self.channels == 1 and context else None)
        if scale is not None:
            self.spec = {"image": replace(self.spec["image"], unit="0 to 255 of each slice")}

    def _extent(self) -> dict[str, Any]:
        extent = {"size": self.size, "axis": self.axis, "context": self.context, "slices": self._count}
        return {**extent, "scale": self.scale, "padding": self._padding}

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[View, int]:
        number = bisect_right(self.ends, index)
        return self.views[number], number

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        self._check_index(index)
        view, number = self._place(index)
        at = self.chosen[number][index - (self.ends[number - 1] if number else 0)]
        size = list(view.shape)
        if self.size is not None:
            size[self.rows], size[self.columns] = self.size
        start = [0, 0, 0] if self.size is None else corner(view.shape, size, generator)
        return self.read_slice(number, at, [start[a] for a in self._plane], [size[a] for a in self._plane])

    def read_slice(
        self, number: int, at: int, starts: Sequence[int], sizes: Sequence[int], fill: bool = True
    ) -> Sample:
        """A box of slice `at` of volume `number`, with its neighbours as channels.

        Args:
            starts, sizes: along H and W.
            fill: put the lowest value that was read where the file has none; else NaN stays.
        """
        view = self.views[number]
        depth = view.shape[self.axis]
        first, last = max(0, at - self.context), min(depth - 1, at + self.context)
        start, size = [first] * 3, [last - first + 1] * 3
        for axis, begin, extent in zip(self._plane, starts, sizes, strict=True):
            start[axis], size[axis] = begin, extent
        values = self._read(view, start, size, fill)
        if self.scale is not None:
            values = self._scaled(view, values, first)
        slabs = torch.from_numpy(values).movedim(3 - self.axis, 1)  # (C, slices, H, W)
        neighbours = [min(max(at + off, 0), depth - 1) - first for off in range(-self.context, self.context + 1)]
        image = slabs[:, neighbours].flatten(0, 1).contiguous()
        start[self.axis] = at
        index = (self.ends[number - 1] if number else 0) + bisect_left(self.chosen[number], at)
        meta = self._meta(index, view, start, (self.columns, self.rows, self.axis))
        meta.extra["slice"] = at
        return Sample({"image": image}, meta)

    def _scaled(self, view: View, values: np.ndarray, first: int) -> np.ndarray:
        """A crop (C, D, H, W) of the slices from `first` on, scaled by the ends of its whole slices."""
        start, size = [0, 0, 0], list(view.shape)
        start[self.axis], size[self.axis] = first, values.shape[3 - self.axis]
        whole, plane = self._read(view, start, size), (3 - self.rows, 3 - self.columns)
        return windows.min_max(values, whole.min(plane, keepdims=True), whole.max(plane, keepdims=True))

    @classmethod
    def scene_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Whole slices, and all of them."""
        return {**options, "size": None, "slices": None}

    def scenes(self) -> list[SliceScene]:
        """Every volume as a stack of slices; maps of it are written on the source's own grid."""
        from maskwright.medical.scenes import SliceScene

        return [SliceScene(self, number) for number in range(len(self.views))]

    def bytes_per_sample(self) -> int:
        shape = self.views[0].shape
        height, width = self.size or (shape[self.rows], shape[self.columns])
        return 4 * (self.spec["image"].channel_count or 1) * height * width

    def _picture_axes(self) -> tuple[int, int]:
        return self._plane


def _sizes(size: int | Sequence[int] | None, axes: int) -> tuple[int, ...] | None:
    """Sizes along each axis, D first."""
    if size is None:
        return None
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if min(sizes) < 1:
        raise ConfigError(f"data.size={list(sizes)}: at least 1 along each axis is needed.")
    return sizes


def corner(shape: Sequence[int], size: Sequence[int], generator: torch.Generator | None) -> list[int]:
    """First voxel (x, y, z) of a crop: anywhere inside at random, or in the middle; below 0 where it is larger."""
    rooms = [length - wanted for length, wanted in zip(shape, size, strict=True)]
    if generator is None:
        return [room // 2 for room in rooms]
    draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return [int(draw * (room + 1)) if room > 0 else room // 2 for draw, room in zip(draws, rooms, strict=True)]
