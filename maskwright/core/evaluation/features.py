"""What encoders and simple baselines say of labelled samples, kept in memory for the protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.leaks import Fingerprint, fingerprint
from maskwright.core.evaluation.task import IGNORE, Targets
from maskwright.core.loader import Loader
from maskwright.core.masking.base import Grid
from maskwright.core.sample import BadFile, Batch, Meta, Sample
from maskwright.core.trainer.data import generator_for, read_batches

MAX_ITEMS = 200_000
"""Tokens kept of all samples together; of more, each sample keeps an equal random share."""
MAX_TOKEN_BYTES = 4 * 2**30
"""Most memory for the tokens of an attentive probe."""
TOKENS = 13
"""Keeps the stream that draws tokens apart from others."""


@dataclass
class Survey:
    """What is known of the labelled samples apart from features; the samples that could be read, in order.

    Args:
        indices: positions in the loader, (n,).
        metas, prints: of each sample.
        bad: what could not be read.
        thinned: for segmentation, whether only a random share of the tokens is kept.
        kept: for segmentation, the tokens of each sample that are items.
        item_sample: for segmentation, which of the samples each item (token) belongs to, (m,).
        pixels: for segmentation, (m, C) pixels of each class in an item.
        cells: for segmentation, shape of the tokens' layout.
        simple: features without a network by name, (n or m, D).
    """

    indices: np.ndarray
    metas: list[Meta]
    prints: list[Fingerprint]
    bad: list[BadFile]
    thinned: bool = False
    kept: list[np.ndarray] = field(default_factory=list)
    item_sample: np.ndarray | None = None
    pixels: np.ndarray | None = None
    cells: tuple[int, ...] | None = None
    simple: dict[str, np.ndarray] = field(default_factory=dict)


def samples_of(batch: Batch) -> list[Sample]:
    """The samples of a batch, one by one, without what fills the shorter ones up."""

    def own(name: str, row: int) -> Tensor:
        tensor = batch[name][row]
        return tensor[..., : int(batch.lengths[name][row])] if name in batch.lengths else tensor

    variable = frozenset(batch.lengths)
    return [
        Sample({name: own(name, row) for name in batch.tensors}, meta, variable) for row, meta in enumerate(batch.metas)
    ]


def pixel_counts(labels: np.ndarray, cells: tuple[int, ...], classes: int) -> np.ndarray:
    """How many pixels of each class lie in each cell: class numbers of shape (H, W), -1 to ignore, to (N, C)."""
    at = np.zeros(labels.shape, dtype=np.int64)
    for axis, (size, count) in enumerate(zip(labels.shape, cells, strict=True)):
        along = np.arange(size) * count // size
        at = at * count + along.reshape([-1 if a == axis else 1 for a in range(labels.ndim)])
    known = labels != IGNORE
    flat = np.bincount(at[known] * classes + labels[known], minlength=int(np.prod(cells)) * classes)
    return flat.reshape(-1, classes)


def point_counts(labels: np.ndarray, points: Tensor, centres: Tensor, classes: int) -> np.ndarray:
    """How many points of each class are nearest to each centre: class numbers (P,), -1 to ignore, to (N, C).

    Args:
        points, centres: coordinates (P, d) and (N, d).
    """
    nearest = torch.cdist(points.float(), centres.float()).argmin(1).cpu().numpy()
    known = labels != IGNORE
    flat = np.bincount(nearest[known] * classes + labels[known], minlength=len(centres) * classes)
    return flat.reshape(-1, classes)


def item_counts(labels: np.ndarray, sample: Sample, grid: Grid, classes: int) -> np.ndarray:
    """How many pixels or points of each class belong to each token of a sample: (N, C)."""
    if grid.positions is None:
        return pixel_counts(labels, grid.shape, classes)
    points = next(iter(sample.tensors.values()))[:, : grid.positions.shape[-1]]
    return point_counts(labels, points, grid.positions.to(points.device), classes)


def grids_of(encoder: Encoder, batch: Batch) -> list[Grid]:
    """The layout of each sample's tokens; one for all of them on a lattice."""
    grid = encoder.embed(batch).grid
    if grid.positions is None or grid.positions.ndim == 2:
        return [grid] * len(batch)
    return [Grid(grid.shape, positions.cpu()) for positions in grid.positions]


def _kept_tokens(index: int, tokens: int, share: int, seed: int) -> np.ndarray:
    if share >= tokens:
        return np.arange(tokens)
    return np.sort(torch.randperm(tokens, generator=generator_for(seed, TOKENS, index))[:share].numpy())


