"""`maskwright medical convert`, `window` and `slices`."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from maskwright.core.errors import ConfigError, DataError
from maskwright.medical.convert import convert_series, write_slices, write_window
from maskwright.medical.fake import fake_ct, fake_nifti, fake_series

A, B = np.cos(0.3), np.sin(0.3)
DIRECTIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (A, B, 0, -B * A, A * A, B),
}


def dcm2niix() -> str:
    found = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    return found or pytest.skip("dcm2niix is not installed")


def by_dcm2niix(folder, out):
    out.mkdir()
    subprocess.run(
        [dcm2niix(), "-z", "n", "-b", "n", "-o", str(out), "-f", "out", str(folder)], check=True, capture_output=True
    )
    return sorted(out.glob("*.nii"))


def same(ours, theirs):
    """Equal voxels at equal places in the world, whatever the order in which they are stored."""
    a, b = (nib.as_closest_canonical(nib.load(file)) for file in (ours, theirs))
    assert a.shape == b.shape
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-3)
    np.testing.assert_allclose(a.get_fdata(), b.get_fdata(), atol=1e-3)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_convert_gives_what_dcm2niix_gives(tmp_path, directions):
    fake_series(tmp_path / "dicom", (20, 18, 9), (1.5, 2.0, 3.0), directions=DIRECTIONS[directions])
    ((ours, _),), bad = convert_series(tmp_path / "dicom", tmp_path / "ours.nii.gz")
    (theirs,) = by_dcm2niix(tmp_path / "dicom", tmp_path / "theirs")
    same(ours, theirs)
    assert not bad
    assert nib.load(ours).get_data_dtype() == np.int16
    header = nib.load(ours).header
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"


def test_convert_a_real_slice_as_dcm2niix_does(shared_data, tmp_path):
    """Two slices made of a real one: dcm2niix on a single slice guesses at its thickness as we do."""
    source = shared_data / "medical" / "tcia_lung_ct_contrast" / "dicom" / "ID_0050_AGE_0074_CONTRAST_0_CT.dcm"
    (tmp_path / "dicom").mkdir()
    for number in range(2):
        one = pydicom.dcmread(source)
        one.ImagePositionPatient = [*list(one.ImagePositionPatient)[:2], 5.0 * number]
        one.SOPInstanceUID = generate_uid()
        one.InstanceNumber = number + 1
        one.save_as(tmp_path / "dicom" / f"{number}.dcm")
    ((ours, _),), _ = convert_series(tmp_path / "dicom", tmp_path / "ours.nii")
    (theirs,) = by_dcm2niix(tmp_path / "dicom", tmp_path / "theirs")
    same(ours, theirs)


def test_convert_writes_one_file_a_series(tmp_path):
    fake_series(tmp_path / "a", (8, 8, 4), seed=1)
    fake_series(tmp_path / "b", (8, 8, 5), seed=2)
    written, _ = convert_series(tmp_path, tmp_path / "out.nii.gz")
    assert [path.name for path, _ in written] == ["out-1.nii.gz", "out-2.nii.gz"]
    assert [nib.load(path).shape[2] for path, _ in written] == [4, 5]


def test_fractions_become_floats(tmp_path):
    fake_series(tmp_path / "a", (8, 8, 4), fields={"RescaleSlope": 0.5})
    ((path, _),), _ = convert_series(tmp_path / "a", tmp_path / "out.nii")
    assert nib.load(path).get_data_dtype() == np.float32
    np.testing.assert_allclose(nib.load(path).get_fdata(), (fake_ct((8, 8, 4)) + 1024.0) * 0.5 - 1024)


def test_convert_refuses(tmp_path):
    with pytest.raises(DataError, match="no DICOM files"):
        convert_series(Path(fake_nifti(tmp_path / "a" / "a.nii")).parent, tmp_path / "out.nii")
    fake_series(tmp_path / "b", (8, 8, 4))
    with pytest.raises(ConfigError, match=r"\.nii\.gz"):
        convert_series(tmp_path / "b", tmp_path / "out.png")


def test_window_of_a_volume_stays_in_place(tmp_path):
    source = nib.load(fake_nifti(tmp_path / "a.nii.gz"))
    written = nib.load(write_window(tmp_path / "a.nii.gz", tmp_path / "w.nii.gz", "soft-tissue"))
    np.testing.assert_allclose(written.affine, source.affine)
    np.testing.assert_allclose(written.get_fdata(), source.get_fdata().clip(-160, 240))


def test_window_of_a_picture(tmp_path):
    values = nib.load(fake_nifti(tmp_path / "a.nii")).get_fdata()[..., 16]
    write_window(tmp_path / "a.nii", tmp_path / "w.png", centre=0, width=200)
    wanted = ((values.clip(-100, 100) + 100) * 255 / 200).round()[::-1, ::-1].T
    assert np.array_equal(np.asarray(Image.open(tmp_path / "w.png")), wanted)


@pytest.mark.parametrize("options", [{}, {"preset": "lung", "centre": 1, "width": 2}, {"centre": 3}, {"preset": "x"}])
def test_windows_that_do_not_fit(tmp_path, options):
    with pytest.raises(ConfigError):
        write_window(fake_nifti(tmp_path / "a.nii"), tmp_path / "w.nii", **options)
    with pytest.raises(ConfigError, match="volumes"):
        write_window(tmp_path / "a.nii", tmp_path / "w.nii", "lung", volume=3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices(tmp_path, axis, bits):
    path = fake_nifti(tmp_path / "a.nii.gz")
    values = nib.load(path).get_fdata()
    along = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    assert write_slices(path, tmp_path / "out", axis, "lung", bits) == values.shape[along]
    with (tmp_path / "out" / "slices.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == values.shape[along]
    row = rows[7]
    image = np.asarray(Image.open(tmp_path / "out" / row["path"]))
    highest = 2**bits - 1
    wanted = ((values.take(7, along).clip(-1350, 150) + 1350) * (highest / 1500)).round()[::-1, ::-1].T
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.abs(image - wanted).max() <= (bits == 16)
    middle = [(length - 1) / 2 for length in values.shape]
    middle[along] = 7
    centre = nib.load(path).affine @ [*middle, 1]
    np.testing.assert_allclose([float(row[key]) for key in ("x_mm", "y_mm", "z_mm")], centre[:3], atol=1e-3)
    assert (float(row["black"]), float(row["white"])) == (-1350, 150)


def test_slices_refuse(tmp_path):
    path = fake_nifti(tmp_path / "a.nii")
    assert write_slices(path, tmp_path / "out", count=3) == 3
    with pytest.raises(ConfigError, match="not empty"):
        write_slices(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="bits=12"):
        write_slices(path, tmp_path / "other", bits=12)
    fake_nifti(tmp_path / "b.nii")
    with pytest.raises(DataError, match="2 volumes"):
        write_slices(tmp_path, tmp_path / "other")
