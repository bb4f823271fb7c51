"""Groups of GMML: the union of random rectangles, against the same rectangles painted one by one."""

import numpy as np
import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, GroupMasking, RandomMasking, fold, group_corruption, sample_keys
from maskwright.core.masking.groups import corruption_target, group_rectangles
from maskwright.core.masking.rectangles import MOST, first_cover, union_areas
from maskwright.testing import check_masking
from tests.core.components import component_sizes


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _mean_size(masks):
    """Mean size of all components of (B, H, W)."""
    sizes = [size for mask in masks for size in component_sizes(mask)]
    return sum(sizes) / len(sizes)


def _painted(keys, size, share, align, max_block=0.3):
    """One sample after the other, one rectangle after the other, until the count is reached."""
    targets = corruption_target(keys, size, torch.full((len(keys),), share, dtype=torch.float64))
    masks = []
    for row, target in enumerate(targets.tolist()):
        mask, number = np.zeros(size, dtype=bool), 0
        while mask.sum() < target:
            draw, place = divmod(number, MOST)
            starts, stops = group_rectangles(fold(keys[row : row + 1], draw + 1), size, align, max_block, MOST)
            mask[tuple(map(slice, starts[0, place].tolist(), stops[0, place].tolist()))] = True
            number += 1
        masks.append(torch.from_numpy(mask))
    return torch.stack(masks)


@pytest.mark.parametrize(
    ("size", "share", "align", "max_block"),
    [
        ((64, 48), 0.75, 1, 0.3),
        ((64, 48), 0.3, 8, 0.5),
        ((61, 45), 0.6, 4, 0.3),  # no multiples of align
        ((200,), 0.75, 2, 0.1),
        ((12, 16, 20), 0.7, 2, 0.4),
        ((64, 64), 0.8, 1, 0.1),  # more than one set of rectangles
    ],
)
def test_equal_to_painting_the_same_rectangles(size, share, align, max_block):
    keys = _keys(6)
    ours = group_corruption(keys, size, share, align, max_block)
    assert ours.shape == (6, *size)
    assert ours.dtype == torch.bool
    assert torch.equal(ours, _painted(keys, size, share, align, max_block))


def test_rectangles_follow_the_published_rule():
    """Starts and lengths of 224 pixels, with the bounds that NumPy's randint excludes."""
    starts, stops = group_rectangles(_keys(300), (224, 224), 1, 0.3, 100)
    assert (starts.min(), starts.max()) == (0, 222)
    sides = (stops - starts)[starts < 224 - 66]
    assert (sides.min(), sides.max()) == (1, 65 + 1)
    assert sides.double().mean() == pytest.approx((1 + 66) / 2, rel=0.01)
    starts, stops = group_rectangles(_keys(300), (224, 224), 16, 0.3, 100)
    assert starts.unique().tolist() == list(range(0, 208, 16))
    sides = ((stops - starts) // 16)[starts <= 208 - 64]
    # 16 to 66 pixels round to whole patches; a half goes to the even number
    share = [(sides == patches).double().mean().item() for patches in (1, 2, 3, 4)]
    assert share == pytest.approx([8 / 51, 17 / 51, 15 / 51, 11 / 51], abs=0.01)


def test_share_of_noise_and_of_alien_samples():
    """Check 2 of the paper's sheet."""
    one_block = 66 * 66 / 224**2
    noise = group_corruption(_keys(100), (224, 224), 0.75, 1).flatten(1).double().mean(1)
    assert noise.min() >= 0.5
    assert noise.max() < 0.75 + one_block
    assert noise.std() > 0.05
    alien = group_corruption(_keys(100), (224, 224), 0.3, 1).flatten(1).double().mean(1)
    assert alien.min() >= 0.3
    assert alien.max() < 0.3 + one_block


def test_one_share_for_each_sample():
    keys = _keys(40)
    share = torch.where(torch.arange(40) % 2 == 0, 0.75, 0.3)
    both = group_corruption(keys, (96, 96), share, 4)
    assert torch.equal(both[::2], group_corruption(keys[::2], (96, 96), 0.75, 4))
    assert torch.equal(both[1::2], group_corruption(keys[1::2], (96, 96), 0.3, 4))
    assert not group_corruption(keys, (96, 96), 0.0, 4).any()


def test_groups_are_connected():
    """Check 3 of the paper's sheet: 13 patches against 2.3 of random patches at a share of 0.3."""
    groups = group_corruption(_keys(300), (224, 224), 0.3, 16)
    cells = groups[:, ::16, ::16]
    assert torch.equal(groups, cells.repeat_interleave(16, 1).repeat_interleave(16, 2))
    assert _mean_size(cells) == pytest.approx(13, abs=1.5)
    share = cells.float().mean().item()
    alone = RandomMasking(share)(Grid((14, 14)), _keys(300)).hidden.view(-1, 14, 14)
    assert _mean_size(alone) == pytest.approx(2.3, abs=0.3)


@pytest.mark.parametrize(("align", "last"), [(1, 0.65), (16, 0.5)])
def test_borders_are_covered_less(align, last):
    rows = group_corruption(_keys(150), (224, 224), 0.75, align).float().mean((0, 2)).view(14, 16).mean(1)
    assert rows[0] == pytest.approx(0.3, abs=0.07)
    assert rows[5:9].mean() == pytest.approx(0.7, abs=0.04)
    assert rows[-1] == pytest.approx(last, abs=0.05)


def test_a_mask_follows_its_key_and_nothing_else():
    keys = _keys(9)
    whole = group_corruption(keys, (64, 64), 0.8, 1, 0.1)
    assert torch.equal(whole.flip(0), group_corruption(keys.flip(0), (64, 64), 0.8, 1, 0.1))
    for row in range(9):
        assert torch.equal(whole[row : row + 1], group_corruption(keys[row : row + 1], (64, 64), 0.8, 1, 0.1))
    assert group_corruption(keys[:0], (64, 64), 0.3, 1).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("size", "share", "align", "max_block", "text"),
    [
        ((32, 32), 0.5, 16, 0.3, r"max_block=0.3 of 32 pixels is 9.*more than align=16"),
        ((64, 10), 0.5, 3, 0.3, r"of 10 pixels is 3"),
        ((64, 64), 0.5, 0, 0.3, "align=0"),
        ((64, 64), 0.5, 1, 1.5, "max_block=1.5"),
        ((64, 64), 1.0, 1, 0.3, "share=1"),
        ((64, 64), -0.1, 1, 0.3, r"share=-0\.1"),
        ((64, 64), float("nan"), 1, 0.3, "share=nan"),
        ((8, 8), 0.75, 2, 0.4, r"cannot be covered.*reach 0\.56"),
        ((4, 4, 4, 4), 0.5, 1, 0.9, "one to three axes"),
    ],
)
def test_refusals(size, share, align, max_block, text):
    with pytest.raises(ConfigError, match=text):
        group_corruption(_keys(2), size, share, align, max_block)


