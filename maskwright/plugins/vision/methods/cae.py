"""CAE: context autoencoder for self-supervised representation learning (Chen, Ding, Wang, ..., IJCV 2023).

The encoder sees the visible patches. A latent regressor predicts from their features what the encoder would say of the
hidden ones; an alignment loss pulls the prediction towards that. A decoder turns predicted features, and nothing else,
into the targets: codes of a tokenizer. As it has no way to the visible patches, the image is completed among
representations, and the encoder can spend all of its depth on representing.

Where this departs from the paper and the released code:

- The paper's codes are those of DALL-E's discrete VAE. `tokenizer=PATH` takes its weights as plain tensors; without them
  the codes are k-means clusters of the data's own patches, so that targets, and results, are not the paper's.
- The alignment target comes from the encoder itself under no-grad, in evaluation mode. In the release a copy of the
  encoder stays in training mode, so that stochastic depth makes the target of one image another at every look.
- Sine-cosine positions have the column first, as in MAE; the release has the row first. Weights are not exchangeable.
- The release reads but never passes on the heads and the layer scale of regressor and decoder, so that its large model
  has 12 heads of 85 numbers and a layer scale of 0.1 there. Here they have the encoder's heads, and 0.1 as well.
- The numbers of a patch are ordered (channel, row, column). Crops and flips are the loader's affair; the tokenizer sees
  the crop that the network sees, made smaller.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import FeatureTeacher, Tokens
from maskwright.core.encoder.blocks import QkvBias
from maskwright.core.encoder.regressor import HiddenTokenDecoder, LatentRegressor
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask
from maskwright.core.masking.hide import take
from maskwright.core.objective import standardise_patches, token_regression
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.patch_method import PatchMethod, unstandardise
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.plugins.vision.tokenizers import make_tokenizer

# Paper, section 4.1, and released scripts: AdamW, 1.5e-3 for a batch of 2048, 20 of 800 epochs of warm-up, down to 1e-5
PUBLISHED = {
    "base_lr": 1.5e-3 * 256 / 2048,
    "betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "clip_grad": 3.0,
    "epochs": 800,
    "warmup": 0.025,
    "min_lr_ratio": 1 / 150,
}


class Cae(PatchMethod):
    """CAE on any single input. Defaults are the paper's base configuration, ViT-B/16.

    Args:
        tokenizer: "kmeans", or the path of DALL-E's tokenizer as plain tensors, for RGB images of 0 to 255.
        vocabulary: codes of k-means. DALL-E's tokenizer has 8192 of its own.
        target: "tokens", codes of hidden patches; or "pixels", their values, standardised within each patch.
        alignment_weight: of the alignment loss; 0 leaves it out.
        teacher: whose features the regressor predicts: "self", the encoder's own of the hidden patches alone; "ema", a
            moving average's of the same; or a run directory or `timm:NAME`, whose weights never change. A model of timm
            cannot hide patches and sees the whole image.
        ema_decay: of a moving average as teacher.
        regressor_depth, decoder_depth: blocks of regressor and decoder.
        decoder_embed_dim: width of both; the encoder's if left out. Another width puts a linear layer and a norm between.
        decoder_num_heads: heads of both; the encoder's if left out.
        decoder_layer_scale: initial factor on what their blocks add; none for no factor.
        qkv_bias: biases of the encoder; "qv" for all but the key's.
        layer_scale: initial factor on what the encoder's blocks add; 1e-5 in the large model.
        drop_path: share of samples that skip the last block in training, in encoder, regressor and decoder alike.
        encoder: further options of the encoder, see `PatchMethod`.

    Raises:
        ConfigError: sizes that do not fit each other, or an input that the tokenizer cannot read.
        DataError: no tokenizer or teacher is at that path.
    """

    summary = "Predicts representations of hidden patches, then discrete tokens from these alone."
    default_masking = {"name": "beit-block", "ratio": 0.5}
    presets = {
        "tiny": {
            "method": {
                "patch_size": 8,
                "embed_dim": 96,
                "depth": 4,
                "num_heads": 4,
                "regressor_depth": 2,
                "decoder_depth": 2,
                "vocabulary": 64,
                "drop_path": 0.0,
            },
            "trainer": {"base_lr": 2e-3, "betas": (0.9, 0.999), "weight_decay": 0.05, "clip_grad": 3.0},
        },
        "small": {"method": {"embed_dim": 384, "num_heads": 12}, "trainer": PUBLISHED},
        "base": {"method": {}, "trainer": PUBLISHED},
        "large": {
            "method": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "layer_scale": 1e-5},
            "trainer": {**PUBLISHED, "epochs": 1600},
        },
    }

    def __init__(
        self,
        tokenizer: str = "kmeans",
        vocabulary: int = 8192,
        target: Literal["tokens", "pixels"] = "tokens",
        alignment_weight: float = 2.0,
        teacher: str = "self",
        ema_decay: float = 0.999,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        decoder_embed_dim: int | None = None,
        decoder_num_heads: int | None = None,
        decoder_layer_scale: float | None = 0.1,
        qkv_bias: QkvBias = "qv",
        layer_scale: float | None = 0.1,
        drop_path: float = 0.1,
        **encoder: Any,
    ) -> None:
        super().__init__(qkv_bias=qkv_bias, layer_scale=layer_scale, drop_path=drop_path, **encoder)
        if target not in ("tokens", "pixels"):
            raise ConfigError(f'method.target="{target}" is neither tokens nor pixels.')
        if target == "pixels" and self.patch_values < 2:
            raise ConfigError("A patch of one number cannot be standardised. Set a larger method.patch_size.")
        if alignment_weight < 0:
            raise ConfigError(f"method.alignment_weight={alignment_weight} must be 0 or more.")
        width = decoder_embed_dim or self.encoder.embed_dim
        heads = decoder_num_heads or self.encoder.options["num_heads"]
        sizes: dict[str, Any] = {"num_heads": heads, "layer_scale": decoder_layer_scale, "drop_path": drop_path}
        self.tokenizer = make_tokenizer(tokenizer, self.encoder, vocabulary) if target == "tokens" else None
        outputs = self.patch_values if self.tokenizer is None else self.tokenizer.vocabulary
        self.regressor = LatentRegressor(self.encoder.embed_dim, width, regressor_depth, **sizes)
        self.decoder = HiddenTokenDecoder(width, outputs, decoder_depth, **sizes)
        self._initialise()
        self.alignment_weight = alignment_weight
        # the encoder as its own teacher is no second module: nothing to copy, to save or to synchronise
        self.teacher = (
            FeatureTeacher(teacher, self.encoder, ema_decay) if teacher != "self" and alignment_weight else None
        )
        self.own_space = self.teacher is None or self.teacher.ema is not None
        self.to_teacher: nn.Module = nn.Identity()
        if self.teacher is not None and not self.own_space and self.teacher.embed_dim != width:
            self.to_teacher = nn.Linear(width, self.teacher.embed_dim)
            init_transformer(self.to_teacher)

    def _initialise(self) -> None:
        """Xavier-uniform linear layers without bias; patch embedding and tokens N(0, 0.02), cut at one deviation."""
        embed, tokens = self.encoder.patch_embed, [self.encoder.cls_token, self.regressor.mask_token]
        init_transformer(self.regressor)
        init_transformer(self.decoder)
        nn.init.zeros_(embed.bias)
        for parameter in (embed.weight, *tokens):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)

    @property
    def notes(self) -> list[str]:
        """Which tokenizer gave the targets."""
        return [] if self.tokenizer is None else [f"Targets are codes of {self.tokenizer.label}."]

    def prepare(self, loader: Loader, generator: torch.Generator) -> None:
        """Set the scaling of inputs, then find the codes of k-means. With these, targets are not the paper's.

        Raises:
            ConfigError: fewer different patches than codes, or data that DALL-E's tokenizer cannot read.
        """
        super().prepare(loader, generator)
        if self.tokenizer is not None:
            self.tokenizer.prepare(loader, self.encoder, generator)
        if self.teacher is not None:
            self.teacher.prepare(loader, self.encoder)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)
        if not mask.masked.shape[1]:
            raise ConfigError("CAE learns from hidden patches, and none is hidden. Raise masking.ratio.")
        latent = self.regress(tokens, mask)
        loss, terms = self.reconstruction(batch, tokens, mask, self.decoder(latent, mask, tokens.grid))
        if self.alignment_weight:
            alignment = self.alignment(batch, tokens, mask, latent)
            loss, terms["alignment"] = loss + self.alignment_weight * alignment, alignment.detach()
        return Step(loss, terms)

    def regress(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Predicted representations (B, H, W) of the hidden patches (section 3.1, "Latent contextual regressor").

        The class token is not given to the regressor; it learns through the attention in the encoder alone.
        """
        visible = self.encoder(tokens, mask)[:, self.encoder.num_prefix_tokens :]
        return self.regressor(visible, mask, tokens.grid)

    def reconstruction(
        self, batch: Batch, tokens: Tokens, mask: Mask, prediction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of codes, or mean squared error of standardised patches; hidden patches alone (section 3.2)."""
        prediction = prediction.float()
        if self.tokenizer is None:
            target = standardise_patches(take(tokens.values, mask.masked).float())
            loss = F.mse_loss(prediction, target)
            return loss, {"reconstruction": loss.detach()}
        codes = self.tokenizer(batch[self.encoder.input_name], tokens, mask)
        loss = F.cross_entropy(prediction.flatten(0, 1), codes.flatten())
        right = (prediction.detach().argmax(-1) == codes).float().mean()
        return loss, {"reconstruction": loss.detach(), "accuracy": right}

    def alignment(self, batch: Batch, tokens: Tokens, mask: Mask, latent: Tensor) -> Tensor:
        """Mean squared error of predicted representations and the teacher's of the hidden patches (section 3.2)."""
        target = self.representations(batch, tokens, mask).float()
        return token_regression(self.to_teacher(latent).float(), target, "mse", layer_norm=False)

    @torch.no_grad()
    def representations(self, batch: Batch, tokens: Tokens, mask: Mask) -> Tensor:
        """What the regressor should predict: the teacher's features (B, H, W) of the hidden patches, seen alone.

        In evaluation mode, so that the same image has the same target at every step; the class token is dropped.
        """
        hidden = exchanged(mask)
        if self.teacher is not None:
            features = self.teacher(batch, tokens, hidden)[:, self.teacher.num_prefix_tokens :]
        else:
            training = self.encoder.training
            self.encoder.eval()
            features = self.encoder(tokens, hidden)[:, self.encoder.num_prefix_tokens :]
            self.encoder.train(training)
        return self.regressor.project(features) if self.own_space else features

    def after_step(self, step: int, total_steps: int) -> None:
        if self.teacher is not None:
            self.teacher.update(self.encoder)

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches (B, N, P) in network units, for a picture. No statistic of a hidden patch is used.

        A hidden patch gets the cluster centre of its most likely code, on the mean of its visible neighbours. DALL-E's
        codes cannot be drawn without their decoder: only that mean is seen.
        """
        prediction = self.decoder(self.regress(tokens, mask), mask, tokens.grid).float()
        hidden = prediction if self.tokenizer is None else self.tokenizer.values(prediction.argmax(-1))
        visible = take(tokens.values, mask.visible).float()
        values = take(torch.cat([visible, hidden], dim=1), mask.restore)
        if self.tokenizer is None:
            return unstandardise(values, tokens, mask)
        mean, _ = visible_patch_statistics(tokens.values, mask, tokens.grid)
        return torch.where(mask.hidden[..., None], values + mean, values)


def exchanged(mask: Mask) -> Mask:
    """The mask with visible and hidden tokens the other way round, each in the order it had."""
    visible, count = mask.visible.shape[1], mask.restore.shape[1]
    return Mask(mask.masked, mask.visible, (mask.restore - visible) % count)
