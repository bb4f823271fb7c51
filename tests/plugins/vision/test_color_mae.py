"""ColorMAE: MAE and nothing else, under filtered noise. The noise itself is tested with the maskings."""

import pytest
import torch

import maskwright as mw
from maskwright.core.masking import ColourNoiseMasking, Grid
from maskwright.core.recipe import make_recipe
from maskwright.core.trainer import Progress
from maskwright.plugins.vision.methods.color_mae import ColorMae
from maskwright.plugins.vision.methods.mae import Mae
from maskwright.testing import check_method
from tests.plugins.vision.helpers import DECODER, ENCODER, images, keys, make, parameters

SMALL = {**ENCODER, **DECODER}
COLOURS = ("red", "blue", "green", "purple")


def test_the_contract():
    check_method(lambda: make(ColorMae, **SMALL), images())


def test_it_is_mae_but_for_the_masking():
    with torch.device("meta"):
        assert parameters(ColorMae()) == parameters(Mae()) == 111_655_680
    ours, mae = make(ColorMae, **SMALL), make(Mae, **SMALL)
    assert isinstance(ours.masking, ColourNoiseMasking)
    assert ours.masking.colour == "green"
    assert (ours.masking(ours.encoder.grid, keys()).hidden.sum(1) == 147).all()
    mae.masking = ours.masking
    assert torch.equal(ours(images(), keys()).loss, mae(images(), keys()).loss)


@pytest.mark.parametrize("colour", COLOURS)
def test_masks_know_nothing_of_the_image(colour):
    method = make(ColorMae, **SMALL, masking=ColourNoiseMasking(0.75, colour))
    masks = [method.mask(method.encoder.tokenize(images(seed=seed)), keys()) for seed in (0, 1)]
    assert torch.equal(masks[0].restore, masks[1].restore)
    other = method.mask(method.encoder.tokenize(images()), keys(seed=1))
    assert not torch.equal(masks[0].restore, other.restore)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_sample_of_every_batch_draws_its_own_noise(colour):
    """In the released code the first maps of the array serve every batch."""
    masking, grid = ColourNoiseMasking(0.75, colour), Grid((14, 14))
    hidden = torch.cat([masking(grid, keys(64, seed=batch)).hidden for batch in range(4)])
    assert len(hidden.unique(dim=0)) == 256


@pytest.mark.parametrize("colour", COLOURS)
def test_an_offset_of_the_noise_changes_no_mask(colour):
    masking, grid = ColourNoiseMasking(0.75, colour), Grid((14, 14))
    before = masking(grid, keys())
    noise = masking.noise
    masking.noise = lambda grid, keys: noise(grid, keys) - 1  # below zero throughout
    assert (masking.noise(grid, keys()) < 0).all()
    assert torch.equal(masking(grid, keys()).hidden, before.hidden)


def test_a_recipe_that_names_no_masking_is_green_and_one_option_keeps_the_rest(tmp_path):
    recipe = make_recipe("color-mae", tmp_path, settings=["masking.colour=red"])
    assert recipe.masking.model_dump() == {"name": "colour-noise", "ratio": 0.75, "colour": "red"}
    assert mw.component("method", "color-mae") is ColorMae


def test_the_colour_follows_the_epochs():
    method = make(ColorMae, **SMALL, masking=ColourNoiseMasking(colour="green", schedule={2: "blue"}))
    grid = method.encoder.grid
    seen = {}
    for epoch in (0, 1, 2, 3):
        method.start_step(Progress(epoch, 4, epoch, 4))
        seen[epoch] = method.masking(grid, keys()).masked
    blue = ColourNoiseMasking(colour="blue")(grid, keys()).masked
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], blue)
    assert torch.equal(seen[3], blue)
    assert not torch.equal(seen[0], seen[2])
