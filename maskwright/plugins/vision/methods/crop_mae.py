"""CropMAE: siamese masked autoencoders on two crops of one image (Eymael, Vandeghen, Cioppa, Giancola, Ghanem, Van
Droogenbroeck, ECCV 2024).

Of two crops of an image, one inside of the other, the encoder sees the first as a whole, and two patches of the second,
just enough to tell where it lies. A decoder asks the first for all the rest by cross-attention, which takes features that
find the same place of an object again.

Where this departs from the released code: the learning rate of the first step is that of the warm-up, not the peak; the
numbers of a patch are ordered (channel, row, column), which changes no loss; each input is scaled by the statistics of
the data. Its options of colour jitter, blur and elastic deformation of the first view are left out (off by default).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import MaskTokenDecoder, Tokens
from maskwright.core.encoder.patches import as_tuple, patch_mask_to_pixels
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, fold, uniform
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import PatchMethod, panel, unstandardise
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Panel, Step
from maskwright.core.views import compose, crop_and_resize, crop_boxes
from maskwright.plugins.vision.methods.mae import TINY_DECODER, TINY_ENCODER, TINY_TRAINER

Strategy = Literal["global-to-local", "local-to-global", "random-views", "same-view"]

# Released script: batch 2048, 20 of 400 epochs of warm-up, cosine to 0.
_PUBLISHED = {"base_lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "epochs": 400, "warmup": 0.05}
_FIRST_CROP, _SECOND_CROP, _FLIPS = range(3)
"""Streams of random numbers of a sample; its mask has the key itself."""


@dataclass(frozen=True, eq=False)
class Views:
    """Two crops of each image, and where they lie.

    Args:
        first, second: (B, C, h, w); the first is seen whole, the second is reconstructed.
        first_box, second_box: (B, 4) float64 top, left, height, width in pixels of the image, before any flip.
        flipped: (B, 2) bool, whether the first and the second are mirrored.
    """

    first: Tensor
    second: Tensor
    first_box: Tensor
    second_box: Tensor
    flipped: Tensor


def draw_views(
    images: Tensor,
    keys: Tensor,
    out: tuple[int, int],
    strategy: Strategy,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    flip: float = 0.5,
) -> Views:
    """Crop each image twice, resize to `out`, mirror each crop on its own, a share `flip` of them (paper, section 3).

    The local crop is one of the resized global crop, not of the image, so that its true area is a product of two draws.

    Args:
        images: (B, C, H, W).
        keys: (B,) as in `random_keys`.
    """
    size = (images.shape[2], images.shape[3])
    outer = crop_boxes(fold(keys, _FIRST_CROP), size, global_scale)
    first, first_box = crop_and_resize(images, outer, out), outer.double()
    if strategy == "same-view":
        second, second_box = first, first_box
    elif strategy == "random-views":
        other = crop_boxes(fold(keys, _SECOND_CROP), size, global_scale)
        second, second_box = crop_and_resize(images, other, out), other.double()
    else:
        inner = crop_boxes(fold(keys, _SECOND_CROP), out, local_scale)
        second, second_box = crop_and_resize(first, inner, out), compose(outer, inner, out)
        if strategy == "local-to-global":
            first, first_box, second, second_box = second, second_box, first, first_box
    flipped = uniform(fold(keys, _FLIPS), 2) < flip
    if strategy == "same-view":
        flipped = flipped[:, :1].expand(-1, 2)
    first = torch.where(flipped[:, 0, None, None, None], first.flip(-1), first)
    second = torch.where(flipped[:, 1, None, None, None], second.flip(-1), second)
    return Views(first, second, first_box, second_box, flipped)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Pixels that lie in the box of each sample: (B, 4) to (B, height, width) bool."""
    top, left, rows, columns = (boxes[:, number, None] for number in range(4))
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    return ((y >= top) & (y < top + rows))[:, :, None] & ((x >= left) & (x < left + columns))[:, None]


