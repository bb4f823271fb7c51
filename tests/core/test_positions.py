"""Sine-cosine tables, rotations, distance biases and learned tables."""

import pytest
import torch
import torch.nn.functional as F

from maskwright.core.encoder import alibi_bias, alibi_slopes, sincos
from maskwright.core.encoder.positions import (
    ALiBiPositions,
    LearnedPositions,
    RotaryPositions,
    SinCosPositions,
    rotate,
)
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, sample_keys

CPU = torch.device("cpu")


def _index(grid, batch=2):
    return RandomMasking(0.5)(grid, sample_keys(torch.Generator().manual_seed(0), batch)).visible


@pytest.mark.parametrize("dim", [8, 12, 13, 32])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sincos_of_any_width_and_number_of_axes(dim, axes):
    table = sincos(Grid((3,) * axes).coordinates(), dim)
    assert table.shape == (3**axes, dim)
    used = dim // (2 * axes) * 2 * axes
    assert torch.all(table[:, used:] == 0)
    if used >= 2 * axes:
        assert table[:, :used].unique(dim=0).shape[0] == 3**axes
        torch.testing.assert_close(table.square().sum(1), torch.full((3**axes,), used / 2))


def test_sincos_depends_on_scattered_coordinates_only():
    points = torch.rand(2, 10, 3) * 5
    positions = SinCosPositions(24)
    index = torch.stack([torch.randperm(10)[:4] for _ in range(2)])
    table = positions.add(Grid((10,), points), index, CPU)
    expected = sincos(points, 24).gather(1, index[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("make", [lambda g: SinCosPositions(16), lambda g: LearnedPositions(16, g)])
def test_tables_at_visible_tokens_are_rows_of_the_whole_table(make):
    grid = Grid((4, 6))
    positions, index = make(grid), _index(grid)
    whole = positions.add(grid, None, CPU)
    assert whole.shape == (1, 24, 16)
    assert torch.equal(positions.add(grid, index, CPU), whole[0][index])


# rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotated_products_depend_on_the_difference_of_places_alone(axes):
    positions = RotaryPositions(24, axes)
    generator = torch.Generator().manual_seed(axes)
    q, k = (torch.randn(1, 1, 1, 24, generator=generator) for _ in range(2))
    first, second = (torch.rand(1, axes, generator=generator) * 8 for _ in range(2))
    products = []
    for shift in (0.0, 3.5, -11.0):
        grid = Grid((2,), torch.cat([first, second]) + shift)
        angles = positions.rotation(grid, None, CPU)
        a, b = rotate(q, angles[:, :, :1]), rotate(k, angles[:, :, 1:])
        products.append((a * b).sum())
    torch.testing.assert_close(products[1], products[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(products[2], products[0], atol=1e-4, rtol=1e-4)
    other = positions.rotation(Grid((2,), torch.cat([first, second + 1.0])), None, CPU)
    moved = (rotate(q, other[:, :, :1]) * rotate(k, other[:, :, 1:])).sum()
    assert (moved - products[0]).abs() > 1e-3


def test_rotation_keeps_lengths_and_leaves_the_origin_alone():
    angles = RotaryPositions(16, 2).rotation(Grid((3, 3)), None, CPU)
    x = torch.randn(2, 4, 9, 16)
    torch.testing.assert_close(rotate(x, angles).norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(x, angles)[:, :, 0], x[:, :, 0])


def test_every_axis_turns_numbers_of_its_own():
    angles = RotaryPositions(16, 2).rotation(Grid((3, 4)), None, CPU).view(3, 4, 8)
    assert torch.equal(angles[..., :4], angles[:, :1, :4].expand(3, 4, 4))  # rows
    assert torch.equal(angles[..., 4:], angles[:1, :, 4:].expand(3, 4, 4))  # columns


# distance bias ----------------------------------------------------------------------------------------------------


def test_slopes():
    torch.testing.assert_close(alibi_slopes(16), torch.tensor([2 ** (-0.5 * k) for k in range(1, 17)]))
    expected = [2.0**-k for k in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))
    for heads in range(1, 40):
        slopes = alibi_slopes(heads)
        assert slopes.shape == (heads,)
        assert slopes.unique().numel() == heads
        assert (slopes > 0).all()
        assert (slopes < 1).all()


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_bias_is_minus_slope_times_distance(shape):
    grid, positions = Grid(shape), ALiBiPositions(4)
    at = grid.coordinates()
    bias = positions.bias(grid, None, CPU)
    assert bias.shape == (1, 4, grid.count, grid.count)
    for i, j in ((0, grid.count - 1), (1, 2)):
        distance = (at[i] - at[j]).square().sum().sqrt()
        torch.testing.assert_close(bias[0, :, i, j], -alibi_slopes(4) * distance)
    index = _index(grid)
    visible = positions.bias(grid, index, CPU)
    for row in range(2):
        torch.testing.assert_close(visible[row], bias[0][:, index[row]][:, :, index[row]])


def test_bias_between_two_sets_of_places():
    a, b = torch.rand(2, 3, 2), torch.rand(2, 5, 2)
    bias = alibi_bias(a, b, torch.tensor([1.0, 0.5]))
    assert bias.shape == (2, 2, 3, 5)
    torch.testing.assert_close(bias[:, 1], bias[:, 0] / 2)
    torch.testing.assert_close(-bias[1, 0, 2, 4], (a[1, 2] - b[1, 4]).norm())


# learned ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "other"), [((6,), (9,)), ((4, 4), (6, 3)), ((2, 3, 4), (3, 3, 2))])
def test_learned_tables_are_interpolated(shape, other):
    torch.manual_seed(0)
    positions = LearnedPositions(8, Grid(shape))
    assert positions.add(Grid(shape), None, CPU) is positions.table
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(shape)]
    maps = positions.table[0].T.reshape(1, 8, *shape)
    expected = F.interpolate(maps, size=other, mode=mode, align_corners=False).reshape(8, -1).T
    torch.testing.assert_close(positions.add(Grid(other), None, CPU)[0], expected)
    with torch.no_grad():
        positions.table.fill_(0.25)
    torch.testing.assert_close(positions.add(Grid(other), None, CPU), torch.full((1, Grid(other).count, 8), 0.25))


def test_learned_tables_get_a_gradient_through_visible_tokens():
    grid = Grid((4, 4))
    positions, index = LearnedPositions(8, grid), _index(Grid((4, 4)), 1)
    positions.add(grid, index, CPU).sum().backward()
    felt = positions.table.grad[0].abs().sum(1) > 0
    assert felt.nonzero().flatten().tolist() == index[0].sort().values.tolist()


def test_learned_tables_refuse_scattered_tokens():
    with pytest.raises(ConfigError, match="lattice"):
        LearnedPositions(8, Grid((4,))).add(Grid((4,), torch.rand(4, 3)), None, CPU)
