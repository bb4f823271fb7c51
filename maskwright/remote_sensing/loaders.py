"""Loaders of rasters: GeoTIFFs of any bands, and pairs of Sentinel-1 and Sentinel-2."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rasterio.transform import Affine
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import BadFile, Meta, Sample, TensorSpec
from maskwright.remote_sensing import bands as band_names
from maskwright.remote_sensing.raster import SUFFIXES, Box, Header, Source, read_onto, window_transform
from maskwright.remote_sensing.sources import find_pairs, find_sources, raster_files, source_of
from maskwright.remote_sensing.statistics import cached, compute, fingerprint

LOWEST_POWER = 1e-6
"""Radar power below which the logarithm is cut off (-60 dB)."""


def cut(header: Header, size: int | None) -> list[Box]:
    """Windows of `size` pixels that cover an image; the last of a row or column is flush with the edge.

    Raises:
        DataError: the image is smaller than a window.
    """
    if size is None:
        return [(0, 0, header.height, header.width)]
    if header.height < size or header.width < size:
        raise DataError(
            header.path,
            f"has {header.height} x {header.width} pixels, less than a window",
            f"{size} x {size} or more",
            "Lower data.size",
        )

    def starts(length: int) -> list[int]:
        regular = list(range(0, length - size + 1, size))
        return regular if regular[-1] + size == length else [*regular, length - size]

    return [(row, column, size, size) for row in starts(header.height) for column in starts(header.width)]


def jitter(box: Box, header: Header, generator: torch.Generator, aligned: bool) -> Box:
    """Move a window at random by up to half its size, inside the image; inside its own tile of the file if `aligned`."""
    moved = []
    for start, size, length, block in (
        (box[0], box[2], header.height, header.block[0]),
        (box[1], box[3], header.width, header.block[1]),
    ):
        low, high = max(0, start - size // 2), min(length - size, start + size // 2)
        if aligned and header.tiled and block >= size:
            tile = start // block * block
            low, high = tile, max(tile, min(tile + block, length) - size)
            low = min(low, length - size)
        moved.append(low + int(torch.randint(high - low + 1, (1,), generator=generator)) if high > low else low)
    return moved[0], moved[1], box[2], box[3]


def scaled(box: Box, header: Header, sizes: tuple[float, float], generator: torch.Generator) -> Box:
    """A random square of a side drawn from `sizes`, centred on a jittered window where the image allows."""
    low, high = int(sizes[0]), min(int(sizes[1]), header.height, header.width)
    side = low + int(torch.randint(max(high - low, 0) + 1, (1,), generator=generator))
    row, column, height, width = jitter(box, header, generator, aligned=False)
    row = min(max(row + (height - side) // 2, 0), header.height - side)
    column = min(max(column + (width - side) // 2, 0), header.width - side)
    return row, column, side, side


def flips(
    arrays: dict[str, np.ndarray], transform: tuple, generator: torch.Generator
) -> tuple[dict[str, np.ndarray], tuple]:
    """Flip all arrays alike along rows and columns, each with probability a half; the transform goes with them."""
    vertical, horizontal = torch.rand(2, generator=generator).tolist()
    height, width = next(iter(arrays.values())).shape[-2:]
    affine = Affine(*transform)
    if vertical < 0.5:
        arrays = {name: array[..., ::-1, :] for name, array in arrays.items()}
        affine = affine * Affine(1, 0, 0, 0, -1, height)
    if horizontal < 0.5:
        arrays = {name: array[..., ::-1] for name, array in arrays.items()}
        affine = affine * Affine(-1, 0, width, 0, 1, 0)
    return arrays, tuple(affine)[:6]


class _RasterLoader(Loader):
    """What both loaders share: an index of windows, statistics, nodata."""

    suffixes = SUFFIXES

    def __init__(self, path: str | Path, options: dict[str, Any], max_nodata: float) -> None:
        if not 0 <= max_nodata <= 1:
            raise ConfigError(f"data.max_nodata={max_nodata} is outside [0, 1]: it is a share of pixels.")
        self.path, self.max_nodata = Path(path), max_nodata
        self.bad_files: list[BadFile] = []
        self.windows: list[tuple[int, Box]] = []
        self._options = {name: value for name, value in options.items() if name not in ("self", "path", "__class__")}
        self._statistics: dict[str, Statistics] | None = None

    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        raise NotImplementedError  # abstract, see the two loaders

    def _files(self) -> list[str]:
        raise NotImplementedError  # abstract, see the two loaders

    def __len__(self) -> int:
        return len(self.windows)

    def statistics(self) -> dict[str, Statistics]:
        if self._statistics is None:
            self._statistics = cached(
                fingerprint(self._files(), {"loader": type(self).__name__, **self._options}),
                lambda: compute(len(self), lambda index: self._raw(index, None)[0], self.path),
            )
        return self._statistics

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        arrays, meta = self._raw(index, generator)
        for name, array in arrays.items():
            missing = ~np.isfinite(array)
            share = float(missing.any(0).mean())
            if share > self.max_nodata:
                raise DataError(
                    meta.source,
                    f'"{name}" has no data in {share:.0%} of window {meta.window}',
                    f"at most {self.max_nodata:.0%}",
                    "Raise data.max_nodata to keep such windows",
                )
            if share:
                mean = np.asarray(self.statistics()[name].mean, dtype=np.float32)
                arrays[name] = np.where(missing, mean[:, None, None], array)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return Sample(tensors, meta)

    def _warn_striped(self, headers: list[Header]) -> None:
        striped = [header.path for header in headers if header.striped]
        if striped:
            warnings.warn(
                f"{len(striped)} files are stored in full-width strips, the first is {striped[0]}: every window decodes all "
                f"that lies beside it, ten times slower or more. Rewrite them once as tiles: "
                f"rio convert IN.tif OUT.tif --co TILED=YES --co COMPRESS=DEFLATE",
                stacklevel=3,
            )


class GeoTiffLoader(_RasterLoader):
    """GeoTIFFs of any number of bands, or folders of one file a band at several resolutions.

    Args:
        size: side of a window in pixels; null reads whole images.
        bands: names of the bands to read, in order; null reads all. `maskwright inspect` shows the names.
        recursive: look into sub-folders.
        aligned: keep random windows inside one tile of a tiled file, which reads several times faster.
        max_nodata: share of pixels without data up to which a window is used; they are filled with the band's mean.
        flip: flip training windows along rows and columns at random.
        scale: factor on the values as stored, such as 0.0001 for reflectance.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = 224,
        bands: list[str] | None = None,
        recursive: bool = True,
        aligned: bool = True,
        max_nodata: float = 0.1,
        flip: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(path, dict(locals()), max_nodata)
        self.aligned, self.flip, self.scale = aligned, flip, scale
        found, self.bad_files = find_sources(self.path, recursive)
        self.images: list[Source] = []
        for source in found:
            try:
                source = source.select(bands) if bands else source
                if self.images and len(source.names) != len(self.images[0].names):
                    raise DataError(
                        source.header.path,
                        f"has {len(source.names)} bands",
                        f"{len(self.images[0].names)}, as {self.images[0].header.path}",
                        "Choose those that all files have with data.bands",
                    )
                boxes = cut(source.header, size)
            except DataError as error:
                self.bad_files.append(BadFile(error.path, str(error)))
                continue
            self.windows += [(len(self.images), box) for box in boxes]
            self.images.append(source)
        if not self.images:
            reason = self.bad_files[0].reason if self.bad_files else "no file ends in " + ", ".join(SUFFIXES)
            raise DataError(self.path, f"holds no usable image; {reason}")
        self._warn_striped([image.header for image in self.images])
        self.spec = {"image": TensorSpec("C H W", self.images[0].names, "as stored" if scale == 1 else "scaled")}

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in SUFFIXES
        return path.is_dir() and bool(raster_files(path, recursive=True))

    def _files(self) -> list[str]:
        return [file for image in self.images for file in image.files]

    def group(self, index: int) -> str:
        return self.images[self.windows[index][0]].name

    def sources(self, index: int) -> list[str]:
        return self.images[self.windows[index][0]].files

    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        number, box = self.windows[index]
        image = self.images[number]
        if generator is not None:
            box = jitter(box, image.header, generator, self.aligned)
        arrays = {"image": image.read(box) * np.float32(self.scale)}
        transform = window_transform(image.header, box, box[2:])
        if generator is not None and self.flip:
            arrays, transform = flips(arrays, transform, generator)
        meta = Meta(image.files[0], image.name, index, box, image.header.crs, transform)
        return arrays, meta

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return draw(tensor, self.images[0].names)


