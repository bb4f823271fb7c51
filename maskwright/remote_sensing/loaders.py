"""Loaders of rasters: GeoTIFFs of any bands, and pairs of Sentinel-1 and Sentinel-2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile, Meta, TensorSpec
from maskwright.core.statistics import spread
from maskwright.remote_sensing.alignment import check_overlap, to_decibels
from maskwright.remote_sensing.bands import S1, S2_L1C
from maskwright.remote_sensing.base import RasterLoader
from maskwright.remote_sensing.image import Source
from maskwright.remote_sensing.inspection import inspect_images, inspect_pairs
from maskwright.remote_sensing.pairs import find_pairs, may_hold_pairs
from maskwright.remote_sensing.pictures import draw
from maskwright.remote_sensing.raster import Box, Header
from maskwright.remote_sensing.sources import check_same_bands, find_sources, may_have_a_place, source_of
from maskwright.remote_sensing.windows import flips, jitter, middle, scaled, window_transform

UNIT_WINDOWS = 8
"""Windows that are looked at to tell decibels from linear power."""
UNIT_SIZE = 512
"""Largest side of such a window in pixels."""


class GeoTiffLoader(RasterLoader):
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
                if self.images:
                    check_same_bands(source, self.images[0])
                self.windows.add(source.header)
            except DataError as error:
                self.bad_files.append(BadFile(error.path, str(error)))
                continue
            self.images.append(source)
        self._refuse_empty("image")
        self._warn_striped([image.header for image in self.images])
        names = self.images[0].names
        self._zero_is_nodata = len(names) > 1 and set(names) <= set(S2_L1C)
        self.spec = {"image": TensorSpec("C H W", names, "as stored" if scale == 1 else f"stored value x {scale:g}")}

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return may_have_a_place(path)

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """Rows about each file: header, statistics, remarks; or the reason why it cannot be used."""
        return inspect_images(Path(path))

    def _files(self) -> list[str]:
        return [file for image in self.images for file in image.files]

    def group(self, index: int) -> str:
        return self.images[self.windows[index][0]].name

    def sources(self, index: int) -> list[str]:
        return self.images[self.windows[index][0]].files

    def _image(self, number: int) -> tuple[str, list[str], Header]:
        image = self.images[number]
        return image.name, image.files, image.header

    def _window(self, number: int, box: Box, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        array = self.images[number].read(box, shape)
        if self._zero_is_nodata:
            blank_zeros(array)
        if self.scale != 1:
            array *= np.float32(self.scale)
        return {"image": array}

    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        number, box = self.windows[index]
        image = self.images[number]
        if generator is not None:
            box = jitter(box, image.header, generator, self.aligned)
        arrays, transform = self._window(number, box, box[2:]), window_transform(image.header, box, box[2:])
        if generator is not None and self.flip:
            arrays, transform = flips(arrays, transform, generator)
        meta = Meta(image.files[0], image.name, index, box, image.header.crs, transform)
        return arrays, meta

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return draw(tensor, self.images[0].names)


class PairLoader(RasterLoader):
    """Pairs of Sentinel-1 and Sentinel-2 images of the same places.

    `optical` holds digital numbers (reflectance x 10000), `sar` decibels. Pairs are found by equal names in two
    sub-folders (`S1...`, `S2...`), in BigEarthNet's layout, or in a CSV.

    Args:
        size: side of a window in pixels of the optical grid; null reads whole images.
        s1: sub-folder of the radar images, where several could be meant.
        s2: sub-folder of the optical images, where several could be meant.
        pairs: CSV with one column a sensor that names the pairs.
        sar_unit: db, linear (power, turned into dB), or auto: linear if no value looked at is negative.
        drop_bands: optical bands that are left out; null leaves out B10, which only top-of-atmosphere products have.
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
        self.size, self.crop, self.flip = size, crop, flip
        self._unit = None if sar_unit == "auto" else sar_unit
        dropped = ["B10"] if drop_bands is None else drop_bands
        wanted = [name for name in S2_L1C if name not in dropped]
        found, self.bad_files = find_pairs(self.path, s1, s2, pairs)
        self.pairs: list[tuple[str, Source, Source, bool]] = []
        for name, optical_path, sar_path in found:
            try:
                optical = choose_bands(source_of(optical_path), wanted, "Sentinel-2 bands")
                sar = choose_bands(source_of(sar_path), (*S1, "HH", "HV"), "VV and VH")
                if self.pairs:
                    check_same_bands(optical, self.pairs[0][1])
                    check_same_bands(sar, self.pairs[0][2])
                same_grid = check_overlap(optical.header, sar.header)
                self.windows.add(optical.header)
            except DataError as error:
                self.bad_files.append(BadFile(error.path, str(error)))
                continue
            self.pairs.append((name, optical, sar, same_grid))
        self._refuse_empty("pair")
        self._warn_striped([source.header for pair in self.pairs for source in pair[1:3]])
        _, optical, sar, _ = self.pairs[0]
        self.spec = {
            "optical": TensorSpec("C H W", optical.names, "reflectance x 10000"),
            "sar": TensorSpec("C H W", sar.names, "dB"),
        }

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return may_hold_pairs(path)

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """Rows about the files of each pair: header, statistics, remarks; or the reason why it cannot be used."""
        return inspect_pairs(Path(path))

    def _files(self) -> list[str]:
        return [file for _, optical, sar, _ in self.pairs for file in (*optical.files, *sar.files)]

    def group(self, index: int) -> str:
        return self.pairs[self.windows[index][0]][0]

    def sources(self, index: int) -> list[str]:
        _, optical, sar, _ = self.pairs[self.windows[index][0]]
        return [*optical.files, *sar.files]

    def sar_unit(self) -> str:
        """Unit of the radar files, `db` or `linear`; found out from some windows at the first call."""
        if self._unit is None:
            lowest = []
            for index in spread(len(self), UNIT_WINDOWS):
                number, box = self.windows[index]
                _, optical, sar, same_grid = self.pairs[number]
                box = middle(box, UNIT_SIZE)  # whole images may be one window
                try:
                    values = sar.read(box) if same_grid else sar.read_onto(optical.header, box, box[2:])
                except DataError:
                    continue
                if np.isfinite(values).any():
                    lowest.append(np.nanmin(values))
            self._unit = "linear" if lowest and min(lowest) >= 0 else "db"
        return self._unit

    def _image(self, number: int) -> tuple[str, list[str], Header]:
        name, optical, sar, _ = self.pairs[number]
        return name, [*optical.files, *sar.files], optical.header

    def _window(self, number: int, box: Box, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        _, optical, sar, same_grid = self.pairs[number]
        radar = sar.read(box, shape) if same_grid else sar.read_onto(optical.header, box, shape)
        return {
            "optical": blank_zeros(optical.read(box, shape)),
            "sar": to_decibels(radar) if self.sar_unit() == "linear" else radar,
        }

    def _raw(self, index: int, generator: torch.Generator | None) -> tuple[dict[str, np.ndarray], Meta]:
        number, box = self.windows[index]
        name, optical, sar, same_grid = self.pairs[number]
        shape = box[2:]
        if generator is not None and self.crop:
            box = scaled(box, optical.header, self.crop, generator)
        elif generator is not None:
            box = jitter(box, optical.header, generator, aligned=False)
        arrays, transform = self._window(number, box, shape), window_transform(optical.header, box, shape)
        if generator is not None and self.flip:
            arrays, transform = flips(arrays, transform, generator)
        extra = {"sar_source": sar.files[0], "sar_unit_in_file": self.sar_unit(), "resampled": not same_grid}
        return arrays, Meta(optical.files[0], name, index, box, optical.header.crs, transform, extra=extra)

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        _, optical, sar, _ = self.pairs[0]
        return draw(tensor, optical.names if name == "optical" else sar.names)


def choose_bands(source: Source, known: Sequence[str], expected: str) -> Source:
    """The known bands of an image, in the order of `known`.

    Raises:
        DataError: it has none of them.
    """
    names = [name for name in known if name in source.names]
    if not names:
        raise DataError(
            source.header.path,
            f"has the bands {', '.join(source.names)}",
            expected,
            "Name the bands in the file's descriptions (rio edit-info), or choose the folder with data.s1, data.s2",
        )
    return source.select(names)


def blank_zeros(optical: np.ndarray) -> np.ndarray:
    """Set pixels that are zero in every band to NaN, in place: how Sentinel-2 marks that there are no data."""
    candidates = optical[0] == 0
    if candidates.any():
        optical[:, candidates & (optical == 0).all(0)] = np.nan
    return optical
