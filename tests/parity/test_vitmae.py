"""MAE, the method and its parts, against transformers' ViTMAE: same weights, same mask, same loss and gradients."""

import pytest
import torch

from benchmarks.vitmae import as_ours, pair, their_loss
from maskwright.core.encoder import sincos
from maskwright.core.masking import Grid, sample_keys
from maskwright.core.sample import Batch, Meta
from maskwright.plugins.vision.methods.mae import Mae
from tests.parity.sizes import TINY

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_method_gives_their_loss_and_gradients(norm_pix):
    ours, theirs = pair(TINY, norm_pix)
    images = torch.randn(5, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    keys = sample_keys(torch.Generator().manual_seed(2), 5)
    step = Mae.forward(ours, Batch({"image": images}, [Meta(str(i)) for i in range(5)]), keys)
    reference = their_loss(theirs, images, ours.masking(ours.encoder.grid, keys))
    torch.testing.assert_close(step.loss, reference, atol=1e-5, rtol=1e-5)
    step.loss.backward()
    reference.backward()
    gradients = as_ours({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}, TINY)
    found = dict(ours.named_parameters())
    assert set(found) == set(gradients)
    for name, parameter in found.items():
        assert gradients[name].abs().max() > 1e-4, name
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-4 * gradients[name].abs().max(), name


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_losses_and_gradients_are_equal(norm_pix, mode):
    ours, theirs = pair(TINY, norm_pix)
    getattr(ours, mode)(), getattr(theirs, mode)()
    images = torch.randn(5, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(2), 5))
    our_loss, reference = ours.image_loss(images, mask), their_loss(theirs, images, mask)
    torch.testing.assert_close(our_loss, reference, atol=1e-5, rtol=1e-5)
    our_loss.backward()
    reference.backward()
    gradients = as_ours({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}, TINY)
    found = dict(ours.named_parameters())
    assert set(found) == set(gradients)
    for name, parameter in found.items():
        reference = gradients[name]
        assert reference.abs().max() > 1e-4, name  # not a comparison of zeros
        assert (parameter.grad - reference).abs().max() <= 1e-4 * reference.abs().max(), name


def test_the_same_patches_are_hidden():
    ours, theirs = pair(TINY)
    mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(2), 3))
    output = theirs(pixel_values=torch.zeros(3, 4, 48, 48), noise=mask.restore.float())
    assert torch.equal(output.mask.bool(), mask.hidden)
    assert torch.equal(output.ids_restore, mask.restore)


def test_position_table_is_equal_with_the_row_of_the_class_token():
    module = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")
    table = module.build_2d_sinusoidal_position_embedding(6, 9, 48, cls_token=True)
    table = torch.cat([table[:, 24:], table[:, :24]], dim=1)  # MAE has the column first
    assert torch.all(table[0] == 0)
    torch.testing.assert_close(table[1:], sincos(Grid((6, 9)).coordinates(), 48), atol=1e-6, rtol=0)


def test_the_comparison_feels_the_positions():
    ours, theirs = pair(TINY)
    images = torch.randn(5, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(2), 5))
    for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        kept = table.data.clone()
        table.data.zero_()
        assert (
            ours.image_loss(images, mask) - their_loss(theirs, images, mask)
        ).abs() > 1e-4  # ten times what equal models may differ by
        table.data.copy_(kept)


def test_one_step_of_training_keeps_them_together():
    ours, theirs = pair(TINY)
    images = torch.randn(5, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(2), 5))
    for model, loss in ((ours, ours.image_loss), (theirs, lambda x, m: their_loss(theirs, x, m))):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        loss(images, mask).backward()
        optimizer.step()
    torch.testing.assert_close(ours.image_loss(images, mask), their_loss(theirs, images, mask), atol=1e-4, rtol=1e-4)
