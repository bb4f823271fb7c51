"""Damaged files of points: an error that names the file, or as many points as it declares; never anything else."""

from collections import Counter

import pytest

from tests.faults.fuzz_points import BAD, CHECKSUM, FORMATS, run


def check(found, count):
    assert len(found) == count
    wrong = [one for one in found if one["outcome"] in BAD]
    assert not wrong, wrong[:5]
    outcomes = Counter((one["kind"], one["outcome"]) for one in found)
    for kind in FORMATS:
        assert outcomes[kind, "DataError"] > 0, f"no damage to {kind} was noticed"
        if kind not in CHECKSUM:
            assert outcomes[kind, "read"] > 0, f"every damage to {kind} was refused, also that of single coordinates"


def test_some_hundred_damaged_files(tmp_path):
    check(run(30 * len(FORMATS), tmp_path), 30 * len(FORMATS))


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(run(8000, tmp_path, seed=1), 8000)
