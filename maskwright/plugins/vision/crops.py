"""Which part of an image is read, and how it is brought to its size: one resampling of only what is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskwright.plugins.vision.images import RANGES, Picture, deep, eight_bit

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SUPPORT = {"bicubic": 2, "bilinear": 1}
"""Pixels on each side that a filter looks at, at scale 1."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned, by EXIF orientation."""
REDUCING_GAP = 2.0
"""Images are averaged down by whole numbers to at least this many times the wanted size before they are resampled."""


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels of the image as it is seen, with EXIF orientation applied; not always whole pixels."""

    top: float
    left: float
    height: float
    width: float

    def as_list(self) -> list[float]:
        return [self.top, self.left, self.height, self.width]


@dataclass(frozen=True)
class Pixels:
    """How pixels are made: channels, background under transparent ones, filter."""

    channels: int
    keep_alpha: bool
    background: tuple[int, int, int]
    interpolation: str


def centre_crop(height: int, width: int, size: tuple[int, int], share: float) -> Crop:
    """The middle of an image whose short side is resized to `size / share`, as MAE's evaluation does (256 and 224).

    The same pixels as resizing to whole numbers and cutting a crop of `size` out of the middle.
    """
    wanted = [round(side / share) for side in size]
    scale = max(wanted[0] / height, wanted[1] / width)
    tall, wide = max(size[0], int(height * scale + 1e-9)), max(size[1], int(width * scale + 1e-9))
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return Crop(top * height / tall, left * width / wide, size[0] * height / tall, size[1] * width / wide)


def random_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: list[float]
) -> Crop:
    """A random rectangle, without the usual loop of attempts: what is too large is cut at the border of the image.

    Args:
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height.
        draws: four uniform numbers in [0, 1).
    """
    area = (scale[0] + (scale[1] - scale[0]) * draws[0]) * height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * draws[1])
    w = max(1, min(round(math.sqrt(area * aspect)), width))
    h = max(1, min(round(math.sqrt(area / aspect)), height))
    return Crop(int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w)


def cut(picture: Picture, crop: Crop, size: tuple[int, int], pixels: Pixels, flip: bool) -> np.ndarray:
    """Decode a crop and bring it to `size`: (C, *size) uint8 or float32, a view whose memory may lie in another order.

    Args:
        flip: mirror along the width.
    """
    if picture.planes is not None:
        return _cut_deep(picture, crop, size, pixels, flip)
    box = _stored_box(picture, crop)
    target = size if picture.orientation <= 4 else size[::-1]
    across, down = _draft(picture, box, target, pixels)
    image = eight_bit(picture, pixels.channels, pixels.background, pixels.keep_alpha)
    box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    out = (target[1], target[0])
    if out != image.size or box != (0, 0, *image.size):
        box = (max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
        image = image.resize(out, FILTERS[pixels.interpolation], box, REDUCING_GAP)
    if picture.orientation != 1:
        image = image.transpose(TURNS[picture.orientation])
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _stored_box(picture: Picture, crop: Crop) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a crop in the image as it is stored, before it is turned."""
    top, left, bottom, right = crop.top, crop.left, crop.top + crop.height, crop.left + crop.width
    if picture.orientation in (2, 3, 6, 7):
        left, right = picture.width - right, picture.width - left
    if picture.orientation in (3, 4, 7, 8):
        top, bottom = picture.height - bottom, picture.height - top
    return (left, top, right, bottom) if picture.orientation <= 4 else (top, left, bottom, right)


def _draft(picture: Picture, box: tuple[float, ...], size: tuple[int, int], pixels: Pixels) -> tuple[float, float]:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 where the crop keeps at least the wanted pixels.

    Returns:
        By how much width and height change.
    """
    image = picture.image
    if picture.kind != "JPEG" or image is None or image.mode == "CMYK":
        return 1.0, 1.0
    width, height = image.size
    most = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
    factor = next((factor for factor in (8, 4, 2) if factor <= most), 1)
    image.draft("L" if pixels.channels == 1 else None, (max(1, width // factor), max(1, height // factor)))
    return image.width / width, image.height / height


def _cut_deep(picture: Picture, crop: Crop, size: tuple[int, int], pixels: Pixels, flip: bool) -> np.ndarray:
    """As `cut`, of numbers of more than 8 bits: each channel as float32."""
    values = deep(picture, pixels.channels, pixels.background, pixels.keep_alpha)
    whole = (crop.top, crop.left, crop.height, crop.width) == (0, 0, *values.shape[1:])
    if whole and size == values.shape[1:]:
        found = values.astype(np.float32)
    else:
        down, across = max(1.0, crop.height / size[0]), max(1.0, crop.width / size[1])
        first_row = max(0, int(crop.top - SUPPORT[pixels.interpolation] * down - 1))
        first_column = max(0, int(crop.left - SUPPORT[pixels.interpolation] * across - 1))
        last_row = math.ceil(crop.top + crop.height + SUPPORT[pixels.interpolation] * down + 1)
        last_column = math.ceil(crop.left + crop.width + SUPPORT[pixels.interpolation] * across + 1)
        region = values[:, first_row:last_row, first_column:last_column].astype(np.float32)
        tall, wide = region.shape[1:]
        left, top = crop.left - first_column, crop.top - first_row
        box = (left, top, min(wide, left + crop.width), min(tall, top + crop.height))
        out = (size[1], size[0])
        planes = [Image.fromarray(plane).resize(out, FILTERS[pixels.interpolation], box) for plane in region]
        found = np.stack([np.asarray(plane) for plane in planes])
        if picture.depth in RANGES:  # bicubic weights overshoot
            found = found.clip(0, RANGES[picture.depth])
    return found[:, :, ::-1] if flip else found
