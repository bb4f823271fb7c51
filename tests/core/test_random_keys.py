"""Random numbers that belong to a sample: the generator itself, fixed values, and its statistical quality."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from maskwright.core.masking import fold, normal, sample_keys, uniform

WORD = 2**64 - 1

GOLDEN_UNIFORM = [[14819496, 7239838], [9505325, 12512141], [14997873, 15310840], [43600, 12412772]]
GOLDEN_FOLD_0 = [-4047797986373814914, -7334022964574928373, 1437083032761567080, 628803512498947818]
GOLDEN_FOLD_7 = [-427981489448021104, -3665768549478750158, -5063060709059663843, -3871942492373127898]
GOLDEN_NORMAL = [1.191701, -0.172485]


def splitmix64(seed, count):
    """The generator as published, on Python integers."""
    state, numbers = seed & WORD, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def test_the_reference_gives_the_published_numbers():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.integers(1, 40))
def test_uniform_is_the_top_of_splitmix64(keys, count):
    expected = [[(number >> 40) * 2.0**-24 for number in splitmix64(key, count)] for key in keys]
    assert uniform(torch.tensor(keys), count).tolist() == expected


def test_fixed_values():
    """A change of these numbers changes every mask of every run: bump the minor version and say so."""
    keys = torch.tensor([0, 1, -1, 2**62])
    assert (uniform(keys, 2) * 2**24).long().tolist() == GOLDEN_UNIFORM
    assert fold(keys, 0).tolist() == GOLDEN_FOLD_0
    assert fold(keys, 7).tolist() == GOLDEN_FOLD_7
    torch.testing.assert_close(normal(keys, 2)[0], torch.tensor(GOLDEN_NORMAL), atol=1e-5, rtol=0)


def test_shapes_are_views_of_one_stream():
    keys = sample_keys(torch.Generator().manual_seed(0), 3)
    flat = uniform(keys, 24)
    assert torch.equal(uniform(keys, 2, 3, 4), flat.view(3, 2, 3, 4))
    assert torch.equal(uniform(keys, 7), flat[:, :7])
    assert uniform(keys, 0).shape == (3, 0)


def test_keys_come_from_the_generator_alone():
    first = sample_keys(torch.Generator().manual_seed(3), 5)
    torch.manual_seed(99)
    assert torch.equal(first, sample_keys(torch.Generator().manual_seed(3), 5))
    assert first.dtype == torch.int64
    assert (first < 0).any()  # all 64 bits are drawn
    assert (first > 0).any()
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, torch.cat([sample_keys(generator, 2), sample_keys(generator, 3)]))


@pytest.fixture(scope="module")
def numbers():
    """A million numbers of a thousand random keys."""
    return uniform(sample_keys(torch.Generator().manual_seed(0), 1000), 1000).double()


def test_uniform_moments(numbers):
    n = numbers.numel()
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 / (12 * n) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    counts = torch.histc(numbers.float(), 256, 0, 1)
    chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert 160 < chi2 < 370  # 255 degrees of freedom, five standard deviations


def _correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_no_correlation_between_neighbours(numbers):
    limit = 4 / 1e6**0.5
    assert _correlation(numbers[:, 1:], numbers[:, :-1]) < limit
    assert _correlation(numbers[1:], numbers[:-1]) < limit


def test_no_correlation_between_consecutive_keys_or_streams():
    """Keys are usually random, but nothing may break where they count upwards."""
    limit = 4 / 1e6**0.5
    keys = torch.arange(1001)
    values = uniform(keys, 1000).double()
    assert _correlation(values[1:], values[:-1]) < limit
    streams = [uniform(fold(keys[:1000], stream), 1000).double() for stream in range(3)]
    assert _correlation(streams[0], streams[1]) < limit
    assert _correlation(streams[1], streams[2]) < limit
    assert _correlation(streams[0], uniform(keys[:1000], 1000).double()) < limit


def test_fold_gives_distinct_keys():
    keys = torch.arange(1000)
    assert torch.cat([fold(keys, stream) for stream in range(20)]).unique().numel() == 20_000


def test_normal_moments():
    values = normal(sample_keys(torch.Generator().manual_seed(1), 500), 1000).double()
    assert values.isfinite().all()
    assert abs(values.mean()) < 4 / 5e5**0.5
    assert abs(values.var() - 1) < 4 * (2 / 5e5) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / 5e5) ** 0.5
    assert values.abs().max() < 5.7  # 24 bits reach 5.5 standard deviations


@pytest.mark.slow  # compiles C++
@pytest.mark.parametrize("count", [5, 100, 196])
def test_compiled_numbers_are_the_same(count):
    keys = sample_keys(torch.Generator().manual_seed(0), 4)
    compiled = torch.compile(lambda k: (uniform(k, count), fold(k, 3)))
    for _ in range(3):
        numbers, folded = compiled(keys)
        assert torch.equal(numbers, uniform(keys, count))
        assert torch.equal(folded, fold(keys, 3))


def test_normal_numbers_are_finite_at_both_ends(monkeypatch):
    """The smallest and the largest uniform number: of 16 million draws one is each."""
    from maskwright.core.masking import random_keys

    ends = torch.tensor([[0.0, 2.0**-24, 0.5, 1 - 2.0**-24]])
    monkeypatch.setattr(random_keys, "uniform", lambda keys, *shape: ends.clone())
    values = normal(torch.zeros(1, dtype=torch.int64), 4)[0]
    assert values.isfinite().all()
    torch.testing.assert_close(values[0], -values[3])
    assert 5 < values[3] < 6
    assert 0 < values[2] < 1e-6
