"""Reading random crops of NIfTI volumes: our loader, nibabel, MONAI, indexed_gzip.

    python -m benchmarks.volume_loading [--json FILE]

Volumes of 240 x 240 x 155 int16 are a made-up head with noise, so that they compress like real ones. All sides give a
float32 crop of 96^3 from the same place, equal voxel by voxel; MONAI's own random crop, which cannot be told where to
cut, is timed beside a cut at the given place. Files are in the page cache. "first" is a new copy each time, as in the
first epoch; the inflated copy that our loader leaves is what later epochs read.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.common import environment, in_fresh_process, interleave, parser, peak_memory, report
from maskwright.core.trainer.data import generator_for
from maskwright.medical.loaders import VolumeLoader

SHAPE, SIZE = (240, 240, 155), 96
Side = Callable[[], torch.Tensor]


def fake_head(seed: int) -> np.ndarray:
    """Air of 0, a head of smooth values and noise, int16 (i, j, k)."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, length) for length in SHAPE], indexing="ij")
    values = 800 + 300 * np.sin(5 * x) * np.cos(4 * y + 3 * z) + generator.normal(scale=25, size=SHAPE)
    return np.where(x**2 + y**2 + z**2 < 0.7, values, 0).astype(np.int16)


def write(folder: Path, seed: int) -> dict[str, Path]:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    paths = {"nii": folder / "head.nii", "nii.gz": folder / "head.nii.gz"}
    for path in paths.values():
        nib.save(nib.Nifti1Image(fake_head(seed), affine), path)
    return paths


def starts(seed: int, number: int) -> list[int]:
    """Corner (x, y, z) of the crop of round `number`, as the loader draws it."""
    from maskwright.medical.loaders import corner

    return corner(SHAPE, (SIZE,) * 3, generator_for(seed, number))


def cut(x: int, y: int, z: int) -> tuple[slice, slice, slice]:
    return slice(x, x + SIZE), slice(y, y + SIZE), slice(z, z + SIZE)


def ours(path: Path, seed: int, cache: float = 20.0, fresh: bool = False) -> Side:
    rounds, loader = itertools.count(), VolumeLoader(path, size=SIZE, cache=cache)

    def read() -> torch.Tensor:
        if fresh:  # as if the file had never been read
            os.utime(path)
        return loader.read(0, generator_for(seed, next(rounds)))["volume"][0]

    return read


def nibabel_whole(path: Path, seed: int) -> Side:
    rounds = itertools.count()

    def read() -> torch.Tensor:
        values = nib.load(path).get_fdata(dtype=np.float32)[cut(*starts(seed, next(rounds)))]
        return torch.from_numpy(np.ascontiguousarray(values.T))

    return read


def nibabel_proxy(path: Path, seed: int, kept: bool = False) -> Side:
    rounds = itertools.count()
    image = nib.load(path, keep_file_open=True) if kept else None

    def read() -> torch.Tensor:
        values = (image or nib.load(path)).dataobj[cut(*starts(seed, next(rounds)))]
        return torch.from_numpy(np.ascontiguousarray(values.T.astype(np.float32)))

    return read


def monai(path: Path, seed: int) -> Side:
    from monai.transforms import LoadImage

    rounds, load = itertools.count(), LoadImage(image_only=True)
    return lambda: load(path)[cut(*starts(seed, next(rounds)))].permute(2, 1, 0).contiguous().as_tensor()


def monai_random(path: Path, seed: int) -> Side:
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropd

    chain = Compose(
        [LoadImaged("v"), EnsureChannelFirstd("v"), RandSpatialCropd("v", roi_size=(SIZE,) * 3, random_size=False)]
    )
    return lambda: chain({"v": path})["v"][0].permute(2, 1, 0).contiguous().as_tensor()


