"""ColorMAE's checks: what the colours do to masks, and the spectrum of the noise behind them."""

import pytest
import torch

from maskwright.core.build import build_masking
from maskwright.core.errors import ConfigError
from maskwright.core.masking import ColourNoiseMasking, Grid, RandomMasking, mask_from_scores, sample_keys, uniform
from maskwright.core.recipe import Component
from maskwright.testing import check_masking
from tests.core.components import component_sizes

COLOURS = ("red", "blue", "green", "purple")
GRID = Grid((14, 14))
# share of 4-neighbour pairs in the same state and mean size of the largest visible component, 14 x 14, 75 % hidden
AGREEMENT = [
    ("red", 1.0, 0.5, 0.82),
    ("red", 2.0, 1.0, 0.90),
    ("blue", 1.0, 0.5, 0.59),
    ("green", 2.0, 0.5, 0.66),
    ("green", 2.0, 1.0, 0.78),
    ("purple", 2.0, 0.5, 0.58),
    ("purple", 2.0, 1.0, 0.60),
]


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _agreement(masking, count=1000):
    return _equal_neighbours(masking(GRID, _keys(count)).hidden)


def _equal_neighbours(hidden):
    hidden = hidden.view(-1, 14, 14)
    down, right = hidden[:, 1:] == hidden[:, :-1], hidden[:, :, 1:] == hidden[:, :, :-1]
    return torch.cat([down.flatten(), right.flatten()]).float().mean().item()


@pytest.mark.parametrize("colour", COLOURS)
def test_exactly_49_of_196_stay_visible(colour):
    mask = ColourNoiseMasking(0.75, colour)(GRID, _keys(50))
    assert torch.all((~mask.hidden).sum(1) == 49)


@pytest.mark.parametrize(("colour", "sigma", "narrow", "expected"), AGREEMENT)
def test_neighbours_agree_as_often_as_simulated(colour, sigma, narrow, expected):
    assert _agreement(ColourNoiseMasking(0.75, colour, sigma, narrow)) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("colour", "sigma", "narrow", "expected"), AGREEMENT)
def test_windows_of_larger_maps_agree_as_often(colour, sigma, narrow, expected):
    """The sheet's own simulation: 14 x 14 tokens cut from 400 maps of 64 x 64."""
    noise = ColourNoiseMasking(0.75, colour, sigma, narrow).noise(Grid((64, 64)), _keys(400))
    hidden = mask_from_scores(-noise[:, 20:34, 30:44].flatten(1), 147).hidden
    assert _equal_neighbours(hidden) == pytest.approx(expected, abs=0.015)


def test_order_of_the_colours():
    red, green, blue = (_agreement(ColourNoiseMasking(0.75, colour)) for colour in ("red", "green", "blue"))
    white = _agreement(RandomMasking(0.75))
    assert white == pytest.approx(0.625, abs=0.01)  # 0.75^2 + 0.25^2
    assert red > green > white > blue


@pytest.mark.parametrize(
    ("masking", "expected", "tolerance"),
    [
        (RandomMasking(0.75), 7, 1),
        (ColourNoiseMasking(0.75, "red", 1.0, 0.5), 24, 3),
        (ColourNoiseMasking(0.75, "green", 2.0, 1.0), 16, 2),
        (ColourNoiseMasking(0.75, "blue", 1.0, 0.5), 4.4, 0.6),
    ],
    ids=["white", "red", "green", "blue"],
)
def test_size_of_the_largest_visible_component(masking, expected, tolerance):
    visible = ~masking(GRID, _keys(200)).hidden.view(-1, 14, 14)
    sizes = [max(component_sizes(one)) for one in visible]
    assert sum(sizes) / len(sizes) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shape", [(40,), (14, 14), (6, 8, 10)])
def test_colours_add_up_to_white(shape):
    grid, keys = Grid(shape), _keys(3)
    noise = {colour: ColourNoiseMasking(0.75, colour).noise(grid, keys) for colour in COLOURS}
    white = uniform(keys, *shape) - 0.5
    torch.testing.assert_close(noise["blue"] + noise["red"], white, atol=1e-6, rtol=0)
    torch.testing.assert_close(noise["purple"] + noise["green"], white, atol=1e-6, rtol=0)


def _radial_spectrum(colour):
    """Mean power of 16 rings of spatial frequency, from 0 to half a cycle a token."""
    size = 64
    maps = ColourNoiseMasking(0.75, colour).noise(Grid((size, size)), _keys(64))
    power = torch.fft.fft2(maps).abs().pow(2).mean(0)
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt()
    rings = (radius * 2 * 16).long()
    return torch.stack([power[rings == ring].mean() for ring in range(16)])


