"""Throughput and memory over a large archive of real-format tiles, each command in a process of its own.

    python -m benchmarks.scale --tiles 20000 --work DIR --what embed evaluate predict

The archive is synthetic: crops of the Sentinel-1/2 tiles that ship with the package, mirrored, scaled and with seeded
noise, each pair written as two GeoTIFFs. It is kept in DIR and used again. The resident memory of the command and all
its children is sampled every 0.2 s; the slope is that of a straight line of least squares over the second half of the
time: before it, libraries are imported and the archive is indexed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio
import torch
from rasterio.transform import Affine

from benchmarks.common import environment, parser, report

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "maskwright" / "remote_sensing" / "samples" / "terramesh"
SECONDS = 0.2
WARM_UP = 0.5
"""Share of the time that is left out of the slope: imports and the index of the archive, which grows with it, about
4 kB a pair."""
LOADS = 200
"""Tiles a writing process makes in one go."""


def make_tiles(job: tuple[Path, int, int, int, int]) -> None:
    """Write tiles first ... last: S1/N.tif (VV, VH in dB) and S2/N.tif (12 bands)."""
    folder, first, last, size, seed = job
    scenes = []
    for path in sorted((SAMPLES / "S2").glob("*.tif")):
        pair = []
        for sensor in ("S2", "S1"):
            with rasterio.open(SAMPLES / sensor / path.name) as file:
                pair.append((file.read(), file.profile, file.descriptions, file.transform, file.crs))
        scenes.append(pair)
    for number in range(first, last):
        generator = np.random.default_rng([seed, number])
        scene = scenes[number % len(scenes)]
        side = min(scene[0][0].shape[-2:]) - size
        row, column = (int(value) for value in generator.integers(0, side + 1, 2))
        flip = int(generator.integers(4))
        for sensor, (values, _, names, transform, crs) in zip(("S2", "S1"), scene, strict=True):
            crop = values[:, row : row + size, column : column + size]
            crop = crop[:, :: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1].astype(np.float32)
            if sensor == "S2":
                crop = (crop * generator.uniform(0.8, 1.2) + generator.normal(scale=20, size=crop.shape)).clip(1, 20000)
                crop = crop.astype(np.uint16)
            else:
                crop = crop + generator.normal(scale=0.5, size=crop.shape).astype(np.float32)
            place = transform * Affine.translation(column, row)
            profile = {"driver": "GTiff", "count": len(crop), "height": size, "width": size, "dtype": crop.dtype.name}
            path = folder / sensor / f"tile_{number:07d}.tif"
            with rasterio.open(path, "w", **profile, crs=crs, transform=place, compress="deflate") as file:
                file.write(crop)
                for band, name in enumerate(names, start=1):
                    file.set_band_description(band, name or f"band {band}")


def make_archive(folder: Path, tiles: int, size: int, seed: int) -> float:
    """Write the archive unless it is there. Returns the seconds that took."""
    mark = folder / "made.json"
    wanted = {"tiles": tiles, "size": size, "seed": seed}
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return 0.0
    for sensor in ("S1", "S2"):
        (folder / sensor).mkdir(parents=True, exist_ok=True)
    jobs = [(folder, at, min(at + LOADS, tiles), size, seed) for at in range(0, tiles, LOADS)]
    start = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make_tiles, jobs))
    mark.write_text(json.dumps(wanted))
    return time.perf_counter() - start


def make_labels(folder: Path, tiles: int) -> Path:
    """Two labels without a meaning: what is measured here is time and memory, no score."""
    path = folder / "labels.csv"
    path.write_text("id,label\n" + "".join(f"tile_{n:07d},{'ab'[n // 4 % 2]}\n" for n in range(tiles)))
    return path


def prepare(work: Path, size: int, seed: int, environment: dict[str, str]) -> None:
    """Pre-train and fine-tune a tiny CROMA for a few steps, unless that was done: the models that are measured."""
    if not (work / "run" / "encoder.safetensors").is_file():
        words = ["pretrain", "croma", "--preset", "tiny", "--data", str(SAMPLES), "--run", str(work / "run")]
        words += ["--set", f"data.size={size}", "--set", "trainer.max_steps=5", "--set", "trainer.batch_size=4"]
        run(words, environment)
    if not (work / "model").is_dir():
        few = work / "few"
        make_archive(few, 64, size, seed)
        words = ["finetune", str(work / "run"), "--data", str(few), "--labels", f"{make_labels(few, 64)}:label"]
        words += ["--set", "budget.steps=5", "--set", f"data.size={size}", "--holdout", "0"]
        run([*words, "--out", str(work / "model")], environment)


def run(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maskwright", *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"maskwright {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def commands(work: Path, archive: Path, tiles: int, size: int, workers: int) -> dict[str, list[str]]:
    name, common = str(work / "run"), ["--data", str(archive), "--set", f"data.size={size}"]
    judged = ["--labels", f"{make_labels(work, tiles)}:label", "--protocol", "knn", "--seeds", "1"]
    judged += ["--baselines", "random-init", "--workers", str(workers), "--out", str(work / "evaluation")]
    return {
        "embed": ["embed", name, *common, "--out", str(work / "embeddings.parquet"), "--workers", str(workers)],
        "evaluate": ["evaluate", name, *common, *judged],
        "predict": ["predict", str(work / "model"), *common, "--out", str(work / "predictions")],
    }


def installed() -> str:
    done = subprocess.run([sys.executable, "-m", "maskwright", "--help"], capture_output=True, text=True, check=True)
    return done.stdout


def memory_of(process: psutil.Process) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def watched(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; its seconds, peak and final memory, and the slope."""
    start, seen = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "maskwright", *words], stdout=subprocess.PIPE, stderr=errors, env=environment
        )
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                seen.append((time.perf_counter() - start, memory_of(process)))
            except psutil.NoSuchProcess:
                break
            time.sleep(SECONDS)
        assert child.stdout is not None
        text = child.stdout.read().decode()
        child.wait()
        errors.seek(0)
        if child.returncode:
            raise RuntimeError(f"maskwright {' '.join(words)} ended with {child.returncode}:\n{errors.read()[-2000:]}")
    return {"seconds": time.perf_counter() - start, "text": text, "memory": seen}


