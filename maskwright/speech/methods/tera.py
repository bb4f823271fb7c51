"""TERA: self-supervised learning of transformer encoder representation for speech (Liu, Li, Lee, IEEE/ACM TASLP 2021).

A log-mel spectrogram is altered along three axes: a few spans of time are zeroed, replaced by other spans or left as
they are; one band of frequencies is zeroed; and some utterances get noise. A small transformer sees all of the altered
frames and predicts the clean values of the altered cells. Afterwards its head is thrown away, and its layers are
features of speech, frozen or fine-tuned.

Where this departs from the authors' code (s3prl): the dice of the noise is thrown for each utterance, and noise comes
before the other alterations, as in their newer data pipe (`noise_first=false` for after); true lengths are carried
along, not guessed from frames of zeros, and padded frames never count; utterances in which nothing was altered weigh
nothing in the loss instead of being taken out; the learning rate falls along half a cosine, not a line. Where spans
overlap, the later one says which frame is copied. The statistics of the data scale each bin once more: of utterances
that the loader has normalised (data.cmvn) that changes next to nothing, of others it puts the mean at zero.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Masking
from maskwright.core.masking.spans import SpanMasking
from maskwright.core.objective.cells import masked_cells
from maskwright.core.options import takes
from maskwright.core.patch_method import one_input
from maskwright.core.sample import Batch, InputSpec
from maskwright.core.trainer.method import Method, Panel, Step
from maskwright.speech.encoders import Frames, FrameTransformer, init_bert
from maskwright.speech.masking import Alteration

# Released configuration of 960 h: AdamW, 2e-4 for a batch of 32, 7 % of 1M steps of warm-up, gradients clipped at 5.
PUBLISHED = {
    "lr": 2e-4,
    "batch_size": 32,
    "betas": (0.9, 0.999),
    "weight_decay": 0.01,
    "warmup": 0.07,
    "clip_grad": 5.0,
    "max_steps": 1_000_000,
}
SMALL_TRAINER = {**PUBLISHED, "max_steps": 200_000}  # released configuration of 100 h
TINY_TRAINER = {"lr": 1e-3, "batch_size": 16, "betas": (0.9, 0.999), "weight_decay": 0.01, "clip_grad": 5.0}


class Tera(Method):
    """TERA on spectrograms (F, T) of any length. Defaults are the released base model.

    Args:
        in_chans: bins F of a frame. Taken from the data if left out.
        embed_dim: width D of the encoder.
        depth: layers of the encoder.
        num_heads: heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over D.
        dropout: rate in the encoder, 0.3 in the paper's ablations.
        layer: what the encoder gives downstream: its "last" layer, or a weighted mean of "all".
        max_frames: longer utterances are embedded in equal pieces.
        overlap: whether the spans of time may overlap.
        band_share: widest frequency band as a share of the bins; 0 leaves frequency alone.
        noise_share: share of utterances that get noise; 0 leaves magnitude alone.
        noise_std: standard deviation of the noise, in units of normalised values.
        noise_first: add noise before the other alterations, so that what is zeroed stays zero.
        loss: l1 or mse.
        normalization: standard, two-sigma or none; see `Normalizer`.
        input_name: which input is read. Taken from the data if they hold one series (C, T).
        masking: which frames are altered along time. `spans` lays round(frames * ratio / span) spans as published; of
            any other masking the exact share.

    Shapes:
        input (B, F, T); prediction (B, T, F).

    Raises:
        ConfigError: sizes or shares that do not fit each other.
    """

    summary = "Clean spectrograms from spectrograms altered along time, frequency and magnitude."
    encoder: FrameTransformer
    default_masking = {"name": "spans", "ratio": 0.15, "span": 7}
    presets: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "tiny": {"method": {"embed_dim": 192, "num_heads": 4}, "trainer": TINY_TRAINER},
        "small": {
            "method": {"embed_dim": 384, "depth": 12, "num_heads": 8, "mlp_ratio": 2.0},
            "trainer": SMALL_TRAINER,
        },
        "base": {"method": {}, "trainer": PUBLISHED},
        "medium": {"method": {"depth": 6}, "trainer": PUBLISHED},
        "large": {"method": {"depth": 12}, "trainer": PUBLISHED},
    }

    def __init__(
        self,
        in_chans: int = 80,
        embed_dim: int = 768,
        depth: int = 3,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        layer: Literal["last", "all"] = "last",
        max_frames: int = 1500,
        overlap: bool = True,
        band_share: float = 0.2,
        noise_share: float = 0.15,
        noise_std: float = 0.2,
        noise_first: bool = True,
        loss: Literal["l1", "mse"] = "l1",
        normalization: NormalizationKind = "standard",
        input_name: str = "frames",
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        if loss not in ("l1", "mse"):
            raise ConfigError(f'method.loss="{loss}" is neither l1 nor mse.')
        self.encoder = FrameTransformer(
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            layer=layer,
            max_frames=max_frames,
            normalization=normalization,
            input_name=input_name,
        )
        self.head = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.LayerNorm(embed_dim, eps=1e-12),
            nn.Linear(embed_dim, in_chans),
        )
        self.head.apply(init_bert)
        self.masking = masking or SpanMasking(self.default_masking["ratio"], self.default_masking["span"])
        self.alter = Alteration(self.masking, overlap, band_share, noise_share, noise_std, noise_first)
        self.loss = loss

    @classmethod
    def options_for(cls, given: InputSpec) -> dict[str, Any]:
        """The one series of the data, with its number of channels.

        Raises:
            ConfigError: there is none, or several.
        """
        found = one_input(cls.__name__, given, {"C T"})
        return {option: value for option, value in found.items() if takes(cls, option)}

    def predict(self, values: Tensor, frames: Frames) -> Tensor:
        """Clean values (B, T, F) in network units, from altered `values` (B, T, F) of `frames`."""
        return self.head(self.encoder(Frames(values, frames.grid, frames.lengths)))

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        frames = self.encoder.tokenize(batch)
        altered = self.alter(frames.values, frames.lengths, keys)
        prediction = self.predict(altered.values, frames).float()
        loss = masked_cells(prediction, frames.values, altered.selected, self.loss)
        return Step(loss, {"reconstruction": loss.detach(), "altered": altered.selected.float().mean()})

    # what is shown: all that was chosen is zeroed, without noise --------------------------------------------------------

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        frames = self.encoder.tokenize(batch)
        altered = self.alter(frames.values, frames.lengths, keys, alone=True)
        return self.encoder(Frames(altered.values, frames.grid, frames.lengths))

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        """Altered frames are marked as hidden. The altered band is filled too, but a panel cannot mark single channels."""
        name, frames = self.encoder.input_name, self.encoder.tokenize(batch)
        altered = self.alter(frames.values, frames.lengths, keys, alone=True)
        predicted = self.encoder.normalizers[name].invert(self.predict(altered.values, frames).float().transpose(1, 2))
        restored = torch.where(altered.selected.transpose(1, 2), predicted, batch[name])
        return {name: Panel(original=batch[name], hidden=altered.frames, reconstruction=restored)}
