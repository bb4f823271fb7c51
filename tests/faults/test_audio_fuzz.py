"""Damaged sound files: an error that names the file, or frames of the right shape; never a shorter one for a whole one."""

import pytest

from tests.faults.fuzz_audio import FORMATS
from tests.faults.fuzzing import check, run

MODULE = "tests.faults.fuzz_audio"
CHECKSUM = ("sound.flac", "sound.ogg", "sound.opus")
"""Kinds whose checksums notice nearly every change."""


def test_some_hundred_damaged_files(tmp_path):
    count = 50 * len(FORMATS)
    check(MODULE, run(MODULE, count, tmp_path), count, CHECKSUM)


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(MODULE, run(MODULE, 10000, tmp_path, seed=1), 10000, CHECKSUM)
