"""Running the command line, and ending processes at every boundary of what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

CALLS = ("open", "fsync", "replace", "link", "unlink", "mkdir", "rmdir", "rename", "write", "close")
"""Functions of `os` that change or end something on disk."""
EXIT = 77


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start `maskwright ARGUMENTS` with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "maskwright", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        **options,
    )


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `maskwright ARGUMENTS`."""
    process = start(*arguments, **options)
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


def fork(body: Callable[[], object]) -> int:
    """Run `body` in a forked child; its process id. The child ends with 0, or 1 and its error on standard error."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # the thread pool of the parent did not come along
        body()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def exit_at(
    number: int, body: Callable[[], object], also: dict[Any, tuple[str, ...]] | None = None
) -> Callable[[], None]:
    """`body`, leaving the process at call `number` (from 1) of what changes the disk, half of the calls before they act.

    A call of odd number is left before it acts, one of even number after it did: what a kill at that moment would do.

    Args:
        also: further functions that count as calls, by the module or class that holds them.
    """

    def run_it() -> None:
        count = 0

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os._exit(EXIT)
                returned = function(*arguments, **named)
                count += 1
                if count == number:
                    os._exit(EXIT)
                return returned

            return call

        for holder, names in {os: CALLS, **(also or {})}.items():
            for name in names:
                setattr(holder, name, counting(getattr(holder, name)))
        body()

    return run_it


def every_exit(make: Callable[[Path], Callable[[], object]], **options: Any) -> Iterator[tuple[int, Path]]:
    """Run `make(folder)` in a fresh folder for every call number; (number, folder) after each death, until one survives."""
    number = 0
    while True:
        number += 1
        with tempfile.TemporaryDirectory() as name:
            child = fork(exit_at(number, make(Path(name)), **options))
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                return
            assert code == EXIT, f"call {number}: the child ended with {code}"
            yield number, Path(name)
