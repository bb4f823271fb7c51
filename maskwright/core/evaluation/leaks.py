"""What makes a test easier than it looks: the same, nearly the same, or overlapping samples on both sides of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from scipy.fft import dctn

from maskwright.core.sample import Meta, Sample

NEAR_BITS = 14
"""Two perceptual hashes (64 bits) this near make two pictures candidates ..."""
NEAR_CORRELATION = 0.85
"""... and a correlation of their thumbnails above this makes them near duplicates."""
OVERLAP = 0.01
"""Share of the smaller footprint from which two windows overlap."""
MAX_PAIRS = 10_000
"""Pairs of a kind that are listed; an archive of copies would have millions."""
SIDE = 16
"""Side of a thumbnail in pixels."""


@dataclass(frozen=True)
class Leak:
    """Two samples that should not be on two sides of a split. `kind`: identical, near duplicate or overlap."""

    kind: str
    first: int
    second: int
    detail: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a sample to find its like: an exact hash and, for images, a perceptual hash and a thumbnail."""

    exact: bytes
    perceptual: int | None = None
    thumbnail: np.ndarray | None = None


def fingerprint(sample: Sample) -> Fingerprint:
    """Fingerprint of one sample. Perceptual hash: signs of the 8 x 8 lowest DCT coefficients (without the mean) of a
    16 x 16 thumbnail, mean of the standardised channels."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(sample.tensors):
        tensor = sample[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    image = next(iter(sample.tensors.values())).float()
    if image.ndim != 3 or min(image.shape[-2:]) < 8:
        return Fingerprint(digest.digest())
    channels = F.adaptive_avg_pool2d(image[None], SIDE)[0]
    spread = channels.flatten(1).std(1)
    if not bool((spread > 0).any()):
        return Fingerprint(digest.digest())  # blank: nothing to compare
    centred = channels - channels.mean((1, 2), keepdim=True)
    grey = (centred / spread.clamp_min(1e-12)[:, None, None])[spread > 0].mean(0).numpy().astype(np.float64)
    low = dctn(grey, norm="ortho")[:9, :9].flatten()[1:65]
    bits = low > np.median(low)
    code = int(np.packbits(bits).view(">u8")[0])
    return Fingerprint(digest.digest(), code, grey.astype(np.float32).flatten())


def find_identical(prints: Sequence[Fingerprint], sides: Sequence[str]) -> list[Leak]:
    """Pairs of equal samples of different sides; of many copies, each is paired with the first."""
    first: dict[bytes, int] = {}
    leaks = []
    for number, print_ in enumerate(prints):
        earlier = first.setdefault(print_.exact, number)
        if sides[earlier] != sides[number]:
            leaks.append(Leak("identical", earlier, number))
    return leaks


def find_near(prints: Sequence[Fingerprint], sides: Sequence[str], limit: int = MAX_PAIRS) -> list[Leak]:
    """Pairs of pictures of different sides that look alike, and are not identical."""
    where = [at for at, print_ in enumerate(prints) if print_.perceptual is not None]
    if len(where) < 2:
        return []
    codes = np.array([prints[at].perceptual for at in where], dtype=np.uint64)
    thumbs = np.stack([np.asarray(prints[at].thumbnail) for at in where])
    thumbs -= thumbs.mean(1, keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-12
    names = np.unique(np.asarray(sides), return_inverse=True)[1][where]
    leaks: list[Leak] = []
    for start in range(0, len(where), 512):
        block = slice(start, min(start + 512, len(where)))
        distance = np.bitwise_count(codes[block, None] ^ codes[None, :])
        near = (distance <= NEAR_BITS) & (names[block, None] != names[None, :])
        for row, other in zip(*np.nonzero(near), strict=True):
            a, b = start + int(row), int(other)
            if b <= a or prints[where[a]].exact == prints[where[b]].exact:
                continue
            correlation = float(thumbs[a] @ thumbs[b])
            if correlation >= NEAR_CORRELATION:
                leaks.append(Leak("near duplicate", where[a], where[b], f"correlation {correlation:.3f}"))
                if len(leaks) >= limit:
                    return leaks
    return leaks


def footprint(meta: Meta) -> tuple[str, float, float, float, float] | None:
    """(system, left, low, right, high) of a window in its CRS, or in pixels of its file where it has none."""
    if meta.window is None:
        return None
    row, column, height, width = meta.window
    if meta.crs is None or meta.transform is None:
        return meta.source, column, row, column + width, row + height
    a, b, c, d, e, f = meta.transform
    xs = [c, c + a * width, c + b * height, c + a * width + b * height]
    ys = [f, f + d * width, f + e * height, f + d * width + e * height]
    return meta.crs, min(xs), min(ys), max(xs), max(ys)


class _Sides:
    """Which sides leaks have tied together so far, so that of very many pairs only those that tie more are kept."""

    def __init__(self, sides: Sequence[str]) -> None:
        self.of_sample = np.unique(np.asarray(sides), return_inverse=True)[1]
        self.root = np.arange(self.of_sample.max(initial=0) + 1)

    def tie(self, first: int, second: int) -> None:
        a, b = self.root[self.of_sample[first]], self.root[self.of_sample[second]]
        if a != b:
            self.root[self.root == b] = a


def find_overlaps(metas: Sequence[Meta], sides: Sequence[str], limit: int = MAX_PAIRS) -> list[Leak]:
    """Pairs of windows of different sides that share ground. Windows that only touch do not.

    Args:
        limit: pairs that are all listed; of more, only those between sides that no listed pair ties together yet.
    """
    tied = _Sides(sides)
    boxes = [(at, box) for at, meta in enumerate(metas) if (box := footprint(meta)) is not None]
    boxes.sort(key=lambda item: (item[1][0], item[1][1]))
    lefts = np.array([box[1] for _, box in boxes])
    leaks: list[Leak] = []
    start = 0
    while start < len(boxes):
        end = start
        while end < len(boxes) and boxes[end][1][0] == boxes[start][1][0]:
            end += 1
        table = np.array([box[1:] for _, box in boxes[start:end]])
        places = np.array([at for at, _ in boxes[start:end]])
        areas = np.maximum((table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1]), 1e-12)
        for i in range(end - start):
            stop = int(np.searchsorted(lefts[start:end], table[i, 2], side="left"))
            others = np.arange(i + 1, stop)
            wide = np.minimum(table[others, 2], table[i, 2]) - np.maximum(table[others, 0], table[i, 0])
            high = np.minimum(table[others, 3], table[i, 3]) - np.maximum(table[others, 1], table[i, 1])
            share = np.maximum(wide, 0) * np.maximum(high, 0) / np.minimum(areas[others], areas[i])
            found = (share > OVERLAP) & (tied.of_sample[places[others]] != tied.of_sample[places[i]])
            if len(leaks) >= limit:
                found &= tied.root[tied.of_sample[places[others]]] != tied.root[tied.of_sample[places[i]]]
            for j in others[found]:
                a, b = sorted((int(places[i]), int(places[j])))
                if len(leaks) < limit or tied.root[tied.of_sample[a]] != tied.root[tied.of_sample[b]]:
                    leaks.append(Leak("overlap", a, b, f"{share[j - i - 1]:.0%} of the smaller"))
                    tied.tie(a, b)
        start = end
    return leaks


def find_leaks(prints: Sequence[Fingerprint], metas: Sequence[Meta], sides: Sequence[str]) -> list[Leak]:
    """All pairs that should not be on two sides of a split.

    Args:
        sides: group of each sample, or "train" and "test" where the split is given.
    """
    return [*find_identical(prints, sides), *find_overlaps(metas, sides), *find_near(prints, sides)]


def shared_groups(train: Sequence[Meta], test: Sequence[Meta]) -> list[str]:
    """Groups (patient, speaker, video, scene) that a given split has on both sides."""
    return sorted({meta.group for meta in train if meta.group} & {meta.group for meta in test if meta.group})
