"""Small task models for the tests of prediction: an encoder whose tokens see their own patch alone, and a constant one."""

from pathlib import Path

import numpy as np
import torch

from maskwright.core.encoder import VisionTransformer
from maskwright.core.evaluation.task import Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.recipe import DataSection, MethodSection, Recipe
from maskwright.core.task_folder import TaskFolder, load_task_model, save_task_model

COLOURS = ((0, 0, 255), (0, 200, 0), (200, 0, 0))


def patch_local_model(
    path: Path,
    loader,
    codes=(1, 2, 5),
    size: int = 32,
    patch: int = 4,
    constant: bool = False,
    kind: str = "segmentation",
    data: dict | None = None,
    seed: int = 0,
) -> TaskFolder:
    """A saved task model on the loader's `image`. Without blocks and positions a token is a function of its own patch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = loader.spec["image"].channel_count
        encoder = VisionTransformer(size, patch, channels, 16, 0, 2, positions="none", class_token=False)
        encoder.fit_normalizers(loader.statistics())
        names = tuple(f"class {code}" for code in codes)
        dense = kind == "segmentation"
        colours = COLOURS[: len(codes)] if dense else None
        model = TaskModel(encoder, Targets(kind, names, codes=tuple(codes) if dense else (), colours=colours))
        torch.nn.init.normal_(model.head.linear.weight, std=0.0 if constant else 1.0)
        torch.nn.init.normal_(model.head.linear.bias)
    recipe = Recipe(method=MethodSection(name="test", preset=""), data=DataSection(path="test"))
    facts = {
        "task": kind,
        "data": data or {"path": "test", "loader": "geotiff", "options": {"size": size}},
        "size": [size, size],
        "fill": {name: list(found.mean) for name, found in loader.statistics().items()},
    }
    save_task_model(path, model.eval(), loader.spec, recipe, facts)
    return load_task_model(path)


def rows(table) -> list[dict]:
    return sorted(table.to_pylist(), key=lambda row: row["index"])


def same_folder(a: Path, b: Path) -> bool:
    """Whether two folders hold the same files with the same bytes, apart from the manifest's paths."""
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file() and p.name != "manifest.json")
    others = sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file() and p.name != "manifest.json")
    return names == others and all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def random_scene(path: Path, height: int, width: int, bands: int = 2, seed: int = 0, **options) -> np.ndarray:
    """A GeoTIFF of noise at 10 m in UTM 33N, uint16 from 1 to 999."""
    from maskwright.remote_sensing.writers import write_geotiff

    values = np.random.default_rng(seed).integers(1, 1000, (bands, height, width)).astype(np.uint16)
    options = {"crs": "EPSG:32633", "transform": (10, 0, 500000, 0, -10, 5000000), **options}
    write_geotiff(path, values, options.pop("crs"), options.pop("transform"), **options)
    return values