def row_of(what: str, found: dict[str, Any], tiles: int) -> dict[str, Any]:
    """Throughput, and how the memory developed after the warm-up."""
    at, memory = np.array(found["memory"]).T
    kept = slice(int(WARM_UP * len(at)), -1)  # the last value may be of a process that ends
    slope, start = np.polyfit(at[kept], memory[kept], 1)
    span = at[kept][-1] - at[kept][0]
    first = start + slope * at[kept][0]
    return {
        "command": what,
        "tiles": str(tiles),
        "seconds": found["seconds"],
        "tiles/s": tiles / found["seconds"],
        "memory after warm-up (MB)": first,
        "peak (MB)": float(memory.max()),
        "MB per 1,000 tiles": slope * found["seconds"] / tiles * 1000,
        "growth (%)": 100 * slope * span / first,
    }


def main() -> None:
    options = parser(__doc__, 1)
    options.add_argument("--tiles", type=int, default=20_000)
    options.add_argument("--size", type=int, default=32, help="side of a tile in pixels")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "maskwright-scale")
    options.add_argument("--what", nargs="+", default=["embed", "evaluate", "predict"])
    options.add_argument("--workers", type=int, default=0)
    given = options.parse_args()
    archive = given.work / f"tiles-{given.tiles}-{given.size}"
    seconds = make_archive(archive, given.tiles, given.size, given.seed)
    if seconds:
        print(f"wrote {given.tiles} pairs in {seconds:.0f} s, {given.tiles / seconds:.0f} a second")
    threads = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    known, rows = installed(), []
    if " finetune " in known:
        prepare(given.work, given.size, given.seed, threads)
    for what, words in commands(given.work, archive, given.tiles, given.size, given.workers).items():
        if what not in given.what:
            continue
        if f" {what} " not in known:
            print(f"maskwright has no command {what} yet; it is left out")
            continue
        (given.work / "embeddings.parquet").unlink(missing_ok=True)
        for made in ("evaluation", "predictions"):
            shutil.rmtree(given.work / made, ignore_errors=True)
        found = watched(words, threads)
        rows.append(row_of(what, found, given.tiles))
        print(found["text"].strip().splitlines()[0])
    torch.set_num_threads(given.threads)
    where = environment(given.seed, given.device, ("rasterio", "pyarrow"))
    path = given.json or ROOT / "benchmarks" / "results" / "scale.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report(f"{given.tiles} pairs of Sentinel-1/2 tiles of {given.size} x {given.size} pixels", rows, where, path)


if __name__ == "__main__":
    main()
