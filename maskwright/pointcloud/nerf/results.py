"""What a fit leaves behind: the grid, a record of how well it shows photographs that it never saw, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.core.trainer.files import write_text, write_with

SHOWN = 4
"""Photographs in the picture."""
GAP = 4
"""Pixels between its parts."""


def write_grid(path: Path, grid: np.ndarray, box: np.ndarray, edge: float) -> None:
    """An .npz that the loader `grids` reads without options.

    `rgbsigma` (W, L, H, 4) float32 holds colours in 0 to 1 and sigma, the logarithm of 100 times the optical thickness
    of a voxel's side: the loader's opacity under density="exp", 1 - exp(-exp(sigma) / 100), is then that of one voxel.
    Beside it `resolution` (3,), `aabb` (2, 3) with the places of the first and the last voxel, `edge`, the side of a
    voxel in the unit of the cameras, and `density`, the name of the convention. exp(sigma) / (100 edge) is the density
    by length.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get the ending .npz
            np.savez_compressed(
                file,
                rgbsigma=grid.astype(np.float32),
                resolution=np.array(grid.shape[:3]),
                aabb=np.asarray(box, np.float64),
                edge=np.float64(edge),
                density=np.array("exp"),
            )

    write_with(path, write)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """JSON."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_comparison(path: Path, photographs: list[np.ndarray], renderings: list[np.ndarray]) -> None:
    """A PNG with a row a view: photograph, rendering, and the absolute error, white where it is 0.5 or more.

    Args:
        photographs, renderings: (h, w, 3) in 0 to 1 each; of more than `SHOWN` some, evenly spread.
    """
    chosen = np.unique(np.linspace(0, len(photographs) - 1, min(SHOWN, len(photographs))).round().astype(int))
    rows = []
    for number in chosen:
        photograph, rendering = photographs[number], renderings[number]
        error = np.repeat(np.abs(rendering - photograph).mean(2, keepdims=True), 3, 2) * 2
        bar = np.ones((photograph.shape[0], GAP, 3))
        rows.append(np.concatenate([photograph, bar, rendering, bar, error], 1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=1) for row in rows]
    picture = Image.fromarray((np.concatenate(rows).clip(0, 1) * 255).round().astype(np.uint8))
    write_with(path, lambda temporary: picture.save(temporary, format="PNG"))
