"""Encoders of point clouds: a small PointNet on its own, and as the patch embedding of a transformer."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.blocks import Block, drop_path_rates
from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Statistics
from maskwright.core.masking import Grid, Mask
from maskwright.core.masking.hide import drop, take
from maskwright.core.sample import Batch, TensorSpec
from maskwright.pointcloud.patches import coordinates, cut, patches_of

POSITION_WIDTH = 128
"""Hidden width of the network that makes a position of a centre."""


class PointNet(nn.Module):
    """Two small shared networks with a maximum behind each: a vector for a set of points (PCN; Point-BERT).

    3 to 128, batch norm, ReLU, 128 to 256; the maximum over the points is put before each point's 256 numbers; 512 to
    512, batch norm, ReLU, 512 to `out_dim`; maximum.

    Args:
        out_dim: numbers of a set.
        widths: the numbers 128 and 256; the second part is twice as wide as the last.

    Shapes:
        (..., K, 3) to (..., out_dim). The order of the points does not matter.
    """

    def __init__(self, out_dim: int, widths: tuple[int, int] = (128, 256)) -> None:
        super().__init__()
        inner, outer = widths
        # layers on rows of numbers: convolutions of width 1 compute the same, slower
        self.first = nn.Sequential(
            nn.Linear(3, inner), nn.BatchNorm1d(inner), nn.ReLU(inplace=True), nn.Linear(inner, outer)
        )
        self.join = nn.Linear(2 * outer, 2 * outer)
        self.second = nn.Sequential(nn.BatchNorm1d(2 * outer), nn.ReLU(inplace=True), nn.Linear(2 * outer, out_dim))
        init_points(self)

    def forward(self, points: Tensor) -> Tensor:
        sets, size = points.shape[:-2], points.shape[-2]
        each = self.first(points.reshape(-1, 3)).unflatten(0, (-1, size))
        whole = each.amax(1)
        # a layer on [whole, each], whose first half is the same for all points of a set
        width = whole.shape[1]
        joined = F.linear(each, self.join.weight[:, width:])
        joined = joined + F.linear(whole, self.join.weight[:, :width], self.join.bias)[:, None]
        return self.second(joined.flatten(0, 1)).unflatten(0, (-1, size)).amax(1).unflatten(0, sets)


def position_embedding(width: int) -> nn.Sequential:
    """3 coordinates to `width` numbers: 128 with GELU between."""
    return nn.Sequential(nn.Linear(3, POSITION_WIDTH), nn.GELU(), nn.Linear(POSITION_WIDTH, width))


def init_points(module: nn.Module) -> None:
    """Weights from a normal distribution of deviation 0.02, cut at two units; biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


class PointEncoder(Encoder):
    """What encoders of points share: one input, of which x, y and z are read.

    Coordinates are not scaled again: the loader has centred them, and a scale for each axis would change shapes.
    """

    def add_points(self, input_name: str) -> None:
        self.input_name = input_name
        self.inputs = {input_name: TensorSpec("N C")}
        self.normalizers = nn.ModuleDict({input_name: Normalizer(3, "none")})

    def fit_normalizers(self, statistics: dict[str, Statistics]) -> None:
        return None


