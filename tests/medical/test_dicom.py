"""DICOM: slices in order, units, series apart, and what cannot be a volume."""

import shutil

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from maskwright.core.errors import DataError
from maskwright.medical import dicom
from maskwright.medical.fake import fake_ct, fake_series
from maskwright.medical.find import find_volumes
from maskwright.medical.loaders import SliceLoader, VolumeLoader

SHAPE = (20, 16, 9)


def edit(path, **fields):
    """Set fields of a file; None takes one away."""
    one = pydicom.dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    pydicom.dcmwrite(path, one, enforce_file_format=True)


def whole(volume):
    return volume.read(tuple(slice(0, length) for length in volume.shape))


def reasons(folder, single=False):
    return " ".join(bad.reason for bad in find_volumes(folder, single).bad)


def test_slices_lie_in_space_whatever_their_names_and_numbers(tmp_path):
    fake_series(tmp_path, SHAPE, (2.0, 1.5, 3.0))
    (volume,) = find_volumes(tmp_path).volumes
    assert np.array_equal(whole(volume), fake_ct(SHAPE))
    assert volume.unit == "HU"
    assert volume.modality == "CT"
    np.testing.assert_allclose(volume.affine, np.diag([-2.0, -1.5, 3.0, 1.0]), atol=1e-9)
    sample = VolumeLoader(tmp_path).read(0)
    assert torch.equal(sample["volume"][0], torch.from_numpy(fake_ct(SHAPE)[::-1, ::-1].T.astype(np.float32)))
    np.testing.assert_allclose(
        sample.meta.extra["affine"], [[2, 0, 0, -38], [0, 1.5, 0, -22.5], [0, 0, 3, 0], [0, 0, 0, 1]]
    )


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    """As PET has: the stored numbers of each slice are scaled on their own."""
    for number, path in enumerate(fake_series(tmp_path, SHAPE)):
        edit(path, RescaleSlope=0.5 + number, RescaleIntercept=-10 * number)
    (volume,) = find_volumes(tmp_path).volumes
    slopes, intercepts = 0.5 + np.arange(9), -10 * np.arange(9)
    np.testing.assert_allclose(whole(volume), (fake_ct(SHAPE) + 1024) * slopes + intercepts, rtol=1e-6)


def test_a_ct_that_does_not_say_how_to_get_there_is_not_in_hu(tmp_path):
    for path in fake_series(tmp_path, SHAPE):
        edit(path, RescaleSlope=None, RescaleIntercept=None)
    loader = VolumeLoader(tmp_path, orientation="stored")
    assert loader.spec["volume"].unit == "as stored"
    assert np.array_equal(loader.read(0)["volume"][0].numpy().T, fake_ct(SHAPE) + 1024)
    with pytest.raises(DataError, match=r"no HU.*data\.window=\[centre, width\]"):
        VolumeLoader(tmp_path, window="lung")


def test_series_in_one_folder_are_told_apart(tmp_path):
    fake_series(tmp_path, SHAPE)
    for number, path in enumerate(fake_series(tmp_path / "other", SHAPE, seed=1)):
        shutil.move(path, tmp_path / f"a{number}.dcm")
    localiser = fake_series(tmp_path / "other", (20, 16, 2), seed=0, directions=(0, 1, 0, 0, 0, -1))
    for number, path in enumerate(localiser):
        edit(path, SOPInstanceUID=generate_uid())
        shutil.move(path, tmp_path / f"b{number}.dcm")
    found = find_volumes(tmp_path)
    assert len(found.volumes) == 3
    assert not found.bad
    assert len({volume.name for volume in found.volumes}) == 3
    assert sorted(volume.shape[2] for volume in found.volumes) == [2, 9, 9]
    assert len({volume.group for volume in found.volumes}) == 2


