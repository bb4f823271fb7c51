"""CRATE-MAE: masked completion via structured diffusion with white-box transformers (Pai et al., ICLR 2024).

Each block of the encoder is one step of an optimisation: attention compresses the tokens towards a few subspaces, an ISTA
step sparsifies them against a learned dictionary. Each block of the decoder undoes such a step. Hidden patches are filled
with a mask token before the encoder, which therefore sees all of them; nothing is gained in time, a third of the weights
of a ViT is enough.

Where this departs from the released code: its position table of the encoder and a linear layer before the decoder are
counted in the published sizes but used by nothing, so they are not here; the position table in use is computed. MAE, HPM
and the others take the same blocks by `method.block=crate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskwright.core.encoder import CrateBlock, CrateDecoderBlock, Tokens
from maskwright.core.encoder.crate import coding_rate, density
from maskwright.core.encoder.vit import BlockKind
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Mask
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import PatchMethod, unstandardise
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Step
from maskwright.plugins.vision.methods.mae import TINY_ENCODER, TINY_TRAINER

# From memory of the paper, which the repository does not restate: batch 4096, 800 epochs, 40 of them warm-up.
_UNVERIFIED = {"base_lr": 3e-5, "betas": (0.9, 0.95), "weight_decay": 0.1, "epochs": 800, "warmup": 0.05}


class CrateMae(PatchMethod):
    """CRATE-MAE on any single input. Defaults are CRATE-MAE-Base: 12 + 12 blocks, width 768.

    The trainer settings of the presets are not in the authors' repository; they are unverified.

    Args:
        block: blocks of the encoder; "transformer" gives an ordinary one under the same decoder.
        norm_pix_loss: standardise the values of each target patch.
        encoder: options of the encoder, see `PatchMethod`.
    """

    summary = "White-box transformer blocks, mask tokens before the encoder."
    presets = {
        "tiny": {"method": TINY_ENCODER, "trainer": TINY_TRAINER},
        "small": {"method": {"embed_dim": 576, "num_heads": 12}, "trainer": _UNVERIFIED},
        "base": {"method": {}, "trainer": _UNVERIFIED},
        "large": {"method": {"embed_dim": 1024, "depth": 24, "num_heads": 16}, "trainer": _UNVERIFIED},
    }

    def __init__(
        self,
        block: BlockKind = "crate",
        norm_pix_loss: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__(block=block, **encoder)
        width, heads = self.encoder.embed_dim, encoder.get("num_heads", 12)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = nn.Sequential(*(CrateDecoderBlock(width, heads) for _ in self.encoder.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, self.patch_values)
        for module in (*self.decoder.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.norm_pix_loss = norm_pix_loss

    def decode(self, tokens: Tokens, mask: Mask) -> Tensor:
        """All tokens through encoder and decoder; values of all patches (B, N, P)."""
        x = self.decoder(self.encoder(tokens, mask, fill=self.mask_token))
        return self.head(self.norm(x)[:, self.encoder.num_prefix_tokens :])

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        tokens = self.encoder.tokenize(batch)
        mask = self.mask(tokens, keys)
        loss = masked_reconstruction(self.decode(tokens, mask), tokens.values, mask, standardise=self.norm_pix_loss)
        return Step(loss, {"reconstruction": loss.detach()})

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.mask(tokens, keys), fill=self.mask_token)

    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        values = self.decode(tokens, mask).float()
        return unstandardise(values, tokens, mask) if self.norm_pix_loss else values

    @torch.no_grad()
    def layer_statistics(self, batch: Batch) -> list[dict[str, float]]:
        """Coding rate and share of non-zeros of each block of the encoder on unmasked input, means over the batch.

        The rate is that of the projected tokens that go into a block's attention, as the released analysis reads it;
        the share that of the block's output. Both should fall with depth after training.

        Raises:
            ConfigError: the encoder's blocks are not white-box ones.
        """
        if not isinstance(self.encoder.blocks[0], CrateBlock):
            raise ConfigError("Coding rate and sparsity are defined for method.block=crate.")
        tokens = self.encoder.tokenize(batch)
        x, bias, angles = self.encoder.first(tokens)
        rows = []
        for block in self.encoder.blocks:
            projected = block.attn.subspaces(block.norm1(x))
            x = block(x, bias, angles)
            rate = coding_rate(projected, block.attn.num_heads).mean()
            rows.append({"coding rate": float(rate), "non-zero": float(density(x).mean())})
        return rows
