"""Prediction in representation space: features of hidden tokens from those of visible ones, and targets from them (CAE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.blocks import Block, Mlp, Residual, check_heads, drop_path_rates, split_heads
from maskwright.core.encoder.positions import SinCosPositions
from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Mask


class RegressorBlock(nn.Module):
    """Cross-attention and an MLP, with norms of their own for query, key and value (CAE, Chen et al. 2023, section 3.1).

    With q = norm_q(x + p), k = norm_k(c + r), v = norm_v(c): y = norm(x + attn(q, k, v)), then y + mlp(y). The residual
    stream itself is normalised before the MLP, and the values carry no position.

    Args:
        dim, num_heads, mlp_ratio: size. Query and value have biases, the key has none.
        layer_scale, drop_path: as in `Residual`.

    Shapes:
        x and its positions p (B, Q, D), context c and its positions r (B, K, D), to (B, Q, D).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(dim, eps=norm_eps)
        self.norm_k = nn.LayerNorm(dim, eps=norm_eps)
        self.norm_v = nn.LayerNorm(dim, eps=norm_eps)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.residual1 = Residual(dim, layer_scale, drop_path)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.residual2 = Residual(dim, layer_scale, drop_path)

    def forward(self, x: Tensor, context: Tensor, positions: Tensor, context_positions: Tensor) -> Tensor:
        q = split_heads(self.q(self.norm_q(x + positions)), self.num_heads)
        k = split_heads(self.k(self.norm_k(context + context_positions)), self.num_heads)
        v = split_heads(self.v(self.norm_v(context)), self.num_heads)
        attended = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.norm(x + self.residual1(attended))
        return x + self.residual2(self.mlp(x))


class LatentRegressor(nn.Module):
    """Predicts an encoder's features of hidden tokens from its features of visible ones (CAE's latent regressor).

    Each hidden token starts as one shared mask token. In every block the hidden tokens look at the visible features and
    at each other, with sine-cosine positions added anew; visible features stay as they are.

    Args:
        in_dim: width D of the features.
        dim: width W in here. If it is not D, a linear layer and a norm lead to it (`project`).
        depth, num_heads: blocks, 1 or more, and their heads.
        layer_scale, drop_path: as in `Residual`; drop path grows from 0 at the first block.

    Shapes:
        visible features (B, V, D), without a class token, to (B, H, W) in the order of `mask.masked`.

    Raises:
        ConfigError: no block, or a width that does not divide into heads.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int = 768,
        depth: int = 4,
        num_heads: int = 12,
        norm_eps: float = 1e-6,
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"A regressor needs one block or more, not {depth}: hidden tokens would see nothing.")
        same = in_dim == dim
        self.project = nn.Identity() if same else nn.Sequential(nn.Linear(in_dim, dim), nn.LayerNorm(dim, eps=norm_eps))
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = SinCosPositions(dim)
        self.blocks = nn.ModuleList(
            RegressorBlock(dim, num_heads, norm_eps=norm_eps, layer_scale=layer_scale, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, visible: Tensor, mask: Mask, grid: Grid) -> Tensor:
        visible = self.project(visible)
        x = self.mask_token.to(visible.dtype).expand(*mask.masked.shape, -1)
        here = self.positions.add(grid, mask.masked, x.device).to(x.dtype)
        everywhere = torch.cat([self.positions.add(grid, mask.visible, x.device).to(x.dtype), here], dim=1)
        for block in self.blocks:
            x = block(x, torch.cat([visible, x.to(visible.dtype)], dim=1), here, everywhere)
        return self.norm(x)


class HiddenTokenDecoder(nn.Module):
    """Targets of hidden tokens from their predicted features and nothing else (CAE's decoder).

    Sine-cosine positions are added once, then come blocks of self-attention among the hidden tokens, a norm and a linear
    head. There is no way in for visible features.

    Args:
        dim, depth, num_heads: size; no block at all is a norm and a head.
        out_dim: numbers predicted a token: classes, or values.
        layer_scale, drop_path: as in `Residual`; drop path grows from 0 at the first block.

    Shapes:
        (B, H, W) to (B, H, out_dim), both in the order of `mask.masked`.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        depth: int = 4,
        num_heads: int = 12,
        norm_eps: float = 1e-6,
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions = SinCosPositions(dim)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias="qv", norm_eps=norm_eps, layer_scale=layer_scale, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, hidden: Tensor, mask: Mask, grid: Grid) -> Tensor:
        x = hidden + self.positions.add(grid, mask.masked, hidden.device).to(hidden.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