class MatchingBlock(nn.Module):
    """Attention to a memory, feed-forward layer, self-attention, in this order, with a norm after each sum.

    Args:
        dim, num_heads: width D and heads.
        hidden: width of the feed-forward layer.
        dropout: of attention weights, of hidden numbers, and of what each part adds.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float = 0.1, norm_eps: float = 1e-6) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"decoder_embed_dim={dim} does not divide into decoder_num_heads={num_heads}.")
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm3 = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, D) and a memory of (B, M, D) to (B, N, D)."""
        x = self.norm1(x + self.dropout(self.cross_attn(x, memory, memory, need_weights=False)[0]))
        x = self.norm2(x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x))))))
        return self.norm3(x + self.dropout(self.attn(x, x, x, need_weights=False)[0]))


class MatchingDecoder(MaskTokenDecoder):
    """MAE's decoder with blocks that also attend to the features of another view.

    One linear layer embeds both. The memory gets no positions, so that places must be found by content.
    """

    def __init__(
        self, in_dim: int, out_dim: int, decoder_dim: int, depth: int, num_heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(in_dim, out_dim, decoder_dim, depth=0, num_heads=num_heads, num_prefix_tokens=1)
        self.blocks = nn.ModuleList(MatchingBlock(decoder_dim, num_heads, hidden, dropout) for _ in range(depth))

    def forward(self, visible: Tensor, mask: Mask | None, grid: Grid, seen: Tensor) -> Tensor:  # type: ignore[override]
        """Features (B, 1 + V, D) of visible tokens and (B, 1 + N, D) of the other view to values (B, N, P)."""
        x, memory = self.fill(visible, mask, grid), self.embed(seen)
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x[:, self.num_prefix_tokens :]))