def test_power_spectra():
    red, blue, green, purple = (_radial_spectrum(colour) for colour in COLOURS)
    noise = 0.1 * blue.max()  # spread of a ring's mean
    assert torch.all(red[1:] <= red[:-1] + noise)
    assert red[0] > 100 * red[10]
    assert torch.all(blue[1:] >= blue[:-1] - noise)
    assert blue[0] < 0.05 * blue[-1]
    peak = green.argmax()
    assert 0 < peak < 15
    assert green[0] < 0.5 * green[peak]
    assert green[-1] < 0.1 * green[peak]
    trough = purple.argmin()
    assert 0 < trough < 15
    assert purple[trough] < 0.8 * min(purple[0], purple[-1])


@pytest.mark.parametrize("colour", COLOURS)
def test_no_mean_is_left_where_it_should_not_be(colour):
    mean = ColourNoiseMasking(0.75, colour).noise(Grid((32, 32)), _keys(8)).mean((1, 2)).abs().max()
    white = (uniform(_keys(8), 32, 32) - 0.5).mean((1, 2)).abs().max()
    if colour in ("green", "blue"):
        assert mean < 1e-6
    else:
        assert mean == pytest.approx(white.item(), rel=1e-3)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", [(14, 14), (3, 20)])
def test_every_token_is_hidden_equally_often(colour, shape):
    share = ColourNoiseMasking(0.75, colour)(Grid(shape), _keys(4000)).hidden.float().mean(0)
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_division_by_the_maximum_would_turn_the_order_around():
    """The official code divides a map by its maximum before it ranks; red maps may be negative everywhere."""
    grid, keys = Grid((6, 6)), _keys(400)
    masking = ColourNoiseMasking(0.75, "red", sigma=3.0)
    noise = masking.noise(grid, keys).flatten(1)
    below = noise.amax(1) < 0
    assert 0.2 < below.float().mean() < 0.8
    strongest, weakest = noise.topk(9).indices.sort().values, (-noise).topk(9).indices.sort().values
    divided = (noise / noise.amax(1, keepdim=True)).topk(9).indices.sort().values
    assert torch.equal(divided[~below], strongest[~below])
    assert torch.equal(divided[below], weakest[below])  # the fault
    assert torch.equal(masking(grid, keys).visible.sort().values, strongest)  # ours has it nowhere


def test_colour_by_epoch():
    keys = _keys(20)
    masking = ColourNoiseMasking(colour="red", schedule={100: "blue", 10: "green"})
    of = {colour: ColourNoiseMasking(colour=colour)(GRID, keys).restore for colour in COLOURS}
    assert masking.epoch == 0
    for epoch, colour in ((0, "red"), (9, "red"), (10, "green"), (99, "green"), (100, "blue"), (5000, "blue")):
        masking.epoch = epoch
        assert masking.current_colour == colour
        assert torch.equal(masking(GRID, keys).restore, of[colour])
    assert ColourNoiseMasking(schedule={0: "purple"}).current_colour == "purple"
    check_masking(masking)


def test_a_schedule_can_be_written_in_a_recipe():
    masking = build_masking(Component.model_validate({"name": "colour-noise", "schedule": {"100": "blue"}}))
    assert masking.schedule == {100: "blue"}


def test_axes_shorter_than_the_kernel():
    for shape in ((1,), (2, 30), (1, 1, 5)):
        assert ColourNoiseMasking(0.0, "red", sigma=4.0)(Grid(shape), _keys(2)).visible.shape[0] == 2


def test_not_one_bit_depends_on_the_batch():
    keys = _keys(300)
    for colour in COLOURS:
        masking = ColourNoiseMasking(0.75, colour)
        whole = masking.score(GRID, keys)
        assert torch.equal(whole[17:18], masking.score(GRID, keys[17:18]))
        assert torch.equal(whole[:100], masking.score(GRID, keys[:100]))


def test_refusals():
    with pytest.raises(ConfigError, match=r"masking\.colour"):
        ColourNoiseMasking(colour="pink")
    for schedule in ({-1: "red"}, {5: "pink"}, {1.5: "red"}, {True: "red"}, {"5": "red"}):
        with pytest.raises(ConfigError, match=r"masking\.schedule=.*0-based epoch and one of red, blue, green, purple"):
            ColourNoiseMasking(schedule=schedule)
    for sigma, narrow in ((1.0, 1.0), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="sigma_narrow"):
            ColourNoiseMasking(sigma=sigma, sigma_narrow=narrow)