def survey(
    loader: Loader,
    targets: Targets,
    indices: np.ndarray,
    encoder: Encoder,
    seed: int,
    batch_size: int = 64,
    workers: int = 0,
    simple: bool = True,
) -> Survey:
    """Read all labelled samples once: where they come from, their fingerprints, simple features, pixels of each class.

    Args:
        encoder: its grid decides the cells of a segmentation.
        simple: compute the baseline features.

    Raises:
        DataError: nothing could be read, or no pixel has a label.
    """
    result = Survey(np.empty(0, np.int64), [], [], [])
    lattice: Grid | None = None
    collected: dict[str, list[np.ndarray]] = {}
    owners, pixels = [], []
    for batch in read_batches(loader, batch_size, indices.tolist(), workers):
        result.bad += batch.bad
        samples = samples_of(batch)
        grids: list[Grid | None] = [lattice] * len(samples)
        if targets.dense and lattice is None and samples:
            grids = list(grids_of(encoder, batch))
            lattice = None if grids[0] is None or grids[0].scattered else grids[0]
            result.cells = None if grids[0] is None else grids[0].shape
        for sample, grid in zip(samples, grids, strict=True):
            kept: Any = slice(None)
            if targets.read is not None and grid is not None:
                try:
                    counts = item_counts(targets.read(sample), sample, grid, targets.outputs)
                except DataError as error:
                    result.bad.append(BadFile(error.path, str(error)))
                    continue
                share = max(1, MAX_ITEMS // len(indices))
                result.thinned |= share < len(counts)
                kept = _kept_tokens(sample.meta.index, len(counts), share, seed)
                kept = kept[counts[kept].sum(1) > 0]
                result.kept.append(kept)
                owners.append(np.full(len(kept), len(result.metas)))
                pixels.append(counts[kept])
            result.metas.append(sample.meta)
            result.prints.append(fingerprint(sample))
            if simple:
                for name, values in loader.simple_features(sample, grid).items():
                    collected.setdefault(name, []).append(
                        values.numpy()[kept] if targets.dense else values.numpy()[None]
                    )
    if not result.metas:
        reason = result.bad[0].reason if result.bad else "no sample has a label"
        raise DataError("data", f"no labelled sample could be read; {reason}")
    result.indices = np.array([meta.index for meta in result.metas])
    if targets.dense:
        result.item_sample, result.pixels = np.concatenate(owners), np.concatenate(pixels)
        if not len(result.item_sample):
            raise DataError("labels", "no pixel of any sample has a label")
    for name, parts in collected.items():
        if len(parts) == len(result.metas) and len({part.shape[-1] for part in parts}) == 1:
            result.simple[name] = np.concatenate(parts).astype(np.float32)
    return result


@torch.no_grad()
def encode(
    encoder: Encoder,
    loader: Loader,
    known: Survey,
    tokens: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of the surveyed samples: (n, D) pooled or, for segmentation, (m, D) of the kept tokens.

    Args:
        tokens: also all tokens of each sample, (n, T, D) float16.

    Raises:
        ConfigError: too many tokens for memory, or an encoder that gives numbers that are not finite.
    """
    encoder = encoder.to(device)
    pooled, all_tokens = [], []
    for batch in read_batches(loader, batch_size, known.indices.tolist(), workers):
        if batch.bad:
            raise DataError(batch.bad[0].path, f"could be read before, but not now: {batch.bad[0].reason}")
        embedding = encoder.embed(batch)
        if known.item_sample is None:
            pooled.append(embedding.pooled.float().cpu().numpy())
        else:
            every = embedding.tokens.float().cpu().numpy()
            pooled += [row[known.kept[len(pooled) + at]] for at, row in enumerate(every)]
        if tokens:
            all_tokens.append(embedding.tokens.half().cpu().numpy())
            if sum(part.nbytes for part in all_tokens[:1]) * len(known.indices) / len(batch) > MAX_TOKEN_BYTES:
                raise ConfigError(
                    f"The tokens of {len(known.indices)} samples need more than {MAX_TOKEN_BYTES / 2**30:.0f} GB. Leave "
                    "the attentive protocol out, or judge fewer samples."
                )
    x = np.concatenate(pooled)
    if not np.isfinite(x).all():
        raise ConfigError("The encoder gives numbers that are not finite, so nothing can be judged.")
    return x, np.concatenate(all_tokens) if tokens else None


def labels_of_items(targets: Targets, known: Survey) -> np.ndarray:
    """What protocols train on: class numbers (of the majority of an item's pixels), 0 or 1 a class, or numbers."""
    if known.pixels is not None:
        return known.pixels.argmax(1)
    assert targets.values is not None
    return targets.values[known.indices]


def merge_targets(first: Targets, second: Targets, sizes: Sequence[int]) -> Targets:
    """Targets of two loaders one after the other, with the classes of both.

    Raises:
        ConfigError: regression of another number of columns.
    """
    if first.kind == "regression":
        if first.outputs != second.outputs:
            raise ConfigError(f"The test labels have {second.outputs} columns, the training labels {first.outputs}.")
        assert first.values is not None
        assert second.values is not None
        return replace(first, values=np.concatenate([first.values, second.values]))
    classes = tuple(dict.fromkeys([*first.classes, *second.classes]))
    places = [np.array([classes.index(name) for name in part.classes]) for part in (first, second)]
    if first.read is not None and second.read is not None:
        readers, boundary = (first.read, second.read), sizes[0]

        def read(sample: Sample) -> np.ndarray:
            part = int(sample.meta.index >= boundary)
            own = replace(sample.meta, index=sample.meta.index - part * boundary)  # its number in its own loader
            found = readers[part](replace(sample, meta=own))
            return np.where(found == IGNORE, IGNORE, places[part][found])

        return replace(first, classes=classes, read=read)
    assert first.values is not None
    assert second.values is not None
    if first.kind == "multilabel":
        wide = []
        for part, place in zip((first.values, second.values), places, strict=True):
            out = np.zeros((len(part), len(classes)), np.float32)
            out[:, place] = part
            out[np.isnan(part).any(1)] = np.nan
            wide.append(out)
        return replace(first, classes=classes, values=np.concatenate(wide))
    numbers = [
        np.where(part == IGNORE, IGNORE, place[part])
        for part, place in zip((first.values, second.values), places, strict=True)
    ]
    return replace(first, classes=classes, values=np.concatenate(numbers))
