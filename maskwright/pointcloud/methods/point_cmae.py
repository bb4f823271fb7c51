"""Point-CMAE: Point-MAE with two masks, whose guesses should agree (Ren, Paudel, Wang, ..., ACCV 2024).

The patches of a cloud are hidden twice at random. One encoder sees the visible patches of each mask, two decoders of
equal shape but with weights of their own rebuild the hidden ones. A patch that both masks hide has been guessed twice
from different evidence; the features of the two guesses are pulled together by their cosine. No negatives, no moving
average: the reconstruction keeps features from collapsing.

Where this departs from the released code:

- `consistency="diagonal"` is what the paper describes: each patch that is hidden twice agrees with itself. The released
  loss pulls it to all patches of the other branch, visible ones too; `consistency="official"` does that.
- The release computes a projection of the class token that enters no loss; it is left out (164,864 parameters).
- The first branch's class token is the encoder's. The release begins its fine-tuning with a random one.
- Farthest point sampling never skips points near the origin, as the usual compiled one does.
- The learning rate falls at every step, not once an epoch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask, Masking, RandomMasking, fold, uniform
from maskwright.core.masking.hide import take
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Step
from maskwright.pointcloud.encoders import PointDecoder, PointTransformer, point_options
from maskwright.pointcloud.ops import chamfer
from maskwright.pointcloud.patches import PATCHES, coordinates, unseen, with_features, with_patches

Consistency = Literal["diagonal", "official"]
SCALE, SHIFT = (2 / 3, 3 / 2), (-0.2, 0.2)
"""Ranges of the factor and of the shift of each axis that a cloud gets."""
# streams of random numbers of a sample
_FIRST, _SECOND, _SCALE, _SHIFT = range(4)

# Paper, section 4.1, and released configuration: AdamW, 1e-3 for a batch of 128, 10 of 300 epochs of warm-up
PUBLISHED: dict[str, Any] = {
    "base_lr": 1e-3 * 256 / 128,
    "betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup": 10 / 300,
    "min_lr_ratio": 1e-3,
    "batch_size": 128,
}


def scale_and_shift(points: Tensor, keys: Tensor) -> Tensor:
    """Points (B, N, 3) with a random factor for each axis, U(2/3, 3/2), then a random shift, U(-0.2, 0.2)."""
    (least, most), (lowest, highest) = SCALE, SHIFT
    scale = least + (most - least) * uniform(fold(keys, _SCALE), 1, 3)
    shift = lowest + (highest - lowest) * uniform(fold(keys, _SHIFT), 1, 3)
    return points * scale + shift


def consistency_loss(first: Tensor, second: Tensor, both_hidden: Tensor, kind: Consistency = "diagonal") -> Tensor:
    """Mean of 1 - cosine over patches that both masks hide (section 3.3); 0 where there are none.

    Args:
        first, second: features of all patches by both decoders, in one order, (B, G, D).
        both_hidden: (B, G) bool.
        kind: "diagonal" compares each such patch with itself; "official" with all patches of the other branch.
    """
    first, second = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    if kind == "diagonal":
        cosine = (first * second).sum(-1)
    else:
        cosine = (first * second.mean(1, keepdim=True)).sum(-1)  # the mean of the cosines with all
    chosen = torch.where(both_hidden, 1 - cosine, 0)  # of fixed size, so that nothing waits for the device
    return chosen.sum() / both_hidden.sum().clamp_min(1)


class PointCmae(Method):
    """Point-CMAE on clouds of points. Defaults are the paper's: 64 patches of 32 points, 12 blocks of width 384.

    Args:
        num_groups: patches.
        group_size: points of a patch.
        embed_dim: width of encoder and decoders.
        depth: blocks of the encoder.
        num_heads: heads of the encoder.
        drop_path: share of samples that skip the last block in training, in encoder and decoders alike.
        pool: pooled embedding, see `PointTransformer`.
        decoder_depth: blocks of each decoder.
        decoder_num_heads: heads of each decoder; the encoder's if left out.
        consistency: "diagonal", each patch agrees with itself; "official", with all patches, as released.
        consistency_weight: of the agreement; 0 leaves two independent Point-MAEs with one encoder.
        reconstruction_weight: of the Chamfer distances, which are about 0.001.
        augment: stretch and shift each cloud at random.
        input_name: which input is read. Taken from the data if they hold one cloud of points.
        masking: strategy that chooses the hidden patches, drawn twice; without it the class's default.

    Shapes:
        input (B, N, C), x, y and z first; further channels are not read.

    Raises:
        ConfigError: sizes that do not fit each other, clouds of too few points.
    """

    summary = "Two random masks, two decoders; guesses of patches that are hidden twice agree."
    # the paper's 0.6 hides int(0.6 * 64) = 38 of 64 patches; here the visible ones are rounded down
    default_masking = {"name": "random", "ratio": 38 / 64}
    presets = {
        "tiny": {
            "method": {
                "num_groups": 32,
                "group_size": 16,
                "embed_dim": 96,
                "depth": 4,
                "num_heads": 4,
                "decoder_depth": 2,
                "drop_path": 0.0,
            },
            "trainer": {**PUBLISHED, "epochs": 100, "batch_size": 64, "warmup": 0.05},
        },
        "small": {"method": {"embed_dim": 192, "depth": 8, "num_heads": 6}, "trainer": PUBLISHED},
        "base": {"method": {}, "trainer": PUBLISHED},
    }

    def __init__(
        self,
        num_groups: int = 64,
        group_size: int = 32,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path: float = 0.1,
        pool: Literal["token-max", "max", "token"] = "token-max",
        decoder_depth: int = 4,
        decoder_num_heads: int | None = None,
        consistency: Consistency = "diagonal",
        consistency_weight: float = 1.0,
        reconstruction_weight: float = 1000.0,
        augment: bool = True,
        input_name: str = "points",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if consistency not in ("diagonal", "official"):
            raise ConfigError(f'method.consistency="{consistency}" is neither diagonal nor official.')
        if consistency_weight < 0 or reconstruction_weight <= 0:
            raise ConfigError(
                f"method.consistency_weight={consistency_weight} must be 0 or more, "
                f"method.reconstruction_weight={reconstruction_weight} more than 0."
            )
        self.encoder: PointTransformer = PointTransformer(
            num_groups=num_groups,
            group_size=group_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path=drop_path,
            pool=pool,
            input_name=input_name,
        )
        sizes: dict[str, Any] = {"depth": decoder_depth, "num_heads": decoder_num_heads or num_heads}
        self.decoders = nn.ModuleList(
            PointDecoder(embed_dim, group_size * 3, drop_path=drop_path, **sizes) for _ in range(2)
        )
        # the second branch's class token; that of the first is the encoder's
        self.second_cls_token = nn.Parameter(torch.zeros(embed_dim))
        self.second_cls_position = nn.Parameter(torch.zeros(1, embed_dim))
        nn.init.trunc_normal_(self.second_cls_token, std=0.02)
        nn.init.trunc_normal_(self.second_cls_position, std=0.02)
        self.consistency: Consistency = consistency
        self.consistency_weight, self.reconstruction_weight = consistency_weight, reconstruction_weight
        self.augment = augment
        self.masking = masking or RandomMasking(self.default_masking["ratio"])

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one input that is a cloud of points.

        Raises:
            ConfigError: there is none, or several.
        """
        return point_options(cls.__name__, given)

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        """Nothing is learned from the data before the first step: the loader has centred and scaled them."""

    def masks(self, tokens: Tokens, keys: Tensor) -> tuple[Mask, Mask]:
        """Two independent masks."""
        return self.masking(tokens.grid, fold(keys, _FIRST)), self.masking(tokens.grid, fold(keys, _SECOND))

    def branch(self, number: int, features: Tensor, tokens: Tokens, mask: Mask) -> tuple[Tensor, Tensor]:
        """One of the two branches, 0 or 1: predicted hidden patches (B, H, K * 3) and features of all (B, G, D)."""
        own = (self.second_cls_token, self.second_cls_position) if number else (None, None)
        visible = self.encoder.transform(features, tokens.grid, mask, *own)
        return self.decoders[number](visible[:, 1:], mask, tokens.grid)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        points = coordinates(batch, self.encoder.input_name)
        tokens = self.encoder.tokens_of(batch, scale_and_shift(points, keys) if self.augment else points)
        features = self.encoder.embed_patches(tokens)  # once: both branches take their tokens from it
        masks = self.masks(tokens, keys)
        if not masks[0].masked.shape[1]:
            raise ConfigError("Point-CMAE learns from hidden patches, and none is hidden. Raise masking.ratio.")
        losses, decoded = [], []
        for number, mask in enumerate(masks):
            predicted, whole = self.branch(number, features, tokens, mask)
            truth = take(tokens.values, mask.masked)
            losses.append(chamfer(*(x.float().flatten(0, 1).unflatten(1, (-1, 3)) for x in (predicted, truth))))
            decoded.append(whole)
        reconstruction = losses[0] + losses[1]
        agreement = consistency_loss(*decoded, masks[0].hidden & masks[1].hidden, self.consistency)
        loss = self.reconstruction_weight * reconstruction + self.consistency_weight * agreement
        return Step(loss, {"reconstruction": reconstruction.detach(), "consistency": agreement.detach()})

    def settled(self, batch: Batch) -> Batch:
        if PATCHES in batch.tensors:
            return batch
        return with_patches(batch, self.encoder.input_name, self.encoder.num_groups, self.encoder.group_size)

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        """Class token and visible patches of the first of the two masks, of the cloud as it is."""
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.masks(tokens, keys)[0])

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """The first branch: points of visible patches, and predicted points of the hidden ones.

        Points in no visible patch are hidden, apart from the centres of patches, which the decoder is told.
        """
        batch, name = self.settled(batch), self.encoder.input_name
        tokens = self.encoder.tokenize(batch)
        mask, _ = self.masks(tokens, keys)
        predicted, _ = self.branch(0, self.encoder.embed_patches(tokens), tokens, mask)
        patches = torch.cat([take(tokens.values, mask.visible), predicted.float()], dim=1)
        centres = take(tokens.grid.coordinates(patches.device), torch.cat([mask.visible, mask.masked], dim=1))
        made = (patches.unflatten(2, (-1, 3)) + centres[:, :, None]).flatten(1, 2)
        hidden = unseen(batch[name].shape[1], batch[PATCHES], mask, centres_seen=True)
        return {name: Panel(batch[name], hidden, with_features(made, batch[name], hidden), scattered=True)}
