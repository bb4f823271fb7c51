"""w2v-BERT: combining contrastive learning and masked language modelling (Chung et al., ASRU 2021).

Spans of steps are hidden from a stack of Conformer blocks that is cut in two. What comes out of the lower blocks must
tell the code of each hidden step from those of other hidden steps, which also teaches a quantiser its codebook. From
what comes out of the upper blocks the code itself is predicted. Both losses are optimised together: the first keeps the
codebook in use, without which the second would be trivial. Quantiser and heads are thrown away afterwards.

The authors published no code. Sizes, the random vectors at hidden places and the strides of the front are the paper's;
what it leaves open follows fairseq2: the quantiser's schedule, projections of 768, Transformer-XL positions. `front=
stacking`, `fill=learned`, `spans=equal`, `kernel=31`, `num_heads=16`, `contrastive_depth=8` are its own model; so is
the preset "fairseq". Departures: random vectors are N(0, 0.1) in units of the front's features; a distractor with the
target's code counts as the target; temperatures fall with optimiser steps, not with forward passes; where rows hide
different numbers of steps, means are over all hidden steps of the batch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Masking, fold, normal
from maskwright.core.masking.hide import take
from maskwright.core.masking.spans import SpanMasking, hidden_rows, within
from maskwright.core.options import takes
from maskwright.core.patch_method import one_input
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Progress, Step
from maskwright.speech.conformer import NormKind, RelativeKind
from maskwright.speech.conformer_encoder import ConformerEncoder, FrontKind
from maskwright.speech.contrast import contrastive, distractors, hidden_places
from maskwright.speech.encoders import Frames, frames_of
from maskwright.speech.quantizer import GumbelQuantizer, Quantized, diversity_loss, perplexity, step_keys

# Paper: batch 2048, 400k steps, 2e-3 after 25k steps of warm-up.
PUBLISHED = {
    "lr": 2e-3,
    "batch_size": 32,
    "accumulate": 64,
    "betas": (0.9, 0.98),
    "weight_decay": 0.01,
    "warmup": 0.0625,
    "max_steps": 400_000,
}
FAIRSEQ = {**PUBLISHED, "lr": 5e-4, "accumulate": 1, "warmup": 0.032, "max_steps": 1_000_000}
_SPANS, _FILL, _CODES, _DISTRACTORS = range(4)
"""Streams of random numbers of an utterance."""


class W2vBert(Method):
    """w2v-BERT on spectrograms (F, T) of any length. Defaults are the paper's XL model.

    Args:
        in_chans: bins F of a frame. Taken from the data if left out.
        embed_dim: width D of the encoder.
        depth: all blocks of the encoder.
        contrastive_depth: lower blocks, after which the contrastive loss is read.
        num_heads: heads of the encoder.
        mlp_ratio: width of the feed-forward modules over D.
        kernel: steps of the depthwise convolutions.
        front: "convolution", a step for every 4 frames, or "stacking" of frames.
        front_chans: channels of the convolutions in front.
        stack: frames that are stacked.
        positions: sinusoid (Transformer-XL), shaw or none.
        conv_norm: norm inside the convolution modules, "batch" or "layer".
        causal: convolution modules see no later step.
        dropout: rate in the encoder.
        spans: how hidden spans are laid by the masking `spans`: "independent", every step starts one with the same
            probability; "equal", the same number of hidden steps in all rows of a batch, as in fairseq2; "exact",
            the exact share in each row. Other maskings are always exact.
        fill: what stands at hidden places: "random" vectors instead of the front's features, or one "learned" vector
            after the projection.
        codes: entries of the codebook.
        code_dim: width of an entry.
        projection_dim: width in which contrast is measured.
        distractors: other hidden steps that the true one is told from.
        contrast_temperature: divides their cosine similarities.
        contrastive_weight: of the contrastive loss, its diversity term included.
        diversity_weight: of the diversity loss; 0.2 in fairseq.
        prediction_weight: of the prediction of codes.
        temperature: of the quantiser at the first step.
        lowest_temperature: where it stops falling.
        temperature_decay: factor on it a step.
        detach_features: the quantiser does not teach the front.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read. Taken from the data if they hold one series (C, T).
        masking: strategy that hides steps; spans of 10 without it.

    Shapes:
        input (B, F, T); steps (B, N, P); features (B, N, D); logits of codes (M, codes) for M hidden steps.

    Raises:
        ConfigError: sizes or shares that do not fit each other.
    """

    summary = (
        "Codes of hidden steps: told from others of the utterance, and predicted; the codebook is learned with it."
    )
    encoder: ConformerEncoder
    default_masking = {"name": "spans", "ratio": 0.4894, "span": 10}
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "tiny": {
            "method": {
                "embed_dim": 144,
                "depth": 4,
                "contrastive_depth": 2,
                "num_heads": 4,
                "front": "stacking",
                "fill": "learned",
                "codes": 64,
                "code_dim": 64,
                "projection_dim": 64,
                "distractors": 20,
                "temperature_decay": 0.999,
            },
            "trainer": {"lr": 1e-3, "batch_size": 16, "betas": (0.9, 0.98), "weight_decay": 0.01, "clip_grad": 5.0},
        },
        "small": {
            "method": {
                "embed_dim": 256,
                "depth": 12,
                "contrastive_depth": 6,
                "num_heads": 4,
                "front_chans": 64,
                "codes": 320,
                "code_dim": 256,
                "projection_dim": 256,
            },
            "trainer": {**PUBLISHED, "lr": 1e-3, "accumulate": 8},
        },
        "base": {"method": {}, "trainer": PUBLISHED},
        "fairseq": {
            "method": {
                "contrastive_depth": 8,
                "num_heads": 16,
                "kernel": 31,
                "front": "stacking",
                "fill": "learned",
                "spans": "equal",
                "diversity_weight": 0.2,
            },
            "trainer": FAIRSEQ,
        },
        "xxl": {"method": {"depth": 42}, "trainer": PUBLISHED},
    }

    def __init__(
        self,
        in_chans: int = 80,
        embed_dim: int = 1024,
        depth: int = 24,
        contrastive_depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        kernel: int = 5,
        front: FrontKind = "convolution",
        front_chans: int = 128,
        stack: int = 2,
        positions: RelativeKind = "sinusoid",
        conv_norm: NormKind = "batch",
        causal: bool = False,
        dropout: float = 0.0,
        spans: Literal["independent", "equal", "exact"] = "independent",
        fill: Literal["random", "learned"] = "random",
        codes: int = 1024,
        code_dim: int = 1024,
        projection_dim: int = 768,
        distractors: int = 100,
        contrast_temperature: float = 0.1,
        contrastive_weight: float = 1.0,
        diversity_weight: float = 0.1,
        prediction_weight: float = 1.0,
        temperature: float = 2.0,
        lowest_temperature: float = 0.1,
        temperature_decay: float = 0.999995,
        detach_features: bool = False,
        normalization: NormalizationKind = "standard",
        input_name: str = "frames",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= contrastive_depth <= depth:
            raise ConfigError(
                f"method.contrastive_depth={contrastive_depth} must be one of the blocks 1 to method.depth={depth}."
            )
        if spans not in ("independent", "equal", "exact"):
            raise ConfigError(f'method.spans="{spans}" is none of independent, equal, exact.')
        if fill not in ("random", "learned"):
            raise ConfigError(f'method.fill="{fill}" is neither random nor learned.')
        if distractors < 1 or contrast_temperature <= 0:
            raise ConfigError("method.distractors must be 1 or more, and method.contrast_temperature above 0.")
        self.encoder = ConformerEncoder(
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            kernel=kernel,
            front=front,
            front_chans=front_chans,
            stack=stack,
            positions=positions,
            conv_norm=conv_norm,
            causal=causal,
            dropout=dropout,
            normalization=normalization,
            input_name=input_name,
        )
        width = self.encoder.front.out_dim
        self.quantizer = GumbelQuantizer(width, codes, code_dim, temperature, lowest_temperature, temperature_decay)
        self.context_proj = nn.Linear(embed_dim, projection_dim)
        self.target_proj = nn.Linear(code_dim, projection_dim)
        self.classifier = nn.Linear(embed_dim, codes)
        self.mask_token = nn.Parameter(torch.rand(embed_dim)) if fill == "learned" else None
        self.masking = masking or SpanMasking(self.default_masking["ratio"], self.default_masking["span"])
        if not self.masking.ratio:
            raise ConfigError("w2v-BERT learns from hidden steps, and none is hidden. Raise masking.ratio.")
        self.spans, self.contrastive_depth, self.distractors = spans, contrastive_depth, distractors
        self.contrast_temperature, self.detach_features = contrast_temperature, detach_features
        self.weights = (contrastive_weight, diversity_weight, prediction_weight)

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one series of the data, with its number of channels.

        Raises:
            ConfigError: there is none, or several.
        """
        found = one_input(cls.__name__, given, {"C T"})
        return {option: value for option, value in found.items() if takes(cls, option)}

    def start_step(self, progress: Progress) -> None:
        super().start_step(progress)
        self.quantizer.start_step(progress.step)

    # what is hidden ---------------------------------------------------------------------------------------------------

    def hidden(self, steps: Frames, keys: Tensor) -> Tensor:
        """Which steps are hidden: (B, N) bool, never one behind its row's length."""
        keys, count = fold(keys, _SPANS), steps.values.shape[1]
        if not isinstance(self.masking, SpanMasking) or self.spans == "exact":
            return hidden_rows(self.masking, keys, steps.lengths, count)
        draw = self.masking.independent if self.spans == "independent" else self.masking.equal
        return draw(keys, steps.lengths, count)

    def context(self, steps: Frames, hidden: Tensor, keys: Tensor) -> list[Tensor]:
        """What comes out of each block, (B, N, D), when something else stands at hidden places."""
        if self.mask_token is not None:
            return self.encoder.hidden_states(steps, hidden, self.mask_token)
        noise = 0.1 * normal(fold(keys, _FILL), *steps.values.shape[1:]).to(steps.values.dtype)
        values = torch.where(hidden[..., None], noise, steps.values)
        return self.encoder.hidden_states(Frames(values, steps.grid, steps.lengths))

    # losses -----------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        steps = self.encoder.tokenize(batch)
        hidden = self.hidden(steps, keys)
        places, counts = hidden_places(hidden)
        if not places.shape[1]:
            raise ConfigError("No step of this batch is hidden. Raise masking.ratio, or use longer samples.")
        real = within(counts, places.shape[1])
        # the quantiser alone sees the clean features of hidden steps (section 3.1)
        clean = take(steps.values.detach() if self.detach_features else steps.values, places)
        codes = self.quantizer(clean[real], step_keys(fold(keys, _CODES)[:, None], places)[real])
        states = self.context(steps, hidden, keys)
        contrast, right = self.contrast(take(states[self.contrastive_depth - 1], places), codes, real, counts, keys)
        diversity = diversity_loss(codes.probabilities)
        logits = self.classifier(take(states[-1], places)[real]).float()
        prediction = F.cross_entropy(logits, codes.ids)
        of_contrast, of_diversity, of_prediction = self.weights
        loss = of_contrast * (contrast + of_diversity * diversity) + of_prediction * prediction
        used = torch.bincount(codes.ids, minlength=logits.shape[1]) / len(codes.ids)
        terms = {
            "contrastive": contrast,
            "diversity": diversity,
            "prediction": prediction,
            "contrastive_accuracy": right,
            "accuracy": (logits.argmax(-1) == codes.ids).float().mean(),
            "code_perplexity": perplexity(used[None]),
        }
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def contrast(
        self, context: Tensor, codes: Quantized, real: Tensor, counts: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Contrastive loss at hidden steps (B, H, D), and the share of them that is told rightly."""
        projected = self.target_proj(codes.vectors)
        target = projected.new_zeros(*real.shape, projected.shape[-1])
        target[real] = projected
        ids = torch.zeros(real.shape, dtype=torch.int64, device=real.device)
        ids[real] = codes.ids
        others = distractors(fold(keys, _DISTRACTORS), counts, real.shape[1], self.distractors)
        loss, logits = contrastive(self.context_proj(context), target, ids, counts, others, self.contrast_temperature)
        return loss, (logits.argmax(2) == 0)[real].float().mean()

    # what is shown ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        steps = self.encoder.tokenize(batch)
        return self.context(steps, self.hidden(steps, keys), keys)[-1]

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """Hidden steps are drawn as the mean of the visible steps of the batch whose code was predicted for them.

        A predicted code that no visible step has is drawn as the mean of all. A frame that a visible step sees as well
        is not hidden.
        """
        name, training = self.encoder.input_name, self.training
        self.eval()
        try:
            steps = self.encoder.tokenize(batch)
            hidden = self.hidden(steps, keys)
            predicted = self.classifier(self.context(steps, hidden, keys)[-1]).argmax(-1)
            visible = steps.real & ~hidden
            frames = frames_of(self.encoder, batch, name).values
            whole, count, stride = steps.values.shape[1], frames.shape[1], self.encoder.front.stride
            pieces = F.pad(frames, (0, 0, 0, max(0, whole * stride - count)))[:, : whole * stride]
            pieces = pieces.unflatten(1, (whole, stride)).flatten(2)  # (B, N, stride * F)
            drawn = mean_by_code(
                pieces[visible], self.quantizer.logits(steps.values)[visible].argmax(-1), len(self.quantizer.codebook)
            )
            filled = torch.where(hidden[..., None], drawn[predicted], pieces).unflatten(2, (stride, -1)).flatten(1, 2)
            filled = F.pad(filled, (0, 0, 0, max(0, count - whole * stride)))[:, :count]
            unseen = self.encoder.seen_frames(hidden, count) & ~self.encoder.seen_frames(visible, count)
            unseen &= within(batch.lengths.get(name, torch.full((len(batch),), count)).to(unseen.device), count)
            restored = self.encoder.normalizers[name].invert(filled.transpose(1, 2))
        finally:
            self.train(training)
        restored = torch.where(unseen[:, None], restored, batch[name])
        return {name: Panel(original=batch[name], hidden=unseen, reconstruction=restored)}


def mean_by_code(values: Tensor, ids: Tensor, codes: int) -> Tensor:
    """Mean of (M, P) values of each code, (codes, P); of codes that none has, the mean of all."""
    if not len(values):
        return values.new_zeros(codes, values.shape[1])
    sums = values.new_zeros(codes, values.shape[1]).index_add(0, ids, values)
    counts = torch.bincount(ids, minlength=codes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), values.mean(0))
