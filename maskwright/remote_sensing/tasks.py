"""Land cover from tokens: labels, folds that respect space, and the map."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.evaluation.task import Segmentation, Targets
from maskwright.core.loader import Loader

LAND_COVER: dict[int, tuple[str, tuple[int, int, int]]] = {
    1: ("water", (65, 155, 223)),
    2: ("trees", (57, 125, 73)),
    3: ("flooded vegetation", (122, 135, 198)),
    4: ("crops", (228, 150, 53)),
    5: ("built area", (196, 40, 27)),
    6: ("bare ground", (165, 155, 143)),
    7: ("snow or ice", (168, 235, 255)),
    8: ("clouds", (97, 97, 97)),
    9: ("rangeland", (227, 226, 195)),
}
"""Codes of the shipped land cover rasters: name and colour (RGB)."""


class LandCover(Segmentation):
    """Land cover of each pixel, from rasters with the codes of the shipped tiles.

    Args:
        labels: a land cover raster, or a folder of them named like the images.
        ignore: codes that mean "no label".
    """

    def __init__(self, labels: str, ignore: list[int] | None = None) -> None:
        super().__init__(labels, {code: name for code, (name, _) in LAND_COVER.items()}, ignore)

    def targets(self, loader: Loader) -> Targets:
        found = super().targets(loader)
        return replace(found, colours=tuple(LAND_COVER[code][1] for code in found.codes))


def token_labels(classes: np.ndarray, patch_size: int) -> np.ndarray:
    """Most frequent class of each patch: (H, W) integer codes to (H / p, W / p). Ties go to the lower code.

    Raises:
        DataError: the raster is no multiple of the patch size.
    """
    height, width = classes.shape
    if height % patch_size or width % patch_size:
        raise DataError(
            "land cover", f"{height} x {width} pixels do not divide into patches of {patch_size}", "a multiple of it"
        )
    rows, columns = height // patch_size, width // patch_size
    patches = classes.reshape(rows, patch_size, columns, patch_size).swapaxes(1, 2).reshape(rows, columns, -1)
    codes = np.unique(classes)
    counts = np.stack([(patches == code).sum(-1) for code in codes], axis=-1)
    return codes[counts.argmax(-1)]


def block_folds(shape: tuple[int, int], blocks: int = 2, gap: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of a token grid by spatial block: `blocks` x `blocks` test blocks, each with a moat left out of training.

    Neighbouring tokens are nearly copies of each other, so a random split would judge memory, not understanding.

    Args:
        shape: (rows, columns) of tokens.
        blocks: blocks along each axis.
        gap: width of the moat in tokens.

    Returns:
        (train, test) boolean arrays of that shape, one pair a block.
    """
    rows, columns = shape
    row_edges = np.linspace(0, rows, blocks + 1).round().astype(int)
    column_edges = np.linspace(0, columns, blocks + 1).round().astype(int)
    folds = []
    for top, bottom in itertools.pairwise(row_edges):
        for left, right in itertools.pairwise(column_edges):
            test = np.zeros(shape, dtype=bool)
            test[top:bottom, left:right] = True
            train = np.ones(shape, dtype=bool)
            train[max(top - gap, 0) : bottom + gap, max(left - gap, 0) : right + gap] = False
            folds.append((train, test))
    return folds
