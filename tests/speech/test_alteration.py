"""TERA's policy: spans, bands and noise, their shares and widths, and what is selected for the loss."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import RandomMasking
from maskwright.core.masking.spans import SpanMasking, covered
from maskwright.speech.masking import (
    KEPT,
    REPLACED,
    ZEROED,
    Alteration,
    altered_kind,
    frequency_band,
    replaced_frames,
    span_starts,
)
from tests.speech.helpers import keys

MANY = 6000


def policy(**options):
    masking = options.pop("masking", SpanMasking(0.15, 7))
    return Alteration(masking, **options)


def values(batch=64, frames=200, bins=80, seed=0):
    return torch.randn(batch, frames, bins, generator=torch.Generator().manual_seed(seed)) + 5  # never zero by chance


def full(batch, frames=200):
    return torch.full((batch,), frames)


def test_number_and_length_of_spans():
    starts = span_starts(keys(MANY), full(MANY, 1000), 1000, 0.15, 7)
    assert bool((starts.sum(1) == 21).all())
    assert not starts[:, 993:].any()
    assert starts[:, 0].any()
    assert starts[:, 992].any()
    frames = covered(starts, 7)
    assert int(frames.sum(1).max()) <= 147
    assert float(frames.sum(1).float().mean()) == pytest.approx(138, abs=1)  # of 2,400 draws of the released function
    assert not frames[:, -1].any()
    for row in range(3):
        expected = torch.zeros(1000, dtype=torch.bool)
        for start in starts[row].nonzero()[:, 0].tolist():
            expected[start : start + 7] = True
        assert torch.equal(frames[row], expected)


def test_spans_heed_true_lengths():
    lengths = torch.tensor([1000, 200, 90, 30, 5, 7, 8])
    starts = span_starts(keys(7), lengths, 1000, 0.15, 7)
    assert starts.sum(1).tolist() == [21, 4, 2, 1, 0, 0, 0]
    assert not (covered(starts, 7) & (torch.arange(1000) >= lengths[:, None] - 1)).any()


def test_starts_are_uniform_and_the_same_alone():
    starts = span_starts(keys(MANY), full(MANY, 50), 50, 0.15, 7)
    share = starts.float().mean(0)[:43]
    assert float((share - 1 / 43).abs().max()) < 5 * (1 / 43 / MANY) ** 0.5
    assert torch.equal(starts[7:8], span_starts(keys(MANY)[7:8], full(1, 50), 90, 0.15, 7)[:, :50])


def test_spans_that_do_not_overlap():
    starts = span_starts(keys(500), full(500, 1000), 1000, 0.15, 7, overlap=False)
    assert bool((starts.sum(1) == 21).all())
    places = starts.nonzero()[:, 1].view(500, 21)
    steps = places.diff(dim=1)
    assert int(steps.min()) == 10
    assert bool((steps % 10 == 0).all())
    phases = (places[:, 0] % 10).unique()
    assert phases.tolist() == list(range(7))
    assert bool((covered(starts, 7).sum(1) == 147).all())


def test_one_die_an_utterance():
    kinds = torch.bincount(altered_kind(keys(MANY)), minlength=3) / MANY
    assert kinds.tolist() == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_an_utterance_never_mixes_kinds():
    x = values(300)
    altered = policy(band_share=0, noise_share=0)(x, full(300), keys(300))
    assert {ZEROED, REPLACED, KEPT} == set(altered.kind.tolist())
    for row in range(300):
        inside, clean = altered.values[row][altered.frames[row]], x[row][altered.frames[row]]
        kind = int(altered.kind[row])
        if kind == ZEROED:
            assert not inside.any()
        elif kind == KEPT:
            assert torch.equal(inside, clean)
        else:  # frames of this very utterance, of which some may be the same by chance
            assert not torch.equal(inside, clean)
            assert bool((inside[:, None] == x[row][None]).all(-1).any(1).all())
        assert torch.equal(altered.values[row][~altered.frames[row]], x[row][~altered.frames[row]])
        assert torch.equal(altered.selected[row].any(-1), altered.frames[row])
        assert torch.equal(altered.selected[row].all(-1), altered.frames[row])


def test_replaced_spans_are_whole_spans():
    x = torch.arange(100.0).view(1, 100, 1).expand(40, -1, -1)
    lengths = full(40, 100)
    starts = span_starts(keys(40), lengths, 100, 0.15, 7)
    frames = replaced_frames(x, starts, keys(40), lengths, 7)[..., 0]
    sources = set()
    for row in range(40):
        places = starts[row].nonzero()[:, 0].tolist()
        for start, following in zip(places, [*places[1:], 1000], strict=True):
            end = min(start + 7, following)
            assert frames[row, start:end].tolist() == list(
                range(int(frames[row, start]), int(frames[row, start]) + end - start)
            )
            sources.add(int(frames[row, start]))
        outside = ~covered(starts, 7)[row]
        assert torch.equal(frames[row][outside], x[row, :, 0][outside])
    assert min(sources) >= 0
    assert max(sources) <= 92
    assert len(sources) > 40


def test_bands_are_uniform_in_width_and_place():
    bands = frequency_band(keys(MANY * 3), 80, 0.2)
    widths = bands.sum(1)
    counts = torch.bincount(widths, minlength=17)
    assert len(counts) == 17
    chi = ((counts - MANY * 3 / 17) ** 2 / (MANY * 3 / 17)).sum()
    assert float(chi) < 39.3  # 16 degrees of freedom, 0.1 %
    wide = bands[widths == 16]
    starts = wide.int().argmax(1)
    assert starts.min() == 0
    assert starts.max() == 63  # of 0 ... 80 - 16 - 1
    assert not bands[:, 79].any()
    assert all(int(torch.diff(row.int()).abs().sum()) <= 2 for row in bands[:200])  # one band


def test_the_band_is_the_same_in_all_frames():
    x = values()
    altered = policy(masking=SpanMasking(0, 7), noise_share=0)(x, full(64), keys(64))
    band = altered.selected[:, 0]
    assert torch.equal(altered.selected, band[:, None].expand_as(x))
    assert torch.equal(altered.values, torch.where(band[:, None], 0, x))
    assert not altered.frames.any()


def test_noise_touches_every_true_cell_of_some_utterances():
    lengths = torch.tensor([200, 150] * 1000)
    x = values(2000, 200, 4)
    altered = policy(masking=SpanMasking(0, 7), band_share=0)(x, lengths, keys(2000))
    real = torch.arange(200) < lengths[:, None]
    assert torch.equal(altered.selected, real[..., None].expand_as(x))  # magnitude alone: all true cells
    assert not altered.values[~real].any()
    noise = (altered.values - x)[real]
    noisy = (altered.values != x).flatten(1)[:, :100].all(1)
    assert float(noisy.float().mean()) == pytest.approx(0.15, abs=0.025)
    both = torch.stack([noisy, (altered.values == x)[:, :150].flatten(1).all(1)]).sum(0)
    assert bool((both == 1).all())  # all of an utterance, or none
    of_noisy = noise[noise != 0]
    assert float(of_noisy.std()) == pytest.approx(0.2, abs=0.005)
    assert float(of_noisy.mean()) == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("first", [True, False])
def test_order_of_noise(first):
    x = values()
    altered = policy(noise_share=1.0, noise_first=first)(x, full(64), keys(64))
    zeroed = altered.values[altered.kind == ZEROED][altered.frames[altered.kind == ZEROED]]
    assert bool((zeroed == 0).all()) is first
    assert torch.equal(altered.selected, policy(noise_share=0.0)(x, full(64), keys(64)).selected)


def test_noise_adds_nothing_to_the_selection_and_alone_hides_all():
    x, lengths = values(), torch.tensor([200, 120] * 32)
    altered = policy()(x, lengths, keys(64))
    alone = policy()(x, lengths, keys(64), alone=True)
    assert torch.equal(altered.selected, alone.selected)
    assert not alone.values[alone.selected].any()
    untouched = ~alone.selected & (torch.arange(200) < lengths[:, None])[..., None]
    assert torch.equal(alone.values[untouched], x[untouched])


def test_the_target_is_never_modified():
    x = values()
    before = x.clone()
    policy(noise_share=1.0)(x, full(64), keys(64))
    assert torch.equal(x, before)


def test_padding_is_neither_altered_nor_selected():
    lengths = torch.tensor([60, 200, 33, 120])
    altered = policy(noise_share=1.0)(values(4), lengths, keys(4))
    behind = torch.arange(200) >= lengths[:, None]
    assert not altered.values[behind].any()
    assert not altered.selected[behind].any()
    longer = torch.nn.functional.pad(values(4), (0, 0, 0, 50))
    again = policy(noise_share=1.0)(longer, lengths, keys(4))
    assert torch.equal(again.values[:, :200], altered.values)


def test_any_masking_chooses_frames():
    lengths = torch.tensor([200, 100, 40, 60])
    altered = policy(masking=RandomMasking(0.25), band_share=0)(values(4), lengths, keys(4))
    assert altered.frames.sum(1).tolist() == [50, 25, 10, 15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"band_share": 1.2}, "is a share"),
        ({"band_share": 1.0}, "would hide all"),
        ({"noise_share": -0.1}, "is a share"),
        ({"noise_std": -1.0}, "0 or more"),
        ({"masking": SpanMasking(0, 7), "band_share": 0, "noise_share": 0}, "Nothing is altered"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        policy(**options)
