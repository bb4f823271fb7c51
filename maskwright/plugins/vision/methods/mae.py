"""MAE: masked autoencoders are scalable vision learners (He, Chen, Xie, Li, Dollár, Girshick, CVPR 2022).

An input is cut into patches and most of them, 75 % in the paper, are hidden at random. A plain vision transformer
encodes the visible ones only; a small second transformer, given one shared mask token for every hidden patch, predicts
their values. The error is taken over hidden patches alone. Afterwards the decoder is thrown away.

Where this departs from the released code: any number of channels, and series and volumes beside images; the numbers of
a patch are ordered (channel, row, column), not (row, column, channel), which changes no loss, and `mae_published`
reorders the weights it reads; each input is scaled by the statistics of the data, not by ImageNet's; `mlp_ratio` is the
encoder's alone, the decoder's is 4 as in all published models. Random crops and flips are the loader's affair.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskwright.core.encoder import MaskTokenDecoder, Tokens
from maskwright.core.encoder.vit import init_transformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Mask
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import PatchMethod, unstandardise
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step

# Paper, appendix A.1, table 8: AdamW, weight decay 0.05, batch 4096, 40 of 800 epochs of warm-up, cosine. The learning
# rate is scaled with the batch by the trainer, so that any batch size keeps it.
PUBLISHED = {"base_lr": 1.5e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "epochs": 800, "warmup": 0.05}
TINY_ENCODER = {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4}
TINY_DECODER = {"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 4}
TINY_TRAINER = {"base_lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05}


class Mae(PatchMethod):
    """MAE on any single input: an image (C, H, W), a series (C, T) or a volume (C, D, H, W). Defaults are ViT-B/16.

    Args:
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: heads of the decoder.
        norm_pix_loss: standardise the values of each target patch, all channels together.
        encoder: options of the encoder, see `PatchMethod`.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    summary = "Reconstruction of hidden patches of any single image, volume or series."
    presets = {
        "tiny": {"method": {**TINY_ENCODER, **TINY_DECODER, "norm_pix_loss": False}, "trainer": TINY_TRAINER},
        "small": {
            "method": {
                "embed_dim": 384,
                "num_heads": 6,
                "decoder_embed_dim": 256,
                "decoder_depth": 4,
                "decoder_num_heads": 8,
            },
            "trainer": PUBLISHED,
        },
        "base": {"method": {}, "trainer": PUBLISHED},
        "large": {"method": {"embed_dim": 1024, "depth": 24, "num_heads": 16}, "trainer": PUBLISHED},
        "huge": {
            "method": {"img_size": 224, "patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
            "trainer": PUBLISHED,
        },
    }

    def __init__(
        self,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = True,
        **encoder: Any,
    ) -> None:
        super().__init__(**encoder)
        if norm_pix_loss and self.patch_values < 2:
            raise ConfigError(
                "A patch of one number has no variance to standardise it by. Set method.norm_pix_loss=false, or a larger "
                "method.patch_size."
            )
        self.decoder = MaskTokenDecoder(
            self.encoder.embed_dim,
            self.patch_values,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            num_prefix_tokens=1,
        )
        init_transformer(self.decoder)
        self.norm_pix_loss = norm_pix_loss

    def decode(self, tokens: Tokens, mask: Mask) -> Tensor:
        """What the decoder makes of the visible tokens: (B, N, P), standardised by patch with `norm_pix_loss`."""
        return self.decoder(self.encoder(tokens, mask), mask, tokens.grid)

    def loss(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Mean squared error of hidden patches (section 3, "Reconstruction target")."""
        return masked_reconstruction(self.decode(tokens, mask), tokens.values, mask, standardise=self.norm_pix_loss)

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        loss = self.loss(tokens, self.mask(tokens, keys))
        return Step(loss, {"reconstruction": loss.detach()})

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches (B, N, P) in network units. No statistic of a hidden patch is used."""
        values = self.decode(tokens, mask).float()
        return unstandardise(values, tokens, mask) if self.norm_pix_loss else values
