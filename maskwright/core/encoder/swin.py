"""A hierarchical transformer with attention in shifted windows, on images and volumes (Swin, Liu et al., ICCV 2021)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.blocks import drop_path_rates
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.patches import as_tuple, patch_grid, patchify
from maskwright.core.encoder.positions import make_positions
from maskwright.core.encoder.swin_layers import NORM_EPS, PatchMerging, SwinBlock, SwinStage, init_swin
from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Mask
from maskwright.core.masking.hide import replace
from maskwright.core.sample import Batch, TensorSpec


class SwinTransformer(Encoder):
    """Swin transformer on an image or volume. It processes all tokens: hidden ones are replaced, not dropped.

    A fill stands in place of hidden tokens after the positions were added, so that it carries none. Defaults are Swin-T
    on images (window 7). `embed_dim` of the built encoder is the width of the last stage. Layers carry timm's names, so that
    weights of timm's Swin on images fit but for the patch embedding, a linear layer here and a convolution there.

    Args:
        dims: "C H W" or "C D H W".
        in_chans: channels C.
        patch_size: pixels of a token along each axis, or one number.
        width: channels of the first stage; each further stage has twice as many, at half the size.
        depths, num_heads: blocks and heads of each stage.
        window_size: tokens of a window along each axis, or one number.
        mlp_ratio, qkv_bias: as in timm.
        drop_path: share of samples that skip the last block in training, growing linearly from 0 at the first.
        positions: "sincos" adds a fixed table to the tokens; "none" leaves places to the attention's biases.
        mask_padding: keep what fills a map up to whole windows out of the attention. Published models do not.
        final_norm: layer norm behind the last stage, in `forward` and `embed`; `pyramid` gives maps without it.
        input_name: which tensor of a sample is read.
        normalization: see `Normalizer`.

    Shapes:
        input (B, C, *size); tokens (B, N, C * prod(patch_size)); output (B, N', D), D = width * 2 ** (stages - 1) and N'
        the positions of the last stage.

    Raises:
        ConfigError: options that do not fit each other.
    """

    hides = frozenset({"replace"})

    def __init__(
        self,
        dims: Literal["C H W", "C D H W"] = "C H W",
        in_chans: int = 3,
        patch_size: int | tuple[int, ...] = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, ...] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        positions: Literal["sincos", "none"] = "none",
        mask_padding: bool = True,
        final_norm: bool = True,
        input_name: str = "image",
        normalization: NormalizationKind = "standard",
    ) -> None:
        super().__init__()
        if dims not in ("C H W", "C D H W"):
            raise ConfigError(f'method.dims="{dims}" is neither "C H W" nor "C D H W".')
        if not depths or len(depths) != len(num_heads) or min(*depths, *num_heads) < 1:
            raise ConfigError(
                f"method.depths={list(depths)} and method.num_heads={list(num_heads)} must name one number of 1 or more "
                f"for each stage, both for as many stages."
            )
        if positions not in ("sincos", "none"):
            raise ConfigError(f'method.positions="{positions}" is neither sincos nor none.')
        axes = len(dims.split()) - 1
        self.patch_size = self._sides("patch_size", patch_size, axes)
        window = self._sides("window_size", window_size, axes)
        self.in_chans, self.input_name = in_chans, input_name
        self.widths = tuple(width * 2**stage for stage in range(len(depths)))
        """Channels of the maps of `pyramid`."""
        self.embed_dim = self.widths[-1]
        self.inputs = {input_name: TensorSpec(dims, in_chans)}
        self.add_normalizers(normalization)
        self.patch_embed = nn.Linear(in_chans * math.prod(self.patch_size), width)
        self.patch_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.positions = make_positions(positions, width, 1, Grid((1,) * axes))
        shifts = ((0,) * axes, tuple(w // 2 for w in window))
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.layers = nn.ModuleList(
            SwinStage(
                PatchMerging(dim // 2, axes) if stage else None,
                [
                    SwinBlock(dim, heads, window, shifts[n % 2], mlp_ratio, qkv_bias, mask_padding, next(rates))
                    for n in range(depth)
                ],
            )
            for stage, (dim, depth, heads) in enumerate(zip(self.widths, depths, num_heads, strict=True))
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=NORM_EPS) if final_norm else nn.Identity()
        init_swin(self)

    @staticmethod
    def _sides(option: str, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
        sides = as_tuple(value, axes)
        if len(sides) != axes or min(sides) < 1:
            raise ConfigError(f"method.{option}={value} must be one number of 1 or more, or {axes} of them.")
        return sides

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Pixels along each axis between neighbours of each map of `pyramid`."""
        return tuple(tuple(p * 2**stage for p in self.patch_size) for stage in range(len(self.widths)))

    def tokenize(self, batch: Batch) -> Tokens:
        x = self.normalizers[self.input_name](batch[self.input_name])
        grid = patch_grid(tuple(x.shape[2:]), self.patch_size, self.input_name)
        return Tokens(patchify(x, self.patch_size), grid)

    def pyramid(self, tokens: Tokens, mask: Mask | None = None, fill: Tensor | None = None) -> list[Tensor]:
        """Maps (B, C, *size) of all stages, for each of `widths`, the last stage last, without the final norm.

        Args:
            mask: which tokens are hidden; without it all are visible.
            fill: (width,) stands in place of hidden tokens.

        Raises:
            ConfigError: a mask without a fill.
        """
        if mask is not None and fill is None:
            raise ConfigError("A Swin transformer replaces hidden tokens: give `fill`, it cannot drop them.")
        x = self.patch_norm(self.patch_embed(tokens.values))
        table = self.positions.add(tokens.grid, None, x.device)
        x = x if table is None else x + table.to(x.dtype)
        if mask is not None and fill is not None:
            x = replace(x, mask, fill)
        x = x.unflatten(1, tokens.grid.shape)
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x.movedim(-1, 1))
        return maps

    def forward(self, tokens: Tokens, mask: Mask | None = None, fill: Tensor | None = None) -> Tensor:
        """Features of the last stage, hidden tokens replaced by `fill`: (B, N', D)."""
        return self._features(self.pyramid(tokens, mask, fill)[-1])

    def embed_batch(self, batch: Batch) -> Embedding:
        last = self.pyramid(self.tokenize(batch))[-1]
        features = self._features(last)
        return Embedding(features.mean(1), features, Grid(tuple(last.shape[2:])))

    def _features(self, last: Tensor) -> Tensor:
        return self.norm(last.flatten(2).transpose(1, 2))
