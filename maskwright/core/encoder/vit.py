"""A vision transformer that computes visible tokens only, on one to three axes, with any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.blocks import Block, QkvBias, drop_path_rates
from maskwright.core.encoder.crate import CrateBlock
from maskwright.core.encoder.patches import as_tuple, patch_grid, patchify
from maskwright.core.encoder.positions import PositionKind, make_positions
from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Mask
from maskwright.core.masking.hide import drop, replace
from maskwright.core.sample import Batch, TensorSpec

_DIMS = {1: "C T", 2: "C H W", 3: "C D H W"}
BlockKind = Literal["transformer", "crate"]


class VisionTransformer(Encoder):
    """Pre-norm ViT (Dosovitskiy et al. 2021) as MAE uses it (He et al. 2022).

    Patches are gathered before they are projected, so that hidden ones cost nothing. Defaults are ViT-B/16.

    Args:
        img_size: pixels along each axis, (224, 224) or one number; other sizes can be embedded later.
        patch_size: pixels of a patch along each axis, or one number.
        in_chans: channels C.
        embed_dim, depth, num_heads, mlp_ratio: as in timm.
        qkv_bias: true, false, or "qv" for query and value only.
        block: "transformer", or "crate" for the white-box blocks of CRATE; these have no MLP and no biases of their
            projections, so that `mlp_ratio`, `qkv_bias` and `layer_scale` mean nothing to them.
        layer_scale: initial factor on what a block adds (BEiT, CAE); None for none.
        drop_path: share of samples that skip the last block in training, growing linearly from 0 at the first.
        positions: sincos (fixed), learned, rope, alibi or none.
        class_token: prepend a class token, without a position.
        pool: pooled embedding from the "mean" of patch tokens or from the class "token".
        input_name: which tensor of a sample is read.
        normalization: standard, two-sigma or none; see `Normalizer`.

    Shapes:
        input (B, C, *size); tokens (B, N, C * prod(patch_size)); output (B, [1 +] V, D).
    """

    hides = frozenset({"drop", "replace"})

    def __init__(
        self,
        img_size: int | tuple[int, ...] = 224,
        patch_size: int | tuple[int, ...] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: QkvBias = True,
        positions: PositionKind = "sincos",
        class_token: bool = True,
        pool: Literal["mean", "token"] = "mean",
        norm_eps: float = 1e-6,
        input_name: str = "image",
        normalization: Literal["standard", "two-sigma", "none"] = "standard",
        block: BlockKind = "transformer",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if block not in ("transformer", "crate"):
            raise ConfigError(f'block="{block}" is neither transformer nor crate.')
        axes = max((len(size) for size in (img_size, patch_size) if not isinstance(size, int)), default=2)
        self.patch_size = as_tuple(patch_size, axes)
        self.grid = patch_grid(as_tuple(img_size, axes), self.patch_size, input_name)
        self.in_chans, self.embed_dim, self.input_name, self.pool = in_chans, embed_dim, input_name, pool
        self.inputs = {input_name: TensorSpec(_DIMS[axes], in_chans)}
        self.add_normalizers(normalization)
        patch_values = in_chans
        for p in self.patch_size:
            patch_values *= p
        self.patch_embed = nn.Linear(patch_values, embed_dim)
        self.positions = make_positions(positions, embed_dim, num_heads, self.grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.num_prefix_tokens = int(class_token)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_eps, layer_scale, rate)
            if block == "transformer"
            else CrateBlock(embed_dim, num_heads, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        init_transformer(self)

    def tokenize(self, batch: Batch) -> Tokens:
        x = self.normalizers[self.input_name](batch[self.input_name])
        return self.tokens_of(x)

    def tokens_of(self, x: Tensor) -> Tokens:
        """Tokens of (B, C, *size) in network units."""
        grid = patch_grid(tuple(x.shape[2:]), self.patch_size, self.input_name)
        return Tokens(patchify(x, self.patch_size), grid)

    def forward(self, tokens: Tokens, mask: Mask | None = None, fill: Tensor | None = None) -> Tensor:
        """Features of the visible tokens, class token first where there is one.

        Args:
            mask: which tokens are hidden; without it all are visible.
            fill: (D,) stands in place of hidden tokens; without it they are dropped.
        """
        x, bias, angles = self.first(tokens, mask, fill)
        for block in self.blocks:
            x = block(x, bias, angles)
        return self.norm(x)

    def hidden_states(
        self, tokens: Tokens, layers: Sequence[int], mask: Mask | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        """Outputs (B, [1 +] V, D) of some blocks (from 0), before the last norm. Blocks behind the last of them rest.

        Raises:
            ConfigError: there is no such block.
        """
        if not layers or not all(0 <= layer < len(self.blocks) for layer in layers):
            raise ConfigError(
                f"The encoder has {len(self.blocks)} blocks, numbered from 0; {list(layers)} is not among them."
            )
        x, bias, angles = self.first(tokens, mask, fill)
        states = []
        for block in self.blocks[: max(layers) + 1]:
            x = block(x, bias, angles)
            states.append(x)
        return [states[layer] for layer in layers]

    def first(
        self, tokens: Tokens, mask: Mask | None = None, fill: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What goes into the first block: tokens (B, [1 +] V, D), attention bias, rotary angles."""
        grid, values, index = tokens.grid, tokens.values, None
        if mask is not None and fill is None:
            values, index = drop(values, mask), mask.visible
        x = self.patch_embed(values)
        if mask is not None and fill is not None:
            x = replace(x, mask, fill)
        table = self.positions.add(grid, index, x.device)
        if table is not None:
            x = x + table.to(x.dtype)
        bias, angles = self.positions.bias(grid, index, x.device), self.positions.rotation(grid, index, x.device)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
            bias = bias if bias is None else nn.functional.pad(bias, (1, 0, 1, 0))
            angles = angles if angles is None else nn.functional.pad(angles, (0, 0, 1, 0))
        return x, bias, angles

    def embed_batch(self, batch: Batch) -> Embedding:
        tokens = self.tokenize(batch)
        x = self(tokens)
        patches = x[:, self.num_prefix_tokens :]
        pooled = x[:, 0] if self.pool == "token" and self.cls_token is not None else patches.mean(1)
        return Embedding(pooled, patches, tokens.grid)


def init_transformer(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear weights with zero bias, N(0, 0.02) class tokens, norms 1 and 0.

    The qkv weight is one (3 D, D) matrix, so its bound is that of this shape. The bias of the patch embedding keeps the
    framework's convolution default.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None and not name.endswith("patch_embed"):
                nn.init.zeros_(child.bias)
    token: Any = getattr(module, "cls_token", None)
    if token is not None:
        nn.init.normal_(token, std=0.02)
