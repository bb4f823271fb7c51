"""Grid, Mask and the strategies that know no domain."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from maskwright.core.errors import ConfigError
from maskwright.core.masking import (
    BlockMasking,
    Grid,
    GuidedMasking,
    Mask,
    RandomMasking,
    UnitMasking,
    drop,
    mask_from_scores,
    replace,
    restore,
    sample_keys,
    uniform,
)

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _is_mask(mask, batch, count, hidden):
    assert mask.visible.shape == (batch, count - hidden)
    assert mask.masked.shape == (batch, hidden)
    order = torch.cat([mask.visible, mask.masked], 1)
    assert torch.equal(order.sort(1).values, torch.arange(count).expand(batch, count))
    assert torch.equal(order.gather(1, mask.restore), torch.arange(count).expand(batch, count))
    assert mask.hidden.sum(1).tolist() == [hidden] * batch
    assert len(mask) == batch


# counts -----------------------------------------------------------------------------------------------------------


def test_mae_keeps_49_of_196():
    mask = RandomMasking(0.75)(Grid((14, 14)), _keys(64))
    _is_mask(mask, 64, 196, 147)
    assert mask.ratio == 0.75


@pytest.mark.parametrize(
    ("ratio", "count", "visible"),
    [(0.9, 10, 1), (0.75, 225, 56), (0.6, 10, 4), (0.7, 10, 3), (0.0, 7, 7), (0.9, 1568, 156), (0.75, 10, 2)],
)
def test_visible_count_is_truncated_as_in_mae(ratio, count, visible):
    """0.1 * 10 is 1, although 1 - 0.9 is a little less than 0.1 in binary."""
    assert count - RandomMasking(ratio).hidden_count(Grid((count,))) == visible


@pytest.mark.parametrize("shape", [(14, 14), (8, 8), (3,), (4, 5, 6)])
def test_a_fixed_number_of_visible_tokens_on_any_grid(shape):
    """CropMAE keeps 2; 0.985 of 196 would keep 2 as well, but of 64 none."""
    grid = Grid(shape)
    masking = RandomMasking(0.1, visible=2)
    _is_mask(masking(grid, _keys(20)), 20, grid.count, grid.count - 2)
    same = RandomMasking((grid.count - 2) / grid.count)(grid, _keys(20))
    assert torch.equal(masking(grid, _keys(20)).restore, same.restore)
    assert 196 - RandomMasking(0.985).hidden_count(Grid((14, 14))) == 2
    positions = torch.rand(5, 3)
    assert RandomMasking(visible=4)(Grid((5,), positions), _keys(3)).masked.shape == (3, 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.data())
def test_a_ratio_of_k_in_n_hides_exactly_k(count, data):
    hidden = data.draw(st.integers(0, count - 1))
    assert RandomMasking(hidden / count).hidden_count(Grid((count,))) == hidden


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 4), st.data())
def test_any_grid_any_count(shape, batch, data):
    """Ratio 0 and all but one included."""
    grid = Grid(shape)
    hidden = data.draw(st.sampled_from([0, grid.count - 1, grid.count // 2]))
    for masking in (RandomMasking(hidden / grid.count), BlockMasking(hidden / grid.count)):
        _is_mask(masking(grid, _keys(batch)), batch, grid.count, hidden)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 4), st.floats(0, 1, exclude_max=True))
def test_unit_masking_hides_whole_units_or_refuses(shape, unit, ratio):
    grid, masking = Grid(shape), UnitMasking(ratio, unit)
    if any(size % unit for size in shape):
        with pytest.raises(ConfigError, match="does not divide into units"):
            masking(grid, _keys(2))
        return
    units = grid.count // unit ** len(shape)
    if int(round(units * (1 - ratio), 6)) == 0:
        with pytest.raises(ConfigError, match="at least one must stay visible"):
            masking(grid, _keys(2))
        return
    hidden = masking(grid, _keys(2)).hidden.view(2, *shape)
    for axis in range(len(shape)):
        split = hidden.unflatten(axis + 1, (-1, unit))
        first = split.narrow(axis + 2, 0, 1)
        assert torch.equal(split, first.expand_as(split))


# refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [-0.01, 1.0, 1.5, float("nan"), float("inf")])
def test_impossible_ratios(ratio):
    with pytest.raises(ConfigError, match=r"masking\.ratio"):
        RandomMasking(ratio)


def test_clear_refusals():
    keys = _keys(2)
    with pytest.raises(ConfigError, match=r"3 of 3 tokens cannot be hidden.*Lower masking\.ratio"):
        RandomMasking(0.9)(Grid((3,)), keys)
    with pytest.raises(ConfigError, match="at least one token"):
        Grid((4, 0))
    with pytest.raises(ConfigError, match="at least one token"):
        Grid(())
    with pytest.raises(ConfigError, match="lattice"):
        BlockMasking()(Grid((5,), torch.zeros(5, 3)), keys)
    with pytest.raises(ConfigError, match="1 or 2 or 3 dimensions"):
        BlockMasking()(Grid((2, 2, 2, 2)), keys)
    with pytest.raises(ConfigError, match="score from outside"):
        GuidedMasking()(Grid((4,)), keys)
    with pytest.raises(ConfigError, match=r"shape \(2, 3\).*\(2, 4\) was expected"):
        GuidedMasking()(Grid((4,)), keys, torch.zeros(2, 3))
    for visible in (4, 5):
        with pytest.raises(ConfigError, match=r"masking\.visible=\d hides nothing of 4 tokens. Choose at most 3"):
            RandomMasking(visible=visible)(Grid((4,)), keys)
    for make in (
        lambda: RandomMasking(visible=0),
        lambda: RandomMasking(visible=-3),
        lambda: UnitMasking(unit=0),
        lambda: BlockMasking(blocks=0),
        lambda: BlockMasking(max_aspect=0.5),
        lambda: GuidedMasking(strength=1.2),
        lambda: GuidedMasking(hide="middle"),
    ):
        with pytest.raises(ConfigError, match=r"masking\."):
            make()


# scores -----------------------------------------------------------------------------------------------------------


def test_highest_scores_are_hidden_and_ties_go_to_the_later_token():
    mask = mask_from_scores(torch.tensor([[0.1, 0.9, 0.5, 0.7], [1.0, 1.0, 1.0, 1.0]]), 2)
    assert mask.hidden.tolist() == [[False, True, False, True], [False, False, True, True]]


def test_a_score_that_is_not_a_number_is_hidden():
    assert mask_from_scores(torch.tensor([[0.0, float("nan"), 2.0]]), 1).hidden.tolist() == [[False, True, False]]


def test_random_hides_every_set_equally_often():
    """Chi-squared over all 20 sets of 3 in 6."""
    hidden = RandomMasking(0.5)(Grid((6,)), _keys(20_000)).hidden
    code = (hidden * 2 ** torch.arange(6)).sum(1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 20
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * 38**0.5


def test_block_masks_are_compact():
    """Neighbours agree far more often than under random masking, and differ from sample to sample."""
    grid = Grid((14, 14))
    block = BlockMasking(0.5)(grid, _keys(200)).hidden.view(-1, 14, 14)
    agree = (block[:, 1:] == block[:, :-1]).float().mean()
    assert agree > 0.85
    assert block.flatten(1).unique(dim=0).shape[0] == 200
    centre, corner = block[:, 7, 7].float().mean(), block[:, 0, 0].float().mean()
    assert centre > corner  # boxes reach the middle more easily: no uniform marginals are promised
    assert not BlockMasking.uniform_marginals


def test_guide_decides_at_strength_1_and_not_at_0():
    grid, keys = Grid((4, 6)), _keys(50)
    guide = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) * 1e6
    high = GuidedMasking(0.25, strength=1.0)(grid, keys, guide).hidden
    low = GuidedMasking(0.25, strength=1.0, hide="low")(grid, keys, guide).hidden
    top = guide.argsort(1)[:, -6:]
    assert torch.equal(high, torch.zeros_like(high).scatter_(1, top, True))
    assert not (high & low).any()
    none = GuidedMasking(0.25, strength=0.0)(grid, keys, guide).hidden
    assert torch.equal(none, RandomMasking(0.25)(grid, keys).hidden)
    half = GuidedMasking(0.25, strength=0.5)(grid, keys, guide).hidden
    overlap = [(mask & high).sum().item() / high.sum().item() for mask in (none, half, high)]
    assert overlap[0] < overlap[1] < overlap[2] == 1


# grids ------------------------------------------------------------------------------------------------------------


def test_coordinates_are_in_raster_order():
    assert Grid((2, 3)).coordinates().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert Grid((4, 5, 6)).coordinates().shape == (120, 3)
    points = torch.randn(5, 3)
    assert torch.equal(Grid((5,), points).coordinates(), points)


# what happens to hidden tokens ------------------------------------------------------------------------------------


def test_drop_and_restore_are_inverse():
    grid = Grid((5, 7))
    values = torch.randn(3, 35, 4)
    mask = RandomMasking(0.6)(grid, _keys(3))
    fill = torch.randn(4)
    back = restore(drop(values, mask), mask, fill)
    assert torch.equal(back, torch.where(mask.hidden[..., None], fill, values))
    assert torch.equal(back, replace(values, mask, fill))


def test_replace_takes_one_fill_for_each_token():
    mask = RandomMasking(0.5)(Grid((8,)), _keys(2))
    values, fill = torch.zeros(2, 8, 3), torch.ones(2, 8, 3)
    assert torch.equal(replace(values, mask, fill)[..., 0].bool(), mask.hidden)


def test_gradient_of_restore_reaches_the_fill_and_the_visible_tokens():
    mask = RandomMasking(0.5)(Grid((8,)), _keys(2))
    visible, fill = torch.randn(2, 4, 3, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
    restore(visible, mask, fill).sum().backward()
    assert torch.all(visible.grad == 1)
    assert torch.all(fill.grad == 8)  # 2 samples of 4 hidden tokens each


def test_masks_do_not_depend_on_batches():
    """The same keys in batches of 1, 3 and 12."""
    keys, grid = _keys(12), Grid((9, 4))
    for masking in (RandomMasking(0.7), UnitMasking(0.5, 1), BlockMasking(0.4)):
        whole = masking(grid, keys)
        parts = [masking(grid, part) for part in keys.split(3)]
        assert torch.equal(whole.restore, torch.cat([mask.restore for mask in parts]))
        assert isinstance(whole, Mask)


def test_scores_follow_the_key_and_nothing_else():
    score = RandomMasking().score(Grid((10,)), torch.tensor([5, 6, 5]))
    assert torch.equal(score[0], score[2])
    assert not torch.equal(score[0], score[1])
    assert torch.equal(score, uniform(torch.tensor([5, 6, 5]), 10))