# what lies below --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30,), (9, 13), (5, 6, 7)])
def test_first_cover_is_the_smallest_number(size):
    """Also where all 126 rectangles cover a place, and where one stands alone as the last."""
    generator, count = torch.Generator().manual_seed(1), MOST
    length = torch.tensor(size)
    starts = (torch.rand(4, count, len(size), generator=generator) * length).long()
    stops = (starts + torch.randint(0, 4, starts.shape, generator=generator)).minimum(length)
    starts[0], stops[0] = 0, length
    stops[1, :-1] = starts[1, :-1]
    starts[1, -1], stops[1, -1] = 0, length
    expected = torch.full((4, *size), count)
    for row in range(4):
        for number in reversed(range(count)):
            inside = tuple(map(slice, starts[row, number].tolist(), stops[row, number].tolist()))
            expected[(row, *inside)] = number
    first = first_cover(starts, stops, size)
    assert torch.equal(first, expected.flatten(1).int())
    assert first[0].unique().tolist() == [0]
    assert first[1].unique().tolist() == [count - 1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(first_cover(starts, stops, size), first)


def test_areas_of_unions():
    first = torch.randint(0, 51, (20, 300), generator=torch.Generator().manual_seed(0))
    area = torch.randint(1, 4, (300,), generator=torch.Generator().manual_seed(1))
    areas = union_areas(first, area, 50)
    assert areas.shape == (20, 51)
    for count in range(51):
        assert torch.equal(areas[:, count], ((first < count) * area).sum(1))


# on tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [GroupMasking(), GroupMasking(0.3), GroupMasking(0.95, max_block=0.1)])
def test_contract(masking):
    check_masking(masking)


def test_small_grids():
    check_masking(GroupMasking(0.6), [Grid((7, 7)), Grid((4, 4)), Grid((1, 6)), Grid((3,)), Grid((2, 3, 4))])


def test_tokens_of_a_group_mask_look_like_groups_of_whole_patches():
    """Component sizes of both at the same mean share; the exact count cuts the last rectangle."""
    hidden = GroupMasking(0.33)(Grid((14, 14)), _keys(300)).hidden.view(-1, 14, 14)
    groups = group_corruption(_keys(300), (224, 224), 0.3, 16)[:, ::16, ::16]
    assert _mean_size(hidden) == pytest.approx(_mean_size(groups), rel=0.2)
    top, inside = hidden[:, 0].float().mean(), hidden[:, 5:9].float().mean()
    assert top < 0.6 * inside


def test_rectangles_are_filled_in_order():
    """What a smaller ratio hides is hidden at a larger one, too."""
    keys, grid = _keys(50), Grid((14, 14))
    hidden = [GroupMasking(ratio)(grid, keys).hidden for ratio in (0.2, 0.5, 0.8)]
    assert not (hidden[0] & ~hidden[1]).any()
    assert not (hidden[1] & ~hidden[2]).any()


def test_group_masking_refuses_blocks_of_no_size():
    for max_block in (0.0, 1.2):
        with pytest.raises(ConfigError, match=r"masking\.max_block"):
            GroupMasking(max_block=max_block)
