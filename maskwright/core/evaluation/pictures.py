"""Pictures of what was hidden and how it was filled, drawn by the loader of the domain."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from maskwright.core.encoder.patches import as_tuple, patch_grid, patch_mask_to_pixels
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader
from maskwright.core.masking import Grid, Masking, sample_keys
from maskwright.core.sample import Sample, collate
from maskwright.core.statistics import spread
from maskwright.core.trainer.files import write_with
from maskwright.core.trainer.method import Method, Panel

if TYPE_CHECKING:
    from maskwright.core.trainer.run import Run

HIDDEN = np.array([128, 128, 128], dtype=np.uint8)
"""Colour of hidden pixels."""
CELL = 1.9
"""Longest side of a picture in inches."""
SEEN = 570
"""Longest side of a picture in pixels; twice what 150 dots an inch show."""
GAP = 0.05
"""Inches between pictures."""
PER_BAND = 6
"""Maskings beside each other."""
TITLE_POINTS, NAME_POINTS = 8, 6
"""Sizes of letters."""


def _blank_hidden(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden[..., None], HIDDEN, picture)


def _grid_figure(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], names: Sequence[str], per_band: int = 0
) -> Figure:
    """Pictures in a grid: a row a name, a column a title.

    Args:
        per_band: columns beside the first, at most; more are wrapped into bands below each other, each with the first
            column again. 0 wraps nothing.
    """
    bands = _bands(len(titles), per_band)
    height, width = (max(row[0].shape[axis] for row in rows) for axis in (0, 1))
    # inches
    cell_height, cell_width = CELL * height / max(height, width), CELL * width / max(height, width)
    titles = [_wrapped(title, cell_width, TITLE_POINTS) for title in titles]
    names = [_wrapped(name, cell_height, NAME_POINTS) for name in names]
    above = 0.08 + _lines(titles) * TITLE_POINTS * 1.3 / 72
    beside = 0.08 + _lines(names) * NAME_POINTS * 1.3 / 72
    band_height = above + len(rows) * (cell_height + GAP)
    total_width = beside + len(bands[0]) * (cell_width + GAP)
    total_height = len(bands) * band_height + GAP
    figure = Figure(figsize=(total_width, total_height), dpi=150)
    for band, columns in enumerate(bands):
        for index, (row, name) in enumerate(zip(rows, names, strict=True)):
            bottom = total_height - band * band_height - above - index * (cell_height + GAP) - cell_height
            for place, column in enumerate(columns):
                left = beside + place * (cell_width + GAP)
                axis = figure.add_axes(
                    (left / total_width, bottom / total_height, cell_width / total_width, cell_height / total_height)
                )
                axis.imshow(row[column], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if index == 0:
                    axis.set_title(titles[column], fontsize=TITLE_POINTS, pad=3)
                if place == 0:
                    axis.set_ylabel(name, fontsize=NAME_POINTS, labelpad=3)
    return figure


def _lines(texts: Sequence[str]) -> int:
    return max(text.count("\n") for text in texts) + 1


def _bands(count: int, per_band: int) -> list[list[int]]:
    """Numbers of the columns of each band; the first column comes first in all."""
    others = list(range(1, count))
    number = -(-len(others) // per_band) if per_band and others else 1
    length = -(-len(others) // number)  # bands of equal length, rather than a last one of a single picture
    return [[0, *others[band * length : (band + 1) * length]] for band in range(number)]


def _wrapped(text: str, inches: float, points: float) -> str:
    """`text` broken into lines that fit; a letter is about 0.6 of its height wide."""
    letters = max(int(inches * 72 / (0.6 * points)), 6)
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters))


def _save(figure: Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_with(out, lambda path: FigureCanvasAgg(figure).print_png(str(path)))
    return out


def read_some(loader: Loader, count: int, seed: int = 0, among: Sequence[int] | None = None) -> list[Sample]:
    """Up to `count` readable samples, evenly spread over the loader.

    Args:
        among: those that may be taken; all without it.

    Raises:
        DataError: none can be read.
    """
    samples, reasons = [], []
    choice = range(len(loader)) if among is None else among
    for place in spread(len(choice), count):
        index = int(choice[place])
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
        if panel.scattered:  # hidden points are not there
            pictures = [loader.picture(name, points.cpu()) for points in (original, original[~hidden], filled)]
            rows.append([loader.upright(name, each) for each in pictures])
            continue
        if hidden.ndim == 3:  # a volume is drawn by one slice
            middle = loader.middle(name, original)
            original, hidden, filled = original[:, middle], hidden[middle], filled[:, middle]
        width = original.shape[-1]
        both = loader.picture(name, torch.cat([original, filled], dim=-1).cpu())
        before, after = both[:, :width], both[:, width:]
        masked = _blank_hidden(before, hidden.cpu().numpy())
        rows.append([loader.upright(name, each) for each in (before, masked, after)])
    return rows


def reconstruction_preview(method: Method, loader: Loader, out: Path, count: int = 4, seed: int = 0) -> list[Path]:
    """Write one PNG an input, `NAME.png` in the folder `out`: original, what the encoder saw, what the method made."""
    titles = ("original", "seen by the encoder", "reconstruction")
    drawn: dict[str, Path] = {}
    was_training = method.training
    method.eval()
    try:
        for members in _kinds(loader):
            batch = collate(read_some(loader, count, seed, members)).to(next(method.parameters()).device)
            if set(batch.tensors) <= set(drawn):
                continue
            keys = sample_keys(torch.Generator().manual_seed(seed), len(batch), batch.device)
            names = [meta.group[:24] for meta in batch.metas]
            for name, panel in method.preview(batch, keys).items():
                if name not in drawn:
                    figure = _grid_figure(draw_panel(panel, name, loader), titles, names)
                    drawn[name] = _save(figure, out / f"{name}.png")
    finally:
        method.train(was_training)
    return list(drawn.values())


def _kinds(loader: Loader) -> list[list[int] | None]:
    """Samples that may share a batch, by bucket; None where all may."""
    bucket_of = loader.buckets()
    return [None] if bucket_of is None else [np.flatnonzero(bucket_of == one).tolist() for one in np.unique(bucket_of)]


def save_previews(run: Run, method: Method, loader: Loader, count: int = 4, seed: int = 0) -> list[Path]:
    """Write `previews/NAME.png` into a run directory."""
    return reconstruction_preview(method, loader, run.path / "previews", count, seed)


def mask_preview(
    loader: Loader,
    maskings: dict[str, Masking],
    out: Path,
    patch_size: int | None = 8,
    count: int = 4,
    seed: int = 0,
    leave_out: bool = False,
) -> Path:
    """Write one PNG that shows what maskings do to the user's own data: a row a sample, a column a masking.

    More than six maskings are wrapped, each line of them beside the originals. Titles tell the share that is hidden,
    as pictures of different shares compare little.

    Args:
        patch_size: pixels along each side of a token; None chooses one by the size of the first image.
        leave_out: warn of a masking that cannot be drawn on these data and leave it out, instead of raising.

    Raises:
        ConfigError: no input is an image, an image is smaller than a token, or no masking can be drawn.
        DataError: nothing can be read.
    """
    samples = read_some(loader, count, seed)
    images = [name for name, spec in loader.spec.items() if spec.dims == "C H W"]
    if not images:
        given = ", ".join(f'"{name}" has dimensions ({spec.dims})' for name, spec in loader.spec.items())
        raise ConfigError(f"Mask pictures need images; {given}.")
    name = images[0]
    patch = patch_size or _fitting_patch(max(samples[0][name].shape[-2:]))
    keys = sample_keys(torch.Generator().manual_seed(seed), len(samples))
    rows: list[list[np.ndarray]] = []
    shares: dict[str, float] = {}
    refused: dict[str, str] = {}
    for row, sample in enumerate(samples):
        image, grid = _whole_tokens(sample[name], patch, name)
        picture, side = _shrunk(loader.picture(name, image), patch)
        rows.append([picture])
        for label, masking in maskings.items():
            guide = F.avg_pool2d(image.mean(0, keepdim=True), patch).flatten(1) if masking.needs_guide else None
            try:
                mask = masking(grid, keys[row : row + 1], guide)
            except ConfigError as error:
                if not leave_out:
                    raise
                refused.setdefault(label, str(error))
                mask = None
            hidden = torch.zeros(1, grid.count, dtype=torch.bool) if mask is None else mask.hidden
            shares.setdefault(label, 0.0 if mask is None else mask.ratio)
            rows[-1].append(_blank_hidden(picture, patch_mask_to_pixels(hidden, grid, as_tuple(side, 2))[0].numpy()))
    for label, reason in refused.items():
        warnings.warn(f"{label} is left out of the picture: {reason}", stacklevel=2)
    kept = [0, *(number for number, label in enumerate(maskings, start=1) if label not in refused)]
    if len(kept) == 1:
        raise ConfigError("No masking can be drawn on these data: " + "; ".join(refused.values()))
    titles = ["original"] + [
        f"{label}{' (by brightness)' if masking.needs_guide else ''}\n{shares[label]:.0%} hidden"
        for label, masking in maskings.items()
    ]
    return _save(
        _grid_figure(
            [[loader.upright(name, pictures[number]) for number in kept] for pictures in rows],
            [titles[number] for number in kept],
            [sample.meta.group[:24] for sample in samples],
            per_band=PER_BAND,
        ),
        out,
    )


def _fitting_patch(longest: int) -> int:
    """Pixels of a token that can be seen in a picture: 8, or a sixteenth of images under 64 or over 256 pixels."""
    return 8 if 64 <= longest <= 256 else max(1, round(longest / 16))


def _whole_tokens(image: Tensor, patch: int, name: str) -> tuple[Tensor, Grid]:
    """The upper left part of an image (C, H, W) that holds whole tokens, and its grid."""
    if min(image.shape[-2:]) < patch:
        height, width = image.shape[-2:]
        raise ConfigError(
            f'"{name}" of {height} x {width} pixels is smaller than a token of {patch} x {patch}. '
            f"Give a patch size of {min(height, width)} or less."
        )
    # an even number of tokens along each side, so that units of two fit
    height, width = (max(size // (2 * patch) * 2, 1) * patch for size in image.shape[-2:])
    return image[..., :height, :width], patch_grid((height, width), (patch, patch), name)


def _shrunk(picture: np.ndarray, patch: int) -> tuple[np.ndarray, int]:
    """A picture (H, W, 3) no larger than can be seen, and the pixels of a token in it."""
    tokens = max(picture.shape[:2]) // patch
    side = min(patch, max(1, SEEN // tokens))
    if side == patch:
        return picture, patch
    size = [length // patch * side for length in picture.shape[:2]]
    small = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), size=size, mode="area")
    return small[0].permute(1, 2, 0).round().byte().numpy(), side
