from maskwright.core.encoder import MaskTokenDecoder
from maskwright.core.masking import Masking
from maskwright.core.objective import masked_reconstruction
from maskwright.core.patch_method import PatchMethod
from maskwright.core.trainer.method import Step


class PictureMae(PatchMethod):
    """Masked autoencoder (He et al. 2022): hidden patches are predicted from the visible ones.

    Args:
        patch_size: pixels along each side of a patch.
        embed_dim, depth: width of the encoder, and number of its blocks.
    """

    presets = {"tiny": {"method": {"embed_dim": 48, "depth": 2}, "trainer": {"lr": 1e-3}}}

    def __init__(self, patch_size: int = 4, embed_dim: int = 192, depth: int = 6, masking: Masking | None = None):
        super().__init__("C H W", 8 * patch_size, patch_size, 1, embed_dim, depth, num_heads=3, masking=masking)
        self.decoder = MaskTokenDecoder(embed_dim, patch_size**2, 64, 1, 4, num_prefix_tokens=1)

    def predict(self, tokens, mask):
        return self.decoder(self.encoder(tokens, mask), mask, tokens.grid)

    def forward(self, batch, keys):
        tokens = self.encoder.tokenize(batch)
        mask = self.masking(tokens.grid, keys)
        return Step(masked_reconstruction(self.predict(tokens, mask), tokens.values, mask))
