"""Damaged NIfTI and DICOM files: an error that names the file, or voxels of the right shape; never anything else."""

import pytest

from tests.faults.fuzz_volumes import FORMATS
from tests.faults.fuzzing import check, run

MODULE = "tests.faults.fuzz_volumes"
CHECKSUM = ("zipped.nii.gz",)
"""Kinds whose checksums notice nearly every change."""


def test_some_hundred_damaged_files(tmp_path):
    count = 20 * len(FORMATS)
    check(MODULE, run(MODULE, count, tmp_path), count, CHECKSUM)


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(MODULE, run(MODULE, 5000, tmp_path, seed=1), 5000, CHECKSUM)
