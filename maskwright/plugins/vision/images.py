"""Image files of any common format: what their headers declare, and their pixels. Nothing is believed before it is checked.

Pillow decodes PNG, JPEG, WebP, BMP, GIF and plain TIFF; tifffile TIFFs of more channels, of colour in 16 bits and of
other numbers. Pillow's global settings are neither used nor changed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from maskwright.core.errors import DataError, MaskwrightError
from maskwright.plugins.vision.tiff import is_plain, open_stack

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 178_956_970
"""Height x width from which Pillow, too, takes an image for an attack."""

OPENERS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA = 2, 4, 6
"""Colour types of PNG (W3C PNG, section 11.2.1)."""
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
RANGES = {"8 bits": 255.0, "16 bits": 65535.0}
"""Largest value by depth; other depths are `AS_STORED` and have none."""
AS_STORED = "as stored"


@dataclass
class Picture:
    """An image whose header was read and found sound; pixels are decoded later.

    Args:
        where: what errors call it.
        kind: name of its format.
        height, width: in pixels, with EXIF orientation applied.
        channels: stored channels, without alpha; colours of a palette count as 3.
        alpha: whether a last channel says how opaque each pixel is.
        depth: "8 bits", "16 bits" or "as stored" (floating point numbers, other integers).
        orientation: EXIF orientation 1 to 8 that decoded pixels still have to be turned by.
    """

    where: str
    kind: str
    height: int
    width: int
    channels: int
    alpha: bool
    depth: str
    orientation: int = 1
    image: Image.Image | None = None
    planes: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    """Decodes to (C, H, W) as stored; set where Pillow does not decode."""


def kind_of(head: bytes) -> str | None:
    """Format of a file by its first 12 bytes; names of files are not believed."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return "BMP" if head.startswith(b"BM") else None


