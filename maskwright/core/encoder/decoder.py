"""A light decoder that fills hidden places with a mask token (MAE; CROMA with one block)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Block
from maskwright.core.encoder.positions import SinCosPositions
from maskwright.core.masking.base import Grid, Mask
from maskwright.core.masking.hide import restore


class DecoderStack(nn.Module):
    """Blocks, norm, and a linear head over the tokens behind the prefix: (B, prefix + N, width) to (B, N, out_dim).

    Without an `out_dim` there is neither norm nor head: (B, N, width).
    """

    def __init__(
        self,
        width: int,
        out_dim: int | None,
        depth: int,
        num_heads: int,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self._add_stack(width, out_dim, depth, num_heads, num_prefix_tokens, qkv_bias, norm_eps)

    def _add_stack(
        self, width: int, out_dim: int | None, depth: int, num_heads: int, prefix: int, qkv_bias: bool, norm_eps: float
    ) -> None:
        self.num_prefix_tokens = prefix
        self.blocks = nn.ModuleList(Block(width, num_heads, qkv_bias=qkv_bias, norm_eps=norm_eps) for _ in range(depth))
        self.norm = nn.Identity() if out_dim is None else nn.LayerNorm(width, eps=norm_eps)
        self.head = nn.Identity() if out_dim is None else nn.Linear(width, out_dim)

    def decode(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, self.num_prefix_tokens :]))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)


class MaskTokenDecoder(DecoderStack):
    """Linear D to width, mask tokens at hidden places, fixed sine-cosine positions, blocks, norm, linear to `out_dim`.

    Args:
        in_dim: width D of the encoder.
        out_dim: numbers predicted a token; None leaves out norm and head.
        decoder_dim, depth, num_heads: size of the decoder. Defaults are MAE's.
        num_prefix_tokens: class tokens in front of the visible ones; they get no position and are dropped at the end.

    Shapes:
        visible (B, [1 +] V, D) to (B, N, out_dim), in raster order.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int | None,
        decoder_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        nn.Module.__init__(self)  # modules in the order in which data meet them: that of their random weights, too
        self.embed = nn.Linear(in_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_dim) * 0.02)
        self.positions = SinCosPositions(decoder_dim)
        self._add_stack(decoder_dim, out_dim, depth, num_heads, num_prefix_tokens, qkv_bias, norm_eps)

    def fill(self, visible: Tensor, mask: Mask | None, grid: Grid) -> Tensor:
        """Input of the blocks, (B, [1 +] N, width); without a mask all tokens are there and none is a mask token."""
        x = self.embed(visible)
        prefix, x = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        if mask is not None:
            x = restore(x, mask, self.mask_token)
        x = x + self.positions.add(grid, None, x.device).to(x.dtype)
        return torch.cat([prefix, x], dim=1) if self.num_prefix_tokens else x

    def forward(self, visible: Tensor, mask: Mask | None, grid: Grid) -> Tensor:  # type: ignore[override]
        return self.decode(self.fill(visible, mask, grid))
