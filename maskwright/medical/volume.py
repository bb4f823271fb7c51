"""Volume: voxels in a file or a series of files, with their place in the patient. View: the same as it is given out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from maskwright.core.errors import DataError
from maskwright.core.sample import BadFile

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
"""Start and stop along each axis, inside the volume."""

SPACINGS = (1e-5, 1e4)
"""Millimetres between voxels that are believed."""
FLATTEST = 1e-3
"""Smallest determinant of the directions of the axes; 0 is a volume without volume."""
SAME_SPACING = 1e-3
"""Relative difference up to which two spacings are one, so that nothing is resampled."""


class Volume(ABC):
    """Voxels (i, j, k) of one file or series. Holds no open file and no identifying field of a header.

    Attributes:
        files: every file that it is read from.
        name: path below the folder that was opened, without ending.
        group: the patient.
        shape: voxels along i, j and k.
        affine: (4, 4), from (i, j, k) to millimetres, or the file's unit, towards right, anterior and superior (RAS+).
        frames: number of volumes in it, 1 unless it is a series over time or of channels.
        unit: "HU", or "as stored".
        modality: such as "CT" or "MR"; empty where the file does not say.
        millimetres: how long the file's unit is.
    """

    files: list[str]
    name: str
    group: str
    shape: Shape
    affine: np.ndarray
    frames: int = 1
    unit: str = "as stored"
    modality: str = ""
    millimetres: float = 1.0

    @abstractmethod
    def read(self, box: Box, frame: int = 0) -> np.ndarray:
        """The voxels of a box, (i, j, k) float32; NaN where the file has none.

        Raises:
            DataError: the file is broken, or lies about itself.
        """

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along i, j and k."""
        return spacing_of(self.affine, self.millimetres)


def set_aside(error: DataError) -> BadFile:
    """A file that cannot be used, with the reason, which does not name the file again."""
    return BadFile(error.path, str(error).removeprefix(f"{error.path}: "))


def spacing_of(affine: np.ndarray, millimetres: float = 1.0) -> tuple[float, float, float]:
    """Millimetres between voxels along each axis of an affine (4, 4)."""
    return tuple((np.linalg.norm(affine[:3, :3], axis=0) * millimetres).tolist())  # type: ignore[return-value]


def check_affine(path: object, affine: np.ndarray, millimetres: float = 1.0) -> None:
    """Refuse an affine that places no voxels.

    Raises:
        DataError: not finite, an absurd spacing, or axes that lie in one plane.
    """
    if not np.isfinite(affine).all():
        raise DataError(path, "its affine holds NaN or infinity", "the place of its voxels", "Mend its header")
    spacing = spacing_of(affine, millimetres)
    if not all(SPACINGS[0] <= value <= SPACINGS[1] for value in spacing):
        raise DataError(
            path,
            f"its affine has a spacing of {_text(spacing)} mm",
            f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm along each axis",
            "Mend its header",
        )
    if abs(np.linalg.det(affine[:3, :3] * millimetres / np.array(spacing))) < FLATTEST:
        raise DataError(
            path, "its affine is singular: its axes lie in one plane", "three directions", "Mend its header"
        )