def sides_of(paths: dict[str, Path], seed: int) -> dict[str, Callable[[], Side]]:
    """How each side is made, by name; a process that measures memory makes one alone."""
    plain, zipped = paths["nii"], paths["nii.gz"]
    first = zipped.with_name("first.nii.gz")
    shutil.copy(zipped, first)
    sides: dict[str, Callable[[], Side]] = {
        "nii: maskwright": lambda: ours(plain, seed),
        "nii: nibabel proxy, opened each time": lambda: nibabel_proxy(plain, seed),
        "nii: nibabel proxy, kept open": lambda: nibabel_proxy(plain, seed, kept=True),
        "nii: nibabel get_fdata": lambda: nibabel_whole(plain, seed),
        "nii: MONAI LoadImage": lambda: monai(plain, seed),
        "nii: MONAI LoadImaged + RandSpatialCropd": lambda: monai_random(plain, seed),
        "nii.gz: maskwright, later epochs": lambda: ours(zipped, seed),
        "nii.gz: maskwright, first epoch": lambda: ours(first, seed, fresh=True),
        "nii.gz: maskwright, no cache": lambda: ours(zipped, seed, cache=0),
        "nii.gz: nibabel proxy, opened each time": lambda: nibabel_proxy(zipped, seed),
        "nii.gz: nibabel get_fdata": lambda: nibabel_whole(zipped, seed),
        "nii.gz: MONAI LoadImage": lambda: monai(zipped, seed),
        "nii.gz: MONAI LoadImaged + RandSpatialCropd": lambda: monai_random(zipped, seed),
    }
    try:
        import indexed_gzip  # noqa: F401  nibabel uses it for files that are kept open
    except ImportError:
        return sides
    return sides | {"nii.gz: nibabel proxy, kept open, indexed_gzip": lambda: nibabel_proxy(zipped, seed, kept=True)}


def check_equal(made: dict[str, Side]) -> None:
    """All sides that can be told where to cut must read the same."""
    crops = {name: side() for name, side in made.items() if "RandSpatial" not in name}
    reference = next(iter(crops.values()))
    for name, crop in crops.items():
        if crop.shape != reference.shape or not torch.equal(crop.float(), reference):
            raise SystemExit(f"{name} reads other voxels.")
    print(f"{len(crops)} sides read the same voxels")


def main() -> None:
    options = parser(__doc__, rounds=15)
    options.add_argument("--memory-of", type=int, help="print peak memory of three rounds of this side and stop")
    options.add_argument("--files-in", type=Path, help="folder of the files for --memory-of")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.memory_of is not None:
        paths = {"nii": args.files_in / "head.nii", "nii.gz": args.files_in / "head.nii.gz"}
        read = list(sides_of(paths, args.seed).values())[args.memory_of]()
        for _ in range(3):
            read()
        print(peak_memory())
        return
    with tempfile.TemporaryDirectory(prefix="maskwright-volumes-") as top:
        os.environ["MASKWRIGHT_CACHE"] = f"{top}/cache"
        paths = write(Path(top), args.seed)
        makers = sides_of(paths, args.seed)
        made = {name: make() for name, make in makers.items()}
        check_equal(made)
        times = interleave(made, args.rounds, warmup=1)
        rows: list[dict[str, Any]] = []
        for number, (name, found) in enumerate(times.items()):
            reference = times[f"{name.split(':')[0]}: MONAI LoadImaged + RandSpatialCropd"]
            memory = f"--memory-of {number} --files-in {top} --seed {args.seed} --threads {args.threads}"
            rows.append(
                {
                    "side": name,
                    "min ms": found.fastest * 1e3,
                    "median ms": found.median * 1e3,
                    "time / MONAI": found.over(reference),
                    "peak MiB": in_fresh_process("benchmarks.volume_loading", memory.split()),
                }
            )
        sizes = {f"{kind}, MB": round(path.stat().st_size / 1e6, 1) for kind, path in paths.items()}
    where = environment(args.seed, packages=["nibabel", "monai"]) | sizes
    report(f"One crop of {SIZE}^3 of {' x '.join(map(str, SHAPE))} int16", rows, where, args.json)


if __name__ == "__main__":
    main()