class PointTransformer(PointEncoder):
    """A pre-norm transformer over patches of points (Point-MAE, Pang et al. 2022). Defaults are the paper's.

    Farthest points are the centres of patches; a patch is the nearest points of a centre, relative to it, and a small
    PointNet makes a token of it. A network of the centre gives its position, which is added before every block and stays
    in the sum. Only visible tokens go through the blocks. Patches are embedded all together, hidden ones too, as the
    batch norms in the PointNet take their statistics of all; in evaluation no patch looks at another there.

    Args:
        num_groups: patches G.
        group_size: points K of a patch; patches overlap.
        embed_dim, depth, num_heads, mlp_ratio: as in timm.
        drop_path: share of samples that skip the last block in training, growing linearly from 0 at the first.
        pool: "token-max", the class token and the maximum over patches beside each other, which is twice as wide; or
            "max" or "token" alone.
        input_name: which tensor of a sample is read.

    Shapes:
        input (B, N, C), x, y and z first, N of max(num_groups, group_size) or more; tokens (B, G, K * 3); `forward`
        (B, 1 + V, embed_dim). With "token-max" each token of an embedding is put behind the class token, so that the
        maximum over tokens is the pooled embedding: (B, G, 2 * embed_dim) and (B, 2 * embed_dim).

    Raises:
        ConfigError: sizes that do not fit each other, or clouds of too few points.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        num_groups: int = 64,
        group_size: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        pool: Literal["token-max", "max", "token"] = "token-max",
        norm_eps: float = 1e-5,
        input_name: str = "points",
    ) -> None:
        super().__init__()
        if pool not in ("token-max", "max", "token"):
            raise ConfigError(f'pool="{pool}" is none of token-max, max, token.')
        if num_groups < 1 or group_size < 1:
            raise ConfigError(
                f"method.num_groups={num_groups} and method.group_size={group_size} must be 1 or more each."
            )
        self.num_groups, self.group_size, self.width, self.pool = num_groups, group_size, embed_dim, pool
        self.embed_dim = 2 * embed_dim if pool == "token-max" else embed_dim
        self.add_points(input_name)
        self.patch_embed = PointNet(embed_dim)
        self.position_embed = position_embedding(embed_dim)
        # of one axis, so that weight decay leaves the token alone, but not its position: the released rule
        self.cls_token = nn.Parameter(torch.zeros(embed_dim))
        self.cls_position_embed = nn.Parameter(torch.zeros(1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=False, norm_eps=norm_eps, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        init_points(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_position_embed, std=0.02)

    def tokenize(self, batch: Batch) -> Tokens:
        return self.tokens_of(batch, coordinates(batch, self.input_name))

    def tokens_of(self, batch: Batch, points: Tensor) -> Tokens:
        """Tokens of points (B, N, 3) that belong to a batch: its own, or its own moved."""
        values, grid = cut(points, patches_of(batch, points, self.num_groups, self.group_size))
        return Tokens((values - values[:, :, :1]).flatten(2), grid)

    def embed_patches(self, tokens: Tokens) -> Tensor:
        """Features of all patches, before any block: (B, G, K * 3) to (B, G, embed_dim)."""
        return self.patch_embed(tokens.values.unflatten(2, (-1, 3)))

    def transform(
        self,
        features: Tensor,
        grid: Grid,
        mask: Mask | None = None,
        token: Tensor | None = None,
        token_position: Tensor | None = None,
    ) -> Tensor:
        """Blocks over the class token and the visible ones of `features` (B, G, D): (B, 1 + V, D).

        Args:
            token, token_position: a class token (D,) and its position (1, D) in place of the encoder's.
        """
        token = self.cls_token if token is None else token
        token_position = self.cls_position_embed if token_position is None else token_position
        centres = centres_of(grid, len(features))
        if mask is not None:
            features, centres = drop(features, mask), drop(centres, mask)
        x = torch.cat([token.to(features.dtype).expand(len(features), 1, -1), features], dim=1)
        positions = self.position_embed(centres)
        positions = torch.cat([token_position.to(positions.dtype).expand(len(x), 1, -1), positions], dim=1)
        for block in self.blocks:
            x = block(x + positions)
        return self.norm(x)

    def forward(self, tokens: Tokens, mask: Mask | None = None) -> Tensor:
        return self.transform(self.embed_patches(tokens), tokens.grid, mask)

    def embed_batch(self, batch: Batch) -> Embedding:
        tokens = self.tokenize(batch)
        x = self(tokens)
        token, patches = x[:, :1], x[:, 1:]
        if self.pool == "token":
            return Embedding(token[:, 0], patches, tokens.grid)
        if self.pool == "token-max":
            patches = torch.cat([token.expand_as(patches), patches], dim=2)
        return Embedding(patches.amax(1), patches, tokens.grid)


def centres_of(grid: Grid, batch: int) -> Tensor:
    """Centres of scattered tokens, (B, G, 3)."""
    if grid.positions is None:
        raise ConfigError("Patches of points need the places of their centres, not a lattice.")
    return grid.positions.expand(batch, -1, -1)


class PointDecoder(nn.Module):
    """Blocks over visible tokens and mask tokens, with the positions of all centres, as in Point-MAE.

    Args:
        width: width of the encoder and of this.
        out_dim: numbers of a patch, K * 3.
        depth, num_heads, drop_path: see `PointTransformer`.
    """

    def __init__(
        self, width: int, out_dim: int, depth: int = 4, num_heads: int = 6, drop_path: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.position_embed = position_embedding(width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, qkv_bias=False, norm_eps=eps, drop_path=rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, out_dim)

    def forward(self, visible: Tensor, mask: Mask, grid: Grid) -> tuple[Tensor, Tensor]:
        """Predictions of hidden patches, (B, H, out_dim), and features of all before the norm, (B, G, width).

        Args:
            visible: (B, V, width), without a class token.
        """
        batch, count = mask.masked.shape
        fill = self.mask_token.to(visible.dtype).expand(batch, count, -1)
        x = torch.cat([visible, fill], dim=1)
        order = torch.cat([mask.visible, mask.masked], dim=1)
        positions = self.position_embed(take(centres_of(grid, batch), order))
        for block in self.blocks:
            x = block(x + positions)
        hidden = x[:, x.shape[1] - count :]
        return self.head(self.norm(hidden)), take(x, mask.restore)


class PointSetEncoder(PointEncoder):
    """One vector for a whole cloud (the encoder of PCN, Yuan et al. 2018; P2C). Defaults are the papers'.

    Args:
        embed_dim: length of the vector.
        num_groups: patches G that pre-training cuts a cloud into; embedding takes all points as they are.
        group_size: points K of a patch.
        input_name: which tensor of a sample is read.

    Shapes:
        input (B, N, C), x, y and z first; tokens (B, G, K * 3), absolute coordinates; `forward` (B, 1, embed_dim), the
        vector of the points of all visible patches; an embedding has one token, which is its pooled vector.
    """

    def __init__(
        self, embed_dim: int = 1024, num_groups: int = 64, group_size: int = 32, input_name: str = "points"
    ) -> None:
        super().__init__()
        if num_groups < 1 or group_size < 1:
            raise ConfigError(
                f"method.num_groups={num_groups} and method.group_size={group_size} must be 1 or more each."
            )
        self.embed_dim, self.num_groups, self.group_size = embed_dim, num_groups, group_size
        self.add_points(input_name)
        self.point_net = PointNet(embed_dim)

    def tokenize(self, batch: Batch) -> Tokens:
        return self.tokens_of(batch, coordinates(batch, self.input_name))

    def tokens_of(self, batch: Batch, points: Tensor) -> Tokens:
        """Tokens of points (B, N, 3) that belong to a batch: its own, or its own moved."""
        values, grid = cut(points, patches_of(batch, points, self.num_groups, self.group_size))
        return Tokens(values.flatten(2), grid)

    def forward(self, tokens: Tokens, mask: Mask | None = None) -> Tensor:
        values = tokens.values if mask is None else drop(tokens.values, mask)
        return self.encode_points(values.unflatten(2, (-1, 3)).flatten(1, 2))[:, None]

    def encode_points(self, points: Tensor) -> Tensor:
        """(B, M, 3) to (B, embed_dim)."""
        return self.point_net(points)

    def embed_batch(self, batch: Batch) -> Embedding:
        vector = self.encode_points(coordinates(batch, self.input_name))
        centre = coordinates(batch, self.input_name).mean(1, keepdim=True)
        return Embedding(vector, vector[:, None], Grid((1,), positions=centre))


def point_options(reader: str, given: dict[str, TensorSpec]) -> dict[str, Any]:
    """The option `input_name` of the one input that is a cloud of points with x, y and z first.

    Raises:
        ConfigError: there is none, or several.
    """
    usable = [
        name
        for name, spec in given.items()
        if spec.dims == "N C" and (not isinstance(spec.channels, tuple) or spec.channels[:3] == ("x", "y", "z"))
    ]
    if len(usable) == 1:
        return {"input_name": usable[0]}
    shown = ", ".join(f"{name} ({spec.dims})" for name, spec in given.items())
    if not usable:
        raise ConfigError(f"{reader} reads points (N C) with x, y and z first, but the data hold {shown}.")
    raise ConfigError(f"{reader} reads one input, but the data hold {shown}. Set method.input_name={usable[0]}.")