def _text(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class View:
    """A volume turned to an orientation and resampled to a spacing, with axes x, y and z.

    Resampled is with scipy.ndimage: linear, behind a Gaussian filter of (step - 1) / 2 voxels along axes that get
    coarser, so that nothing is aliased. The middle of the volume stays where it is. A box reads the same as the
    same part of the whole.

    Args:
        order: axis of the volume that each axis of the view is.
        flips: whether each axis of the view runs the other way.
        steps: spacing of the view / spacing of the volume, along each axis of the view.
        shape: voxels along x, y and z.
    """

    volume: Volume
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    steps: tuple[float, float, float]
    shape: Shape

    @classmethod
    def of(
        cls,
        volume: Volume,
        orientation: str = "RAS",
        spacing: Sequence[float | None] = (None, None, None),
        shape: Shape | None = None,
    ) -> View:
        """A view.

        Args:
            orientation: where x, y and z lead, such as "RAS"; "stored" leaves the axes as they are.
            spacing: millimetres along x, y and z; None leaves an axis as it is.
            shape: voxels along x, y and z that the whole volume is brought to, instead of a spacing.
        """
        order, flips = [0, 1, 2], [False, False, False]
        if orientation != "stored":
            turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(orientation)))
            for axis, (target, sign) in enumerate(turn):
                order[int(target)], flips[int(target)] = axis, bool(sign < 0)
        if shape is not None:
            steps = [volume.shape[axis] / wanted for axis, wanted in zip(order, shape, strict=True)]
            return cls(volume, tuple(order), tuple(flips), tuple(steps), shape)  # type: ignore[arg-type]
        steps, found = [], []
        for axis, wanted in zip(order, spacing, strict=True):
            have, length = volume.spacing[axis], volume.shape[axis]
            step = 1.0 if wanted is None or math.isclose(wanted, have, rel_tol=SAME_SPACING) else wanted / have
            steps.append(step)
            found.append(max(1, round(length / step)))
        return cls(volume, tuple(order), tuple(flips), tuple(steps), tuple(found))  # type: ignore[arg-type]

    def lengths(self) -> Shape:
        """Voxels of the volume along x, y and z."""
        return tuple(self.volume.shape[axis] for axis in self.order)  # type: ignore[return-value]

    def shifts(self) -> tuple[float, float, float]:
        """Where voxel 0 of the view lies, in voxels of the turned volume: both have one middle."""
        pairs = zip(self.lengths(), self.shape, self.steps, strict=True)
        return tuple((old - 1) / 2 - step * (new - 1) / 2 for old, new, step in pairs)  # type: ignore[return-value]

    @property
    def resampled(self) -> bool:
        return self.steps != (1.0, 1.0, 1.0)

    def affine_at(self, start: Sequence[float] = (0, 0, 0)) -> np.ndarray:
        """(4, 4) from (x, y, z), counted from voxel `start` of the view, to the world (RAS+)."""
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1
        for axis, source in enumerate(self.order):
            step, shift = self.steps[axis], self.shifts()[axis] + self.steps[axis] * start[axis]
            last = self.lengths()[axis] - 1
            to_source[source, axis] = -step if self.flips[axis] else step
            to_source[source, 3] = last - shift if self.flips[axis] else shift
        return self.volume.affine @ to_source

    def upright(self, image: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """A picture (H, W) as radiologists see it: front or head above, the patient's right on the left.

        Args:
            rows, columns: axes of the view (0 is x) that its rows and columns count along.
        """
        codes = aff2axcodes(self.affine_at())
        turn = tuple(slice(None, None, -1) if codes[axis] in "RAS" else slice(None) for axis in (rows, columns))
        return np.ascontiguousarray(image[turn])

    def read(self, box: Box, frames: Sequence[int] = (0,), fill: bool = True) -> np.ndarray:
        """Voxels of a box (x, y, z) as (F, D, H, W) float32: D along z, H along y, W along x.

        Args:
            frames: volumes that become channels.
            fill: put the lowest value that was read where the file has none; else NaN stays.

        Raises:
            DataError: the file is broken, or holds nothing but NaN or anything infinite.
        """
        spans, starts = [], []
        for axis, part in enumerate(box):
            low, high = self._span(axis, part)
            starts.append(low)
            last = self.lengths()[axis]
            spans.append(slice(last - high, last - low) if self.flips[axis] else slice(low, high))
        source: list[slice] = [slice(0)] * 3
        for axis, span in zip(self.order, spans, strict=True):
            source[axis] = span
        return np.stack([self._frame(tuple(source), box, starts, frame, fill) for frame in frames])  # type: ignore[arg-type]

    def _span(self, axis: int, part: slice) -> tuple[int, int]:
        """Voxels of the turned volume that a part of an axis is made of."""
        step, shift, length = self.steps[axis], self.shifts()[axis], self.lengths()[axis]
        if step == 1.0:
            return part.start, part.stop
        margin = 1 + (math.ceil(4 * blur_of(step)) if step > 1 else 0)
        low, high = shift + step * part.start, shift + step * (part.stop - 1)
        return max(0, math.floor(low) - margin), min(length, math.ceil(high) + margin + 1)

    def _frame(self, source: Box, box: Box, starts: Sequence[int], frame: int, fill: bool) -> np.ndarray:
        values = self.volume.read(source, frame)
        values = known(values, self.volume.files[0], fill)
        values = values.transpose(self.order)[
            tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        ]
        if self.resampled:
            shape = tuple(part.stop - part.start for part in box)
            offsets = [
                shift + step * part.start - start
                for shift, step, part, start in zip(self.shifts(), self.steps, box, starts, strict=True)
            ]
            values = resample(values, self.steps, offsets, shape)
        return np.ascontiguousarray(values.transpose(2, 1, 0))


def blur_of(step: float) -> float:
    """Standard deviation, in voxels, of the filter before every `step`-th voxel is kept."""
    return max(0.0, (step - 1) / 2)


def resample(
    values: np.ndarray, steps: Sequence[float], offsets: Sequence[float], shape: Sequence[int], order: int = 1
) -> np.ndarray:
    """Values (x, y, z) at offset + step * index along each axis, in their own type; edges are continued.

    Args:
        order: 1 for linear, with the filter of `blur_of`; 0 for the nearest, without.
    """
    if order:
        for axis, step in enumerate(steps):
            if step > 1:
                values = ndimage.gaussian_filter1d(values, blur_of(step), axis=axis, mode="nearest", truncate=4.0)
    return ndimage.affine_transform(
        values, np.asarray(steps, dtype=float), offsets, tuple(shape), order=order, mode="nearest", prefilter=False
    )


def known(values: np.ndarray, path: str, fill: bool) -> np.ndarray:
    """Values of which none is infinite, and none NaN if they are to be filled with the lowest of the others.

    Raises:
        DataError: some are infinite, or all NaN.
    """
    if np.isfinite(values.sum(dtype=np.float64)):  # much cheaper than a mask, and nearly always enough
        return values
    missing = np.isnan(values)
    if np.isinf(values).any():
        raise DataError(path, "holds infinite values", "finite numbers")
    if missing.all():
        raise DataError(path, "holds nothing but NaN in what was read", "numbers")
    return np.where(missing, np.float32(values[~missing].min()), values) if fill and missing.any() else values
