"""GMML: group masked model learning, "GMML is all you need" (Atito, Awais, Kittler, 2022; short version at ICIP 2023).

Groups of neighbouring pixels are overwritten, with noise or with what another image has there, until half of the image
or more is destroyed. A plain vision transformer sees all of the corrupted image and is not told where it was corrupted;
a light head regresses the clean image from the mean of several of its layers, and the error is taken where something
was overwritten. No mask token, no decoder, no teacher.

Where this departs from the released code: the partner of an alien corruption is never the image itself; the fill "copy"
takes all rectangles of an image from one random cyclic shift of it, where the code copies a random rectangle for each,
one after the other; crops are resized bilinearly with antialiasing, and there are no local crops (off by default);
weights are initialised as in MAE. Colour jitter and blur are options of the loader of images (data.jitter, data.blur).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens
from maskwright.core.encoder.patches import patch_grid, patch_mask_to_pixels, patchify
from maskwright.core.encoder.positions import PositionKind
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Mask, Masking, fold, group_corruption, normal, replace, uniform
from maskwright.core.patch_method import PatchMethod, panel
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Panel, Step
from maskwright.core.views import crop_and_resize, crop_boxes
from maskwright.plugins.vision.methods.mae import TINY_ENCODER, TINY_TRAINER

Fill = Literal["noise", "zeros", "copy"]

# Released code: batch 256, 10 of 800 epochs of warm-up, cosine from 5e-4 to 1e-6.
_PUBLISHED = {
    "base_lr": 5e-4,
    "betas": (0.9, 0.999),
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "clip_grad": 3.0,
    "clip_tensors": True,
    "epochs": 800,
    "warmup": 0.0125,
    "min_lr_ratio": 0.002,
}
_GROUPS, _KIND, _FILL, _PARTNER, _NOISE, _SHIFT, _CROP, _FLIP, _VIEWS = range(9)
"""Streams of random numbers of a sample."""


def partners(keys: Tensor) -> Tensor:
    """For each sample of a batch the place (B,) of another one, each equally likely; its own if it is alone."""
    others = max(len(keys) - 1, 1)
    step = 1 + (uniform(keys, 1)[:, 0] * others).long().clamp(max=others - 1)
    return (torch.arange(len(keys), device=keys.device) + step) % len(keys)


def shifted(x: Tensor, keys: Tensor) -> Tensor:
    """Each of (B, C, *size) moved along a cycle by 1 to L - 1 pixels of each axis of length L."""
    random = uniform(keys, x.ndim - 2)
    for axis, length in enumerate(x.shape[2:], start=2):
        step = 1 + (random[:, axis - 2] * (length - 1)).long()
        at = (torch.arange(length, device=x.device) + step[:, None]) % length
        shape = [len(x), *[-1 if other == axis else 1 for other in range(1, x.ndim)]]
        x = x.gather(axis, at.view(shape).expand_as(x))
    return x


def masked_l1(prediction: Tensor, target: Tensor, hidden: Tensor | None) -> Tensor:
    """Mean absolute error over all hidden values of the batch together: samples with more of them weigh more.

    Args:
        prediction, target: tensors of one shape.
        hidden: bool of that shape; None scores all.
    """
    error = F.l1_loss(prediction, target, reduction="none")
    if hidden is None:
        return error.mean()
    return torch.where(hidden, error, 0).sum() / hidden.sum().clamp(min=1)


class PixelHead(nn.Module):
    """Three times linear and GELU, then a transposed convolution whose kernel is its stride: (B, N, D) to (B, N, C * P).

    Such a convolution is one linear map of each token with a bias a channel, C of them.
    """

    def __init__(self, dim: int, channels: int, pixels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(dim, dim), nn.GELU())])
        self.patch = nn.Linear(dim, channels * pixels, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.pixels = pixels
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch(self.mlp(x)) + self.bias.repeat_interleave(self.pixels)


class Gmml(PatchMethod):
    """GMML on an image (C, H, W), a series (C, T) or a volume (C, D, H, W). Defaults are ViT-S/16.

    Noise is N(0, 1) and zeros are the mean in network units, so that `normalization` should not be "none".

    Args:
        taps: blocks, counted from 1, whose outputs are averaged for the head; the last block must be one of them.
        corruption: what is overwritten: "group", rectangles of pixels; "masking", tokens that the recipe's masking hides;
            "auto", the latter if the recipe names another masking than the default.
        fills: what rectangles of an image are filled with, drawn for each image: "noise", "zeros", "copy" of the same
            image shifted.
        share: largest share of pixels that are overwritten so; it is drawn from min(0.5, share) on.
        alien_share: the same of images that are filled from another image of the batch, one of k + 1 with k `fills`;
            0 for none of them.
        align: grain of the rectangles in pixels: 1 as released, the patch size for whole tokens.
        max_block: longest side of a rectangle as a share of the axis.
        views: corruptions of each sample in a step. Of images each has a crop and flip of its own.
        crop_scale: smallest and largest area of the crops of an image, as a share of it; resized to the size of the
            input. None for neither crops nor flips. Series and volumes are never cropped.
        flip: share of the crops that are mirrored.
        masked_only: take the error over what was overwritten, rather than over all.
        encoder: options of the encoder, see `PatchMethod`.

    Raises:
        ConfigError: sizes or shares that do not fit each other; a masking that would not be used.
    """

    summary = "Clean images from images of which groups of pixels are overwritten by noise or by another image."
    default_masking = {"name": "group", "ratio": 0.75}
    presets = {
        "tiny": {"method": {**TINY_ENCODER, "taps": (2, 3, 4)}, "trainer": TINY_TRAINER},
        "small": {"method": {}, "trainer": _PUBLISHED},
        "base": {"method": {"embed_dim": 768, "num_heads": 12}, "trainer": _PUBLISHED},
    }

    def __init__(
        self,
        embed_dim: int = 384,
        num_heads: int = 6,
        positions: PositionKind = "learned",
        drop_path: float = 0.1,
        taps: tuple[int, ...] = (6, 8, 10, 12),
        corruption: Literal["auto", "group", "masking"] = "auto",
        fills: tuple[Fill, ...] = ("noise",),
        share: float = 0.75,
        alien_share: float = 0.3,
        align: int = 1,
        max_block: float = 0.3,
        views: int = 2,
        crop_scale: tuple[float, float] | None = (0.05, 1.0),
        flip: float = 0.5,
        masked_only: bool = True,
        masking: Masking | None = None,
        **encoder: Any,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            positions=positions,
            drop_path=drop_path,
            masking=masking,
            **encoder,
        )
        depth = len(self.encoder.blocks)
        if not taps or max(taps) != depth or min(taps) < 1:
            raise ConfigError(
                f"method.taps={list(taps)} must be some of the blocks 1 to {depth}, with the last of them: blocks behind "
                f"the last tap would not be trained."
            )
        if not fills or not set(fills) <= {"noise", "zeros", "copy"}:
            raise ConfigError(f"method.fills={list(fills)} must be some of noise, zeros, copy.")
        if not 0 <= flip <= 1:
            raise ConfigError(f"method.flip={flip} is a share, 0 to 1.")
        if views < 1:
            raise ConfigError(f"method.views={views} must be 1 or more.")
        self.taps, self.fills, self.share, self.alien_share = tuple(taps), tuple(fills), share, alien_share
        self.align, self.max_block, self.views, self.masked_only = align, max_block, views, masked_only
        self.crop_scale, self.flip = crop_scale if len(self.encoder.patch_size) == 2 else None, flip
        self.by_masking = self._by_masking(corruption)
        self.head = PixelHead(self.encoder.embed_dim, self.encoder.in_chans, self.patch_values // self.encoder.in_chans)

    def _by_masking(self, corruption: str) -> bool:
        """Whether the recipe's masking says what is overwritten.

        Raises:
            ConfigError: the recipe names a masking that would not be used.
        """
        default = self.made_masking()
        another = type(self.masking) is not type(default) or vars(self.masking) != vars(default)
        if corruption == "group" and another:
            raise ConfigError(
                "The masking of this recipe is not used with method.corruption=group. Set method.corruption=masking, or "
                "leave out the settings of masking."
            )
        return another if corruption == "auto" else corruption == "masking"

    # corruption -----------------------------------------------------------------------------------------------------

    def view(self, x: Tensor, keys: Tensor) -> Tensor:
        """A crop of each of (B, C, H, W), resized to H x W, some of them mirrored. Other inputs as they are."""
        if self.crop_scale is None:
            return x
        size = (x.shape[2], x.shape[3])
        boxes = crop_boxes(fold(keys, _CROP), size, self.crop_scale)
        return crop_and_resize(x, boxes, size, flip=uniform(fold(keys, _FLIP), 1)[:, 0] < self.flip)

    def corrupt(self, x: Tensor, keys: Tensor, alone: bool = False) -> tuple[Tensor, Tensor]:
        """Overwrite groups of pixels of each sample.

        Args:
            x: (B, C, *size) clean, in network units. Not changed.
            alone: with noise or zeros only, so that nothing of what is overwritten can be seen elsewhere, and a sample
                does not depend on its batch.

        Returns:
            the corrupted x, and what was overwritten, (B, *size) bool.
        """
        alien = uniform(fold(keys, _KIND), 1)[:, 0] < 1 / (len(self.fills) + 1)
        alien &= not alone and self.alien_share > 0 and len(x) > 1
        hidden = self.groups(tuple(x.shape[2:]), keys, alien)

        column = [-1, *[1] * (x.ndim - 1)]
        kind = (uniform(fold(keys, _FILL), 1)[:, 0] * len(self.fills)).long().view(column)
        fill = normal(fold(keys, _NOISE), *x.shape[1:]).to(x.dtype)
        for number, name in enumerate(self.fills):
            if name == "zeros":
                fill = torch.where(kind == number, 0, fill)
            if name == "copy" and not alone:
                fill = torch.where(kind == number, shifted(x, fold(keys, _SHIFT)), fill)
        fill = torch.where(alien.view(column), x[partners(fold(keys, _PARTNER))], fill)
        return torch.where(hidden[:, None], fill, x), hidden

    def groups(self, size: tuple[int, ...], keys: Tensor, alien: Tensor) -> Tensor:
        """What is overwritten, (B, *size) bool; `alien` (B,) says of which samples by another image."""
        if self.by_masking:
            grid = patch_grid(size, self.encoder.patch_size, self.encoder.input_name)
            return patch_mask_to_pixels(self.masking(grid, keys).hidden, grid, self.encoder.patch_size)
        share = torch.where(alien, self.alien_share, self.share)
        return group_corruption(fold(keys, _GROUPS), size, share, self.align, self.max_block)

    # reconstruction -------------------------------------------------------------------------------------------------

    def features(self, tokens: Tokens) -> Tensor:
        """Mean of the tapped blocks' outputs, normalised, without the class token: (B, N, D)."""
        states = self.encoder.hidden_states(tokens, [tap - 1 for tap in self.taps])
        mean = torch.stack(states).mean(0)
        return self.encoder.norm(mean)[:, self.encoder.num_prefix_tokens :]

    def reconstruct(self, tokens: Tokens) -> Tensor:
        """Values of all patches of a corrupted input, (B, N, P) in network units."""
        return self.head(self.features(tokens))

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        zeros = torch.zeros(tokens.values.shape[-1], device=tokens.values.device)
        return self.reconstruct(Tokens(replace(tokens.values, mask, zeros), tokens.grid))

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        x = self.encoder.normalize(batch)[self.encoder.input_name]
        views, corrupted, hidden = [], [], []
        for number in range(self.views):  # partners of alien corruptions are the same view of other samples
            own = fold(keys, _VIEWS + number)
            view = self.view(x, own)
            overwritten, where = self.corrupt(view, own)
            views.append(view)
            corrupted.append(overwritten)
            hidden.append(where[:, None].expand_as(view))
        prediction = self.reconstruct(self.encoder.tokens_of(torch.cat(corrupted)))
        scored = self._patches(torch.cat(hidden)) if self.masked_only else None
        loss = masked_l1(prediction, self._patches(torch.cat(views)), scored)
        return Step(loss, {"reconstruction": loss.detach()})

    def _patches(self, x: Tensor) -> Tensor:
        return patchify(x, self.encoder.patch_size)

    # what is shown: the whole input, overwritten by noise or zeros -----------------------------------------------------

    def _shown(self, batch: Batch, keys: Tensor) -> tuple[Tokens, Tensor]:
        corrupted, hidden = self.corrupt(self.encoder.normalize(batch)[self.encoder.input_name], keys, alone=True)
        return self.encoder.tokens_of(corrupted), hidden

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        """What the head gets of the whole input, (B, N, D); nothing comes from other samples here."""
        return self.features(self._shown(batch, keys)[0])

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens, hidden = self._shown(batch, keys)
        clean = self.encoder.tokenize(batch)
        where = self._patches(hidden[:, None].expand(-1, self.encoder.in_chans, *hidden.shape[1:]))
        patches = torch.where(where, self.reconstruct(tokens).float(), clean.values)
        return panel(self.encoder, batch, clean, patches, hidden)
