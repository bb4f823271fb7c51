"""Hidden blocks of volumes rebuilt by NeRF-MAE, beside what can be said of them without a network.

A stand-in for radiance fields of rooms, which come with no small free set: shapes of KayKit as volumes of 32 voxels. A
voxel's opacity grows with the points of the surface that lie in it, its colour is the direction of the surface's normal
(the files have no colours). Whole scenes with rooms, light and noise are harder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import maskwright as mw
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.masking import sample_keys
from maskwright.core.sample import collate
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import generator_for
from maskwright.core.trainer.files import write_text, write_with
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.mesh import sample_surface
from maskwright.pointcloud.methods.nerf_mae import NerfMae

SIDE, POINTS = 32, 20_000
STEPS, BATCH, LR = 100, 4, 1e-3
READ = [f"data.size={SIDE}", "data.density=alpha", "data.loader=grids"]
OPAQUE = 0.5
"""Opacity above which a voxel counts as filled."""
NETWORK, FRESH = "NeRF-MAE", "NeRF-MAE, untrained"
VISIBLE, NEAREST, AVERAGE = "mean of visible voxels", "nearest visible voxel", "mean of the training volumes"


def volume(file: Path, seed: int) -> np.ndarray:
    """A mesh (y up) as (W, L, H, 4) float32 along x, y and z with z up: normals as colours, and soft occupancy."""
    mesh = open_points(file).mesh()
    assert mesh is not None
    cloud = sample_surface(mesh, POINTS, np.random.default_rng(seed), file)
    axes = (0, 2, 1)  # what is up goes last
    xyz = cloud.xyz[:, axes]
    low, high = xyz.min(0), xyz.max(0)
    places = (xyz - (low + high) / 2) / max(high - low) * (SIDE - 4) + SIDE / 2
    at = np.ravel_multi_index(tuple(np.floor(places).astype(int).T), (SIDE,) * 3)
    normals = np.stack([cloud.columns[f"normal_{'xyz'[axis]}"] for axis in axes], 1)
    count = np.bincount(at, minlength=SIDE**3)
    colour = np.stack([np.bincount(at, (1 + n) / 2, SIDE**3) for n in normals.T], 1) / np.maximum(count, 1)[:, None]
    alpha = 1 - np.exp(-count / 2)
    return np.concatenate([colour, alpha[:, None]], 1).astype(np.float32).reshape(SIDE, SIDE, SIDE, 4)


def prepare(shapes: Path, out: Path) -> Path:
    """Volumes of all meshes in OUT/CLASS."""
    for number, file in enumerate(sorted(shapes.rglob("*.obj"))):
        target = out / file.parent.name / f"{file.stem}.npz"
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        made = volume(file, number)

        def save(place: Path, made: np.ndarray = made) -> None:
            with place.open("wb") as opened:
                np.savez_compressed(opened, rgbsigma=made)

        write_with(target, save)
    return out


# guesses without a network ------------------------------------------------------------------------------------------


def guesses(grid: Tensor, hidden: Tensor, average: Tensor) -> dict[str, Tensor]:
    """What can be said of hidden voxels: (4, D, H, W) each.

    Args:
        grid: (4, D, H, W); hidden: (D, H, W) bool; average: (4, D, H, W), the mean of the training volumes.
    """
    opaque = (grid[3] > OPAQUE) & ~hidden
    visible = grid[:, ~hidden]
    colour = grid[:3, opaque].mean(1) if opaque.any() else visible[:3].mean(1)
    flat = torch.cat([colour, visible[3:].mean(1)])
    nearest = distance_transform_edt(hidden.numpy(), return_distances=False, return_indices=True)
    filled = grid[(slice(None), *torch.from_numpy(nearest).long())].clone()
    if opaque.any():  # an empty voxel has no colour: that of the nearest filled one is taken
        solid = distance_transform_edt(~opaque.numpy(), return_distances=False, return_indices=True)
        filled[:3] = grid[(slice(0, 3), *torch.from_numpy(solid).long())]
    return {VISIBLE: flat[:, None, None, None].expand_as(grid), NEAREST: filled, AVERAGE: average}


def average_volume(loader: Loader) -> Tensor:
    """Mean opacity of each voxel over all volumes, and its mean colour where it is filled: (4, D, H, W)."""
    total, filled, colour = (
        torch.zeros(SIDE, SIDE, SIDE),
        torch.zeros(SIDE, SIDE, SIDE),
        torch.zeros(3, SIDE, SIDE, SIDE),
    )
    for index in range(len(loader)):
        grid = loader.read(index)["grid"]
        opaque = (grid[3] > OPAQUE).float()
        total, filled, colour = total + grid[3], filled + opaque, colour + grid[:3] * opaque
    overall = colour.sum((1, 2, 3)) / filled.sum()
    known = torch.where(filled > 0, colour / filled.clamp_min(1), overall[:, None, None, None])
    return torch.cat([known, (total / len(loader))[None]])  # fmt: skip


def counts(made: Tensor, truth: Tensor, hidden: Tensor) -> np.ndarray:
    """Of hidden voxels: filled in both, in either, squared error of colour where the truth is filled, and its numbers."""
    said, filled = made[3, hidden] > OPAQUE, truth[3, hidden] > OPAQUE
    error = (made[:3, hidden] - truth[:3, hidden])[:, filled].clamp(-1, 1).square()
    return np.array([float((said & filled).sum()), float((said | filled).sum()), float(error.sum()), error.numel()])


def scores(sums: np.ndarray) -> dict[str, float]:
    """IoU of opacity and PSNR of colour in dB, over all hidden voxels together."""
    both, either, error, numbers = sums
    return {"alpha IoU": float(both / max(either, 1)), "RGB PSNR": float(-10 * np.log10(max(error / numbers, 1e-12)))}


# the network --------------------------------------------------------------------------------------------------------


def method_of(run: mw.Run, trained: bool) -> NerfMae:
    """The method with its decoder, from the run's newest checkpoint or as it was before the first step."""
    section = run.recipe().method
    with torch.random.fork_rng([]):
        torch.manual_seed(run.recipe().seed)
        method: NerfMae = get_host().component("method", section.name).load()(**section.options)
    if trained:
        newest, complaints = checkpoints.load_newest(run.checkpoints)
        assert newest is not None, complaints
        method.load_state_dict(newest.part("method"))
    return method.eval()


