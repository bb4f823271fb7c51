"""Reading random windows of one large multi-band GeoTIFF: our loader, plain rasterio, torchgeo's sampler.

    python -m benchmarks.raster_loading [--layout tiled striped] [--json FILE]

The scene (13 x 5120 x 5120 uint16, deflated) is made of smooth fields and noise, so it compresses like real data. All
sides give float32 tensors of 13 x 224 x 224; pixels are compared before anything is timed. Each round reads windows that
no side has read before, at the same places on every side that can be told where to read. Sides that keep a handle also
keep GDAL's block cache from round to round, as they would in training.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor

from benchmarks.common import environment, in_fresh_process, interleave, parser, peak_memory, report
from maskwright.core.trainer.data import derive_seed, generator_for
from maskwright.remote_sensing.fake import fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader
from maskwright.remote_sensing.raster import Box
from maskwright.remote_sensing.windows import jitter

Side = Callable[[], Any]


def places(loader: GeoTiffLoader, chips: int, seed: int, number: int) -> list[tuple[int, torch.Generator]]:
    """Samples of round `number`, each with the generator that moves its window."""
    order = torch.randperm(len(loader), generator=generator_for(seed, number))[:chips].tolist()
    return [(index, generator_for(seed, number, index)) for index in order]


def boxes(loader: GeoTiffLoader, chips: int, seed: int, number: int) -> list[Box]:
    """The windows that the loader reads in round `number`."""
    found = []
    for index, generator in places(loader, chips, seed, number):
        image, box = loader.windows[index]
        found.append(jitter(box, loader.images[image].header, generator, loader.aligned))
    return found


def ours(loader: GeoTiffLoader, args: Any, pool: ThreadPoolExecutor | None = None) -> Side:
    rounds = itertools.count()

    def read() -> list[Tensor]:
        chosen = places(loader, args.chips, args.seed, next(rounds))
        spread = pool.map if pool else map
        return list(spread(lambda place: loader.read(*place)["image"], chosen))

    return read


def plain_rasterio(loader: GeoTiffLoader, args: Any, keep: bool) -> Side:
    rounds, path = itertools.count(), loader.images[0].files[0]
    kept = rasterio.open(path) if keep else None

    def read_one(box: Box) -> Tensor:
        dataset = kept or rasterio.open(path)
        values = dataset.read(window=Window(box[1], box[0], box[3], box[2])).astype(np.float32)
        if not keep:
            dataset.close()
        return torch.from_numpy(values)

    return lambda: [read_one(box) for box in boxes(loader, args.chips, args.seed, next(rounds))]


def torchgeo_dataset(folder: Path) -> Any:
    from torchgeo.datasets import RasterDataset

    class Scene(RasterDataset):
        filename_glob = "*.tif"

    return Scene(folder)


def torchgeo_sampler(folder: Path, args: Any) -> Side:
    from torchgeo.samplers import RandomGeoSampler

    dataset, rounds = torchgeo_dataset(folder), itertools.count()

    def read() -> list[Tensor]:
        seed = derive_seed(args.seed, next(rounds)) % 2**31
        torch.manual_seed(seed)  # the sampler draws the file from the global generator
        sampler = RandomGeoSampler(dataset, args.size, args.chips, generator=torch.Generator().manual_seed(seed))
        return [dataset[query]["image"] for query in sampler]

    return read


def check_equal(loader: GeoTiffLoader, folder: Path, args: Any) -> None:
    """All sides must read the same pixels from the same places."""
    dataset = torchgeo_dataset(folder)
    given = ours(loader, args)()
    for mine, theirs, box in zip(
        given, plain_rasterio(loader, args, keep=True)(), boxes(loader, args.chips, args.seed, 0), strict=True
    ):
        affine = loader.images[0].header.affine
        (left, top), (right, bottom) = affine * (box[1], box[0]), affine * (box[1] + box[3], box[0] + box[2])
        queried = dataset[left:right, bottom:top]["image"]  # type: ignore[misc]
        for name, other in (("rasterio", theirs), ("torchgeo", queried)):
            if mine.shape != other.shape or not torch.equal(mine, other):
                raise SystemExit(f"{name} reads other pixels at {box}.")
    print(f"{len(given)} windows are equal on all sides, pixel by pixel")


def sides_of(folder: Path, args: Any) -> dict[str, Callable[[], Side]]:
    """How each side is made, by name; a process that measures memory makes one alone."""
    scene = folder / "scene.tif"

    def loader(aligned: bool) -> GeoTiffLoader:
        return GeoTiffLoader(scene, args.size, aligned=aligned)

    return {
        "maskwright, inside a tile": lambda: ours(loader(True), args),
        "maskwright, anywhere": lambda: ours(loader(False), args),
        "maskwright, anywhere, 2 threads": lambda: ours(loader(False), args, ThreadPoolExecutor(2)),
        "rasterio, opened each time": lambda: plain_rasterio(loader(False), args, keep=False),
        "rasterio, kept handle": lambda: plain_rasterio(loader(False), args, keep=True),
        "torchgeo, its random sampler": lambda: torchgeo_sampler(folder, args),
    }


def layouts(args: Any) -> Iterator[tuple[str, Path]]:
    """The scene in each layout, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="maskwright-scene-") as top:
        for layout in args.layout:
            folder = Path(top) / layout
            fake_scene(folder / "scene.tif", args.scene, args.bands, 256 if layout == "tiled" else None, seed=args.seed)
            yield layout, folder


