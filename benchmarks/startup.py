"""Start-up time: every figure is the wall time of a fresh Python process.

python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from benchmarks.common import environment, interleave, parser, report

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import maskwright": ["-c", "import maskwright"],
    "maskwright --help": ["-m", "maskwright", "--help"],
    "maskwright plugins": ["-m", "maskwright", "plugins"],
    "maskwright list method": ["-m", "maskwright", "list", "method"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
    "import torchgeo.trainers": ["-c", "import torchgeo.trainers"],
    "import transformers": ["-c", "import transformers"],
}


def _run(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    args = parser(__doc__, rounds=7).parse_args()
    wanted = {
        name: command
        for name, command in COMMANDS.items()
        if not name.startswith("import ") or find_spec(name.removeprefix("import ").split(".")[0])
    }
    sides = {name: lambda command=command: _run(command) for name, command in wanted.items()}
    times = interleave(sides, args.rounds, warmup=1)
    floor = times["python -c pass"]
    rows = [
        {
            "command": name,
            "s min": found.fastest,
            "s median": found.median,
            "over plain Python": found.over(floor),
        }
        for name, found in times.items()
    ]
    present = [package for package in ("transformers", "torchgeo", "lightning") if find_spec(package)]
    report("Start-up", rows, environment(args.seed, packages=present), args.json)


if __name__ == "__main__":
    main()
