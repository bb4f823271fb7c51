"""Pictures of what was hidden and how it was filled, drawn by the loader of the domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskwright.core.encoder.patches import as_tuple, patch_grid, patch_mask_to_pixels
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader
from maskwright.core.masking import Masking, sample_keys
from maskwright.core.sample import Sample, collate
from maskwright.core.trainer.method import Method, Panel

if TYPE_CHECKING:
    from maskwright.core.trainer.run import Run

HIDDEN = np.array([128, 128, 128], dtype=np.uint8)
"""Colour of hidden pixels."""


def _blank_hidden(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden[..., None], HIDDEN, picture)


def _grid_figure(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], names: Sequence[str]) -> Figure:
    height, width = rows[0][0].shape[:2]
    scale = 1.9 / max(height, width)
    figure = Figure(figsize=(len(titles) * width * scale + 0.3, len(rows) * height * scale + 0.5), dpi=150)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for number, (row, pictures, name) in enumerate(zip(axes, rows, names, strict=True)):
        for axis, picture, title in zip(row, pictures, titles, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if number == 0:
                axis.set_title(title, fontsize=8)
        row[0].set_ylabel(name, fontsize=5)
    figure.tight_layout(pad=0.3)
    return figure


def _save(figure: Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(out))
    return out


def read_some(loader: Loader, count: int, seed: int = 0) -> list[Sample]:
    """Up to `count` readable samples, evenly spread over the loader.

    Raises:
        DataError: none can be read.
    """
    samples, reasons = [], []
    for index in torch.linspace(0, len(loader) - 1, min(count, len(loader))).round().int().tolist():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        try:
            samples.append(loader.read(index, generator))
        except DataError as error:
            reasons.append(str(error))
    if not samples:
        raise DataError("data", f"none of {count} samples could be read, first reason: {(reasons or ['empty'])[0]}")
    return samples


def draw_panel(panel: Panel, name: str, loader: Loader) -> list[list[np.ndarray]]:
    """Rows of [original, masked, filled] RGB pictures (H, W, 3) uint8, one row a sample, one stretch for all three."""
    rows = []
    for original, hidden, filled in zip(panel.original, panel.hidden, panel.reconstruction, strict=True):
        if hidden.ndim == 3:  # a volume is drawn by its middle slice
            middle = len(hidden) // 2
            original, hidden, filled = original[:, middle], hidden[middle], filled[:, middle]
        width = original.shape[-1]
        both = loader.picture(name, torch.cat([original, filled], dim=-1).cpu())
        before, after = both[:, :width], both[:, width:]
        rows.append([before, _blank_hidden(before, hidden.cpu().numpy()), after])
    return rows


def reconstruction_preview(method: Method, loader: Loader, out: Path, count: int = 4, seed: int = 0) -> list[Path]:
    """Write one PNG an input, `NAME.png` in the folder `out`: original, what the encoder saw, what the method made."""
    batch = collate(read_some(loader, count, seed)).to(next(method.parameters()).device)
    keys = sample_keys(torch.Generator().manual_seed(seed), len(batch), batch.device)
    was_training = method.training
    method.eval()
    try:
        panels = method.preview(batch, keys)
    finally:
        method.train(was_training)
    names = [meta.group[:24] for meta in batch.metas]
    titles = ("original", "seen by the encoder", "reconstruction")
    return [
        _save(_grid_figure(draw_panel(panel, name, loader), titles, names), out / f"{name}.png")
        for name, panel in panels.items()
    ]


def save_previews(run: Run, method: Method, loader: Loader, count: int = 4, seed: int = 0) -> list[Path]:
    """Write `previews/NAME.png` into a run directory."""
    return reconstruction_preview(method, loader, run.path / "previews", count, seed)


def mask_preview(
    loader: Loader,
    maskings: dict[str, Masking],
    out: Path,
    patch_size: int = 8,
    count: int = 4,
    seed: int = 0,
) -> Path:
    """Write one PNG that shows what maskings do to the user's own data: a row a sample, a column a masking.

    Raises:
        ConfigError: the first input is no image.
        DataError: nothing can be read.
    """
    samples = read_some(loader, count, seed)
    name = next(iter(loader.spec))
    if loader.spec[name].dims != "C H W":
        raise ConfigError(f'Mask pictures need images; "{name}" has dimensions ({loader.spec[name].dims}).')
    keys = sample_keys(torch.Generator().manual_seed(seed), len(samples))
    patch = as_tuple(patch_size, 2)
    rows = []
    for row, sample in enumerate(samples):
        # an even number of tokens along each side, so that units of two fit
        height, width = (max(size // (2 * patch_size) * 2, 1) * patch_size for size in sample[name].shape[-2:])
        image = sample[name][..., :height, :width]
        grid = patch_grid((height, width), patch, name)
        picture = loader.picture(name, image)
        masked = []
        for masking in maskings.values():
            guide = F.avg_pool2d(image.mean(0, keepdim=True), patch_size).flatten(1) if masking.needs_guide else None
            hidden = masking(grid, keys[row : row + 1], guide).hidden
            masked.append(_blank_hidden(picture, patch_mask_to_pixels(hidden, grid, patch)[0].numpy()))
        rows.append([picture, *masked])
    titles = ["original"] + [
        f"{label} (by brightness)" if masking.needs_guide else label for label, masking in maskings.items()
    ]
    return _save(_grid_figure(rows, titles, [sample.meta.group[:24] for sample in samples]), out)
