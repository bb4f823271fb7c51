"""HPM: hard patches mining (Wang, Song, Fan, Wang, Xie, Zhang, CVPR 2023; TPAMI 2025).

A second decoder learns which patches of an image are hard to reconstruct: not how large their error is, only its order.
A slowly moving average of the network looks at the whole image and says the same of every patch; those that it thinks
hardest are hidden first. Training begins with random masks; the share of hard patches among the hidden ones grows with
the epochs.

Where this departs from the released code: masks are made on the device for the whole batch at once; the moving average
holds what the scores need and not the reconstructing decoder; the "ema" features as a target are there (the release falls
through to CLIP); any encoder of ours or of timm gives features, and the head is as wide as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import DecoderStack, EMATeacher, FeatureTeacher, MaskTokenDecoder, Tokens
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask, mask_from_scores
from maskwright.core.masking.hide import take
from maskwright.core.objective import pairwise_ranking, standardise_patches
from maskwright.core.patch_method import PatchMethod, unstandardise
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.plugins.vision.methods.mae import PUBLISHED, TINY_DECODER, TINY_ENCODER, TINY_TRAINER

LOG_EPS = 1e-6
"""Inside the logarithm of the ranking loss, as released: a pair in the wrong order costs 13.8 at most."""


class Hpm(PatchMethod):
    """HPM on any single input. Defaults are ViT-B/16; twice the decoder of MAE.

    Args:
        target: what is predicted: "pixels"; or features, of "ema" (a moving average of the encoder that sees the whole
            input), of a run directory or of `timm:NAME`.
        norm_pix_loss: standardise the values of each target patch. The released commands do not.
        hard_share: hard patches among the hidden ones in the last epoch; it grows linearly from 0.
        loss_weight: of the ranking loss.
        ema_start, ema_end: decay of the moving average, in the first epoch and from epoch `ema_epochs` on.
        ema_epochs: epochs over which the decay rises.
        decoder_embed_dim: width of both decoders.
        decoder_depth: blocks of each.
        decoder_num_heads: heads of both.
        encoder: options of the encoder, see `PatchMethod`.

    Raises:
        ConfigError: sizes that do not fit each other, or a share outside 0 to 1.
    """

    summary = "MAE that learns which patches are hard, and hides those."
    presets = {
        "tiny": {
            "method": {**TINY_ENCODER, **TINY_DECODER, "ema_start": 0.99, "ema_end": 0.999},
            "trainer": TINY_TRAINER,
        },
        "base": {"method": {}, "trainer": PUBLISHED},
        "large": {"method": {"embed_dim": 1024, "depth": 24, "num_heads": 16}, "trainer": PUBLISHED},
    }

    def __init__(
        self,
        target: str = "pixels",
        norm_pix_loss: bool = False,
        hard_share: float = 0.5,
        loss_weight: float = 1.0,
        ema_start: float = 0.999,
        ema_end: float = 0.9999,
        ema_epochs: int = 100,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        **encoder: Any,
    ) -> None:
        super().__init__(**encoder)
        if not 0 <= hard_share <= 1:
            raise ConfigError(f"method.hard_share={hard_share} is outside 0 to 1: it is a share of the hidden patches.")
        if target != "pixels" and norm_pix_loss:
            raise ConfigError("method.norm_pix_loss is for method.target=pixels; features are always normalised.")
        self.features = None if target == "pixels" else FeatureTeacher(target, self.encoder, ema_start)
        width = self.patch_values if self.features is None else self.features.embed_dim
        sizes = (decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.decoder = MaskTokenDecoder(self.encoder.embed_dim, width, *sizes, num_prefix_tokens=1)
        # as wide as the reconstruction: the score is the mean over all of it
        self.predictor = DecoderStack(decoder_embed_dim, width, decoder_depth, decoder_num_heads, num_prefix_tokens=1)
        init_transformer(self.decoder)
        init_transformer(self.predictor)
        self.norm_pix_loss, self.hard_share, self.loss_weight = norm_pix_loss, hard_share, loss_weight
        self.ema_start, self.ema_end, self.ema_epochs = ema_start, ema_end, ema_epochs
        self.teacher = EMATeacher(self._scorer(), ema_start)

    @property
    def notes(self) -> list[str]:
        """Whose features were the target."""
        return [] if self.features is None else [f"Targets are features of {self.features.name}."]

    def _scorer(self) -> nn.ModuleList:
        """What the scores of the teacher need of the network."""
        return nn.ModuleList([self.encoder, self.decoder.embed, self.predictor])

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        super().prepare(loader, generator)
        self.teacher.update(self._scorer(), 0.0)
        if self.features is not None:
            self.features.prepare(loader, self.encoder)

    # where to mask (section 3.3) ------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, tokens: Tokens) -> Tensor:
        """Error that the teacher expects of each patch when it sees all of them: (B, N)."""
        encoder, embed, predictor = self.teacher.module  # type: ignore[misc]
        x = embed(encoder(tokens))
        table = self.decoder.positions.add(tokens.grid, None, x.device).to(x.dtype)
        return predictor(x + F.pad(table, (0, 0, 1, 0))).float().mean(-1)

    def hard_count(self, hidden: int) -> int:
        """Of `hidden` patches, those that are hidden because they are hard, at present."""
        return int(hidden * self.hard_share * (self.progress.epoch + 1) / self.progress.epochs)

    def mask(self, tokens: Tokens, keys: Tensor) -> Mask:
        """The hardest patches are hidden, and others by the masking. A masking that needs a guide is given the scores."""
        masking, hidden = self.masking, self.masking.hidden_count(tokens.grid)
        hard = self.hard_count(hidden)
        score = self.scores(tokens) if hard or masking.needs_guide else None
        guide = score if masking.needs_guide else None
        if score is None or not hard:
            return masking(tokens.grid, keys, guide)
        masking.check(tokens.grid)
        hardest = score.topk(hard, dim=1).indices
        return mask_from_scores(masking.score(tokens.grid, keys, guide).scatter(1, hardest, float("inf")), hidden)

    # what is learned (sections 3.1 and 3.2) -------------------------------------------------------------------------

    def loss(self, batch: Batch, tokens: Tokens, mask: Mask) -> Step:
        """Error of hidden patches, plus the order of these errors within each input."""
        x = self.decoder.fill(self.encoder(tokens, mask), mask, tokens.grid)
        errors = self._errors(take(self.decoder.decode(x), mask.masked), batch, tokens, mask)
        predicted = take(self.predictor(x).mean(-1, keepdim=True), mask.masked)[..., 0]
        reconstruction, ranking = errors.mean(), pairwise_ranking(predicted, errors, LOG_EPS)
        terms = {"reconstruction": reconstruction.detach(), "ranking": ranking.detach()}
        return Step(reconstruction + self.loss_weight * ranking, terms)

    def _errors(self, predicted: Tensor, batch: Batch, tokens: Tokens, mask: Mask) -> Tensor:
        """Error of each hidden patch: (B, H)."""
        if self.features is None:
            target = take(tokens.values, mask.masked)
            target = standardise_patches(target) if self.norm_pix_loss else target
            return (predicted - target).square().mean(-1)
        features = self.features(batch, tokens)[:, self.features.num_prefix_tokens :]
        return 2 - 2 * F.cosine_similarity(predicted, take(features, mask.masked), dim=-1)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        return self.loss(batch, tokens, self.mask(tokens, keys))

    def after_step(self, step: int, total_steps: int) -> None:
        share = min(self.progress.epoch / max(self.ema_epochs, 1), 1.0)
        decay = self.ema_start + share * (self.ema_end - self.ema_start)
        self.teacher.update(self._scorer(), decay)
        if self.features is not None:
            self.features.update(self.encoder, decay)

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches (B, N, P) in network units. With features as target there are none: the mean is shown."""
        if self.features is not None:
            return torch.zeros_like(tokens.values)
        values = self.decoder(self.encoder(tokens, mask), mask, tokens.grid).float()
        return unstandardise(values, tokens, mask) if self.norm_pix_loss else values
