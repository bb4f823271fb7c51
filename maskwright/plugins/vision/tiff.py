"""TIFFs that Pillow does not read, or not in full: N channels, colour of 16 bits, floating point numbers. By tifffile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import TiffImagePlugin

from maskwright.core.errors import DataError

BITS, PHOTOMETRIC, SAMPLES, EXTRA, FORMAT = 258, 262, 277, 338, 339
"""Numbers of TIFF tags (TIFF 6.0, section 8)."""
CMYK = 5
ALPHA = (1, 2)
"""Values of the tag ExtraSamples that mean alpha."""
CHANNEL_AXES = "CSQI"
"""Axes, in tifffile's letters, that can only be channels: samples, channels, pages of no other meaning."""


def is_plain(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow reads all of an image: one page, no bits cut off, no channel left out."""
    tags = image.tag_v2
    bits, samples = max(tags.get(BITS, (1,))), tags.get(SAMPLES, 1)
    extra = tags.get(EXTRA, ())
    if getattr(image, "n_frames", 1) != 1:
        return False
    if bits > 8:
        unsigned = max(tags.get(FORMAT, (1,))) == 1
        return samples == 1 and ((image.mode.startswith("I;16") and unsigned) or (image.mode == "F" and bits == 32))
    if tags.get(PHOTOMETRIC) == CMYK:
        return samples == 4
    return samples in (1, 3) or (samples in (2, 4) and len(extra) == 1 and extra[0] in ALPHA)


@dataclass
class Stack:
    """First image of a TIFF, with all channels. `height` and `width` are as stored, before `orientation`."""

    channels: int
    height: int
    width: int
    alpha: bool
    dtype: np.dtype
    orientation: int
    series: Any
    order: tuple[int, ...]
    shape: tuple[int, ...]
    invert: bool

    def check_volume(self, where: str, most: int) -> None:
        """Refuse more numbers, or larger tiles, than fit; before anything is decoded."""
        page = self.series.keyframe
        tile = (page.tilewidth or 1) * (page.tilelength or 1)
        if self.channels * self.height * self.width > most or tile > most:
            raise DataError(
                where,
                f"declares {self.channels} x {self.height} x {self.width} numbers",
                f"at most {most:,}",
                "If that is right, raise data.max_pixels, or cut it into tiles",
            )

    def read(self) -> np.ndarray:
        """(C, H, W) as stored."""
        values = self.series.asarray(maxworkers=1).reshape(self.shape)
        if values.dtype.kind == "b":
            values = values.astype(np.uint8) * np.uint8(255)
        values = values.transpose(self.order).reshape(self.channels, self.height, self.width)
        return np.iinfo(values.dtype).max - values if self.invert else values


def open_stack(file: BinaryIO, where: str) -> Stack:
    """Read the tags of a TIFF.

    Raises:
        DataError: tifffile is not installed, or the file is a stack over depth or time, or cut short.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError(
            where,
            "is a TIFF that Pillow does not read in full (many channels or pages, 16-bit colour, floating point)",
            "the library tifffile",
            "Install it: pip install tifffile imagecodecs",
        ) from error
    series = tifffile.TiffFile(file).series[0]
    axes = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size != 1 or axis in "YX"]
    letters = "".join(axis for axis, _ in axes)
    others = [axis for axis in letters if axis not in "YX"]
    if sorted(letters.replace(others[0], "") if others else letters) != ["X", "Y"] or len(others) > 1:
        raise DataError(where, f"holds a stack of images (axes {letters})", "one image", "Save one image a file")
    if others and others[0] not in CHANNEL_AXES:
        raise DataError(
            where, f"holds a stack along {others[0]} (axes {letters})", "one image", "Save one image a file"
        )
    _check_segments(file, series, where)
    sizes = dict(axes)
    page = series.keyframe
    if page.photometric == CMYK or series.dtype.kind not in "biuf":
        raise DataError(
            where, f"holds {page.photometric.name} of {series.dtype}", "grey, colour or channels of numbers"
        )
    order = tuple(letters.index(axis) for axis in [*others, "Y", "X"])
    extra = tuple(page.extrasamples)
    invert = page.photometric == 0 and series.dtype.kind == "u"
    return Stack(
        sizes[others[0]] if others else 1,
        sizes["Y"],
        sizes["X"],
        len(extra) == 1 and int(extra[0]) in ALPHA and others == ["S"],
        np.dtype(np.uint8) if series.dtype.kind == "b" else series.dtype.newbyteorder("="),
        _orientation(page),
        series,
        order,
        tuple(size for _, size in axes),
        invert,
    )


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    value = 1 if tag is None else int(tag.value)
    return value if value in range(1, 9) else 1


def _check_segments(file: BinaryIO, series: Any, where: str) -> None:
    """All strips and tiles must lie inside of the file; what is missing would read as zeros."""
    length = file.seek(0, 2)
    for page in series.pages:
        if page is None:
            raise DataError(where, "lacks pages", "a whole image", "Replace or remove it")
        offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
        if len(offsets) != len(counts) or ((offsets + counts > length) & (counts > 0)).any():
            raise DataError(where, "is a truncated TIFF", "a whole image", "Replace or remove it")