def test_localisers_are_no_volumes(tmp_path):
    fake_series(tmp_path / "a", SHAPE)
    fake_series(tmp_path / "b", (20, 16, 3), seed=1, fields={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    found = find_volumes(tmp_path)
    assert [volume.shape for volume in found.volumes] == [SHAPE]
    assert not found.bad
    assert len(SliceLoader(tmp_path)) == 9 + 3


def test_phases_of_one_series_are_told_apart(tmp_path):
    fake_series(tmp_path, SHAPE)
    for path in fake_series(tmp_path / "second", SHAPE):
        edit(path, AcquisitionNumber=2, SOPInstanceUID=generate_uid())
        shutil.move(path, tmp_path / f"x{path.name}")
    assert [volume.shape for volume in find_volumes(tmp_path).volumes] == [SHAPE, SHAPE]


def test_missing_slices(tmp_path):
    paths = fake_series(tmp_path, SHAPE)
    paths[4].unlink()
    assert "1 of its slices are missing: 5.00 mm between slices 4 and 5" in reasons(tmp_path)
    paths[5].unlink()
    with pytest.raises(DataError, match="2 of its slices are missing"):
        VolumeLoader(tmp_path)


def test_uneven_slices(tmp_path):
    edit(fake_series(tmp_path, SHAPE)[4], ImagePositionPatient=[0, 0, 10.9])
    assert "lie unevenly" in reasons(tmp_path)


def test_slices_at_one_place(tmp_path):
    edit(fake_series(tmp_path, SHAPE)[4], ImagePositionPatient=[0, 0, 7.5])
    assert "1 of 9 slices of a series lie where another lies" in reasons(tmp_path)


def test_copies_are_left_out_and_said(tmp_path):
    paths = fake_series(tmp_path, SHAPE)
    shutil.copy(paths[0], tmp_path / "zz.dcm")
    found = find_volumes(tmp_path)
    assert [volume.shape for volume in found.volumes] == [SHAPE]
    assert [bad.path for bad in found.bad] == [str(tmp_path / "zz.dcm")]
    assert "copy" in found.bad[0].reason


def test_a_tilted_gantry(tmp_path):
    angle = np.radians(12)
    fake_series(tmp_path, SHAPE, step=(0, 2.5 * np.sin(angle), 2.5 * np.cos(angle)))
    assert "by 12.0 degrees: the gantry was tilted" in reasons(tmp_path)
    assert "dcm2niix" in reasons(tmp_path)


def test_oblique_slices_are_no_tilt(tmp_path):
    a, b = np.cos(0.3), np.sin(0.3)
    fake_series(tmp_path, SHAPE, directions=(a, b, 0, -b * a, a * a, b))
    (volume,) = find_volumes(tmp_path).volumes
    assert np.array_equal(whole(volume), fake_ct(SHAPE))
    np.testing.assert_allclose(volume.spacing, (2, 2, 2.5), rtol=1e-4)


def test_different_pixel_spacings(tmp_path):
    edit(fake_series(tmp_path, SHAPE)[3], PixelSpacing=[1.0, 1.0])
    assert "different pixel spacings" in reasons(tmp_path)


def test_single_slices_are_for_the_other_loader(tmp_path):
    fake_series(tmp_path, (20, 16, 1))
    assert "single slice" in reasons(tmp_path)
    assert not VolumeLoader.accepts(tmp_path)
    assert SliceLoader.accepts(tmp_path)
    sample = SliceLoader(tmp_path).read(0)
    assert sample["image"].shape == (1, 16, 20)
    assert sample.meta.extra["spacing"] == pytest.approx([2, 2, 2.5])


# formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed(tmp_path, syntax):
    pytest.importorskip("openjpeg")
    shape = (64, 48, 3)
    for path in fake_series(tmp_path, shape):
        one = pydicom.dcmread(path)
        one.compress(syntax, generate_instance_uid=False)
        one.save_as(path)
    (volume,) = find_volumes(tmp_path).volumes
    assert np.array_equal(whole(volume), fake_ct(shape))


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_compressed_like_uncompressed(name):
    """Files that come with pydicom: one picture in several formats."""
    pytest.importorskip("libjpeg")
    files = [get_testdata_file(one, download=False) for one in (name, "MR_small.dcm")]
    if None in files:
        pytest.skip("this pydicom does not bring the file")
    images = [SliceLoader(file).read(0)["image"] for file in files]
    assert torch.equal(*images)


def test_a_compression_that_nothing_decodes_names_the_package(tmp_path, monkeypatch):
    one = pydicom.dcmread(fake_series(tmp_path, SHAPE)[0])
    one.compress(RLELossless, generate_instance_uid=False)
    one.save_as(tmp_path / "a.dcm")

    class Missing:
        is_available = False

    monkeypatch.setattr(dicom, "get_decoder", lambda syntax: Missing)
    with pytest.raises(DataError, match=r"RLE Lossless.*pip install \"maskwright\[medical\]\""):
        SliceLoader(tmp_path / "a.dcm")


def test_big_endian_and_unsigned_with_padding(tmp_path):
    for path in fake_series(tmp_path, SHAPE):
        one = pydicom.dcmread(path)
        pixels = one.pixel_array.copy()
        pixels[0, 0] = -2000
        one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        one.PixelData = pixels.astype(">i2").tobytes()
        one.add_new("PixelPaddingValue", "US", 63536)  # -2000 in 16 bits, as some writers have it
        pydicom.dcmwrite(path, one, little_endian=False, implicit_vr=False)
    (volume,) = find_volumes(tmp_path).volumes
    values = whole(volume)
    assert np.isnan(values[0, 0]).all()
    assert np.isnan(values).sum() == 9
    filled = VolumeLoader(tmp_path, orientation="stored").read(0)["volume"]
    assert filled[0, :, 0, 0].unique().item() == fake_ct(SHAPE)[np.isfinite(values)].min()
    assert volume.whole()[0, 0, 0] == -3024  # conversion changes nothing


def test_12_bits_with_something_else_in_the_unused_ones(tmp_path):
    for path in fake_series(tmp_path, SHAPE):
        one = pydicom.dcmread(path)
        pixels = np.clip(one.pixel_array, 0, 4095).astype(np.uint16) | 0x5000
        one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, 0
        one.PixelData = pixels.astype("<u2").tobytes()
        pydicom.dcmwrite(path, one)
    (volume,) = find_volumes(tmp_path).volumes
    assert np.array_equal(whole(volume), np.clip(fake_ct(SHAPE), -1024, 3071))


def test_low_is_bright_in_a_radiograph(tmp_path):
    fields = {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11,
              "PixelRepresentation": 0, "RescaleIntercept": 0}  # fmt: skip
    path = fake_series(tmp_path, (20, 16, 1), fields=fields)[0]
    edit(path, PixelData=np.full((16, 20), 95, "<u2").tobytes())
    assert (SliceLoader(path).read(0)["image"] == 4000).all()


def enhanced(path, fields=None):
    """One multi-frame file of 9 slices, stored in a mixed order."""
    files = fake_series(path.parent / "single", SHAPE)
    values = fake_ct(SHAPE) + 1024
    order = np.random.default_rng(0).permutation(9)
    one = pydicom.dcmread(files[0])
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    one.NumberOfFrames = 9
    one.PixelData = values[..., order].T.astype("<i2").tobytes()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(one, name)

    def macro(name, **values):
        item, inner = Dataset(), Dataset()
        for key, value in values.items():
            setattr(inner, key, value)
        setattr(item, name, Sequence([inner]))
        return item

    shared = macro("PixelMeasuresSequence", PixelSpacing=[2.0, 2.0], SliceThickness=2.5)
    shared.update(macro("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    shared.update(macro("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024))
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    one.PerFrameFunctionalGroupsSequence = Sequence(
        [macro("PlanePositionSequence", ImagePositionPatient=[0, 0, 2.5 * int(number)]) for number in order]
    )
    for name, value in (fields or {}).items():
        setattr(one, name, value)
    shutil.rmtree(path.parent / "single")
    pydicom.dcmwrite(path, one, enforce_file_format=True)


def test_multi_frame_files(tmp_path):
    enhanced(tmp_path / "a.dcm")
    assert VolumeLoader.accepts(tmp_path)
    assert VolumeLoader.accepts(tmp_path / "a.dcm")
    (volume,) = find_volumes(tmp_path).volumes
    assert np.array_equal(whole(volume), fake_ct(SHAPE))
    np.testing.assert_allclose(volume.spacing, (2, 2, 2.5))
    assert volume.unit == "HU"
    part = volume.read((slice(3, 9), slice(0, 5), slice(4, 6)))
    assert np.array_equal(part, fake_ct(SHAPE)[3:9, 0:5, 4:6])


REFUSED = [
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour picture"),
    ({"PixelSpacing": [0, 1]}, "PixelSpacing"),
    ({"PixelSpacing": [-1, 1]}, "PixelSpacing"),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "right angles"),
    ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "right angles"),
    ({"RescaleSlope": 0}, "slope"),
    ({"Rows": 60000, "Columns": 60000}, "at most"),
    ({"Rows": 600}, "bytes of pixels"),
    ({"NumberOfFrames": 40000}, "bytes of pixels"),
    ({"BitsAllocated": 12}, "bits"),
    ({"BitsStored": 30}, "bits"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_is_refused(tmp_path, fields, words):
    paths = fake_series(tmp_path / "a", SHAPE, fields=fields)
    assert words in reasons(tmp_path)
    with pytest.raises(DataError, match=words):
        SliceLoader(paths[0])


def test_deflated_is_refused(tmp_path):
    path = fake_series(tmp_path, SHAPE)[0]
    one = pydicom.dcmread(path)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, one)
    with pytest.raises(DataError, match="deflated"):
        SliceLoader(path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_cut_short(tmp_path, share):
    path = fake_series(tmp_path, (64, 64, 1))[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=path.name):
        SliceLoader(path)


def test_other_files_in_the_folder_do_not_matter(tmp_path):
    fake_series(tmp_path, SHAPE)
    (tmp_path / "notes.txt").write_text("Not data.")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "page.dcm").write_text("<!DOCTYPE html>" * 100)
    report = pydicom.dcmread(fake_series(tmp_path / "x", (4, 4, 1))[0])
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    pydicom.dcmwrite(tmp_path / "report", report)
    shutil.rmtree(tmp_path / "x")
    found = find_volumes(tmp_path)
    assert len(found.volumes) == 1
    assert {bad.path.rpartition("/")[2] for bad in found.bad} == {"empty.dcm", "page.dcm"}


def test_real_slices(shared_data):
    loader = SliceLoader(shared_data / "medical" / "tcia_lung_ct_contrast")
    stored = np.load(shared_data / "medical" / "tcia_lung_ct_contrast" / "slices.npz")
    assert len(loader) == 4
    assert not loader.bad_files
    assert loader.spec["image"].unit == "HU"
    hu = [
        pixels * slope + intercept
        for pixels, slope, intercept, source in zip(
            stored["pixels"].astype(float),
            stored["rescale_slope"],
            stored["rescale_intercept"],
            stored["source_id"],
            strict=True,
        )
        if source in (1, 2, 50, 51)
    ]
    for index, (wanted, sign) in enumerate(zip(hu, (1, 1, -1, -1), strict=True)):
        values = loader.views[index].volume.whole()[..., 0].T
        assert np.array_equal(values, wanted)
        # RAS: supine patients' rows and columns run the other way, those turned by 180 degrees already do
        image = loader.read(index)["image"][0].numpy()
        kept = np.where(wanted < -1024, np.nan, wanted)[::-sign, ::-sign]
        assert np.array_equal(image[np.isfinite(kept)], kept[np.isfinite(kept)])
    assert len({loader.group(index) for index in range(4)}) == 4


def test_reader_edge_cases(shared_data):
    folder = shared_data / "medical" / "dicom_nifti_readers"
    assert SliceLoader(folder / "JPEG2000.dcm").read(0)["image"].shape == (1, 1024, 256)
    assert set(SliceLoader(folder / "liver_1frame.dcm").read(0)["image"].unique().tolist()) <= {0.0, 1.0}
    assert SliceLoader(folder / "MR_small.dcm").spec["image"].unit == "as stored"
    for name in ("ExplVR_BigEnd.dcm", "examples_ybr_color.dcm"):
        with pytest.raises(DataError, match="colour picture"):
            SliceLoader(folder / name)
    with pytest.raises(DataError, match="modality MR"):
        SliceLoader(folder / "MR_small.dcm", window="lung")


def test_a_false_transfer_syntax(tmp_path):
    """A file that says that it is compressed and is not."""
    path = fake_series(tmp_path, (20, 16, 1))[0]
    data = path.read_bytes().replace(ExplicitVRLittleEndian.encode() + b"\0", JPEG2000Lossless.encode()[:20])
    path.write_bytes(data)
    with pytest.raises(DataError):
        SliceLoader(path).read(0)
