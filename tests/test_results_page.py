"""docs/results.md is made from the stored results, and from nothing else."""

import json

from benchmarks.evidence import results


def test_page_is_fresh():
    assert results.PAGE.read_text() == results.render(), "run: python -m benchmarks.evidence.results"


def test_every_result_has_seeds_spread_and_environment():
    paths = list(results.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        result = json.loads(path.read_text())
        assert result["environment"]["torch"], path
        assert any(len(row["values"]) >= 3 for row in result["rows"]), path
