"""Random changes of colour, against torchvision's of the same names."""

import pytest
import torch
from torchvision.transforms import functional as reference

from maskwright.plugins.vision import colour

AMOUNTS = (0.4, 0.3, 0.2, 0.1)


@pytest.fixture
def image():
    return torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.99])
def test_each_change_is_torchvisions(image, which, draw, top):
    amounts = tuple(amount if number == which else 0.0 for number, amount in enumerate(AMOUNTS))
    found = colour.jitter(image * top, amounts, top, [draw] * 8) / top
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    amount = AMOUNTS[which]
    factor = (2 * draw - 1) * amount if which == 3 else 1 - amount + 2 * amount * draw
    torch.testing.assert_close(found, getattr(reference, names[which])(image, factor), rtol=0, atol=2e-5)


def test_the_order_is_drawn(image):
    draws = [0.9, 0.1, 0.8, 0.2]
    one = colour.jitter(image, (0.8, 0.8, 0.8, 0.4), 1.0, [*draws, 0.1, 0.2, 0.3, 0.4])
    other = colour.jitter(image, (0.8, 0.8, 0.8, 0.4), 1.0, [*draws, 0.4, 0.3, 0.2, 0.1])
    assert (one - other).abs().max() > 0.01
    assert one.amin() >= 0
    assert one.amax() <= 1


def test_hue_of_grey_stays_and_grey_images_have_no_colour(image):
    grey = image[:1].expand(3, -1, -1)
    torch.testing.assert_close(colour.shift_hue(grey, 0.3, 1.0), grey)
    assert torch.equal(colour.jitter(image[:1], (0, 0, 0.5, 0.5), 1.0, [0.9] * 8), image[:1])


def test_strength_zero_changes_nothing(image):
    assert torch.equal(colour.jitter(image, (0, 0, 0, 0), 1.0, [0.7] * 8), image)
    torch.testing.assert_close(colour.shift_hue(image, 1.0, 1.0), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(image, radius):
    reach = max(1, round(3 * radius))
    wanted = reference.gaussian_blur(image, [2 * reach + 1] * 2, [radius] * 2)
    torch.testing.assert_close(colour.blur(image, radius), wanted, rtol=0, atol=1e-5)
    assert colour.blur(image[:, :1, :1], radius).shape == (3, 1, 1)
