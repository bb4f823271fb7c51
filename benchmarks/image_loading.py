"""Loading images for training: our loader against torchvision's ImageFolder, both through torch's DataLoader.

    python -m benchmarks.image_loading [--data FOLDER ...] [--workers 0 2] [--json FILE]

Both sides give float32 batches of 3 x 224 x 224: a random crop of 20 to 100 % of the area, resized with the bicubic
antialiased filter and mirrored half of the time. torchvision decodes the whole image, crops, resizes; our loader lets
JPEG decode at a fraction of its size where the crop stays large enough. Each round makes its own DataLoader and reads
the same number of images in an order of its own; with workers, their start is part of the time on both sides. By
default these are the real photos beside the checkout; where there are none, or with an empty --data, photos of two
sizes are generated: smooth fields with noise, as JPEG of quality 90.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.common import environment, interleave, parser, report
from maskwright.core.trainer.data import Plan, make_dataloader, quiet_worker
from maskwright.plugins.vision.loaders import ImageLoader

RESULTS = Path(__file__).parent / "results" / "image_loading.json"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PHOTOS = [SHARED / "image" / "grocery_store", SHARED / "remote_sensing" / "uav_road_photos"]
"""Small and large photos, where the folder of real data lies beside this checkout."""
GENERATED = {"generated 348 x 348": (348, 348, 128), "generated 4000 x 2250": (2250, 4000, 16)}
"""Height, width and number of generated photos."""

Side = Callable[[], Any]


def make_photos(folder: Path, height: int, width: int, count: int, seed: int) -> Path:
    """Photos in one sub-folder, as ImageFolder wants them."""
    (folder / "photos").mkdir(parents=True)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        a, b, c = generator.uniform(3, 30, (3, 3))
        waves = np.stack([np.sin(x * rows + y * columns + z) for x, y, z in (a, b, c)], axis=-1)
        values = 128 + 80 * waves + generator.normal(0, 8, waves.shape)
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        image.save(folder / "photos" / f"{number:04d}.jpg", quality=90)
    return folder


def in_sub_folders(folder: Path, top: Path, least: int) -> Path:
    """A folder whose images ImageFolder finds, and at least `least` of them: small ones are linked several times."""
    images = len(ImageLoader(folder))
    if images >= least and any(item.is_dir() for item in folder.iterdir()):
        return folder
    place = top / folder.name
    place.mkdir()
    for number in range(-(-least // images)):
        (place / str(number)).symlink_to(folder.resolve())
    return place


def drain(batches: Any) -> int:
    return sum(len(batch[0]) if isinstance(batch, list) else len(batch) for batch in batches)


def ours(folder: Path, workers: int, args: Any) -> Side:
    loader, rounds = ImageLoader(folder, size=args.size), itertools.count()

    def read() -> None:
        plan = Plan(len(loader), args.batch, 1, 1, args.images // args.batch)
        found = drain(make_dataloader(loader, plan, args.seed + next(rounds), 0, 0, workers, pin=False))
        assert found == args.images, found

    return read


def torchvision(folder: Path, workers: int, args: Any) -> Side:
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.size, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    images, rounds = ImageFolder(folder, change), itertools.count()

    def read() -> None:
        generator = torch.Generator().manual_seed(args.seed + next(rounds))
        order = RandomSampler(images, replacement=True, num_samples=args.images, generator=generator)
        batches = DataLoader(
            images,
            args.batch,
            sampler=order,
            num_workers=workers,
            worker_init_fn=quiet_worker if workers else None,
            prefetch_factor=4 if workers else None,
        )
        found = drain(batches)
        assert found == args.images, found

    return read


def measure(name: str, folder: Path, args: Any) -> list[dict[str, Any]]:
    rows = []
    for workers in args.workers:
        sides = {
            "maskwright": ours(folder, workers, args),
            "torchvision": torchvision(folder, workers, args),
        }
        times = interleave(sides, args.rounds, warmup=1)
        rows += [
            {
                "side": side,
                "images": name,
                "workers": workers,
                "images/s": args.images / found.median,
                "time / torchvision": found.over(times["torchvision"]),
            }
            for side, found in times.items()
        ]
    return rows


def main() -> None:
    options = parser(__doc__, rounds=7)
    options.add_argument("--data", type=Path, nargs="*", default=None, help="folders of images; none: generated ones")
    options.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    options.add_argument("--images", type=int, default=64, help="images a round, a multiple of the batch")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--size", type=int, default=224)
    options.set_defaults(threads=1, json=RESULTS)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [folder for folder in PHOTOS if folder.is_dir()] if args.data is None else args.data
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="maskwright-photos-") as top:
        folders = {folder.name: in_sub_folders(folder, Path(top), args.batch) for folder in chosen}
        for name, (height, width, count) in GENERATED.items() if not folders else ():
            folders[name] = make_photos(Path(top) / name, height, width, count, args.seed)
        for name, folder in folders.items():
            rows += measure(name, folder, args)
    where = environment(args.seed, packages=["torchvision", "pillow"])
    title = f"Random crops of {args.size} x {args.size}, {args.images} images a round in batches of {args.batch}"
    report(title, rows, where, args.json)


if __name__ == "__main__":
    main()