def measure(layout: str, folder: Path, args: Any) -> list[dict[str, Any]]:
    check_equal(GeoTiffLoader(folder / "scene.tif", args.size, aligned=False), folder, args)
    sides = {name: make() for name, make in sides_of(folder, args).items()}
    times = interleave(sides, args.rounds, warmup=1)
    reference = times["torchgeo, its random sampler"]
    megabytes = args.chips * args.bands * args.size**2 * 2 / 2**20
    return [
        {
            "side": name,
            "layout": layout,
            "min ms": found.fastest * 1e3,
            "median ms": found.median * 1e3,
            "time / torchgeo": found.over(reference),
            "MiB/s of pixels": megabytes / found.median,
            "peak MiB": in_fresh_process("benchmarks.raster_loading", _arguments(number, folder, args)),
        }
        for number, (name, found) in enumerate(times.items())
    ]


def _arguments(number: int, folder: Path, args: Any) -> list[str]:
    text = f"--memory-of {number} --scene-in {folder} --size {args.size} --chips {args.chips} --seed {args.seed}"
    return text.split()


def main() -> None:
    options = parser(__doc__, rounds=9)
    options.add_argument("--layout", choices=["tiled", "striped"], nargs="+", default=["tiled", "striped"])
    options.add_argument("--scene", type=int, default=5120, help="side of the scene in pixels")
    options.add_argument("--bands", type=int, default=13)
    options.add_argument("--chips", type=int, default=32, help="windows a round")
    options.add_argument("--size", type=int, default=224, help="side of a window in pixels")
    options.add_argument("--memory-of", type=int, help="print peak memory of three rounds of this side and stop")
    options.add_argument("--scene-in", type=Path, help="folder of the scene for --memory-of")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore", UserWarning)  # the striped layout is warned about, here on purpose
    if args.memory_of is not None:
        read = list(sides_of(args.scene_in, args).values())[args.memory_of]()
        for _ in range(3):
            read()
        print(peak_memory())
        return
    rows: list[dict[str, Any]] = []
    sizes = {}
    for layout, folder in layouts(args):
        sizes[f"{layout} scene, MB"] = round((folder / "scene.tif").stat().st_size / 1e6)
        rows += measure(layout, folder, args)
    where = environment(args.seed, packages=["rasterio", "torchgeo"]) | {"GDAL": rasterio.__gdal_version__} | sizes
    title = f"{args.chips} random windows of {args.bands} x {args.size}^2 from {args.bands} x {args.scene}^2, deflated"
    report(title, rows, where, args.json)


if __name__ == "__main__":
    main()
