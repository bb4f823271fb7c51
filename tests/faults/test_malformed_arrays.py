"""Arrays and tables damaged at random: nothing but a DataError (or a ConfigError about their shape) may come of it.

The files are read in a child process of limited memory, so that a crash is an outcome like any other.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

COUNT = 300
KINDS = ("plain.npy", "fortran.npy", "stored.npz", "deflated.npz", "table.csv", "table.txt")
ADDRESS_SPACE = 6 * 2**30
SECONDS_OF_PROCESSOR = 5


def write_originals(folder: Path) -> None:
    """One sound file of each kind."""
    values = np.random.default_rng(0).normal(size=(30, 5, 4))
    np.save(folder / "plain.npy", values)
    np.save(folder / "fortran.npy", np.asfortranarray(values.astype(np.float32)))
    np.savez(folder / "stored.npz", x=values, y=np.arange(30))
    np.savez_compressed(folder / "deflated.npz", x=values)
    np.savetxt(folder / "table.csv", values[:, 0], delimiter=",", header="a,b,c,d", comments="")
    np.savetxt(folder / "table.txt", values[:, 1])


def child(folder: Path) -> None:
    """Read damaged files; a line of JSON for each: kind, outcome, what was wrong."""
    import torch

    from maskwright.core.arrays import ArrayLoader
    from maskwright.core.errors import ConfigError, DataError
    from tests.faults.fuzz_rasters import damage

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    write_originals(folder)
    for kind in KINDS:  # a reader that refuses sound files would prove nothing
        sound = folder / f"damaged_{kind}"
        sound.write_bytes((folder / kind).read_bytes())
        assert ArrayLoader(sound, array="x" if kind == "stored.npz" else "").read(0), kind
    for number in range(COUNT):
        kind = KINDS[number % len(KINDS)]
        path = folder / f"damaged_{kind}"
        path.write_bytes(damage((folder / kind).read_bytes(), np.random.default_rng([1, number])))
        print(json.dumps({"kind": kind, "outcome": "crash"}), flush=True)
        outcome, began = "read", time.process_time()
        try:
            ArrayLoader.accepts(path)
            loader = ArrayLoader(path, array="x" if kind == "stored.npz" else "")
            (name,) = loader.spec
            loader.read(0)
            sample = loader.read(len(loader) - 1)[name]
            whole = sample.dtype == torch.float32 and bool(sample.isfinite().all())
            same = sample.shape[0] == loader.spec[name].channel_count
            outcome = "read" if whole and same else "not what it announced"
            loader.statistics()
        except (DataError, ConfigError) as error:
            outcome = "refused" if len(str(error)) > 30 else f"says only {error}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        if time.process_time() - began > SECONDS_OF_PROCESSOR:
            outcome = "slow"
        print(json.dumps({"kind": kind, "outcome": outcome}), flush=True)


def test_damaged_files(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_malformed_arrays", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-2000:]}"
    outcomes = [json.loads(line) for line in done.stdout.splitlines()][1::2]
    assert len(outcomes) == COUNT
    wrong = [line for line in outcomes if line["outcome"] not in ("read", "refused")]
    assert not wrong, wrong[:5]
    for kind in KINDS:  # the damage was felt, in every kind
        found = Counter(line["outcome"] for line in outcomes if line["kind"] == kind)
        assert found["refused"] >= 10, (kind, found)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
