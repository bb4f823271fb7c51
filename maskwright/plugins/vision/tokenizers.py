"""Discrete targets: what turns each hidden patch into the number of a code.

BEiT and CAE predict the codes of DALL-E's discrete VAE. `dalle.DalleTokenizer` computes them from weights that the user
has as plain tensors. `KMeansTokenizer` needs no download: its codes are clusters of the training data's own patches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens, VisionTransformer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask
from maskwright.core.masking.hide import take
from maskwright.core.sample import BadFile, collate
from maskwright.core.trainer.data import SampleReader

FIT_SAMPLES, FIT_PATCHES = 1000, 100_000
"""Samples of the training data, and patches of them, that clusters are made from, at most."""
CHUNK_BYTES = 256 * 2**20
"""Distances to all codes that are held at once, at most."""


class Tokenizer(nn.Module, ABC):
    """Numbers of codes for hidden patches. Nothing in it is trained by gradients; all of it is in checkpoints."""

    vocabulary: int
    """Number of codes K."""
    label: str
    """What it is, for people."""

    def prepare(self, loader: Loader, encoder: VisionTransformer, generator: torch.Generator) -> None:
        """Learn from the data, or check them; once, when the encoder's scaling of its input is set."""
        return None

    @abstractmethod
    def forward(self, images: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
        """Codes (B, H) int64 of the hidden patches in the order of `mask.masked`.

        Args:
            images: (B, C, *size) in physical units.
            tokens: the same images as patches (B, N, P) in network units.
        """

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """What patches of these codes look like, less their mean: (B, H) to (B, H, P) in network units."""


def make_tokenizer(kind: str, encoder: VisionTransformer, vocabulary: int) -> Tokenizer:
    """The tokenizer "kmeans" with `vocabulary` codes, or DALL-E's from the file of that path.

    Raises:
        ConfigError: an input that it cannot read. DataError: no file, or other weights.
    """
    if kind == "kmeans":
        return KMeansTokenizer(encoder.patch_embed.in_features, vocabulary)
    from maskwright.plugins.vision.dalle import DalleTokenizer

    return DalleTokenizer(kind, encoder)


class KMeansTokenizer(Tokenizer):
    """The nearest of K cluster centres of patches of the training data, in network units and less their mean.

    Mini-batch k-means (Sculley, WWW 2010) from scikit-learn, begun at K different patches: those of k-means++ up to
    1024 codes, random ones beyond, where k-means++ would take longer than the rest. Centres are a buffer, so that a
    resumed run has the codes that it began with.

    Args:
        patch_values: numbers P in a patch, 2 or more.
        vocabulary: codes K, 2 or more.

    Raises:
        ConfigError: fewer than that.
    """

    centres: Tensor

    def __init__(self, patch_values: int, vocabulary: int) -> None:
        super().__init__()
        if patch_values < 2:
            raise ConfigError(
                "Patches of one number are all alike once their mean is taken off. Set a larger method.patch_size."
            )
        if vocabulary < 2:
            raise ConfigError(f"method.vocabulary={vocabulary} must be 2 codes or more.")
        self.vocabulary = vocabulary
        self.label = f"k-means over the data's own patches, {vocabulary} codes"
        self.fitted = False
        self.register_buffer("centres", torch.zeros(vocabulary, patch_values))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.fitted = bool(self.centres.any())

    def prepare(self, loader: Loader, encoder: VisionTransformer, generator: torch.Generator) -> None:
        """Find the centres.

        Raises:
            ConfigError: fewer different patches than codes.
        """
        self.fit(sample_patches(loader, encoder, generator), generator)

    @torch.no_grad()
    def fit(self, patches: Tensor, generator: torch.Generator) -> None:
        """Find the centres of patches (n, P) in network units. Every code is that of at least one of them.

        Raises:
            ConfigError: fewer different patches than codes.
        """
        from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

        x = _less_mean(patches.float().cpu())
        distinct = _distinct_rows(x, generator)
        if len(distinct) < self.vocabulary:
            raise ConfigError(
                f"{self.vocabulary} codes cannot be made from {len(distinct)} different patches. Set "
                f"method.vocabulary={max(2, len(distinct) // 8)} or so, or give more data."
            )
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        few = self.vocabulary <= 1024
        shuffled = distinct[torch.randperm(len(distinct), generator=generator)]
        start = x[shuffled[: self.vocabulary * (10 if few else 1)]].numpy()
        if few:
            start, _ = kmeans_plusplus(start, self.vocabulary, random_state=seed)
        found = MiniBatchKMeans(
            self.vocabulary,
            init=start,
            n_init=1,
            batch_size=min(4096, len(x)),
            max_iter=10 if few else 3,
            compute_labels=False,
            random_state=seed,
        ).fit(x.numpy())
        self.centres.copy_(torch.from_numpy(np.asarray(found.cluster_centers_, np.float32)))
        self.fitted = True
        self._fill_empty(x, distinct)

    def _fill_empty(self, x: Tensor, distinct: Tensor) -> None:
        """Codes that no patch has move to those patches that are farthest from theirs."""
        rows = x[distinct].to(self.centres.device)
        for _ in range(10):
            codes = self.ids(rows[None])[0]
            empty = torch.bincount(codes, minlength=self.vocabulary).eq(0).nonzero()[:, 0]
            if not len(empty):
                return
            far = (rows - self.centres[codes]).square().sum(1).topk(len(empty)).indices
            self.centres[empty] = rows[far]

    @torch.no_grad()
    def ids(self, patches: Tensor) -> Tensor:
        """The nearest centre of each patch: (B, N, P) in network units to (B, N) int64."""
        with torch.autocast(patches.device.type, enabled=False):  # rounded distances would change codes
            x = _less_mean(patches.float()).flatten(0, 1)
            length = self.centres.square().sum(1)
            rows = max(1, CHUNK_BYTES // (4 * self.vocabulary))
            codes = [torch.addmm(length, part, self.centres.T, alpha=-2).argmin(1) for part in x.split(rows)]
        return torch.cat(codes).view(patches.shape[:2])

    def forward(self, images: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
        if not self.fitted:
            raise ConfigError(
                "The codes are not there yet: call method.prepare(loader, generator) before the first step."
            )
        return self.ids(take(tokens.values, mask.masked))

    def values(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.centres)


def sample_patches(loader: Loader, encoder: VisionTransformer, generator: torch.Generator) -> Tensor:
    """Patches of random samples, read as in training: (n, P) in network units on the CPU, n up to `FIT_PATCHES`."""
    reader = SampleReader(loader, int(torch.randint(2**31 - 1, (), generator=generator)))
    chosen = torch.randperm(len(loader), generator=generator)[:FIT_SAMPLES].tolist()
    each = math.ceil(FIT_PATCHES / len(chosen))
    device = next(encoder.parameters()).device
    found = []
    for index in chosen:
        sample = reader[0, index]
        if isinstance(sample, BadFile):  # training meets it again, and says so
            continue
        patches = encoder.tokenize(collate([sample]).to(device)).values[0].cpu()
        found.append(patches[torch.randperm(len(patches), generator=generator)[:each]])
    if not found:
        raise ConfigError(
            f"None of {len(chosen)} samples could be read to make codes from. Look at the data with `maskwright inspect`."
        )
    return torch.cat(found)


def _less_mean(patches: Tensor) -> Tensor:
    return patches - patches.mean(-1, keepdim=True)


def _distinct_rows(x: Tensor, generator: torch.Generator) -> Tensor:
    """Where each different row of (n, P) is found first. Rows are told apart by one random projection."""
    direction = torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
    projected = torch.cat([part.double() @ direction for part in x.split(8192)])
    _, first = np.unique(projected.numpy(), return_index=True)
    return torch.from_numpy(first)
