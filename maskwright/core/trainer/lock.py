"""One process at a time in a run directory, or on a file that takes long to write."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from maskwright.core.errors import ConfigError
from maskwright.core.trainer.files import DiskFullError, remove_leftovers
from maskwright.core.trainer.run import Run

WRITING_SECONDS = 2.0
"""How long a lock without readable content counts as one that is just being written."""


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run directory for this process. A lock that a dead process left behind is taken over.

    Half-written files of such a process are removed: after many kills they would fill the disk.

    Raises:
        ConfigError: a living process holds it.
    """
    with held(run.path / "run.lock", run.path):
        remove_leftovers(run.path)
        yield


@contextmanager
def held(lock: Path, what: Path) -> Iterator[None]:
    """Hold `what` for this process by the file `lock`. A lock that a dead process left behind is taken over.

    Raises:
        ConfigError: a living process holds it. DiskFullError: not even the lock fits.
    """
    while True:
        try:
            with lock.open("x") as file:
                json.dump({"pid": os.getpid(), "born": psutil.Process().create_time()}, file)
            break
        except FileExistsError:
            _refuse_or_clear(lock, what)
        except OSError as error:
            lock.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"{what}: not begun, the disk of {lock.parent} is full. Free some space."
                ) from error
            raise
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _refuse_or_clear(lock: Path, what: Path) -> None:
    """Raise if a living process holds the lock; else remove it, or wait a moment while it is being written."""
    try:
        content, written = lock.read_text(), lock.stat().st_mtime
        holder = json.loads(content)
        alive = psutil.Process(holder["pid"]).create_time() == holder["born"]
    except FileNotFoundError:
        return
    except psutil.NoSuchProcess:
        alive = False
    except (ValueError, KeyError, TypeError):
        if time.time() - written < WRITING_SECONDS:
            time.sleep(0.05)
            return
        alive = False
    if alive:
        raise ConfigError(
            f"{what} is in use by process {holder['pid']}. Wait for it, or stop it with `kill {holder['pid']}`."
        )
    # Of several processes that find the same dead lock, the first to rename it wins. Who renames the winner's new lock
    # by mistake gives it back.
    stale = lock.with_name(f"{lock.name}.{os.getpid()}.stale")
    try:
        os.rename(lock, stale)
        if stale.read_text() == content:
            stale.unlink()
        else:
            os.rename(stale, lock)
    except FileNotFoundError:
        return