class CropMae(PatchMethod):
    """CropMAE on images (C, H, W). Defaults are ViT-S/16.

    `encode` gives the features of the patches that are visible of the whole input, as of a second view.

    Args:
        img_size: pixels along each side of both views. The size of the input itself if left out.
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: heads of the decoder.
        decoder_mlp_dim: hidden width of the decoder's feed-forward layers, the same at all published sizes.
        decoder_dropout: dropout in the decoder.
        strategy: "global-to-local" reconstructs a crop of a crop from the outer one; "local-to-global" the outer one;
            "random-views" one crop of the image from another; "same-view" a crop from itself.
        global_scale: smallest and largest area of the crops of an image, as a share of it; (0.5, 1.0) for frames of
            videos.
        local_scale: smallest and largest area of the crop of a crop, as a share of the latter.
        flip: share of the crops that are mirrored, each on its own.
        norm_pix_loss: standardise the values of each target patch, all channels together.
        encoder: options of the encoder, see `PatchMethod`.

    Raises:
        ConfigError: inputs that are no images; sizes that do not fit each other.
    """

    summary = "Reconstruction of a crop, of which two patches are shown, by matching it with another crop."
    default_masking = {"name": "random", "visible": 2}
    presets = {
        "tiny": {
            "method": {**TINY_ENCODER, **TINY_DECODER, "decoder_mlp_dim": 256, "norm_pix_loss": False},
            "trainer": TINY_TRAINER,
        },
        "small": {"method": {}, "trainer": _PUBLISHED},
        "base": {
            "method": {
                "embed_dim": 768,
                "num_heads": 12,
                "decoder_embed_dim": 512,
                "decoder_depth": 8,
                "decoder_num_heads": 16,
            },
            "trainer": _PUBLISHED,
        },
        "large": {
            "method": {
                "embed_dim": 1024,
                "depth": 24,
                "num_heads": 16,
                "decoder_embed_dim": 1024,
                "decoder_depth": 12,
                "decoder_num_heads": 16,
            },
            "trainer": _PUBLISHED,
        },
    }

    def __init__(
        self,
        img_size: int | tuple[int, ...] | None = None,
        embed_dim: int = 384,
        num_heads: int = 6,
        decoder_embed_dim: int = 256,
        decoder_depth: int = 4,
        decoder_num_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        decoder_dropout: float = 0.1,
        strategy: Strategy = "global-to-local",
        global_scale: tuple[float, float] = (0.1, 1.0),
        local_scale: tuple[float, float] = (0.3, 0.6),
        flip: float = 0.5,
        norm_pix_loss: bool = True,
        **encoder: Any,
    ) -> None:
        if encoder.get("dims", "C H W") != "C H W":
            raise ConfigError(
                f'CropMAE crops images (C H W); "{encoder.get("input_name", "the input")}" is ({encoder["dims"]}). '
                f"Choose another method, such as mae."
            )
        if strategy not in ("global-to-local", "local-to-global", "random-views", "same-view"):
            raise ConfigError(
                f'method.strategy="{strategy}" is none of global-to-local, local-to-global, random-views, same-view.'
            )
        if not 0 <= flip <= 1:
            raise ConfigError(f"method.flip={flip} is a share, 0 to 1.")
        super().__init__(img_size=img_size, embed_dim=embed_dim, num_heads=num_heads, **encoder)
        self.view_size = None if img_size is None else as_tuple(img_size, 2)
        self.strategy, self.global_scale, self.local_scale, self.flip = strategy, global_scale, local_scale, flip
        self.norm_pix_loss = norm_pix_loss
        self.decoder = MatchingDecoder(
            self.encoder.embed_dim,
            self.patch_values,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            decoder_mlp_dim,
            decoder_dropout,
        )
        init_transformer(self.decoder)

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        images = {name: spec for name, spec in given.items() if spec.dims == "C H W"}
        return super().options_for(images or given)

    def views(self, batch: Batch, keys: Tensor) -> Views:
        """Both crops of each image, in network units."""
        x = self.encoder.normalize(batch)[self.encoder.input_name]
        return draw_views(x, keys, self._out(x), self.strategy, self.global_scale, self.local_scale, self.flip)

    def _out(self, x: Tensor) -> tuple[int, int]:
        height, width = self.view_size or x.shape[2:]
        return height, width

    def decode(self, tokens: Tokens, mask: Mask, seen: Tensor) -> Tensor:
        """What the decoder makes of the visible tokens and of the features (B, 1 + N, D) of another view: (B, N, P).

        Gradients flow into the encoder through both.
        """
        return self.decoder(self.encoder(tokens, mask), mask, tokens.grid, seen)

    def loss(self, tokens: Tokens, mask: Mask, seen: Tensor) -> Tensor:
        """Mean squared error of the hidden patches of the second view."""
        return masked_reconstruction(
            self.decode(tokens, mask, seen), tokens.values, mask, standardise=self.norm_pix_loss
        )

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        views = self.views(batch, keys)
        seen = self.encoder(self.encoder.tokens_of(views.first))
        tokens = self.encoder.tokens_of(views.second)
        loss = self.loss(tokens, self.masking(tokens.grid, keys), seen)
        return Step(loss, {"reconstruction": loss.detach()})

    def predict(self, tokens: Tokens, mask: Mask, seen: Tensor | None = None) -> Tensor:
        """Values of all patches (B, N, P) in network units; without another view the visible tokens stand in for it."""
        seen = self.encoder(tokens, mask) if seen is None else seen
        values = self.decode(tokens, mask, seen).float()
        return unstandardise(values, tokens, mask) if self.norm_pix_loss else values

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """The whole input as second view and a crop of it as first: hidden is what neither shows.

        Inside of the crop the picture shows what was copied over, outside what was made up. In training by
        "global-to-local" all that is reconstructed lies inside of the first view, so the picture asks for more.
        """
        x = self.encoder.normalize(batch)[self.encoder.input_name]
        tokens = self.encoder.tokens_of(x)
        mask = self.masking(tokens.grid, keys)
        boxes = crop_boxes(fold(keys, _FIRST_CROP), (x.shape[2], x.shape[3]), self.local_scale)
        seen = self.encoder(self.encoder.tokens_of(crop_and_resize(x, boxes, self._out(x))))
        patches = torch.where(mask.hidden[..., None], self.predict(tokens, mask, seen), tokens.values)
        hidden = patch_mask_to_pixels(mask.hidden, tokens.grid, self.encoder.patch_size)
        return panel(self.encoder, batch, tokens, patches, hidden & ~inside(boxes, x.shape[2], x.shape[3]))
