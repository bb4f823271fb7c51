"""Damage NIfTI and DICOM files at random and read them: nothing but a DataError may come of it.

    python -m tests.faults.fuzz_volumes --count 10000

Files are read in a child process of limited memory. It says which file it is about to read, so that one that crashes or
hangs it is known; the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import gzip
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
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from maskwright.medical.fake import fake_ct, fake_nifti, fake_series

SHAPE = (40, 36, 6)
ADDRESS_SPACE = 6 * 2**30
PEAK = 1200
"""Resident MB that no file may take, with torch and all else that is imported."""
SECONDS_A_FILE = 20
"""Of wall time, on a machine that may be busy with other things; 5 s of processor time are the goal."""
SECONDS_OF_PROCESSOR = 5
EXTREMES = (0, 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 0x7F800000, 0xFFC00000)
FORMATS = (
    "plain.nii", "zipped.nii.gz", "inner.nii.gz", "second.nii", "big.nii", "float.nii", "series.nii", "pair.hdr",
    "explicit.dcm", "implicit.dcm", "bigendian.dcm", "rle.dcm", "jpeg2000.dcm", "slice.dcm",
)  # fmt: skip
BAD = ("foreign exception", "other shape", "not finite", "slow", "crash", "hang", "memory")
"""Outcomes that must not happen. A changed voxel cannot be noticed, as there is no checksum."""


def peak_mebibytes() -> float:
    """Most memory that this process has held. getrusage would count what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def write_originals(folder: Path, seed: int) -> None:
    """One sound file of each kind; `slice` is one of a series, beside the others."""
    values = fake_ct(SHAPE, seed)
    fake_nifti(folder / "plain.nii", SHAPE, seed=seed)
    fake_nifti(folder / "zipped.nii.gz", SHAPE, seed=seed)
    fake_nifti(folder / "inner.nii", SHAPE, seed=seed).rename(folder / "inner.nii.gz")  # is zipped after the damage
    nib.save(nib.Nifti2Image(values, np.eye(4)), folder / "second.nii")
    nib.save(nib.Nifti1Image(values, None, nib.Nifti1Header(endianness=">")), folder / "big.nii")
    turned = np.array([[0, 2, 0.1, 5], [2, 0, 0, 6], [0.1, 0, -3, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values.astype(np.float32) / 7, turned), folder / "float.nii")
    nib.save(nib.Nifti1Image(np.stack([values, values], -1), turned), folder / "series.nii")
    nib.save(nib.Nifti1Pair(values, turned), folder / "pair.img")
    (folder / "source").mkdir()
    files = fake_series(folder / "source", SHAPE, seed=seed)
    files[2].rename(folder / "slice.dcm")
    for name in ("explicit", "implicit", "bigendian", "rle", "jpeg2000"):
        one = pydicom.dcmread(files[0])
        keywords = {}
        if name == "implicit":
            one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            keywords = {"implicit_vr": True, "little_endian": True}
        elif name == "bigendian":
            one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            one.PixelData = one.pixel_array.astype(">i2").tobytes()
            keywords = {"implicit_vr": False, "little_endian": False}
        elif name in ("rle", "jpeg2000"):
            one.compress(RLELossless if name == "rle" else JPEG2000Lossless, generate_instance_uid=False)
        pydicom.dcmwrite(folder / f"{name}.dcm", one, **keywords)


def damage(data: bytes, generator: np.random.Generator) -> bytes:
    """Cut a file short, or change bytes near its start, anywhere, or four at a time to extreme values."""
    kind = generator.integers(5)
    if kind == 0:
        return data[: int(generator.integers(len(data)))]
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        place = int(generator.integers(min(len(data), 1200)))
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
    return bytes(changed)


# the child -------------------------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What was read is not what the loader announced."""


def _check(loader, size: tuple[int, ...]) -> None:
    (name, spec) = next(iter(loader.spec.items()))
    for index in {0, len(loader) // 2, len(loader) - 1}:
        sample = loader.read(index)
        if tuple(sample[name].shape) != (spec.channel_count, *size):
            raise _Wrong("other shape")
        if not sample[name].isfinite().all() or not np.isfinite(sample.meta.extra["affine"]).all():
            raise _Wrong("not finite")
        picture = loader.picture(name, sample[name])
        if picture.shape[2] != 3:
            raise _Wrong("other shape")


def read(path: Path, kind: str, folder: Path) -> None:
    """Read a damaged file as its user would: in 3-D, resampled, in slices; a slice of a series among the others."""
    from maskwright.core.errors import DataError
    from maskwright.medical.loaders import SliceLoader, VolumeLoader

    if kind == "slice.dcm":
        place = folder / "source" / "slice.dcm"
        place.write_bytes(path.read_bytes())
        path = place.parent
    VolumeLoader.accepts(path)
    volumes = (
        []
        if kind.endswith(".dcm") and kind != "slice.dcm"
        else [{"size": 24}, {"size": 20, "spacing": 3.0, "cache": 0}]
    )
    refused = None
    for loader, options, size in [
        *((VolumeLoader, options, (options["size"],) * 3) for options in volumes),
        (SliceLoader, {"size": (20, 28), "context": 1}, (20, 28)),
        (SliceLoader, {"size": 16, "axis": "sagittal", "window": (40.0, 400.0)}, (16, 16)),
    ]:
        try:
            _check(loader(path, volume="all", max_voxels=2**24, **options), size)
        except DataError as error:
            refused = error
    if refused is not None:
        raise refused


def child(folder: Path, start: int, stop: int, seed: int) -> None:
    """Read damaged files `start` to `stop`; a line of JSON before and after each."""
    import torch

    from maskwright.core.errors import DataError

    torch.set_num_threads(1)
    os.environ["MASKWRIGHT_CACHE"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    originals = {name: (folder / name).read_bytes() for name in FORMATS}
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    for number in range(start, stop):
        generator = np.random.default_rng([seed, number])
        kind = FORMATS[number % len(FORMATS)]
        path = damaged / kind
        content = damage(originals[kind], generator)
        path.write_bytes(gzip.compress(content, 1) if kind == "inner.nii.gz" else content)
        if kind == "pair.hdr":
            (damaged / "pair.img").write_bytes((folder / "pair.img").read_bytes())
        print(json.dumps({"about to read": number, "kind": kind}), flush=True)
        started, processor = time.perf_counter(), time.process_time()
        words = ""
        try:
            read(path, kind, folder)
            outcome = "read"
        except DataError as error:
            outcome, words = "DataError", str(error)
        except _Wrong as error:
            outcome = str(error)
        except Exception as error:
            outcome, words = "foreign exception", f"{type(error).__name__}: {error}"[:300]
        seconds, busy = time.perf_counter() - started, time.process_time() - processor
        peak = peak_mebibytes()
        if outcome in ("read", "DataError"):
            outcome = "slow" if busy > SECONDS_OF_PROCESSOR else "memory" if peak > PEAK else outcome
        done = {"number": number, "kind": kind, "outcome": outcome, "words": words, "seconds": seconds, "peak": peak}
        print(json.dumps(done), flush=True)


# the parent ------------------------------------------------------------------------------------------------------


def run(count: int, folder: Path, seed: int = 0) -> list[dict]:
    """Outcomes of `count` damaged files."""
    write_originals(folder, seed)
    found: list[dict] = []
    while len(found) < count:
        found += _one_child(folder, len(found), count, seed)
    return found


def _one_child(folder: Path, start: int, stop: int, seed: int) -> list[dict]:
    command = [
        sys.executable,
        "-m",
        "tests.faults.fuzz_volumes",
        "--child",
        str(folder),
        str(start),
        str(stop),
        str(seed),
    ]
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


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--child", nargs=4, metavar=("FOLDER", "START", "STOP", "SEED"))
    args = options.parse_args()
    if args.child:
        child(Path(args.child[0]), *map(int, args.child[1:]))
        return
    with tempfile.TemporaryDirectory(prefix="maskwright-fuzz-") as folder:
        found = run(args.count, Path(folder), args.seed)
    for outcome, times in Counter(one["outcome"] for one in found).most_common():
        print(f"{outcome}: {times}")
    print(
        f"longest {max(one.get('seconds', 0) for one in found):.2f} s, peak {max(one.get('peak', 0) for one in found):.0f} MB"
    )
    for one in found:
        if one["outcome"] in BAD:
            print(one)


if __name__ == "__main__":
    main()
