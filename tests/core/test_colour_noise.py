"""ColorMAE's checks: what the colours do to masks, and the spectrum of the noise behind them."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import ColourNoiseMasking, Grid, RandomMasking, sample_keys, uniform

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
    hidden = masking(GRID, _keys(count)).hidden.view(-1, 14, 14)
    down, right = hidden[:, 1:] == hidden[:, :-1], hidden[:, :, 1:] == hidden[:, :, :-1]
    return torch.cat([down.flatten(), right.flatten()]).float().mean().item()


@pytest.mark.parametrize("colour", COLOURS)
def test_exactly_49_of_196_stay_visible(colour):
    mask = ColourNoiseMasking(0.75, colour)(GRID, _keys(50))
    assert torch.all((~mask.hidden).sum(1) == 49)


@pytest.mark.parametrize(("colour", "sigma", "narrow", "expected"), AGREEMENT)
def test_neighbours_agree_as_often_as_simulated(colour, sigma, narrow, expected):
    assert _agreement(ColourNoiseMasking(0.75, colour, sigma, narrow)) == pytest.approx(expected, abs=0.015)


def test_order_of_the_colours():
    red, green, blue = (_agreement(ColourNoiseMasking(0.75, colour)) for colour in ("red", "green", "blue"))
    white = _agreement(RandomMasking(0.75))
    assert white == pytest.approx(0.625, abs=0.01)  # 0.75^2 + 0.25^2
    assert red > green > white > blue


def _largest_component(visible):
    """Size of the largest 4-connected set of True in (H, W), by flooding."""
    left, largest = {tuple(place) for place in visible.nonzero().tolist()}, 0
    while left:
        stack, size = [left.pop()], 0
        while stack:
            row, column = stack.pop()
            size += 1
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if place in left:
                    left.remove(place)
                    stack.append(place)
        largest = max(largest, size)
    return largest


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
    sizes = [_largest_component(one) for one in visible]
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
    for sigma, narrow in ((1.0, 1.0), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="sigma_narrow"):
            ColourNoiseMasking(sigma=sigma, sigma_narrow=narrow)
