"""The loader `grids`: radiance fields sampled on a regular grid, as NeRF-RPN and NeRF-MAE publish them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.core.array_files import NUMBERS, Declared, load_npz, map_npy, npy_header, npz_headers
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.folder import FileLoader
from maskwright.core.loader import Statistics
from maskwright.core.sample import BadFile, Meta, Sample, TensorSpec
from maskwright.core.statistics import Running, spread

ARRAY = "rgbsigma"
MAX_SAMPLES = 64
"""Samples that statistics are taken from, spread evenly over all."""
MAX_VOXELS = 512**3
LOOKED_AT = 20
"""Files of a folder whose headers are read to see what it holds."""
SLACK = 1e-3
"""How far beyond 0 to 1 a colour or opacity may lie by rounding."""
Density = Literal["exp", "relu", "alpha"]


def density_to_alpha(sigma: np.ndarray, density: Density) -> np.ndarray:
    """Opacity in 0 to 1 of a stored density, over a step of 1/100 (NeRF-MAE, released loaders).

    Args:
        sigma: numbers as the field gives them, before its activation.
        density: the field's activation: "exp" (instant-ngp: Front3D, HM3D, Hypersim), 1 - exp(-exp(sigma) / 100); or
            "relu" (ScanNet), 1 - exp(-max(sigma, 0) / 100); "alpha" where opacities are stored.

    Raises:
        ConfigError: another name.
    """
    if density not in ("exp", "relu", "alpha"):
        raise ConfigError(f'data.density="{density}" is none of exp, relu, alpha.')
    if density == "alpha":
        return sigma
    with np.errstate(over="ignore"):  # beyond all numbers is opaque
        thickness = np.exp(sigma) if density == "exp" else np.maximum(sigma, 0)
        return -np.expm1(-thickness / 100)


def composite(grid: Tensor, axis: int = 1, from_end: bool = True) -> Tensor:
    """What is seen along an axis of a volume, front to back, on black.

    Args:
        grid: (4, D, H, W) colour and opacity in 0 to 1.
        axis: axis to look along: 1 for D.
        from_end: look from the end of the axis on; with D from below to above that is the view from above.

    Returns:
        (3, *the other two axes) in 0 to 1.
    """
    x = grid.flip(axis) if from_end else grid
    alpha = x[3:].clamp(0, 1)
    light = (1 - alpha).cumprod(axis)
    before = torch.cat([torch.ones_like(light.narrow(axis, 0, 1)), light.narrow(axis, 0, light.shape[axis] - 1)], axis)
    return (x[:3].clamp(0, 1) * alpha * before).sum(axis)


class GridLoader(FileLoader):
    """Radiance fields on grids: .npz with an array `rgbsigma`, or .npy; (W, L, H, 4) along x, y and z, z up.

    `grid` (4, D, H, W) holds red, green, blue and opacity in 0 to 1, with D along z, H along y and W along x; `valid`
    (1, D, H, W) is 1 inside of the scene and 0 where zeros fill it up. 8-bit grids are divided by 255. The group is the
    file, that is the scene; the label the folder that it lies in.

    Args:
        path: a file, or a folder.
        size: voxels of a sample, one number or [D, H, W]. Smaller scenes are filled up at the ends of their axes, of
            larger ones a box is read: at random with a generator, else the first voxels. Null reads whole scenes.
        density: what the fourth channel holds: the density before an exponential ("exp", instant-ngp) or before a
            rectifier ("relu"), or opacities ("alpha", also of 8-bit grids). It differs from one radiance field to the
            other and is not in the files: "exp" for "relu" makes all of a scene opaque.
        rotate: with a generator, how often a scene is turned by 90 degrees about z.
        flip: with a generator, how often it is mirrored, for each of x and y.
        max_voxels: larger files are set aside before anything is allocated.

    Raises:
        ConfigError: an option out of its range. DataError: there is no grid that can be used.
    """

    suffixes = (".npz", ".npy")

    def __init__(
        self,
        path: str | Path,
        size: int | tuple[int, int, int] | None = 160,
        density: Density = "exp",
        rotate: float = 0.5,
        flip: float = 0.5,
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        super().__init__(path)
        sizes = (size,) * 3 if isinstance(size, int) else size
        if sizes is not None and (len(sizes) != 3 or min(sizes) < 1):
            raise ConfigError(f"data.size={size} must be one number of 1 or more, or three of them: [D, H, W].")
        if not 0 <= rotate <= 1 or not 0 <= flip <= 1:
            raise ConfigError(f"data.rotate={rotate} and data.flip={flip} are shares, 0 to 1.")
        if max_voxels < 1 or (sizes is not None and math.prod(sizes) > max_voxels):
            raise ConfigError(
                f"data.max_voxels={max_voxels} must be 1 or more, and no less than data.size={size} needs."
            )
        density_to_alpha(np.zeros(1), density)
        self.size = None if sizes is None else tuple(sizes)
        self.density, self.rotate, self.flip, self.max_voxels = density, rotate, flip, max_voxels
        self.spec = {
            "grid": TensorSpec("C D H W", ("red", "green", "blue", "alpha"), "0 to 1"),
            "valid": TensorSpec("C D H W", ("valid",), "1 inside of the scene"),
        }
        self.shapes: list[tuple[int, ...]] = []
        """(D, H, W) of each scene."""
        good = []
        for file in self.files:
            try:
                declared = declared_grid(file)
                self._suits(file, declared)
            except DataError as error:
                self.bad_files.append(BadFile(str(file), str(error)))
                continue
            good.append(file)
            self.shapes.append(declared.shape[2::-1])
        self.files = good
        if not good:
            reason = self.bad_files[-1].reason if self.bad_files else f"there is no {' or '.join(self.suffixes)} file"
            raise DataError(path, f"holds no usable grid: {reason.rstrip('.')}")

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether a file, or one of the first such files of a folder, declares a grid."""
        return any(_declares_grid(file) for file in _grid_files(path)[:LOOKED_AT])

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """A row a file: shape, type, range of the fourth channel, and which share of it is opaque under each density.

        A sensible density leaves most of a room empty. A file that cannot be used has its reason instead.
        """
        rows: list[dict[str, Any]] = []
        for file in _grid_files(Path(path)):
            try:
                rows.append(_described(file))
            except (DataError, ConfigError) as error:
                rows.append({"file": file.name, "problem": str(error)})
        return rows

    def _suits(self, file: Path, declared: Declared) -> None:
        """Raise DataError where a grid is too large, or of 8 bits and said to hold densities."""
        voxels = math.prod(declared.shape[:3])
        if voxels > self.max_voxels:
            raise DataError(
                file, f"declares {voxels} voxels", f"at most {self.max_voxels}", "Raise data.max_voxels if it is right"
            )
        if declared.dtype == np.uint8 and self.density != "alpha":
            raise DataError(file, "holds 8-bit numbers", "densities", "Set data.density=alpha for grids of opacities")

    # reading --------------------------------------------------------------------------------------------------------

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        file = self.files[index]
        tensors, extra = self._tensors(file, generator)
        return Sample(tensors, Meta(str(file), self.group(index), index, label=self.label(index), extra=extra))

    def _tensors(self, file: Path, generator: torch.Generator | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`grid` and `valid` of a file, and what was done to it."""
        scene = _stored(file).transpose(3, 2, 1, 0)  # views up to here: only the box is read
        done: dict[str, Any] = {"scene": list(scene.shape[1:]), "turned": False, "mirrored": [False, False]}
        draws = [1.0] * 6 if generator is None else torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        if draws[0] < self.rotate:
            scene, done["turned"] = np.rot90(scene, axes=(3, 2)), True
        for number, axis in enumerate((3, 2)):
            if draws[1 + number] < self.flip:
                scene, done["mirrored"][number] = np.flip(scene, axis), True
        size = scene.shape[1:] if self.size is None else self.size
        rooms = [max(0, length - wanted) for length, wanted in zip(scene.shape[1:], size, strict=True)]
        start = [0, 0, 0] if generator is None else [int(d * (r + 1)) for d, r in zip(draws[3:], rooms, strict=True)]
        done["start"] = start
        box = tuple(slice(at, at + extent) for at, extent in zip(start, size, strict=True))
        values = self._values(np.array(scene[(slice(None), *box)]), file)
        grid, valid = np.zeros((4, *size), np.float32), np.zeros((1, *size), np.float32)
        inside = tuple(slice(length) for length in values.shape[1:])
        grid[(slice(None), *inside)], valid[(slice(None), *inside)] = values, 1
        return {"grid": torch.from_numpy(grid), "valid": torch.from_numpy(valid)}, done

    def _values(self, values: np.ndarray, file: Path) -> np.ndarray:
        """(4, ...) colour and opacity in 0 to 1.

        Raises:
            DataError: numbers that are none, or beyond their range.
        """
        values = values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(file, f"{int((~np.isfinite(values)).sum())} numbers are NaN or infinite", "finite numbers")
        values[3] = density_to_alpha(values[3], self.density)
        for part, name in ((values[:3], "colours"), (values[3:], "opacities")):
            low, high = float(part.min()), float(part.max())
            if low < -SLACK or high > 1 + SLACK:
                mend = "" if name == "colours" else "If they are densities, set data.density=exp or relu"
                raise DataError(file, f"holds {name} from {low:.4g} to {high:.4g}", "0 to 1", mend)
        return values.clip(0, 1)

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        """Codes of a sample's voxels, turned, mirrored and cut as it was: (D, H, W) int64, -1 where zeros fill it up.

        Args:
            path: an .npy of whole numbers (W, L, H) along x, y and z, or a folder with one named like the scene's file.

        Raises:
            DataError: there is none, or it has another shape or type.
        """
        file = Path(sample.meta.source)
        place = Path(path) if Path(path).is_file() else Path(path) / f"{file.stem}.npy"
        if not place.is_file():
            raise DataError(path, f'holds no codes for "{file.stem}"', f"{file.stem}.npy, named like the scene")
        codes, done = map_npy(place), sample.meta.extra
        scene = tuple(done["scene"])
        if codes.dtype.kind not in "biu" or codes.shape != scene[::-1]:
            raise DataError(
                place, f"holds {codes.dtype} of shape {codes.shape}", f"whole numbers of shape {scene[::-1]}"
            )
        codes = codes.transpose(2, 1, 0)
        if done["turned"]:
            codes = np.rot90(codes, axes=(2, 1))
        for mirrored, axis in zip(done["mirrored"], (2, 1), strict=True):
            codes = np.flip(codes, axis) if mirrored else codes
        size = sample["grid"].shape[1:]
        found = np.full(tuple(size), -1, dtype=np.int64)
        box = codes[tuple(slice(at, at + extent) for at, extent in zip(done["start"], size, strict=True))]
        found[tuple(slice(length) for length in box.shape)] = box
        return found

    def buckets(self) -> np.ndarray | None:
        """Whole scenes are put into batches with scenes of their own size."""
        if self.size is not None:
            return None
        numbers = {shape: number for number, shape in enumerate(sorted(set(self.shapes)))}
        return np.array([numbers[shape] for shape in self.shapes])

    def bytes_per_sample(self) -> int:
        return 4 * 5 * math.prod(self.size or self.shapes[0])

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Of up to `MAX_SAMPLES` scenes as they are read without anything random."""
        running = {name: Running(spec.channel_count or 1) for name, spec in self.spec.items()}
        reason = ""
        for index in spread(len(self), MAX_SAMPLES):
            try:
                sample = self.read(index)
            except DataError as error:  # the trainer sets the file aside when it meets it
                reason = reason or str(error)
                continue
            for name, each in running.items():
                each.add(sample[name].numpy())
        if not running["grid"].count.any():
            raise DataError(self.root, f"no grid can be read for statistics: {reason.rstrip('.')}")
        return {name: each.result() for name, each in running.items()}

    # pictures -------------------------------------------------------------------------------------------------------

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """From above, rows along y and columns along x; a slice (C, H, W) as it is; on black."""
        x = tensor.detach().float().cpu()
        if name == "valid":
            x = (x.amax(1) if x.ndim == 4 else x).clamp(0, 1).expand(3, -1, -1)
        elif x.ndim == 4:
            x = composite(x)
        else:
            x = x[:3].clamp(0, 1) * x[3:].clamp(0, 1)
        return (x * 255).round().byte().permute(1, 2, 0).contiguous().numpy()

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        """With y upwards, as on a map."""
        return picture[::-1]

    def middle(self, name: str, tensor: Tensor) -> int:
        """The slice in which opacity varies most: half way up there may be nothing but air."""
        return int(tensor[-1].flatten(1).std(1).argmax())

    def views(self, grid: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """A volume (4, D, H, W) from the front (z upwards, x to the right) and from above (y upwards, x to the right)."""
        front = (composite(grid.float(), axis=2, from_end=False).flip(1) * 255).round().byte()
        return front.permute(1, 2, 0).contiguous().numpy(), self.upright("grid", self.picture("grid", grid))


def declared_grid(path: Path) -> Declared:
    """What a file's header says of its grid (W, L, H, 4); nothing is allocated.

    Raises:
        DataError: no such array, or no grid of numbers.
    """
    if path.suffix.lower() == ".npy":
        declared = npy_header(path)
    else:
        headers = npz_headers(path)
        if ARRAY not in headers:
            raise DataError(path, f"holds {', '.join(headers)}", f'an array "{ARRAY}" of shape (W, L, H, 4)')
        declared = headers[ARRAY]
    check_shape(declared.shape, declared.dtype, str(path))
    return declared


def _declares_grid(path: Path) -> bool:
    try:
        declared_grid(path)
    except DataError:
        return False
    return True


def check_shape(shape: Sequence[int], dtype: np.dtype[Any], where: str) -> None:
    """Raise DataError for anything but (W, L, H, 4) real numbers."""
    if len(shape) != 4 or shape[3] != 4 or min(shape) < 1:
        raise DataError(where, f"has the shape {tuple(shape)}", "(W, L, H, 4): colour and density along x, y and z")
    if dtype.kind not in NUMBERS or dtype.kind == "b" or (dtype.kind in "iu" and dtype != np.uint8):
        raise DataError(where, f"holds {dtype}", "floating point numbers, or 8-bit numbers without sign")


def _stored(file: Path) -> np.ndarray:
    """The grid as it is in a file, (W, L, H, 4)."""
    stored = map_npy(file) if file.suffix.lower() == ".npy" else load_npz(file, ARRAY)
    check_shape(stored.shape, stored.dtype, str(file))
    return stored


def _described(file: Path) -> dict[str, Any]:
    declared = declared_grid(file)
    row: dict[str, Any] = {"file": file.name, "W x L x H": list(declared.shape[:3]), "type": str(declared.dtype)}
    if math.prod(declared.shape[:3]) > MAX_VOXELS:
        return {**row, "problem": f"more than {MAX_VOXELS} voxels; see data.max_voxels"}
    fourth = _stored(file)[..., 3].astype(np.float32)
    if declared.dtype == np.uint8:
        fourth /= 255
    row["fourth channel"] = [round(float(value), 4) for value in (fourth.min(), fourth.max())]
    for density in ("exp", "relu", "alpha"):
        row[f"opaque as {density}"] = round(float((density_to_alpha(fourth, density) > 0.5).mean()), 3)
    return row


def _grid_files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return [f for f in found if f.suffix.lower() in GridLoader.suffixes and f.is_file() and f.name[0] != "."]
