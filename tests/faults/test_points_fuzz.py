"""Damaged files of points: an error that names the file, or as many points as it declares; never anything else."""

import pytest

from tests.faults.fuzz_points import CHECKSUM, FORMATS
from tests.faults.fuzzing import check, run

MODULE = "tests.faults.fuzz_points"


def test_some_hundred_damaged_files(tmp_path):
    count = 30 * len(FORMATS)
    check(MODULE, run(MODULE, count, tmp_path), count, CHECKSUM)


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(MODULE, run(MODULE, 8000, tmp_path, seed=1), 8000, CHECKSUM)
