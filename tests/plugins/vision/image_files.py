"""Small images of every kind for the tests of the image loader."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8, smooth enough for JPEG to keep."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.random.default_rng(seed).uniform(1, 5, (channels, 3))
    planes = [128 + 100 * np.sin(a * rows + b * columns + c) for a, b, c in waves]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def encoded(values: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.squeeze()).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, interlaced: bool = False) -> bytes:
    """A PNG from scanlines, for what Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps along rows and columns, of each pass of an interlaced PNG."""


def deep_png(values: np.ndarray, interlaced: bool = False) -> bytes:
    """16 bits of (H, W, C): grey, grey and alpha, RGB, RGBA."""
    parts = [values[y::down, x::across] for y, x, down, across in ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.shape[1] for row in part)
    height, width, channels = values.shape
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, interlaced)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_folder(folder: Path, count: int = 6) -> Path:
    """Colour JPEGs of several sizes in two sub-folders."""
    for number in range(count):
        values = smooth(40 + number, 60 - number, seed=number)
        write(folder / ("cat", "dog")[number % 2] / f"{number}.jpg", encoded(values, "JPEG", quality=95))
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
