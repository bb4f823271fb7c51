"""ColorMAE: MAE and nothing else, under filtered noise. The noise itself is tested with the maskings."""

import torch

import maskwright as mw
from maskwright.core.masking import ColourNoiseMasking
from maskwright.core.recipe import make_recipe
from maskwright.core.trainer import Progress
from maskwright.plugins.vision.methods.color_mae import ColorMae
from maskwright.plugins.vision.methods.mae import Mae
from maskwright.testing import check_method
from tests.plugins.vision.helpers import DECODER, ENCODER, images, keys, make, parameters

SMALL = {**ENCODER, **DECODER}


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
