import pytest

from maskwright.core.evaluation.scores import Score, Verdict, paired_difference


def test_mean_and_sample_deviation():
    score = Score("a", "p", "m", [0.5, 0.7])
    assert score.mean == pytest.approx(0.6)
    assert score.std == pytest.approx(0.1414, abs=1e-4)
    assert str(score) == "0.600 ± 0.141"
    assert str(Score("a", "p", "m", [0.25])) == "0.250"


def test_paired_difference_of_constant_gain_is_that_gain():
    baseline = [[0.5, 0.6], [0.4, 0.7], [0.55, 0.65]]
    ours = [[value + 0.1 for value in row] for row in baseline]
    assert paired_difference(ours, baseline) == pytest.approx((0.1, 0.1, 0.1))


def test_interval_covers_nothing_when_seeds_disagree():
    difference, low, high = paired_difference([[0.7, 0.7], [0.3, 0.3]], [[0.5, 0.5], [0.5, 0.5]])
    assert difference == pytest.approx(0)
    assert low < -0.1 < 0.1 < high


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.1, "helped"), (-0.2, -0.1, "did not help, it did worse"), (-0.1, 0.2, "cannot tell with this much data")],
)
def test_verdict_in_words(low, high, words):
    verdict = Verdict("random init", "linear probe", "accuracy", (low + high) / 2, low, high)
    assert verdict.words == words
    assert words in str(verdict)
    assert "random init" in str(verdict)
