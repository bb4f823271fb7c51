"""What the loaders of rasters share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio._err import CPLE_BaseError  # what GDAL's own errors are; rasterio.errors has no public base for them
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform as transform_coordinates
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking import Grid
from maskwright.core.sample import BadFile, Meta, Sample
from maskwright.core.statistics import cached, compute, fingerprint
from maskwright.remote_sensing.indices import normalised_differences
from maskwright.remote_sensing.raster import SUFFIXES, Box, Header, read_classes_onto, read_colours
from maskwright.remote_sensing.scenes import RasterScene, raster_scenes
from maskwright.remote_sensing.windows import Windows


def _is_raster(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def label_file(path: Path, group: str, source: str) -> Path:
    """The label raster of an image: the file itself, or the one in a folder that is named like the image or its file.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return path
    for name in dict.fromkeys((group, Path(source).stem)):
        for suffix in SUFFIXES:
            for file in (path / f"{name}{suffix}", path / f"{name}{suffix.upper()}"):
                if file.is_file():
                    return file
    raise DataError(path, f'holds no label raster for "{group}"', f"{group}.tif, named like the image")


class RasterLoader(Loader):
    """Windows over images, statistics, pixels without data. A subclass says in `_raw` how one window is read."""

    suffixes = SUFFIXES

    def __init__(self, path: str | Path, options: dict[str, Any], max_nodata: float) -> None:
        size = options["size"]
        if size is not None and size < 1:
            raise ConfigError(f"data.size={size} is no number of pixels; null reads whole images.")
        if not 0 <= max_nodata <= 1:
            raise ConfigError(f"data.max_nodata={max_nodata} is outside [0, 1]: it is a share of pixels.")
        self.path, self.max_nodata = Path(path), max_nodata
        self.bad_files: list[BadFile] = []
        self.windows = Windows(size)
        self._options = {name: value for name, value in options.items() if name not in ("self", "path", "__class__")}
        self._statistics: dict[str, Statistics] | None = None

    @abstractmethod
    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        """One window as {name: (C, h, w)} float32, NaN where there is no data."""

    @abstractmethod
    def _files(self) -> list[str]:
        """All files that samples are read from."""

    @abstractmethod
    def _image(self, number: int) -> tuple[str, list[str], Header]:
        """Name, files and grid of an image."""

    @abstractmethod
    def _window(self, number: int, box: Box, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """A window of an image, resampled to `shape`: {name: (C, h, w)} float32, NaN where there is no data."""

    def __len__(self) -> int:
        return len(self.windows)

    @classmethod
    def scene_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Without a window size, so that images smaller than a window are not left out."""
        return {**{name: value for name, value in options.items() if name != "crop"}, "size": None}

    def scenes(self) -> list[RasterScene]:
        return raster_scenes(self)

    def statistics(self) -> dict[str, Statistics]:
        if self._statistics is None:
            channels = {name: spec.channel_count for name, spec in self.spec.items()}
            self._statistics = cached(
                fingerprint(self._files(), {"loader": type(self).__name__, **self._options}),
                channels,
                lambda: compute(len(self), lambda index: self._raw(index, None)[0], self.path),
            )
        return self._statistics

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        arrays, meta = self._raw(index, generator)
        for name, array in arrays.items():
            if not np.isnan(array.sum()):  # much cheaper than a mask, and nearly always enough
                continue
            missing = np.isnan(array)
            share = float(missing.any(0).mean())
            if share > self.max_nodata:
                raise DataError(
                    meta.source,
                    f'"{name}" has no data in {share:.0%} of window {meta.window}',
                    f"at most {self.max_nodata:.0%}",
                    "Raise data.max_nodata to keep such windows",
                )
            mean = np.asarray(self.statistics()[name].mean, dtype=np.float32)
            arrays[name] = np.where(missing, mean[:, None, None], array)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return Sample(tensors, meta)

    def bytes_per_sample(self) -> int:
        _, (_, _, height, width) = self.windows[0]
        return sum(4 * height * width * (spec.channel_count or 1) for spec in self.spec.values())

    def read_labels(self, path: Path, sample: Sample) -> np.ndarray:
        meta = sample.meta
        height, width = next(iter(sample.tensors.values())).shape[-2:]
        return read_classes_onto(
            str(label_file(path, meta.group, meta.source)), meta.crs, meta.transform, (height, width), meta.window
        )

    def legend(self, path: Path) -> dict[int, tuple[str, tuple[int, int, int]]]:
        first = path if path.is_file() else next((file for file in sorted(path.rglob("*")) if _is_raster(file)), None)
        return {code: (str(code), colour) for code, colour in read_colours(str(first)).items()} if first else {}

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        """Statistics of each band and, for Sentinel-2, of the usual indices (NDVI ...); and the raw pixels."""
        features = super().simple_features(sample, cells)
        renamed = {"band statistics": features["channel statistics"]}
        indices = normalised_differences(sample, self.spec)
        if indices is not None:
            more = super().simple_features(Sample({"indices": indices}, sample.meta), cells)["channel statistics"]
            renamed = {"band and index statistics": torch.cat([features["channel statistics"], more], dim=-1)}
        if "raw values" in features:
            renamed["raw pixels"] = features["raw values"]
        return renamed

    def to_lonlat(self, crs: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            longitude, latitude = transform_coordinates(CRS.from_string(crs), CRS.from_epsg(4326), x, y)
        except (RasterioError, CPLE_BaseError):  # a local system that nothing ties to the Earth
            return super().to_lonlat(crs, x, y)
        return np.asarray(longitude), np.asarray(latitude)

    def _refuse_empty(self, what: str) -> None:
        if not len(self):
            reason = self.bad_files[0].reason if self.bad_files else f"no file ends in {', '.join(SUFFIXES)}"
            raise DataError(self.path, f"holds no usable {what}; {reason.rstrip('.')}")

    def _warn_striped(self, headers: list[Header]) -> None:
        striped = [header.path for header in headers if header.striped]
        if striped:
            warnings.warn(
                f"{len(striped)} files are stored in full-width strips, the first is {striped[0]}: every window decodes all "
                f"that lies beside it, ten times slower or more. Rewrite them once as tiles: "
                f"rio convert IN.tif OUT.tif --co TILED=YES --co COMPRESS=DEFLATE",
                stacklevel=3,
            )
