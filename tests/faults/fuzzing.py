"""The frame of the fuzz runs: damaged files are read in a child process of limited memory, one after the other.

The child says which file it is about to read, so that one that crashes or hangs it is known; the next child goes on
behind it. A module of a domain gives `FORMATS`, `write_originals(folder, seed)` and `reader(folder)`, which returns a
function (kind, generator) that writes a damaged file and returns what reads it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

ADDRESS_SPACE = 6 * 2**30
PEAK = 1200
"""Resident MB that no file may take, with torch and all else that is imported."""
SECONDS_A_FILE = 20
"""Of wall time, on a machine that may be busy with other things; 5 s of processor time are the goal."""
SECONDS_OF_PROCESSOR = 5
EXTREMES = (0, 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 0x7F800000, 0xFFC00000)
GOOD = ("read", "DataError")
"""Outcomes that may happen; others are the words of `Wrong`, a foreign exception, slow, memory, a crash, a hang."""

Read = Callable[[], None]
Reader = Callable[[str, np.random.Generator], Read]


class Wrong(Exception):
    """What was read is not what the file declares or the loader announced; says in a word or two what it is."""


def damage(data: bytes, generator: np.random.Generator, head: int) -> tuple[bytes, bool]:
    """Cut a file short, or change bytes near its start, anywhere, or four at a time to extreme values.

    Args:
        head: bytes at the start that are changed most.

    Returns:
        The damaged file, and whether it was only cut.
    """
    kind = generator.integers(5)
    if kind == 0:
        return data[: int(generator.integers(len(data)))], True
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        place = int(generator.integers(min(len(data), head)))
        if kind == 1:
            changed[place] = int(generator.integers(256))
        elif kind == 2:
            changed[int(generator.integers(len(data)))] = int(generator.integers(256))
        elif kind == 3:
            place = min(place // 2 * 2, len(data) - 4)
            value = int(generator.choice(EXTREMES))
            changed[place : place + 4] = value.to_bytes(4, str(generator.choice(["little", "big"])))
        else:
            changed[place : place + 2] = changed[place // 2 : place // 2 + 2]
    return bytes(changed), False


def peak_mebibytes() -> float:
    """Most memory that this process has held. getrusage would count what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def child(module: str, folder: Path, start: int, stop: int, seed: int) -> None:
    """Read damaged files `start` to `stop`; a line of JSON before and after each."""
    import torch

    from maskwright.core.errors import DataError

    torch.set_num_threads(1)
    os.environ["MASKWRIGHT_CACHE"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    (folder / "damaged").mkdir(exist_ok=True)
    domain: Any = importlib.import_module(module)
    kinds, damaged = list(domain.FORMATS), domain.reader(folder)
    for number in range(start, stop):
        kind = kinds[number % len(kinds)]
        read = damaged(kind, np.random.default_rng([seed, number]))
        print(json.dumps({"about to read": number, "kind": kind}), flush=True)
        started, processor = time.perf_counter(), time.process_time()
        outcome, words = "read", ""
        try:
            read()
        except DataError as error:
            outcome, words = "DataError", str(error)
        except Wrong as error:
            outcome = str(error)
        except Exception as error:
            outcome, words = "foreign exception", f"{type(error).__name__}: {error}"[:300]
        seconds, busy = time.perf_counter() - started, time.process_time() - processor
        peak = peak_mebibytes()
        if outcome in GOOD:
            outcome = "slow" if busy > SECONDS_OF_PROCESSOR else "memory" if peak > PEAK else outcome
        done = {"number": number, "kind": kind, "outcome": outcome, "words": words, "seconds": seconds, "peak": peak}
        print(json.dumps(done), flush=True)


def run(module: str, count: int, folder: Path, seed: int = 0) -> list[dict]:
    """Outcomes of `count` damaged files."""
    importlib.import_module(module).write_originals(folder, seed)
    found: list[dict] = []
    while len(found) < count:
        found += _one_child(module, folder, len(found), count, seed)
    return found


def check(module: str, found: list[dict], count: int, checked: tuple[str, ...] = ()) -> None:
    """Nothing bad happened, damage to every kind was noticed, and single values could be changed.

    Args:
        checked: kinds whose checksums notice nearly every change.
    """
    assert len(found) == count
    wrong = [one for one in found if one["outcome"] not in GOOD]
    assert not wrong, wrong[:5]
    outcomes = Counter((one["kind"], one["outcome"]) for one in found)
    for kind in importlib.import_module(module).FORMATS:
        assert outcomes[kind, "DataError"] > 0, f"no damage to {kind} was noticed"
        assert kind in checked or outcomes[kind, "read"] > 0, (
            f"every damage to {kind} was refused, of single values too"
        )


def _one_child(module: str, folder: Path, start: int, stop: int, seed: int) -> list[dict]:
    command = [sys.executable, "-m", module, "--child", *map(str, (folder, start, stop, seed))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    done: list[dict] = []
    pending = None
    for line in _lines(process.stdout):
        if line is None:  # nothing for too long
            process.kill()
            process.wait()
            return [*done, {**(pending or {"kind": "start"}), "outcome": "hang", "words": ""}]
        message = json.loads(line)
        if "outcome" in message:
            done.append(message)
            pending = None
        else:
            pending = message
    process.wait()
    if pending is not None or not done:
        done.append({**(pending or {"kind": "start"}), "outcome": "crash", "words": f"exit {process.returncode}"})
    return done


def _lines(stream: IO[str]) -> Iterator[str | None]:
    """Lines as they come, then the end; None when none comes for too long."""
    waiting: queue.Queue[str | None] = queue.Queue()

    def follow() -> None:
        for line in stream:
            waiting.put(line)
        waiting.put("")

    threading.Thread(target=follow, daemon=True).start()
    first = True
    while True:
        try:
            line = waiting.get(timeout=SECONDS_A_FILE + (60 if first else 0))  # imports come first
        except queue.Empty:
            yield None
            return
        first = False
        if not line:
            return
        yield line


def main(module: str, description: str) -> None:
    """The command of a module: `--count`, `--seed`; what came of it, and what should not have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--child", nargs=4, metavar=("FOLDER", "START", "STOP", "SEED"))
    args = options.parse_args()
    if args.child:
        child(module, Path(args.child[0]), *map(int, args.child[1:]))
        return
    with tempfile.TemporaryDirectory(prefix="maskwright-fuzz-") as folder:
        found = run(module, args.count, Path(folder), args.seed)
    for outcome, times in Counter(one["outcome"] for one in found).most_common():
        print(f"{outcome}: {times}")
    longest, peak = (max(one.get(key, 0) for one in found) for key in ("seconds", "peak"))
    print(f"longest {longest:.2f} s, peak {peak:.0f} MB")
    for one in found:
        if one["outcome"] not in GOOD:
            print(one)
