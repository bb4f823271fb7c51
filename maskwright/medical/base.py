"""What the two loaders of volumes share: options, meta, statistics, pictures, label volumes."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import Meta, Sample, TensorSpec
from maskwright.core.statistics import cached, compute, fingerprint
from maskwright.medical import windows
from maskwright.medical.dicom import SUFFIXES as DICOM_SUFFIXES
from maskwright.medical.find import find_volumes, holds_volumes
from maskwright.medical.inspection import inspect_volumes
from maskwright.medical.nifti import GROUP_PATTERN, MAX_VOXELS, NiftiVolume
from maskwright.medical.nifti import SUFFIXES as NIFTI_SUFFIXES
from maskwright.medical.volume import Box, Shape, View, Volume, set_aside

ORIENTATIONS = [x + y + z for x in "RL" for y in "AP" for z in "SI"]
LARGEST_CODE = 2**24
"""Label codes up to here are exact in float32."""
Window = str | tuple[float, float] | None


def check_orientation(orientation: str) -> None:
    if orientation not in (*ORIENTATIONS, "stored"):
        raise ConfigError(
            f'data.orientation="{orientation}" is none of {", ".join(ORIENTATIONS)} or stored. RAS lets x lead to the '
            f"patient's right, y to the front (anterior) and z upwards (superior)."
        )


class MedicalLoader(Loader):
    """Views of all volumes of a folder. A subclass says which part of which view a sample is.

    Args:
        path: a file or folder.
        spacing: millimetres along x, y and z of a view; None leaves an axis as it is.
        orientation: where x, y and z lead: RAS by default, so that all volumes lie alike; stored keeps each as it is.
        window: lung, brain, bone, soft-tissue, or [centre, width] in HU; values beyond it become its ends.
        volume: which volume of a 4-D file, counted from 0; all makes them channels.
        group_pattern: regular expression that finds the patient in a NIfTI file's path; its first group, if it has any.
        salt_file: file with the secret key of the hashes of patients; left out, one in the user's cache folder.
        cache: gigabytes that inflated copies of .nii.gz may take in the user's cache folder; 0 keeps none.
        max_voxels: larger volumes are set aside before anything is allocated.

    Raises:
        ConfigError: an option out of its range. DataError: there is no volume that can be used.
    """

    suffixes = (*NIFTI_SUFFIXES, *DICOM_SUFFIXES)
    input_name: str
    dims: str
    single: bool
    """Whether a DICOM picture without neighbours is a volume of one slice."""
    whole: Shape | None = None
    """Voxels along x, y and z that every volume is brought to as a whole."""

    def __init__(
        self,
        path: str | Path,
        spacing: Sequence[float | None] = (None, None, None),
        orientation: str = "RAS",
        window: Window = None,
        volume: int | Literal["all"] | None = None,
        group_pattern: str = GROUP_PATTERN,
        salt_file: str = "",
        cache: float = 20.0,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        check_orientation(orientation)
        if any(value is not None and not (math.isfinite(value) and value > 0) for value in spacing):
            raise ConfigError(f"data.spacing={list(spacing)}: millimetres above 0 are needed.")
        if max_voxels < 1 or cache < 0:
            raise ConfigError("data.max_voxels must be at least 1, and data.cache 0 or more.")
        self._reading = {"spacing": list(spacing), "orientation": orientation, "window": window, "volume": volume}
        self._reading |= self._extent()
        self.path, self.limits = Path(path), windows.window_range(window)
        self._named_window, self._volume = isinstance(window, str), volume
        found = find_volumes(path, self.single, group_pattern, salt_file, max_voxels, cache)
        self.bad_files = found.bad
        self.views: list[View] = []
        self._labels: list[str | None] = []
        self.channels = 0
        for one, label in zip(found.volumes, found.labels, strict=True):
            try:
                frames = self._frames(one)
                self._suits(one)
                view = View.of(one, orientation, spacing, self.whole)
                if math.prod(view.shape) > max_voxels:
                    raise DataError(
                        one.files[0],
                        f"has {' x '.join(map(str, view.shape))} voxels at this spacing",
                        f"at most {max_voxels}",
                        "Raise data.spacing or data.max_voxels",
                    )
                if self.channels and len(frames) != self.channels:
                    raise DataError(
                        one.files[0],
                        f"has {len(frames)} volumes",
                        f"{self.channels}, as the first file has",
                        "Choose one of each with data.volume=0",
                    )
            except DataError as error:
                self.bad_files.append(set_aside(error))
                continue
            self.channels = len(frames)
            self.views.append(view)
            self._labels.append(label)
        if not self.views:
            reason = self.bad_files[0].reason if self.bad_files else "no NIfTI file and no DICOM series is in it"
            found_none = "" if self.path.is_file() else "holds no usable volume: "
            raise DataError(path, f"{found_none}{reason.rstrip('.')}")

    @abstractmethod
    def _extent(self) -> dict[str, Any]:
        """Options of the subclass that change what a sample holds."""

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return holds_volumes(path, cls.single)

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """A row a volume or picture: file, shape, spacing, orientation; or the reason why it cannot be used."""
        return inspect_volumes(path)

    def _frames(self, volume: Volume) -> list[int]:
        """Which volumes of a 4-D file become channels.

        Raises:
            DataError: it is 4-D, and nothing says which, or there are not so many.
        """
        if self._volume == "all":
            return list(range(volume.frames))
        if self._volume is None:
            if volume.frames > 1:
                raise DataError(
                    volume.files[0],
                    f"is 4-D: {volume.frames} volumes of {' x '.join(map(str, volume.shape))} voxels",
                    "one volume",
                    "Choose one with data.volume=0, or all as channels with data.volume=all",
                )
            return [0]
        if not 0 <= self._volume < volume.frames:
            raise DataError(volume.files[0], f"has {volume.frames} volumes", f"a volume {self._volume}, counted from 0")
        return [self._volume]

    def _suits(self, volume: Volume) -> None:
        """A window by name is in HU, which no modality but CT has; NIfTI files do not say what they are."""
        if self._named_window and volume.modality and volume.unit != "HU":
            raise DataError(
                volume.files[0],
                f"is of modality {volume.modality}, and its numbers are no HU",
                "a CT in HU for a window by name",
                "Give data.window=[centre, width] in the file's own numbers, or leave it out",
            )

    def _spec(self, channels: int, names: tuple[str, ...] | None = None) -> None:
        units = {view.volume.unit for view in self.views}
        unit = units.pop() if len(units) == 1 else "as stored"
        self.spec = {self.input_name: TensorSpec(self.dims, names or channels, unit)}

    @abstractmethod
    def _place(self, index: int) -> tuple[View, int]:
        """The view of a sample, and its number."""

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, not a sample {index}")

    def _read(self, view: View, start: Sequence[int], size: Sequence[int], fill: bool = True) -> np.ndarray:
        """(C, D, H, W) of a box (x, y, z) that may reach beyond the view, windowed.

        What lies outside gets the lowest value that was read inside.
        """
        inside = tuple(
            slice(max(0, at), min(length, at + extent))
            for at, extent, length in zip(start, size, view.shape, strict=True)
        )
        values = windows.clip(view.read(inside, self._frames(view.volume), fill), self.limits)  # type: ignore[arg-type]
        pads = [
            (part.start - at, at + extent - part.stop) for part, at, extent in zip(inside, start, size, strict=True)
        ]
        if any(before or after for before, after in pads):
            lowest = np.nanmin(values) if not np.isnan(values).all() else np.nan
            values = np.pad(values, [(0, 0), *reversed(pads)], constant_values=lowest)
        return values

    def _meta(self, index: int, view: View, start: Sequence[int], axes: Sequence[int] = (0, 1, 2)) -> Meta:
        """Meta of a box at `start`; its affine is from (column, row, slice), which count along `axes` of the view."""
        volume = view.volume
        affine = view.affine_at(start)[:, [*axes, 3]]
        spacing = np.linalg.norm(affine[:3, :3], axis=0) * volume.millimetres
        extra = {
            "affine": affine.tolist(),
            "spacing": spacing.tolist(),
            "start": list(start),
            "source_shape": list(volume.shape),
            "source_spacing": list(volume.spacing),
            "modality": volume.modality,
            "unit": volume.unit,
            "resampled": view.resampled,
        }
        return Meta(volume.files[0], volume.group, index, label=self.label(index), extra=extra)

    def group(self, index: int) -> str:
        return self._place(index)[0].volume.group

    def label(self, index: int) -> str | None:
        """The first folder below the one that was opened, None at its top."""
        return self._labels[self._place(index)[1]]

    def sources(self, index: int) -> list[str]:
        return list(self._place(index)[0].volume.files)

    def statistics(self) -> dict[str, Statistics]:
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Of up to 64 samples as they are read without anything random, kept in the user's cache folder."""

        def read(index: int) -> dict[str, np.ndarray]:
            return {self.input_name: self.read(index)[self.input_name].numpy()}

        files = {file for view in self.views for file in view.volume.files}
        key = fingerprint(files, {"loader": type(self).__name__, **self._reading})
        counts = {name: spec.channel_count for name, spec in self.spec.items()}
        return cached(key, counts, lambda: compute(len(self), read, self.path))

    # labels --------------------------------------------------------------------------------------------------------

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        """Codes on the grid of a sample, those of the nearest voxel: int64, -1 outside of the label volume.

        Args:
            path: a NIfTI file, or a folder that holds one named like the sample's file, at the same place or at the top.

        Raises:
            DataError: there is none, it holds no whole numbers, or lies somewhere else altogether.
        """
        sizes = sample[self.input_name].shape[1:]
        shape = (1, *sizes) if len(sizes) == 2 else tuple(sizes)
        affine = np.array(sample.meta.extra["affine"])
        return codes_on(self._label_file(Path(path), sample), affine, shape).reshape(tuple(sizes))

    def _label_file(self, path: Path, sample: Sample) -> Path:
        if path.is_file():
            return path
        name = self._place(sample.meta.index)[0].volume.name
        for stem in dict.fromkeys((name, Path(name).name)):
            for suffix in (".nii.gz", ".nii", ".hdr"):
                if (file := path / f"{stem}{suffix}").is_file():
                    return file
        raise DataError(path, f'holds no label volume for "{name}"', f"{Path(name).name}.nii.gz, named like the volume")

    # pictures ------------------------------------------------------------------------------------------------------

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """In grey, from darkest to brightest, or over the window; of a volume the middle slice, of channels the middle one."""
        x = tensor.detach().float().cpu()
        x = x[len(x) // 2]
        x = x[len(x) // 2] if x.ndim == 3 else x
        low, high = self.limits or (float(x.min()), float(x.max()))
        return np.repeat(windows.to_bytes(x.numpy(), (low, high))[..., None], 3, axis=2)

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        """As radiologists look at it, see `View.upright`."""
        return self.views[0].upright(picture, *self._picture_axes())

    def _picture_axes(self) -> tuple[int, int]:
        """Axes of the view (0 is x) that rows and columns of a picture count along."""
        return 1, 0


def codes_on(path: Path, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Codes of a label volume at (x, y, z) that an affine (4, 4) brings to the world: (D, H, W) int64, -1 outside.

    Raises:
        DataError: no label volume, or it does not touch the grid.
    """
    labels = NiftiVolume(path)
    if labels.frames > 1:
        raise DataError(path, f"holds {labels.frames} volumes", "one volume of codes")
    to_label = np.linalg.solve(labels.affine, affine)
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in reversed(shape)], [1], indexing="ij")).reshape(4, -1)
    reached = (to_label @ corners)[:3]
    low = np.maximum(np.floor(reached.min(1)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(reached.max(1)).astype(int) + 2, labels.shape)
    if (low >= high).any():
        raise DataError(path, "lies elsewhere: it does not touch the volume that it belongs to", "one place in space")
    box: Box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))  # type: ignore[assignment]
    values = labels.read(box)
    if not np.isfinite(values).all() or (values != np.round(values)).any() or np.abs(values).max() > LARGEST_CODE:
        raise DataError(path, "holds numbers that are no codes", f"whole numbers up to {LARGEST_CODE}")
    matrix, offset = to_label[:3, :3], to_label[:3, 3] - low
    codes = ndimage.affine_transform(
        values.astype(np.int64) + 1,
        np.round(matrix, 9),
        np.round(offset, 6),
        tuple(reversed(shape)),
        order=0,
        mode="grid-constant",
        cval=0,
    )
    return codes.transpose(2, 1, 0).astype(np.int64) - 1
