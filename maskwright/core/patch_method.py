"""What every method has in common that hides patches of one input and predicts their values."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from maskwright.core.encoder import Tokens, VisionTransformer, unpatchify
from maskwright.core.encoder.patches import patch_mask_to_pixels
from maskwright.core.masking import Mask, Masking
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Method, Panel


class PatchMethod(Method):
    """A method with a visible-token transformer over the patches of one image, series or volume.

    The constructor of a subclass sets `encoder` and `masking`; `predict` says what the method makes of hidden patches, in
    the encoder's own order of values, and `forward` what that costs. `encode` and `preview` follow.
    """

    encoder: VisionTransformer
    masking: Masking

    @abstractmethod
    def predict(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Values of all patches, (B, N, C * prod(patch_size)) in network units, from the visible ones alone."""

    def encode(self, batch: Batch, keys: Tensor) -> Tensor:
        tokens = self.encoder.tokenize(batch)
        return self.encoder(tokens, self.masking(tokens.grid, keys))

    @torch.no_grad()
    def preview(self, batch: Batch, keys: Tensor) -> dict[str, Panel]:
        tokens = self.encoder.tokenize(batch)
        mask = self.masking(tokens.grid, keys)
        patches = torch.where(mask.hidden[..., None], self.predict(tokens, mask).float(), tokens.values)
        name, encoder = self.encoder.input_name, self.encoder
        filled = unpatchify(patches, tokens.grid, encoder.patch_size, encoder.in_chans)
        return {
            name: Panel(
                original=batch[name],
                hidden=patch_mask_to_pixels(mask.hidden, tokens.grid, encoder.patch_size),
                reconstruction=encoder.normalizers[name].invert(filled),  # type: ignore[operator]
            )
        }
