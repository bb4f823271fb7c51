"""One process at a time in a run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from maskwright.core.errors import ConfigError
from maskwright.core.trainer.files import remove_leftovers
from maskwright.core.trainer.run import Run


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run directory for this process. A lock that a dead process left behind is taken over.

    Half-written files of such a process are removed: after many kills they would fill the disk.

    Raises:
        ConfigError: a living process holds it.
    """
    path = run.path / "run.lock"
    while True:
        try:
            with path.open("x") as file:
                json.dump({"pid": os.getpid(), "born": psutil.Process().create_time()}, file)
            break
        except FileExistsError:
            try:
                held = json.loads(path.read_text())
                alive = psutil.Process(held["pid"]).create_time() == held["born"]
            except (psutil.NoSuchProcess, ValueError, KeyError, TypeError, FileNotFoundError):
                alive = False
            if alive:
                raise ConfigError(
                    f"{run.path} is in use by process {held['pid']}. Wait for it, or stop it with `kill {held['pid']}`."
                ) from None
            path.unlink(missing_ok=True)
    try:
        remove_leftovers(run.path)
        yield
    finally:
        path.unlink(missing_ok=True)
