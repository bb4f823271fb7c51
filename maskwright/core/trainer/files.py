"""Writing files so that a kill or a full disk never damages what was there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from maskwright.core.errors import ConfigError, MaskwrightError


class DiskFullError(MaskwrightError):
    """A file could not be written for want of space; what was there before is whole."""


def user_folder() -> Path:
    """`MASKWRIGHT_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("MASKWRIGHT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maskwright"


def _permitted(mode: int) -> int:
    """Permissions of something new, as the process's umask has them."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mode & ~mask


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder; on success it is synced and renamed to `path`, on failure removed.

    Raises:
        DiskFullError: no space; says how much is free.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_permitted(0o666))  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "os error 28" in str(error):  # safetensors hides the number in its text
            free = shutil.disk_usage(path.parent).free / 1e6
            raise DiskFullError(
                f"{path}: not written, {free:.0f} MB of disk are free. What was there before is whole. Free some space."
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left in a folder and its sub-folders."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary path)` make a file, then put it in place atomically."""
    with atomic(path) as temporary:
        write(temporary)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when all in it is written; removed on failure.

    Raises:
        ConfigError: `path` is there already and not empty.
    """
    refuse_full(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(_permitted(0o777))  # temporary folders are closed to others
        os.replace(temporary, path)  # an empty folder may be replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_full(path: Path) -> None:
    """Raise ConfigError if a file or folder is there and holds anything."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"{path} is not empty. Choose another folder with --out.")


def free_folder(path: Path) -> Path:
    """`path`, or `path-2`, `path-3` ... where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
