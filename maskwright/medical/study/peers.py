"""Contrastive peers of masking, MoCo v2 and BYOL: losses, heads, views and momentum updates are lightly's.

They learn that two views of one picture belong together. No patch is hidden, so they are no masking methods and have no
picture to show; they exist to be compared with. Views are those of Wolf et al. 2023: grey as three equal
channels of 8 bits, rotation by up to 180 degrees, crops of 0.2 to 1, jitter 0.4, 0.4, 0.4, 0.1, blur, both flips.

Where this departs from them: the blur's radius of 0.1 to 2 is meant for 224 pixels and scaled with the size; lightly has
no Gaussian noise, so none is added; optimisers and numbers of steps are those of the study.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn

from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import fold
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Method, Step

BLUR_SIZE = 224
"""Pixels of the pictures that lightly's blur is meant for."""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Both generators that lightly's transforms draw from, put back afterwards."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002


def two_views(images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Two random views of each image, of its own size and units: (B, C, H, W) each.

    Args:
        images: (B, C, H, W) of 1 or 3 channels, in any unit.
        keys: (B,) int64; the views of a sample are a function of its image and key.

    Raises:
        ConfigError: another number of axes or channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"Views of MoCo and BYOL are made of pictures with 1 or 3 channels, not of tensors {tuple(images.shape)} "
            f"(sample first). Leave these methods out with --methods spark,scratch."
        )
    size = tuple(images.shape[2:])
    transform = MoCoV2Transform(
        input_size=size,  # type: ignore[arg-type]
        min_scale=0.2,
        random_gray_scale=0.0,
        sigmas=(0.1 * min(size) / BLUR_SIZE, 2 * min(size) / BLUR_SIZE),
        hf_prob=0.5,
        vf_prob=0.5,
        rr_prob=0.5,
        rr_degrees=180,
        normalize=None,
    )
    views: list[list[Tensor]] = [[], []]
    for image, key in zip(images.detach().float().cpu(), keys.tolist(), strict=True):
        low, high = float(image.min()), float(image.max())
        stretch = max(high - low, 1e-12)
        pixels = ((image - low) / stretch * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3)
        with _seeded(key % 2**63):
            pair = transform(Image.fromarray(pixels.numpy().copy()))
        for number, view in enumerate(pair):
            views[number].append(view[: len(image)] * stretch + low)
    first, second = (torch.stack(one).to(images.device) for one in views)
    return first, second


class ContrastivePeer(Method):
    """A backbone and its slow copy that agree on two views.

    Args:
        encoder: the backbone that is trained.
        projector: lightly's head behind it; a slow copy of it stands behind the slow backbone.
        momentum: share that the slow copies keep in each step, at the first one.

    Shapes:
        input (B, C, H, W) in physical units, of 1 or 3 channels.
    """

    encoder: SparseConvNet

    def __init__(self, encoder: SparseConvNet, projector: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum={momentum} is outside [0, 1).")
        self.encoder, self.projector, self.momentum = encoder, projector, momentum
        head = getattr(encoder.module, "head", None)
        self.slow_encoder, self.slow_projector = copy.deepcopy(encoder), copy.deepcopy(projector)
        if isinstance(head, nn.Module):
            deactivate_requires_grad(head)
        deactivate_requires_grad(self.slow_encoder)
        deactivate_requires_grad(self.slow_projector)

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        super().prepare(loader, generator)
        self.slow_encoder.load_state_dict(self.encoder.state_dict())

    def views(self, batch: Batch, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Two views in network units: (B, C, H, W) each."""
        name = self.encoder.input_name
        normalise = self.encoder.normalizers[name]
        first, second = two_views(batch[name], fold(keys, 0))
        return normalise(first), normalise(second)

    def fast(self, x: Tensor) -> Tensor:
        """What the trained side says of views in network units: (B, D)."""
        return self.projector(_pooled(self.encoder, x))

    @torch.no_grad()
    def slow(self, x: Tensor) -> Tensor:
        """What the slow side says of views in network units: (B, D)."""
        return self.slow_projector(_pooled(self.slow_encoder, x))

    def after_step(self, step: int, total_steps: int) -> None:
        momentum = self.momentum_at(step, total_steps)
        update_momentum(self.encoder, self.slow_encoder, m=momentum)
        update_momentum(self.projector, self.slow_projector, m=momentum)

    def momentum_at(self, step: int, total_steps: int) -> float:
        """Share that the slow copies keep after step `step`, counted from 0."""
        return self.momentum

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        """All positions of the last map (B, N, D): nothing is hidden."""
        return self.encoder.embed_batch(batch).tokens

    def preview(self, batch: Batch, keys: Tensor) -> NoReturn:
        raise ConfigError("this method hides nothing and rebuilds nothing.")


def _pooled(encoder: SparseConvNet, x: Tensor) -> Tensor:
    return encoder.maps(x)[-1].flatten(2).mean(2)


class MoCo(ContrastivePeer):
    """Momentum contrast with a queue (He et al. 2020; the head and views of MoCo v2, Chen et al. 2020).

    Args:
        momentum: 0.999 in the paper, for runs of 10^5 steps and more; short runs need a faster copy.
        queue: keys of earlier batches that are told apart from, 65,536 in the paper; of few pictures more keys would
            be copies of the same ones.
        temperature: 0.07 in the paper and in the study of Wolf et al.
    """

    def __init__(
        self, encoder: SparseConvNet, momentum: float = 0.99, queue: int = 4096, temperature: float = 0.07
    ) -> None:
        width, outputs = encoder.embed_dim, 128
        super().__init__(encoder, MoCoProjectionHead(width, width, outputs, num_layers=2), momentum)
        self.criterion = NTXentLoss(temperature, memory_bank_size=(queue, outputs))
        bank = self.criterion.memory_bank
        for name in ("bank", "bank_ptr"):  # so that a resumed run has the queue that it left
            bank.register_buffer(name, getattr(bank, name), persistent=True)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        """InfoNCE of the first view against the second, and the queue."""
        first, second = self.views(batch, keys)
        loss = self.criterion(self.fast(first), self.slow(second))
        return Step(loss, {"contrast": loss.detach()})


class BYOL(ContrastivePeer):
    """Bootstrap your own latent (Grill et al. 2020): each view predicts the slow side's word on the other.

    Args:
        momentum: at the first step; a half cosine takes it to 1 at the last one.
        hidden: width of projector and predictor; without it 4096 as in the paper, or 16 times a narrower backbone's
            width. Their output is 256.
    """

    def __init__(self, encoder: SparseConvNet, momentum: float = 0.99, hidden: int | None = None) -> None:
        hidden = hidden or min(4096, 16 * encoder.embed_dim)
        super().__init__(encoder, BYOLProjectionHead(encoder.embed_dim, hidden, 256), momentum)
        self.predictor = BYOLPredictionHead(256, hidden, 256)
        self.criterion = NegativeCosineSimilarity()

    def momentum_at(self, step: int, total_steps: int) -> float:
        return cosine_schedule(step, max(total_steps, 2), self.momentum, 1.0)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        """2 - 2 cos, over both directions; the slow side carries no gradient."""
        if len(batch) < 2:
            raise ConfigError("BYOL needs two samples in a batch or more, for its batch norms.")
        first, second = self.views(batch, keys)
        both: Any = [
            self.criterion(self.predictor(self.fast(a)), self.slow(b)) for a, b in ((first, second), (second, first))
        ]
        loss = 2 + both[0] + both[1]  # 2 - 2 cos, as the mean of the two
        return Step(loss, {"agreement": loss.detach()})
