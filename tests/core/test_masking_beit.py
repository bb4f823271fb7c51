"""Block-wise masks of BEiT and CAE: exact counts, compact blocks, and one mask a key."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import BeitBlockMasking, Grid, RandomMasking, sample_keys
from maskwright.core.masking import beit as module
from maskwright.testing import check_masking
from tests.core.components import component_sizes


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _mean_size(masking, count=300):
    """Mean over masks of the mean size of hidden components."""
    hidden = masking(Grid((14, 14)), _keys(count)).hidden.view(-1, 14, 14)
    return sum(sum(sizes) / len(sizes) for sizes in map(component_sizes, hidden)) / count


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.75])
def test_contract(ratio):
    check_masking(BeitBlockMasking(ratio))
    check_masking(BeitBlockMasking(ratio), [Grid((14, 14)), Grid((7, 7)), Grid((4, 4)), Grid((1, 12))])


def test_exactly_98_of_196_in_large_components():
    """Check 6 of the paper's sheet: 82 tokens against 5.7 of random masks."""
    hidden = BeitBlockMasking()(Grid((14, 14)), _keys(500)).hidden
    assert torch.all(hidden.sum(1) == 98)
    assert hidden.unique(dim=0).shape[0] == 500
    assert _mean_size(BeitBlockMasking()) == pytest.approx(82, abs=6)
    assert _mean_size(RandomMasking(0.5)) == pytest.approx(5.7, abs=0.4)


def _one_after_the_other(generator, side, wanted, min_area=16, min_aspect=0.3):
    """A mask made rectangle by rectangle, as the paper describes it."""
    hidden = torch.zeros(side, side, dtype=torch.bool)
    while (remaining := wanted - int(hidden.sum())) > 0:
        area, aspect, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = min_area + area * (remaining - min_area)
        aspect = min_aspect ** (1 - 2 * aspect)
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if not (h < side and w < side):
            continue
        top, left = int(y * (side - h + 1)), int(x * (side - w + 1))
        with_it = hidden.clone()
        with_it[top : top + h, left : left + w] = True
        if hidden.sum() < with_it.sum() <= wanted:
            hidden = with_it
    return hidden


def test_same_distribution_as_one_rectangle_after_the_other():
    """Marginals by place, and shares of neighbours in the same state."""
    generator, count = torch.Generator().manual_seed(3), 500
    theirs = torch.stack([_one_after_the_other(generator, 14, 98) for _ in range(count)])
    ours = BeitBlockMasking()(Grid((14, 14)), _keys(count)).hidden.view(-1, 14, 14)
    rings = torch.minimum(torch.arange(14), torch.arange(14).flip(0))
    ring = torch.minimum(rings[:, None], rings)
    for number in range(7):  # from the border to the middle; one mask's tokens hang together, so masks are the unit
        a, b = (hidden[:, ring == number].float().mean(1) for hidden in (ours, theirs))
        assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / count).sqrt()
    a, b = ((hidden[:, 1:] == hidden[:, :-1]).flatten(1).float().mean(1) for hidden in (ours, theirs))
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / count).sqrt()


def test_smallest_area_keeps_its_share_of_the_grid():
    """4 tokens of 7 x 7, so that small grids get several blocks; the published 16 would leave room for one of 24."""
    several, one = (BeitBlockMasking(0.5, min_area)(Grid((7, 7)), _keys(300)).hidden for min_area in (None, 16))
    agree = [(h.view(-1, 7, 7)[:, 1:] == h.view(-1, 7, 7)[:, :-1]).float().mean() for h in (several, one)]
    assert agree[0] < agree[1]
    published, default = (BeitBlockMasking(0.5, min_area)(Grid((14, 14)), _keys(9)) for min_area in (16, None))
    assert torch.equal(published.restore, default.restore)


def test_what_no_rectangle_fills_is_filled_with_single_tokens(monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 1)
    hidden = BeitBlockMasking(0.5)(Grid((14, 14)), _keys(50)).hidden
    assert torch.all(hidden.sum(1) == 98)
    assert torch.all(BeitBlockMasking(0.9)(Grid((2, 30)), _keys(50)).hidden.sum(1) == 54)


def test_refusals():
    for options, text in (
        ({"min_area": 0}, "min_area"),
        ({"min_aspect": 0.0}, "min_aspect"),
        ({"min_aspect": 1.5}, "min_aspect"),
    ):
        with pytest.raises(ConfigError, match=rf"masking\.{text}"):
            BeitBlockMasking(**options)
    with pytest.raises(ConfigError, match="2 dimensions"):
        BeitBlockMasking()(Grid((4, 4, 4)), _keys(2))
    with pytest.raises(ConfigError, match="at least one must stay visible"):
        BeitBlockMasking(0.99)(Grid((4, 4)), _keys(2))
