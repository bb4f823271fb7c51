"""P2C: shape completion learned from single partial clouds (Cui, Qiu, Anwar, ..., ICCV 2023).

Every object is seen once and from one side, and no whole shape anywhere. A cloud is cut into patches, which are dealt
out to three roles. From those of the first alone one vector is computed and a whole cloud made of it. It must reproduce
the first role's patches and predict the second's, but only near the centres of these patches, so that points in regions
that were never seen cost nothing. The third role is compared in the space of features: the region that was made around
its centres, encoded again, should give the same vector. Normals should turn evenly. As different objects of one category
miss different parts, the network learns the whole shape of the category.

Where this departs from the released code:

- The sign of a normal means nothing, so the normal term takes |cos|; `normal_sign="majority"` is the released rule.
- Where a file has too few points the loader repeats some of them; the release adds points at the origin, which become
  patches of their own.
- A point that is made exactly at its target has a gradient of 0 there; the released square root has none.
- The learning rate follows a cosine, not steps of 0.9; tensors of one axis have no weight decay.
- Weights of the terms are those of 3D-EPN. The authors lower the normal term for thin shapes, and use a
  reconstruction of 1000 and features of 100 for other data.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask, fold, sample_keys, uniform
from maskwright.core.masking.base import mask_from_scores
from maskwright.core.masking.hide import take
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Progress, Step
from maskwright.pointcloud.encoders import PointSetEncoder, init_points, point_options
from maskwright.pointcloud.ops import gather, knn, normal_consistency, region_aware_chamfer
from maskwright.pointcloud.ops.normals import SignRule
from maskwright.pointcloud.patches import PATCHES, coordinates, unseen, with_features, with_patches

# streams of random numbers
_ROLES, _MIRROR = range(2)

# Released configuration of 3D-EPN: AdamW, 1e-4 for a batch of 32, 300 epochs; its steps of 0.9 end at a fifth
PUBLISHED: dict[str, Any] = {
    "base_lr": 1e-4 * 256 / 32,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-4,
    "epochs": 300,
    "warmup": 0.0,
    "min_lr_ratio": 0.2,
    "batch_size": 32,
}


def mirrored(points: Tensor, keys: Tensor) -> Tensor:
    """Points (B, N, 3) with x and z, x alone, z alone, or no axis turned around, a quarter of the samples each."""
    number = uniform(fold(keys, _MIRROR), 1)
    x = number <= 0.5
    z = (number <= 0.25) | ((number > 0.5) & (number <= 0.75))
    turn = torch.cat([x, torch.zeros_like(x), z], dim=1)
    return torch.where(turn[:, None], -points, points)


class Generator(nn.Sequential):
    """A vector (B, D) to points (B, M, 3): three hidden layers with ReLU."""

    def __init__(self, in_dim: int, width: int, points: int) -> None:
        super().__init__(
            nn.Linear(in_dim, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, points * 3),
            nn.Unflatten(1, (points, 3)),
        )
        init_points(self)


class P2c(Method):
    """P2C on clouds of points. Defaults are the paper's for 3D-EPN: 64 patches of 32 points, 2,048 points made.

    Args:
        num_groups: patches.
        group_size: points of a patch.
        roles: patches that are encoded and reproduced, predicted, and compared by features; together `num_groups`.
            [10, 50, 4] in the variants that also see whole shapes.
        partition: which patches have which role: "batch", one permutation of their numbers a step, as released; or
            "sample", one for each cloud.
        embed_dim: length of the vector.
        generator_width: hidden width of the generator.
        output_points: points that are made.
        region_scale: points that are made near a centre and compared, in group sizes.
        reconstruction_weight, completion_weight: of the distances to patches of the first and second role.
        feature_weight: of the third role's features.
        normal_weight: of the normals.
        normal_neighbours: points whose normals are compared.
        normal_points: points of which a normal is made.
        normal_sign: "absolute" or "majority", see `normal_consistency`.
        mirror: turn clouds around along x and z at random.
        input_name: which input is read. Taken from the data if they hold one cloud of points.

    Shapes:
        input (B, N, C), x, y and z first; further channels are not read. The vector (B, embed_dim), made (B, M, 3).

    Raises:
        ConfigError: sizes that do not fit each other, clouds of too few points.
    """

    summary = "Completes shapes, learned from single partial clouds."
    # the share of patches that is not encoded; roles and not a masking say which
    default_masking = {"name": "random", "ratio": 0.6875}
    presets = {
        "tiny": {
            "method": {
                "num_groups": 32,
                "group_size": 16,
                "roles": [10, 20, 2],
                "embed_dim": 256,
                "generator_width": 256,
                "output_points": 512,
            },
            "trainer": {**PUBLISHED, "base_lr": 4e-3, "warmup": 0.02, "min_lr_ratio": 0.02},
        },
        "small": {"method": {"embed_dim": 512, "generator_width": 1024}, "trainer": PUBLISHED},
        "base": {"method": {}, "trainer": PUBLISHED},
    }
    permutation_key: Tensor

    def __init__(
        self,
        num_groups: int = 64,
        group_size: int = 32,
        roles: tuple[int, int, int] = (20, 40, 4),
        partition: Literal["batch", "sample"] = "batch",
        embed_dim: int = 1024,
        generator_width: int = 2048,
        output_points: int = 2048,
        region_scale: float = 2.0,
        reconstruction_weight: float = 1.0,
        completion_weight: float = 1000.0,
        feature_weight: float = 0.1,
        normal_weight: float = 0.01,
        normal_neighbours: int = 16,
        normal_points: int = 32,
        normal_sign: SignRule = "absolute",
        mirror: bool = True,
        input_name: str = "points",
    ) -> None:
        super().__init__()
        self.roles = tuple(roles)
        if min(roles) < 1 or sum(roles) != num_groups:
            raise ConfigError(
                f"method.roles={list(roles)}: three numbers of 1 or more are needed, together method.num_groups={num_groups}."
            )
        if partition not in ("batch", "sample"):
            raise ConfigError(f'method.partition="{partition}" is neither batch nor sample.')
        self.region = int(region_scale * group_size)
        most = max(self.region, normal_points, normal_neighbours)
        if self.region < 1 or output_points < most:
            raise ConfigError(
                f"method.output_points={output_points} must be {most} or more: regions have {self.region} points, normals "
                f"are made of {normal_points}."
            )
        weights = (reconstruction_weight, completion_weight, feature_weight, normal_weight)
        if min(weights) < 0 or not any(weights[:2]):
            raise ConfigError(f"Weights {weights} must be 0 or more, and one of the first two above 0.")
        self.weights = dict(zip(("reconstruction", "completion", "feature", "normal"), weights, strict=True))
        self.encoder: PointSetEncoder = PointSetEncoder(embed_dim, num_groups, group_size, input_name)
        self.generator = Generator(embed_dim, generator_width, output_points)
        self.partition = partition
        self.normal = {"neighbours": normal_neighbours, "k": normal_points, "sign": normal_sign}
        self.mirror = mirror
        # decides the permutation of each step; drawn once, saved with the weights
        self.register_buffer("permutation_key", torch.zeros(1, dtype=torch.int64))

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one input that is a cloud of points.

        Raises:
            ConfigError: there is none, or several.
        """
        return point_options(cls.__name__, given)

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        """Draw what decides the permutations. The loader has centred and scaled the clouds."""
        self.permutation_key.copy_(sample_keys(generator, 1, self.permutation_key.device))

    def start_step(self, progress: Progress) -> None:
        """Let batch norms forget more slowly from epoch to epoch: the released schedule, halved every 21 epochs."""
        super().start_step(progress)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = max(0.9 * 0.5 ** (progress.epoch / 21), 0.01)

    def deal(self, count: int, keys: Tensor) -> tuple[Mask, tuple[Tensor, Tensor, Tensor]]:
        """Patches of each role, (B, n) each: disjoint, together all; and the first as a mask, all others hidden."""
        if self.partition == "batch":
            step = fold(self.permutation_key, self.progress.step).to(keys.device)
            scores = uniform(step, count).expand(len(keys), -1)
        else:
            scores = uniform(fold(keys, _ROLES), count)
        mask = mask_from_scores(scores, count - self.roles[0])
        second, third = mask.masked.split(self.roles[1:], dim=1)
        return mask, (mask.visible, second, third)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        points = coordinates(batch, self.encoder.input_name)
        tokens = self.encoder.tokens_of(batch, mirrored(points, keys) if self.mirror else points)
        mask, roles = self.deal(tokens.grid.count, keys)
        vector = self.encoder(tokens, mask)[:, 0]
        made = self.generator(vector).float()
        terms = {
            "reconstruction": self.region_distance(made, tokens, roles[0]),
            "completion": self.region_distance(made, tokens, roles[1]),
            "feature": self.feature_distance(vector, made, tokens, roles[2]),
        }
        if self.weights["normal"]:
            terms["normal"] = normal_consistency(made, **self.normal)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return Step(loss, {name: term.detach() for name, term in terms.items()})

    def region_distance(self, made: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Region-aware Chamfer distance to patches (section 3.2), by their numbers (B, n)."""
        patches = take(tokens.values, index).unflatten(2, (-1, 3))
        return region_aware_chamfer(made, patches, self._centres(tokens, index), self.region)

    def feature_distance(self, vector: Tensor, made: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Smooth L1 between the vector and that of the regions made around the centres of patches (section 3.3).

        These points are detached: the term trains the encoder and never the generator.
        """
        made = made.detach()
        near = gather(made, knn(self._centres(tokens, index), made, self.encoder.group_size)[0])
        return F.smooth_l1_loss(self.encoder.encode_points(near.flatten(1, 2)), vector)

    def _centres(self, tokens: Tokens, index: Tensor) -> Tensor:
        return take(tokens.grid.coordinates(index.device), index)

    @torch.no_grad()
    def complete(self, points: Tensor) -> Tensor:
        """The whole cloud (B, M, 3) of partial ones (B, N, C), as the generator makes it, in evaluation mode."""
        was_training = self.training
        self.eval()
        try:
            return self.generator(self.encoder.encode_points(points[..., :3].float()))
        finally:
            self.train(was_training)

    def settled(self, batch: Batch) -> Batch:
        if PATCHES in batch.tensors:
            return batch
        return with_patches(batch, self.encoder.input_name, self.encoder.num_groups, self.encoder.group_size)

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        """The vector of the first role's patches, (B, 1, D), of the cloud as it is."""
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.deal(tokens.grid.count, keys)[0])

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """The cloud that is made of the first role's patches; points in none of these are hidden."""
        batch, name = self.settled(batch), self.encoder.input_name
        tokens = self.encoder.tokenize(batch)
        mask, _ = self.deal(tokens.grid.count, keys)
        made = self.generator(self.encoder(tokens, mask)[:, 0]).float()
        hidden = unseen(batch[name].shape[1], batch[PATCHES], mask, centres_seen=False)
        return {name: Panel(batch[name], hidden, with_features(made, batch[name], hidden), scattered=True)}
