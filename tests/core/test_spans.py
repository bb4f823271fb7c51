"""Spans of hidden steps: exact, independent and equal counts; any masking on rows of different lengths."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import BlockMasking, Grid, RandomMasking, sample_keys
from maskwright.core.masking.spans import SpanMasking, chosen, covered, hidden_rows
from maskwright.testing import check_masking


def keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def runs(row):
    """Lengths of the runs of True in a row (N,)."""
    edges = torch.diff(torch.nn.functional.pad(row.int(), (1, 1)))
    return (edges == -1).nonzero()[:, 0] - (edges == 1).nonzero()[:, 0]


@pytest.mark.parametrize("options", [{}, {"ratio": 0.15, "span": 7}, {"ratio": 0.5, "span": 1}, {"span": 100}])
def test_the_contract(options):
    check_masking(SpanMasking(**options))


def test_covered_and_chosen():
    starts = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1], [0] * 8, [1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    expected = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 1], [0] * 8, [1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    assert torch.equal(covered(starts, 3), expected)
    scores = torch.tensor([[0.1, 0.9, 0.5, -1.0], [0.3, -1.0, 0.2, 0.1]])
    assert chosen(scores, torch.tensor([2, 4])).tolist() == [[False, True, True, False], [True, False, True, True]]


def test_exact_counts_are_whole_spans_but_for_the_last():
    hidden = SpanMasking(0.4, 10)(Grid((500,)), keys(64)).hidden
    assert bool((hidden.sum(1) == 200).all())
    assert all(int((runs(row[:490]) < 10).sum()) <= 11 for row in hidden)  # of one span single steps may be left
    assert float(torch.cat([runs(row) for row in hidden]).float().mean()) > 10


def test_spans_run_along_the_last_axis():
    hidden = SpanMasking(0.3, 5)(Grid((20, 30)), keys(16)).hidden.view(-1, 30)
    assert bool((SpanMasking(0.3, 5)(Grid((20, 30)), keys(16)).hidden.sum(1) == 180).all())
    # spans that begin in the last steps of a row end with it, and the next row begins anew
    lengths = torch.cat([runs(row[:25]) for row in hidden if row[:25].any() and not row[24]])
    assert float((lengths >= 5).float().mean()) > 0.97


def test_independent_starts_cover_what_the_paper_s_do():
    masking = SpanMasking()
    assert masking.start_probability == pytest.approx(0.065, abs=1e-4)
    lengths = torch.full((64,), 2000)
    hidden = masking.independent(keys(64), lengths, 2000)
    assert float(hidden.float().mean()) == pytest.approx(1 - 0.935**10, abs=0.02)
    assert hidden.sum(1).unique().numel() > 20  # the number of steps is random
    # whole spans, but for the last, which the end may cut
    assert all(int(runs(row)[:-1].min()) >= 10 for row in hidden)


def test_every_row_hides_something_and_nothing_behind_its_length():
    lengths = torch.tensor([1, 3, 7, 20] * 200)
    hidden = SpanMasking().independent(keys(800), lengths, 25)
    assert bool(hidden.any(1).all())
    assert not bool((hidden & (torch.arange(25) >= lengths[:, None])).any())


@pytest.mark.parametrize(("steps", "share"), [(100, 0.37), (200, 0.39), (750, 0.44)])
def test_equal_counts_hide_less(steps, share):
    masking, shares = SpanMasking(), []
    for seed in range(40):
        hidden = masking.equal(keys(8, seed), torch.full((8,), steps), steps)
        assert len(hidden.sum(1).unique()) == 1
        shares.append(float(hidden.float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(share, abs=0.015)


def test_equal_counts_of_rows_of_different_lengths():
    lengths = torch.tensor([120, 300, 80, 201])
    hidden = SpanMasking().equal(keys(4), lengths, 300)
    assert len(hidden.sum(1).unique()) == 1
    assert not bool((hidden & (torch.arange(300) >= lengths[:, None])).any())
    for short in (10, 25):  # no longer than a span; room for one span only
        with pytest.raises(ConfigError, match="no room for two spans"):
            SpanMasking().equal(keys(2), torch.tensor([300, short]), 300)


@pytest.mark.parametrize("masking", [RandomMasking(0.4), SpanMasking(0.4), BlockMasking(0.4)])
def test_a_row_of_any_masking_depends_on_its_own_length_only(masking):
    lengths = torch.tensor([40, 17, 40, 29])
    hidden = hidden_rows(masking, keys(4), lengths, 50)
    for row, length in enumerate(lengths.tolist()):
        alone = masking(Grid((length,)), keys(4)[row : row + 1]).hidden
        assert torch.equal(hidden[row, :length], alone[0])
        assert not hidden[row, length:].any()
        assert int(hidden[row].sum()) == masking.hidden_count(Grid((length,)))


def test_options_are_checked():
    with pytest.raises(ConfigError, match="1 or more steps"):
        SpanMasking(span=0)
