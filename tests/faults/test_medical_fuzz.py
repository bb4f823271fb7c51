"""Damaged NIfTI and DICOM files: an error that names the file, or voxels of the right shape; never anything else."""

from collections import Counter

import pytest

from tests.faults.fuzz_volumes import BAD, FORMATS, run


def check(found, count):
    assert len(found) == count
    wrong = [one for one in found if one["outcome"] in BAD]
    assert not wrong, wrong[:5]
    outcomes = Counter((one["kind"], one["outcome"]) for one in found)
    for kind in FORMATS:
        assert outcomes[kind, "DataError"] > 0, f"no damage to {kind} was noticed"
        if kind == "zipped.nii.gz":
            continue  # its checksum notices every change
        assert outcomes[kind, "read"] > 0, f"every damage to {kind} was refused, also that of single voxels"


def test_some_hundred_damaged_files(tmp_path):
    check(run(20 * len(FORMATS), tmp_path), 20 * len(FORMATS))


@pytest.mark.slow
def test_some_thousand_damaged_files(tmp_path):
    check(run(5000, tmp_path, seed=1), 5000)