@contextlib.contextmanager
def reported(where: str) -> Iterator[None]:
    """Whatever a library raises about a broken file becomes a DataError."""
    try:
        yield
    except (MaskwrightError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(where, f"cannot be read ({reason})", "a whole image", "Replace or remove it") from error


def open_picture(file: BinaryIO, where: str, max_pixels: int = MAX_PIXELS, whole: bool = True) -> Picture:
    """Read the header of an image.

    Args:
        whole: also what lies behind the header and is needed to decode: EXIF orientation, completeness of a JPEG.

    Raises:
        DataError: no image, a broken one, one of more than `max_pixels` pixels, or one that needs a library that is
            not installed.
    """
    with reported(where):
        head = file.read(32)
        kind = kind_of(head)
        if kind is None:
            raise DataError(where, "is no image", "PNG, JPEG, WebP, BMP, GIF or TIFF", "Replace or remove it")
        if kind == "WebP":  # Pillow would make room for all pixels while it opens the file
            _check_size(where, *_webp_size(head), max_pixels)
        if whole and kind == "JPEG":
            _check_complete(file, where)
        file.seek(0)
        if kind == "TIFF":
            return _open_tiff(file, where, max_pixels)
        image = OPENERS[kind](file)
        _check_size(where, image.width, image.height, max_pixels)
        if kind == "PNG" and head[24] == 16 and head[25] in (PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA):
            return _deep_png(file, where, image, head[25])
        if whole and kind in ("PNG", "GIF"):
            image.load()  # EXIF may lie behind the pixels of a PNG
        return _plain(image, where, kind, _orientation(image) if whole else 1)


def _check_size(where: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DataError(where, f"declares {width} x {height} pixels", "at least one", "Replace or remove it")
    if width * height > max_pixels:
        raise DataError(
            where,
            f"declares {width} x {height} pixels",
            f"at most {max_pixels:,} in all",
            "If that is right, raise data.max_pixels, or cut it into tiles",
        )


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) of the canvas, from the first chunk (RFC 9649)."""
    chunk, body = head[12:16], head[20:].ljust(10, b"\0")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _check_complete(file: BinaryIO, where: str) -> None:
    """A JPEG's last scan must be followed by its end mark: decoders fill up what is missing without a word."""
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\xff\xd9")
    if end < 0 or content.find(b"\xff\xda", end) >= 0 or content.find(b"\xff\xda", 0, end) < 0:
        raise DataError(where, "is a truncated JPEG: it has no end mark", "a whole image", "Replace or remove it")


def _plain(image: Image.Image, where: str, kind: str, orientation: int) -> Picture:
    """An image that Pillow decodes."""
    deep = image.mode in DEEP_MODES
    depth = "8 bits" if not deep else "16 bits" if image.mode.startswith("I;16") or kind == "PNG" else AS_STORED
    height, width = image.height, image.width
    if orientation > 4:
        height, width = width, height
    alpha = not deep and (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info)
    channels = 1 if deep or image.mode in GREY_MODES else 3
    planes = (lambda: np.asarray(image)[None]) if deep else None
    return Picture(where, kind, height, width, channels, alpha, depth, orientation, image, planes)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
    except Exception:  # broken metadata of sound pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _deep_png(file: BinaryIO, where: str, image: Image.Image, colour_type: int) -> Picture:
    """A PNG of 16 bits with colours or alpha.

    Pillow would keep the first byte of each number only, by the raw mode 16B (big-endian). 16L takes the other byte of
    the same numbers, so two passes give both; grey with alpha has four bytes a pixel, which raw RGBA hands out as they are.
    """

    def layer(raw_mode: str) -> np.ndarray:
        file.seek(0)
        opened = PngImagePlugin.PngImageFile(file)
        opened.tile = [tile._replace(args=raw_mode) for tile in opened.tile]
        opened.load()
        return np.asarray(opened).astype(np.uint16)

    def planes() -> np.ndarray:
        if colour_type == PNG_GREY_ALPHA:
            four = layer("RGBA")
            values = four[..., ::2] << 8 | four[..., 1::2]
        else:
            mode = "RGB" if colour_type == PNG_RGB else "RGBA"
            values = layer(f"{mode};16B") << 8 | layer(f"{mode};16L")
        return values.transpose(2, 0, 1)

    orientation = _orientation(image)
    height, width = (image.width, image.height) if orientation > 4 else (image.height, image.width)
    channels = 1 if colour_type == PNG_GREY_ALPHA else 3
    return Picture(where, "PNG", height, width, channels, colour_type != PNG_RGB, "16 bits", orientation, None, planes)


def _open_tiff(file: BinaryIO, where: str, max_pixels: int) -> Picture:
    try:
        image = TiffImagePlugin.TiffImageFile(file)
        _check_size(where, image.width, image.height, max_pixels)
        plain = is_plain(image)
    except DataError:
        raise
    except Exception:  # layouts that Pillow does not know, and broken files: tifffile tells them apart
        plain = False
    if plain:
        return _plain(image, where, "TIFF", 1)  # Pillow turns TIFFs itself
    file.seek(0)
    stack = open_stack(file, where)
    _check_size(where, stack.width, stack.height, max_pixels)
    stack.check_volume(where, 4 * max_pixels)
    names = {"uint8": "8 bits", "uint16": "16 bits"}
    height, width = (stack.width, stack.height) if stack.orientation > 4 else (stack.height, stack.width)
    depth = names.get(stack.dtype.name, AS_STORED)
    channels = stack.channels - stack.alpha
    return Picture(where, "TIFF", height, width, channels, stack.alpha, depth, stack.orientation, None, stack.read)


# pixels ------------------------------------------------------------------------------------------------------------


def eight_bit(picture: Picture, channels: int, background: tuple[int, int, int], keep_alpha: bool) -> Image.Image:
    """Decode with Pillow to mode L, RGB, LA or RGBA, not yet turned."""
    assert picture.image is not None
    image: Image.Image = picture.image
    image.load()
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    if picture.alpha:
        image = image.convert("RGBA")
        if keep_alpha:
            return image.convert("LA") if channels == 2 else image
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image)
        image = canvas
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def deep(picture: Picture, channels: int, background: tuple[int, int, int], keep_alpha: bool) -> np.ndarray:
    """Decode to (C, H, W) numbers as stored, turned as EXIF says.

    Raises:
        DataError: NaN or infinity, or another number of channels than can be made of those stored.
    """
    assert picture.planes is not None
    values = turn(picture.planes(), picture.orientation)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(picture.where, "holds NaN or infinite values", "finite numbers", "Fill or remove them")
    if picture.alpha and not keep_alpha:
        top = RANGES.get(picture.depth, 1.0)
        values, opaque = values[:-1].astype(np.float32), values[-1].astype(np.float32) / top
        paper = np.array(background, np.float32)[:, None, None] * (top / 255)
        if len(values) == 1:
            paper = paper.mean(0, keepdims=True)
        values = values * opaque + paper * (1 - opaque)
    if len(values) == channels:
        return values
    if channels == 1 and len(values) == 3:  # ITU-R BT.601, as Pillow does
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return np.tensordot(weights, values.astype(np.float32), 1)[None]
    if channels == 3 and len(values) == 1:
        return np.repeat(values, 3, axis=0)
    raise DataError(
        picture.where, f"has {len(values)} channels", f"{channels}, as the other images", "See data.channels"
    )


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (..., H, W) from how an image is stored to how EXIF says it is seen."""
    if orientation > 4:
        values = values.swapaxes(-1, -2)
    across = orientation in (2, 3, 6, 7)
    down = orientation in (3, 4, 7, 8)
    return values[..., :: -1 if down else 1, :: -1 if across else 1]


def from_bytes(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """`open_picture` of a file that was read."""
    return open_picture(io.BytesIO(content), where, max_pixels)