@torch.no_grad()
def rebuild(method: NerfMae, loader: Loader, average: Tensor, seed: int, name: str) -> dict[str, np.ndarray]:
    """Sums of every row over the test volumes, each with one mask."""
    rows: dict[str, np.ndarray] = {}
    keys = sample_keys(generator_for(seed, 1), len(loader))
    for index in range(len(loader)):
        batch = collate([loader.read(index)])
        grid = batch["grid"][0]
        tokens = method.encoder.tokenize(batch)
        mask = method.mask(tokens.grid, keys[index : index + 1])
        hidden = method.hidden_voxels(mask, tokens.grid)[0]
        raw = method.predict(tokens, mask)[0]
        made = {name: torch.cat([raw[:3].clamp(0, 1), raw[3:].sigmoid()]), **guesses(grid, hidden, average)}
        for row, one in made.items():
            rows[row] = rows.get(row, 0) + counts(one, grid, hidden)
    return rows


def run_seed(train: Path, test: Path, out: Path, seed: int, steps: int) -> dict[str, dict[str, float]]:
    done = out / "rebuilt.json"
    run_folder = out / "run"
    if done.is_file():
        return json.loads(done.read_text())
    run = (
        mw.Run.open(run_folder)
        if (run_folder / "encoder.safetensors").is_file()
        else mw.pretrain(
            "nerf-mae", train, "tiny", run_folder, [*READ, f"seed={seed}"],
            max_steps=steps, batch_size=BATCH, lr=LR, precision="32", log_every=25,
        )
    )  # fmt: skip
    options = {"size": SIDE, "density": "alpha"}
    average = average_volume(mw.open_data(train, "grids", **options))
    loader = mw.open_data(test, "grids", **options)
    sums = rebuild(method_of(run, trained=True), loader, average, seed, NETWORK)
    sums |= {FRESH: rebuild(method_of(run, trained=False), loader, average, seed, FRESH)[FRESH]}
    found = {name: scores(one) for name, one in sums.items()}
    write_text(done, json.dumps(found, indent=1))
    return found


def table(stored: dict[str, Any]) -> list[str]:
    """The stored figures as lines of Markdown."""
    about = stored["about"]
    lines = [
        "### rooms (a stand-in: shapes as volumes)",
        "",
        f"Hidden voxels of {about['test']} volumes of {SIDE} voxels a side that were not trained on (of {about['train']} "
        f"that were); {about['steps']} steps of {about['batch']} volumes; colour where the truth is filled. Higher is better.",
        "",
        "| rebuilt by | opacity, IoU | colour, PSNR in dB |",
        "|---|---|---|",
    ]
    for name, values in stored["rows"].items():
        cells = [f"{np.mean(values[key]):.3g}{_spread(values[key])}" for key in ("alpha IoU", "RGB PSNR")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    return f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
