"""Reading .npy and .npz files that are not believed: what they declare is checked before anything is mapped or made.

Formats: NumPy Enhancement Proposal 1 (.npy); .npz is a ZIP archive of .npy members.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskwright.core.errors import ConfigError, DataError, nearest

MAX_MEMBER_BYTES = 2**31
"""Largest member of an .npz, which has to be read into memory as a whole."""
MAX_RATIO = 1100
"""Deflate cannot make anything smaller than about 1/1032 of its size."""
NUMBERS, TEXTS = "biuf", "US"
"""Kinds of NumPy types that hold real numbers, and texts."""


@dataclass(frozen=True)
class Declared:
    """What the header of an .npy file says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    """Bytes before the first number."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], where: str) -> Declared:
    """The header of an .npy stream, which is left at the first number.

    Raises:
        DataError: no .npy, Python objects, or a shape that cannot be.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version[0]}.{version[1]}")
    except Exception as error:  # a damaged header fails in any way that Python's parser knows
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise DataError(where, f"cannot be read as an array ({reason})", "what numpy.save writes") from error
    if dtype.hasobject:
        raise DataError(
            where, "holds Python objects, which are never loaded", "numbers", "Save it with array.astype(numpy.float32)"
        )
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise DataError(where, f"declares the shape {shape}", "sizes of zero or more")
    return Declared(tuple(shape), dtype, fortran, stream.tell())


def npy_header(path: Path) -> Declared:
    """The header of an .npy file, checked against the file's size.

    Raises:
        DataError: missing, damaged, or longer or shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            declared = read_header(file, str(path))
        size = path.stat().st_size
    except OSError as error:
        raise DataError(path, f"cannot be opened ({error.strerror})", "an .npy file") from error
    _check_size(declared, size - declared.offset, str(path))
    return declared


def map_npy(path: Path) -> np.ndarray:
    """An .npy array, mapped and read-only: only what is looked at is read.

    Raises:
        DataError: as `npy_header`.
    """
    declared = npy_header(path)
    if declared.nbytes == 0:  # nothing cannot be mapped
        return np.empty(declared.shape, declared.dtype)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, OverflowError) as error:
        raise DataError(path, f"cannot be mapped ({error})", "an .npy file") from error


def npz_headers(path: Path) -> dict[str, Declared]:
    """Headers of all arrays in an .npz by name. A damaged one ends it: nothing in such a file is to be believed.

    Raises:
        DataError: no ZIP archive, or a member that is no .npy.
    """
    with _opened(path) as archive:
        found = {}
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                name = info.filename.removesuffix(".npy")
                with _guarded(f"{path}:{name}"), archive.open(info) as stream:
                    found[name] = read_header(stream, f"{path}:{name}")
    if not found:
        raise DataError(path, "holds no array", "what numpy.savez writes")
    return found


def load_npz(path: Path, name: str) -> np.ndarray:
    """One array of an .npz, read whole and checked against its checksum.

    Raises:
        ConfigError: no array of that name. DataError: damaged, too large, or not what it declares.
    """
    where = f"{path}:{name}"
    with _opened(path) as archive:
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            known = [file.removesuffix(".npy") for file in archive.namelist()]
            raise ConfigError(f'{path} holds no array "{name}".{nearest(name, known)}') from None
        if info.file_size > MAX_MEMBER_BYTES:
            raise DataError(
                where,
                f"declares {info.file_size / 1e9:.1f} GB",
                f"at most {MAX_MEMBER_BYTES / 1e9:.1f} GB in an .npz, which is read whole",
                "Save it as .npy, of which only the rows in use are read",
            )
        if info.file_size > MAX_RATIO * max(info.compress_size, 1) or info.compress_size > path.stat().st_size:
            raise DataError(where, f"declares {info.file_size} bytes out of {info.compress_size}, which cannot be")
        with _guarded(where), archive.open(info) as stream:
            declared = read_header(stream, where)
            _check_size(declared, info.file_size - declared.offset, where)
            data, filled = np.empty(declared.nbytes, np.uint8), 0
            while filled < len(data):
                part = stream.read(min(2**20, len(data) - filled))
                if not part:
                    raise DataError(where, f"ends after {filled} bytes", f"{len(data)}")
                data[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
                filled += len(part)
            stream.read(1)  # the end of the member, where its checksum is compared
    return data.view(declared.dtype).reshape(declared.shape, order="F" if declared.fortran else "C")


def _check_size(declared: Declared, there: int, where: str) -> None:
    if declared.nbytes != there:
        raise DataError(
            where,
            f"holds {there} bytes behind its header",
            f"{declared.nbytes} for {declared.dtype} of shape {declared.shape}",
            "It was cut short or damaged: fetch or write it again",
        )


class _guarded:
    """Turns whatever the zip and zlib libraries raise into a DataError."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, (DataError, ConfigError)):
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise DataError(self.where, f"cannot be read ({reason})", "a sound .npz") from error


def _opened(path: Path) -> zipfile.ZipFile:
    with _guarded(str(path)):
        return zipfile.ZipFile(path)
