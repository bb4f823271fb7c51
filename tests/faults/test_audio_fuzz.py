"""Damaged sound files: an error that names the file, or frames of the right shape; never a shorter one for a whole one."""

from collections import Counter

import pytest

from tests.faults.fuzz_audio import BAD, FORMATS, run

CHECKED = ("sound.flac", "sound.ogg", "sound.opus")
"""Their checksums notice nearly every change."""


def check(found, count):
    assert len(found) == count
    wrong = [one for one in found if one["outcome"] in BAD]
    assert not wrong, wrong[:5]
    outcomes = Counter((one["kind"], one["outcome"]) for one in found)
    for kind in FORMATS:
        assert outcomes[kind, "DataError"] > 0, f"no damage to {kind} was noticed"
        assert kind in CHECKED or outcomes[kind, "read"] > 0, (
            f"every damage to {kind} was refused, also of single samples"
        )


def test_some_hundred_damaged_files(tmp_path):
    check(run(50 * len(FORMATS), tmp_path), 50 * len(FORMATS))


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(run(10000, tmp_path, seed=1), 10000)
