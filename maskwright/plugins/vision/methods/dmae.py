"""DMAE: masked autoencoders enable efficient knowledge distillers (Bai, Wang, Xiao, Wei, Wang, Yuille, Zhou, Xie, CVPR 2023).

A small encoder is pre-trained as a masked autoencoder, while one of its middle layers is drawn towards a middle layer of
a large and frozen one that was pre-trained in the same way. Both see the same few visible patches, and the teacher runs
no further than the layer that is asked for.

Where this departs from the released code: there the teacher runs all its blocks and its decoder; a checkpoint is loaded
so that missing weights pass unnoticed, here every tensor is accounted for; beside a frozen encoder, a moving average of
the student can teach, and a model of timm, which cannot hide patches and sees them all.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Encoder, FeatureTeacher, Tokens
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask
from maskwright.core.objective import masked_reconstruction
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.plugins.vision.methods.mae import TINY_DECODER, TINY_ENCODER, TINY_TRAINER, Mae

SHARE = 3 / 4
"""Depth at which both networks are compared where no layers are named: blocks 9 of 12 and 18 of 24 in the paper."""

# Table 8 of the paper and its released script: 100 epochs, 20 of them warm-up.
_PUBLISHED = {"base_lr": 1.5e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "epochs": 100, "warmup": 0.2}


class Dmae(Mae):
    """DMAE on any single input. Defaults are a ViT-B/16 student with MAE's decoder.

    Args:
        teacher: run directory of a masked autoencoder with the same patches; a published MAE file (`.pth`); `timm:NAME`;
            or "ema", a moving average of the student.
        student_layers: blocks (from 0) of the student that are drawn to the teacher's; the one at 3/4 of its depth if
            left out.
        teacher_layers: blocks of the teacher, as many; at 3/4 if left out.
        distance: "l1", or "mse", of the normalised features.
        loss_weight: of the distillation.
        ema_decay: of a moving average as teacher.
        norm_pix_loss: standardise the values of each target patch. The released script does not.
        encoder: options of `Mae`.

    Raises:
        ConfigError: layers that do not exist, or teacher and student cut inputs differently. DataError: no teacher there.
    """

    summary = "MAE that also learns a middle layer of a frozen teacher from the same visible patches."
    presets = {
        "tiny": {"method": {**TINY_ENCODER, **TINY_DECODER, "norm_pix_loss": False}, "trainer": TINY_TRAINER},
        "small": {"method": {"embed_dim": 384, "num_heads": 6}, "trainer": _PUBLISHED},
        "base": {"method": {}, "trainer": _PUBLISHED},
    }

    def __init__(
        self,
        teacher: str = "ema",
        student_layers: tuple[int, ...] | None = None,
        teacher_layers: tuple[int, ...] | None = None,
        distance: Literal["l1", "mse"] = "l1",
        loss_weight: float = 1.0,
        ema_decay: float = 0.999,
        norm_pix_loss: bool = False,
        **mae: Any,
    ) -> None:
        super().__init__(norm_pix_loss=norm_pix_loss, **mae)
        self.teacher = FeatureTeacher(_teacher(teacher), self.encoder, ema_decay)
        self.student_layers = _layers("student_layers", student_layers, len(self.encoder.blocks))
        self.teacher_layers = _layers("teacher_layers", teacher_layers, self.teacher.depth)
        if len(self.student_layers) != len(self.teacher_layers):
            raise ConfigError(
                f"method.student_layers={self.student_layers} and method.teacher_layers={self.teacher_layers} must be as "
                f"many: each pair is compared."
            )
        if distance not in ("l1", "mse"):
            raise ConfigError(f'method.distance="{distance}" is neither l1 nor mse.')
        width = self.encoder.embed_dim
        self.projections = nn.ModuleList(nn.Linear(width, self.teacher.embed_dim) for _ in self.student_layers)
        init_transformer(self.projections)
        self.distance, self.loss_weight = distance, loss_weight

    @property
    def notes(self) -> list[str]:
        """Who taught."""
        if self.teacher.ema is not None:
            return ["The teacher was a moving average of the student, not a larger encoder pre-trained before."]
        return [f"The teacher was {self.teacher.name}."]

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        super().prepare(loader, generator)
        self.teacher.prepare(loader, self.encoder)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)  # one draw for both networks
        states = self.encoder.hidden_states(tokens, [*self.student_layers, len(self.encoder.blocks) - 1], mask)
        prediction = self.decoder(self.encoder.norm(states[-1]), mask, tokens.grid)
        reconstruction = masked_reconstruction(prediction, tokens.values, mask, standardise=self.norm_pix_loss)
        distillation = self.distillation(batch, tokens, mask, states[:-1])
        terms = {"reconstruction": reconstruction.detach(), "distillation": distillation.detach()}
        return Step(reconstruction + self.loss_weight * distillation, terms)

    def distillation(self, batch: Batch, tokens: Tokens, mask: Mask, states: list[Tensor]) -> Tensor:
        """Distance of projected student features and the teacher's, both of unit length, over tokens and channels."""
        measure = F.l1_loss if self.distance == "l1" else F.mse_loss
        targets = self.teacher.layers(batch, tokens, mask, self.teacher_layers)
        pairs = zip(self.projections, states, targets, strict=True)
        skip = (
            self.encoder.num_prefix_tokens - self.teacher.num_prefix_tokens
        )  # an outside teacher's class token is its own
        losses = [
            measure(F.normalize(project(state[:, skip:]), dim=-1), F.normalize(target, dim=-1))
            for project, state, target in pairs
        ]
        return torch.stack(losses).mean()

    def after_step(self, step: int, total_steps: int) -> None:
        self.teacher.update(self.encoder)


def _teacher(what: str) -> str | Encoder:
    """A published MAE file as an encoder; everything else as it is."""
    if what.endswith((".pth", ".pt")) and ":" not in what:
        from maskwright.plugins.vision.methods.mae_published import load_published

        return load_published(what)
    return what


def _layers(option: str, layers: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    if not depth:
        raise ConfigError("This teacher has no blocks to compare with. Use a vision transformer.")
    chosen = (max(round(SHARE * depth) - 1, 0),) if layers is None else tuple(layers)
    if not chosen or not all(0 <= layer < depth for layer in chosen):
        raise ConfigError(f"method.{option}={chosen}: there are {depth} blocks, numbered from 0.")
    return chosen
