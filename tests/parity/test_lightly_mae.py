"""The method MAE against lightly's modules: same weights, same mask, same loss and gradients."""

import pytest
import torch

pytest.importorskip("lightly", reason="lightly is not installed")
pytest.importorskip("timm", reason="timm is not installed")

from benchmarks.lightly_mae import lightly_loss, lightly_pair
from maskwright.core.masking import sample_keys
from tests.parity.sizes import TINY


@pytest.mark.parametrize("norm_pix", [False, True])
def test_losses_and_gradients_are_equal(norm_pix):
    ours, theirs = lightly_pair(TINY, norm_pix)
    images = torch.randn(5, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(2), 5))
    loss, reference = ours.image_loss(images, mask), lightly_loss(theirs, images, mask)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.backward()
    reference.backward()
    found, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, parameter in found.items():
        part, _, rest = name.partition(".")
        if rest in ("mask_token",):
            gradient = expected["decoder.mask_token"].grad
        elif part == "encoder":
            gradient = expected[f"backbone.vit.{rest.replace('patch_embed', 'patch_embed.proj')}"].grad
            gradient = gradient.flatten(1) if rest == "patch_embed.weight" else gradient
        else:
            gradient = expected["decoder.decoder_" + rest.replace("head", "pred")].grad
            if rest.startswith("head"):  # their patches are ordered (row, column, channel)
                gradient = gradient.unflatten(0, (64, 4)).transpose(0, 1).flatten(0, 1)
        assert gradient.abs().max() > 1e-4, name
        assert (parameter.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