class PairLoader(_RasterLoader):
    """Pairs of Sentinel-1 and Sentinel-2 images of the same places.

    `optical` holds digital numbers (reflectance x 10000), `sar` decibels. Pairs are found by equal names in two
    sub-folders (`S1...`, `S2...`), in BigEarthNet's layout, or in a CSV.

    Args:
        size: side of a window in pixels of the optical grid; null reads whole images.
        s1: sub-folder of the radar images, where several could be meant.
        s2: sub-folder of the optical images, where several could be meant.
        pairs: CSV with one column a sensor that names the pairs.
        sar_unit: db, linear (power, turned into dB), or auto: linear if no value is negative.
        drop_bands: optical bands that are left out.
        max_nodata: share of pixels without data up to which a window is used; they are filled with the band's mean.
        crop: [smallest, largest] side in pixels of a random square that is resized to `size` (CROMA: [60, 180]).
        flip: flip training windows along rows and columns at random.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = 120,
        s1: str = "auto",
        s2: str = "auto",
        pairs: str | None = None,
        sar_unit: Literal["auto", "db", "linear"] = "auto",
        drop_bands: list[str] | None = None,
        max_nodata: float = 0.1,
        crop: tuple[float, float] | None = None,
        flip: bool = True,
    ) -> None:
        super().__init__(path, dict(locals()), max_nodata)
        if crop is not None and (size is None or not 8 <= crop[0] <= crop[1]):
            raise ConfigError(f"data.crop={crop} needs 8 <= smallest <= largest pixels, and a data.size to resize to.")
        self.size, self.sar_unit, self.crop, self.flip = size, sar_unit, crop, flip
        dropped = set(drop_bands if drop_bands is not None else ["B10"])
        found, self.bad_files = find_pairs(self.path, s1, s2, pairs)
        self.pairs: list[tuple[str, Source, Source, bool]] = []
        for name, optical_path, sar_path in found:
            try:
                optical, sar = source_of(optical_path), source_of(sar_path)
                optical = optical.select([band for band in optical.names if band not in dropped])
                self._check_bands(optical, sar)
                same_grid = check_overlap(optical.header, sar.header)
                boxes = cut(optical.header, size)
            except DataError as error:
                self.bad_files.append(BadFile(error.path, str(error)))
                continue
            self.windows += [(len(self.pairs), box) for box in boxes]
            self.pairs.append((name, optical, sar, same_grid))
        if not self.pairs:
            reason = self.bad_files[0].reason if self.bad_files else "no pairs were found"
            raise DataError(self.path, f"holds no usable pair; {reason}")
        self._warn_striped([source.header for pair in self.pairs for source in pair[1:3]])
        _, optical, sar, _ = self.pairs[0]
        self.spec = {
            "optical": TensorSpec("C H W", optical.names, "reflectance x 10000"),
            "sar": TensorSpec("C H W", sar.names, "dB"),
        }

    def _check_bands(self, optical: Source, sar: Source) -> None:
        for source, first, expected in (
            (optical, self.pairs[0][1] if self.pairs else None, "12 or 13 Sentinel-2 bands"),
            (sar, self.pairs[0][2] if self.pairs else None, "VV and VH"),
        ):
            if first is not None and source.names != first.names:
                raise DataError(
                    source.header.path,
                    f"has the bands {', '.join(source.names)}",
                    f"{', '.join(first.names)}, as {first.header.path}",
                )
            if first is None and any(name.startswith("band ") for name in source.names):
                raise DataError(
                    source.header.path,
                    f"has {len(source.names)} bands without names",
                    expected,
                    "Name the bands in the file's descriptions (rio edit-info), or choose the folder with data.s1, data.s2",
                )

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() == ".csv"
        try:
            find_pairs(path)
        except (DataError, ConfigError):
            return False
        return True

    def _files(self) -> list[str]:
        return [file for _, optical, sar, _ in self.pairs for file in (*optical.files, *sar.files)]

    def group(self, index: int) -> str:
        return self.pairs[self.windows[index][0]][0]

    def sources(self, index: int) -> list[str]:
        _, optical, sar, _ = self.pairs[self.windows[index][0]]
        return [*optical.files, *sar.files]

    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        number, box = self.windows[index]
        name, optical, sar, same_grid = self.pairs[number]
        shape = box[2:]
        if generator is not None:
            box = (
                scaled(box, optical.header, self.crop, generator)
                if self.crop
                else jitter(box, optical.header, generator, aligned=False)
            )
        arrays = {
            "optical": optical.read(box, shape),
            "sar": sar.read(box, shape) if same_grid else read_onto(sar, optical.header, box, shape),
        }
        arrays["optical"][:, (arrays["optical"] == 0).all(0)] = np.nan  # Sentinel-2 marks no data with zeros
        arrays["sar"], unit = to_decibels(arrays["sar"], self.sar_unit)
        transform = window_transform(optical.header, box, shape)
        if generator is not None and self.flip:
            arrays, transform = flips(arrays, transform, generator)
        extra = {"sar_source": sar.files[0], "sar_unit_in_file": unit, "resampled": not same_grid}
        return arrays, Meta(optical.files[0], name, index, box, optical.header.crs, transform, extra=extra)

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        _, optical, sar, _ = self.pairs[0]
        return draw(tensor, optical.names if name == "optical" else sar.names)


def check_overlap(optical: Header, sar: Header) -> bool:
    """Whether two images lie on one grid.

    Returns:
        True where CRS, size and transform agree within a tenth of a pixel; False where the radar must be resampled.

    Raises:
        DataError: they do not overlap, or nothing says how they lie.
    """
    same_size = (optical.height, optical.width) == (sar.height, sar.width)
    if optical.crs == sar.crs:
        pixel = max(abs(optical.affine.a), abs(optical.affine.b), 1e-12)
        shift = np.abs(np.subtract(optical.transform, sar.transform))
        if same_size and shift[[2, 5]].max() < pixel / 10 and shift[[0, 1, 3, 4]].max() * optical.width < pixel / 2:
            return True
    if optical.crs is None or sar.crs is None:
        raise DataError(
            sar.path,
            f"and {optical.path} lie on different grids, and {'neither has' if optical.crs == sar.crs else 'one has no'} a "
            f"coordinate reference system",
            "equal grids, or georeferenced files",
            "Set the CRS with `rio edit-info --crs EPSG:CODE`, or resample one onto the other",
        )
    bounds = _bounds_in(sar, optical.crs)
    left, top = optical.affine * (0, 0)
    right, bottom = optical.affine * (optical.width, optical.height)
    left, right, bottom, top = min(left, right), max(left, right), min(bottom, top), max(bottom, top)
    if bounds[0] >= right or bounds[2] <= left or bounds[1] >= top or bounds[3] <= bottom:
        raise DataError(
            sar.path,
            f"does not overlap with {optical.path}: it spans {tuple(round(b) for b in bounds)} in {optical.crs}, the other "
            f"{(round(left), round(bottom), round(right), round(top))}",
            "images of the same place",
            "Check the pairing",
        )
    return False


def _bounds_in(header: Header, crs: str) -> tuple[float, float, float, float]:
    from rasterio.warp import transform_bounds

    from maskwright.remote_sensing.raster import gdal_errors

    corners = [
        header.affine * corner
        for corner in ((0, 0), (header.width, header.height), (header.width, 0), (0, header.height))
    ]
    xs, ys = zip(*corners, strict=True)
    with gdal_errors(header.path):
        return transform_bounds(header.crs, crs, min(xs), min(ys), max(xs), max(ys))


def to_decibels(values: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """Radar values in dB, and the unit they had. `auto` takes values without a negative one for linear power."""
    finite = values[np.isfinite(values)]
    if unit == "auto":
        unit = "linear" if len(finite) and finite.min() >= 0 else "db"
    if unit == "linear":
        with np.errstate(invalid="ignore"):
            values = np.where(values > 0, 10 * np.log10(np.maximum(values, LOWEST_POWER)), np.nan).astype(np.float32)
    return values, unit


def draw(tensor: Tensor, names: tuple[str, ...]) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of (C, H, W): true colour, radar as VV, VH and their difference, or the first bands."""
    image = tensor.float().numpy()
    if all(name in names for name in band_names.RGB):
        image = image[[names.index(name) for name in band_names.RGB]]
    elif names[:2] == band_names.S1:
        image = np.stack([image[0], image[1], image[0] - image[1]])
    else:
        image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = np.nanpercentile(image, (2, 98), axis=(1, 2), keepdims=True)
    scaled_image = (image - low) / np.maximum(high - low, 1e-6)
    return (np.nan_to_num(scaled_image).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
