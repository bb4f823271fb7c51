"""Inflated copies of gzip'd volumes in the user's cache, so that later epochs read crops and not whole files."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import zlib
from collections.abc import Iterator
from gzip import BadGzipFile, GzipFile
from pathlib import Path

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.trainer.files import DiskFullError, atomic, user_folder

CHUNK = 2**20
TRAILING = 2**20
"""Bytes behind the voxels that are put up with."""
IN_USE = 24 * 3600
"""Seconds since the last use after which a copy may make room for another. So data that do not fit in the cache are
partly cached, rather than each copy being thrown away just before it is needed again."""
_inflating = threading.Lock()


def private_folder(name: str) -> Path:
    """A folder in the cache that only the user may read: what is in it comes from patients."""
    folder = user_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def inflated(path: Path, offset: int, size: int, limit: float) -> Path | np.ndarray:
    """Bytes `offset` to `offset + size` of a gzip'd file: a file in the cache that holds them, or else they themselves.

    Args:
        limit: gigabytes that the cache may take; 0 keeps nothing.

    Raises:
        DataError: the file is damaged, or holds less or much more.
    """
    if size > limit * 1e9:
        return _in_memory(path, offset, size)
    try:
        target = private_folder("volumes") / f"{_key(path, offset, size)}.raw"
        with _inflating:
            if not (target.is_file() and target.stat().st_size == size):
                if not _make_room(target.parent, size, limit * 1e9):
                    return _in_memory(path, offset, size)
                with atomic(target) as temporary, temporary.open("wb") as file:
                    for piece in _pieces(path, offset, size):
                        file.write(piece)
            elif time.time() - target.stat().st_mtime > IN_USE / 24:
                os.utime(target)
        return target
    except (OSError, DiskFullError):  # a cache that cannot be used costs time only
        return _in_memory(path, offset, size)


def _key(path: Path, offset: int, size: int) -> str:
    status = path.stat()
    text = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{offset}\n{size}"
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _make_room(folder: Path, size: int, limit: float) -> bool:
    """Whether `size` bytes may be added; removes copies that were not used of late."""
    kept = []
    for file in folder.glob("*.raw"):
        try:
            status = file.stat()
        except FileNotFoundError:  # another process made room
            continue
        kept.append((status.st_mtime, status.st_size, file))
    total = sum(bytes_ for _, bytes_, _ in kept)
    for used, bytes_, file in sorted(kept):
        if total + size <= limit or time.time() - used < IN_USE:
            break
        file.unlink(missing_ok=True)
        total -= bytes_
    return total + size <= limit


def _in_memory(path: Path, offset: int, size: int) -> np.ndarray:
    data = bytearray()
    for piece in _pieces(path, offset, size):
        data += piece
    return np.frombuffer(data, dtype=np.uint8)


def _pieces(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """What lies between `offset` and `offset + size`, after the checksum at the end of the file was found to fit.

    Raises:
        DataError: as in `inflated`; raised behind the last piece.
    """
    done = 0
    stop = offset + size
    try:
        with path.open("rb") as raw, GzipFile(fileobj=raw) as file:
            while piece := file.read(CHUNK):
                before, done = done, done + len(piece)
                if before < stop and done > offset:
                    yield piece[max(0, offset - before) : stop - before]
                if done > stop + TRAILING:
                    raise DataError(path, f"inflates to more than the {stop} bytes that its header announces")
    except (EOFError, BadGzipFile, zlib.error) as error:
        reason = "ends too early" if isinstance(error, EOFError) else "is damaged"
        raise DataError(
            path, f"{reason}: its gzip stream breaks off or fails its checksum", mend="Get the file again"
        ) from error
    if done < stop:
        raise DataError(path, f"inflates to {done} bytes", f"the {stop} that its header announces", "Get it again")
