"""MP3: position prediction as an effective pretraining strategy (Zhai, Jaitly, Ramapuram, Busbridge, ..., ICML 2022).

Not content is hidden, but where it belongs. All patches enter a transformer without positions, as a set; a random part
of them is context, and in every layer only context patches are keys and values. Of each patch, context or not, the
place is predicted among all places. There is no decoder, and the more patches are no context, the cheaper a step is.

There is no official code. Keys and values are computed anew from the present states of the same context patches in
every layer, as in the paper's figure 1; two public re-implementations do otherwise. The class token is left out, and
the encoder that is kept has none. `sigma`, soft targets around the true place, is DropPos's (Wang et al., NeurIPS 2023)
and off by default; rows are normalised, which DropPos's code does along the other axis. Crops and flips are the
loader's affair: none may tell the place, as padding in black does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens, VisionTransformer
from maskwright.core.encoder.positions import PositionKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Mask, RandomMasking
from maskwright.core.masking.base import mask_from_scores
from maskwright.core.masking.hide import take
from maskwright.core.patch_method import PatchMethod
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.plugins.vision.methods.mae import TINY_ENCODER, TINY_TRAINER

# DeiT's recipe: AdamW, 5e-4 for a batch of 512
PUBLISHED = {"base_lr": 2.5e-4, "betas": (0.9, 0.999), "weight_decay": 0.05, "epochs": 150, "warmup": 0.05}


class Mp3(PatchMethod):
    """MP3 on an image (C, H, W), a series (C, T) or a volume (C, D, H, W) of one size. Defaults are ViT-B/16 at 224.

    Args:
        sigma: width of soft targets in patches at the first step, from where it falls linearly to 0 at the last; 0 for
            the true place alone.
        positions: what the kept encoder adds to its patches; pre-training never adds any. They start untrained, so that
            anything but "none" is for fine-tuning.
        encoder: further options of the encoder, see `PatchMethod`. `img_size` says how many places there are.

    Shapes:
        logits (B, N, N): of each patch over all places.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    summary = "Where each patch belongs, from the contents of some of them."
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "tiny": {"method": {**TINY_ENCODER, "img_size": 32}, "trainer": TINY_TRAINER},
        "small": {
            "method": {"img_size": 32, "patch_size": 4, "embed_dim": 384, "num_heads": 6},
            "trainer": {**PUBLISHED, "epochs": 2000},
        },
        "base": {"method": {}, "trainer": PUBLISHED},
    }

    def __init__(self, sigma: float = 0.0, positions: PositionKind = "none", **encoder: Any) -> None:
        super().__init__(positions=positions, **encoder)
        if sigma < 0:
            raise ConfigError(f"method.sigma={sigma} must be 0 or more patches.")
        if self.encoder.options["block"] != "transformer":
            raise ConfigError("MP3 chooses the keys of attention. Set method.block=transformer.")
        self.encoder = VisionTransformer(**{**self.encoder.options, "class_token": False, "pool": "mean"})
        for parameter in self.encoder.positions.parameters():
            parameter.requires_grad = False  # learned ones wait for fine-tuning
        self.places = self.encoder.grid.count
        self.head = nn.Linear(self.encoder.embed_dim, self.places)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.sigma = sigma

    def mask(self, tokens: Tokens, keys: Tensor) -> Mask:
        """Context patches are the visible ones: round((1 - ratio) N) of random masking."""
        grid = tokens.grid
        if grid.shape != self.encoder.grid.shape:
            raise ConfigError(
                f"MP3 was made for {' x '.join(map(str, self.encoder.grid.shape))} places, and this input has "
                f"{' x '.join(map(str, grid.shape))}. Set method.img_size to the size of the input, or data.size."
            )
        if type(self.masking) is not RandomMasking or self.masking.visible is not None:
            return self.masking(grid, keys)
        context = max(1, round((1 - self.masking.ratio) * grid.count))
        return mask_from_scores(self.masking.score(grid, keys), grid.count - context)

    def features(self, tokens: Tokens, mask: Mask) -> Tensor:
        """What the encoder says of all patches, (B, N, D), if only the visible ones of `mask` are keys and values."""
        x = self.encoder.patch_embed(tokens.values)
        for block in self.encoder.blocks:
            x = block(x, context=mask.visible)
        return self.encoder.norm(x)

    def logits(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Of each patch over all places: (B, N, N) float32."""
        return self.head(self.features(tokens, mask)).float()

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)
        logits = self.logits(tokens, mask)
        true = torch.arange(self.places, device=logits.device).expand(len(logits), -1)
        sigma = self.sigma * (1 - self.progress.step / max(self.progress.steps, 1))
        if sigma:
            target = soft_places(tokens.grid.coordinates(logits.device), sigma).expand(len(logits), -1, -1)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), true.flatten())
        right = (logits.detach().argmax(-1) == true).float()
        hidden = right[mask.hidden].mean() if mask.masked.shape[1] else right.mean()
        return Step(loss, {"position": loss.detach(), "accuracy": right.mean(), "hidden_accuracy": hidden})

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        """What the encoder says of context patches, (B, V, D): all else that is hidden from it are contents."""
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)
        return take(self.features(tokens, mask), mask.visible)

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """For a picture: at each place the context patch that most likely belongs there, (B, N, P) in network units."""
        likelihood = take(self.logits(tokens, mask).log_softmax(-1), mask.visible)  # (B, V, N)
        return take(take(tokens.values, mask.visible), likelihood.argmax(1))


def soft_places(coordinates: Tensor, sigma: float) -> Tensor:
    """Targets exp(-distance ** 2 / sigma ** 2) of each of (N, d) places over all, rows summing to 1: (N, N)."""
    squared = (coordinates[:, None] - coordinates[None]).square().sum(-1)
    return (-squared / sigma**2).softmax(-1)
