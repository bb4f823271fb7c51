"""Damage raster files at random and read them: nothing but a DataError may come of it.

    python -m tests.faults.fuzz_rasters --count 10000

Files are read in a child process of limited memory. It says which file it is about to read, so that one that crashes or
hangs it is known; the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import json
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
from typing import IO

import numpy as np
import rasterio

from maskwright.remote_sensing.bands import S1, S2_L2A
from maskwright.remote_sensing.writers import write_geotiff

SIDE = 96
WINDOW = 64
ADDRESS_SPACE = 6 * 2**30
SECONDS_A_FILE = 20
"""Of wall time, on a machine that may be busy with other things; 5 s of processor time are the goal."""
SECONDS_OF_PROCESSOR = 5
EXTREMES = (0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
FORMATS = ("tiled", "striped", "plain", "big", "png", "jpeg", "jp2", "pair-s1", "pair-s2", "band")
BAD = ("foreign exception", "other shape", "not finite", "slow", "crash", "hang")
"""Outcomes that must not happen. A changed pixel cannot be noticed, as there is no checksum."""


def write_originals(folder: Path, seed: int) -> None:
    """One sound file of each kind."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    smooth = 1000 + 500 * np.sin(5 * x + 3 * y) + generator.normal(scale=5, size=(12, SIDE, SIDE))
    integers, decibels = smooth.astype(np.uint16), (smooth[:2] / 100 - 25).astype(np.float32)
    transform = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
    crs = "EPSG:32633"
    write_geotiff(folder / "tiled.tif", integers[:4], crs, transform, nodata=0)
    write_geotiff(folder / "pair-s2.tif", integers, crs, transform, band_names=S2_L2A)
    write_geotiff(folder / "pair-s1.tif", decibels, crs, transform, band_names=S1)
    write_geotiff(folder / "band.tif", integers[0], crs, transform)
    bytes_ = (integers[:3] // 8).astype(np.uint8)
    profile = {"height": SIDE, "width": SIDE, "crs": crs, "transform": rasterio.Affine(*transform)}
    for name, values, options in (
        ("striped.tif", decibels, {"driver": "GTiff", "compress": "lzw", "nodata": np.nan}),
        ("plain.tif", integers[:2], {"driver": "GTiff", "interleave": "band"}),
        ("big.tif", integers[:2], {"driver": "GTiff", "bigtiff": "yes", "compress": "zstd"}),
        ("png.png", bytes_, {"driver": "PNG"}),
        ("jpeg.jpg", bytes_, {"driver": "JPEG"}),
        ("jp2.jp2", bytes_, {"driver": "JP2OpenJPEG"}),
    ):
        with rasterio.open(
            folder / name, "w", count=len(values), dtype=values.dtype.name, **profile, **options
        ) as file:
            file.write(values)


def damage(data: bytes, generator: np.random.Generator) -> bytes:
    """Cut a file short, or change bytes near its ends, anywhere, or four at a time to extreme values."""
    kind = generator.integers(4)
    if kind == 0:
        return data[: int(generator.integers(len(data)))]
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        near = int(generator.integers(min(len(data), 2048)))  # directories lie at either end
        place = near if generator.random() < 0.5 else len(data) - 1 - near
        if kind == 1:
            changed[place] = int(generator.integers(256))
        elif kind == 2:
            changed[int(generator.integers(len(data)))] = int(generator.integers(256))
        else:
            place = min(place // 2 * 2, len(data) - 4)
            value = int(generator.choice(EXTREMES))
            changed[place : place + 4] = value.to_bytes(4, "little")
    return bytes(changed)


# the child -------------------------------------------------------------------------------------------------------


def readers(folder: Path) -> dict[str, Callable[[Path], None]]:
    """How a damaged file of each kind is read; a kind is the name of its original up to the dot."""
    from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader

    def image(path: Path) -> None:
        for size in (WINDOW, None):
            loader = GeoTiffLoader(path, size)
            _check(loader, len(loader) - 1, {"image": (len(loader.images[0].names), size or 0, size or 0)})

    def pair(kind: str) -> Callable[[Path], None]:
        sensor = kind[-2:].upper()
        other = {"S1": "S2", "S2": "S1"}[sensor]
        place = folder / kind
        for name in (sensor, other):
            (place / name).mkdir(parents=True, exist_ok=True)
        (place / other / "tile.tif").write_bytes((folder / f"pair-{other.lower()}.tif").read_bytes())

        def read(path: Path) -> None:
            (place / sensor / "tile.tif").write_bytes(path.read_bytes())
            loader = PairLoader(place, WINDOW)
            _check(loader, 0, {name: (spec.channel_count, WINDOW, WINDOW) for name, spec in loader.spec.items()})

        return read

    def band(path: Path) -> None:
        place = folder / "bands"
        place.mkdir(exist_ok=True)
        (place / "x_B02.tif").write_bytes((folder / "band.tif").read_bytes())
        (place / "x_B05.tif").write_bytes(path.read_bytes())
        _check(GeoTiffLoader(place, WINDOW), 0, {"image": (2, WINDOW, WINDOW)})

    special = {"pair-s1": pair("pair-s1"), "pair-s2": pair("pair-s2"), "band": band}
    return {name: special.get(name, image) for name in FORMATS}


class _Wrong(Exception):
    """What was read is not what the header announced."""


def _check(loader, index: int, wanted: dict[str, tuple[int, ...]]) -> None:
    sample = loader.read(index)
    for name, shape in wanted.items():
        found = tuple(sample[name].shape)
        if any(a != b for a, b in zip(found, shape, strict=True) if b):
            raise _Wrong("other shape")
        if not sample[name].isfinite().all():
            raise _Wrong("not finite")


def child(folder: Path, start: int, stop: int, seed: int) -> None:
    """Read damaged files `start` to `stop`; a line of JSON before and after each."""
    import torch

    from maskwright.core.errors import DataError

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    originals = {path.stem: (path.suffix, path.read_bytes()) for path in folder.glob("*.*") if path.stem in FORMATS}
    read = readers(folder)
    for kind, (suffix, _) in originals.items():
        read[kind](folder / f"{kind}{suffix}")  # a reader that refuses sound files would prove nothing
    for number in range(start, stop):
        kind = FORMATS[number % len(FORMATS)]
        suffix, data = originals[kind]
        path = folder / f"damaged_{start}{suffix}"
        path.write_bytes(damage(data, np.random.default_rng([seed, number])))
        print(json.dumps({"number": number}), flush=True)
        outcome, text, began = "read", "", time.process_time()
        try:
            read[kind](path)
        except DataError as error:
            outcome = "DataError"
            if not (error.path and error.found):
                outcome, text = "foreign exception", "a DataError that says nothing"
        except _Wrong as error:
            outcome = str(error)
        except Exception as error:
            outcome, text = "foreign exception", f"{type(error).__module__}.{type(error).__name__}: {error}"
        if time.process_time() - began > SECONDS_OF_PROCESSOR:
            outcome, text = "slow", f"{time.process_time() - began:.1f} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"done": number, "kind": kind, "outcome": outcome, "text": text, "peak": peak}), flush=True)


# the parent ------------------------------------------------------------------------------------------------------


def run(count: int, seed: int = 0, folder: Path | None = None) -> list[dict]:
    """Outcomes of `count` damaged files: number, kind, outcome, text, and the child's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        write_originals(place, seed)
        results: list[dict] = []
        while len(results) < count:
            results += list(_watch(place, len(results), count, seed))
        return results


def _watch(folder: Path, start: int, stop: int, seed: int) -> Iterator[dict]:
    """Follow one child until it is done, dies or hangs."""
    command = [sys.executable, "-m", "tests.faults.fuzz_rasters", "--child", str(folder), str(start), str(stop)]
    process = subprocess.Popen(
        [*command, "--seed", str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
    current: int | None = None
    try:
        while True:
            patience = 120 if current is None else SECONDS_A_FILE  # importing torch takes a while
            line = lines.get(timeout=patience)
            if not line:
                break
            message = json.loads(line)
            if "number" in message:
                current = message["number"]
            else:
                current = None
                yield message
        status = process.wait()
        if current is not None:
            yield _fate(current, "crash", f"exit status {status}")
        elif status:
            raise RuntimeError(f"the child ended with status {status} between files")
    except queue.Empty:
        if current is None:
            raise
        yield _fate(current, "hang", f"longer than {SECONDS_A_FILE} s")
    finally:
        process.kill()
        process.wait()


def _forward(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _fate(number: int, outcome: str, text: str) -> dict:
    return {"done": number, "kind": FORMATS[number % len(FORMATS)], "outcome": outcome, "text": text, "peak": 0}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=10000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        folder, start, stop = args.child
        child(Path(folder), int(start), int(stop), args.seed)
        return
    results = run(args.count, args.seed)
    table = Counter((result["kind"], result["outcome"]) for result in results)
    for (kind, outcome), number in sorted(table.items()):
        print(f"{kind:10s} {outcome:20s} {number}")
    print(f"{len(results)} files, peak memory {max(result['peak'] for result in results)} MiB")
    wrong = [result for result in results if result["outcome"] in BAD]
    for result in wrong[:20]:
        print(result)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
