"""What all benchmarks share: interleaved timing, peak memory in a process of its own, and the table.

Two sides are compared A/B/B/A in one process, so that whatever else the machine does falls on both; the ratio that
counts is the median over rounds of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each round of one side; entries of equal index were measured next to each other."""

    seconds: list[float]

    @property
    def fastest(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Times) -> float:
        """Median of the ratios within rounds: below 1 where this side is faster."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def over_medians(self, other: Times) -> float:
        return self.median / other.median


def interleave(
    sides: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2, device: str = "cpu"
) -> dict[str, Times]:
    """Time every side once a round, in turn forwards and backwards."""
    names, seconds = list(sides), {name: [] for name in sides}
    for _ in range(warmup):
        for name in names:
            sides[name]()
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            _wait(device)
            start = time.perf_counter()
            sides[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(values) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(device: str = "cpu") -> float:
    """Highest memory of this process so far, in MiB: resident on a CPU, allocated by torch on a GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held before it started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def in_fresh_process(module: str, arguments: Sequence[str]) -> float:
    """The number that `python -m module arguments` prints in its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def environment(seed: int, device: str = "cpu", packages: Sequence[str] = ()) -> dict[str, Any]:
    """Where figures were measured: they mean little without."""
    return {
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "seed": seed,
        **{name: metadata.version(name) for name in ("maskwright", "torch", *packages)},
    }


def cpu_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    options.add_argument("--rounds", type=int, default=rounds, help="times each side is measured")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--json", type=Path, help="also write rows and environment to this file")
    return options


def put_into_page(page: Path, start: str, end: str, text: str) -> None:
    """Replace what a page has between two marks."""
    before, after = page.read_text().split(start)[0], page.read_text().split(end)[1]
    page.write_text(f"{before}{start}\n\n{text}\n{end}{after}")
    print("wrote", page.name)


def report(title: str, rows: list[dict[str, Any]], where: dict[str, Any], path: Path | None) -> None:
    """Print rows as a table, and write them where asked."""
    print(f"\n{title}")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print(
            "  ".join(
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            )
        )
    if path is not None:
        path.write_text(json.dumps({"title": title, "environment": where, "rows": rows}, indent=1) + "\n")
        print("wrote", path)


def _text(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
