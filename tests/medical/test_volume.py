"""Views of volumes: turned, resampled, cut; and written back to where they came from."""

import nibabel as nib
import numpy as np
import pytest

from maskwright.core.errors import DataError
from maskwright.medical.base import codes_on
from maskwright.medical.fake import fake_nifti
from maskwright.medical.nifti import NiftiVolume
from maskwright.medical.volume import View, check_affine
from maskwright.medical.writers import write_volume

ROTATION = np.array([[0, -1, 0.1], [1, 0, 0.05], [-0.05, -0.1, -1]])


def oblique(spacing=(1.5, 2.0, 3.0)):
    """Axes that lead roughly to anterior, left and inferior, not quite along the scanner's."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(ROTATION)[0] * np.sign(np.diag(np.linalg.qr(ROTATION)[1])) * spacing
    affine[:3, 3] = (12.5, -40.0, 7.25)
    return affine


def ramp(path, shape=(21, 18, 15), affine=None, dtype=np.float32):
    """A volume whose values are its world coordinates: x + 100 y + 10000 z."""
    affine = oblique() if affine is None else affine
    places = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)], axis=-1) @ affine.T
    nib.save(nib.Nifti1Image((places[..., :3] @ [1, 100, 10000]).astype(dtype), affine), path)
    return NiftiVolume(path)


def worlds(affine, shape):
    """x + 100 y + 10000 z of every voxel of (D, H, W) with an affine from (x, y, z)."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (np.stack([x, y, z, np.ones(shape)], axis=-1) @ affine.T)[..., :3] @ [1, 100, 10000]


def whole(view):
    return tuple(slice(0, length) for length in view.shape)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI", "stored"])
def test_the_affine_says_where_each_voxel_lies(tmp_path, orientation):
    view = View.of(ramp(tmp_path / "a.nii"), orientation)
    values = view.read(whole(view))[0]
    np.testing.assert_allclose(values, worlds(view.affine_at(), values.shape), rtol=1e-5, atol=0.5)
    if orientation != "stored":
        assert "".join(nib.aff2axcodes(view.affine_at())) == orientation


def test_a_box_is_a_part_of_the_whole(tmp_path):
    view = View.of(ramp(tmp_path / "a.nii"))
    box = (slice(3, 9), slice(2, 13), slice(5, 6))
    assert np.array_equal(view.read(box)[0], view.read(whole(view))[0][5:6, 2:13, 3:9])
    np.testing.assert_allclose(view.read(box)[0], worlds(view.affine_at((3, 2, 5)), (1, 11, 6)), rtol=1e-5, atol=0.5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 3.5, 6.0), (1.0, 4.0, None)])
def test_resampling_keeps_places_and_boxes_agree_with_the_whole(tmp_path, spacing):
    view = View.of(ramp(tmp_path / "a.nii"), "RAS", spacing)
    values = view.read(whole(view))[0]
    wanted = worlds(view.affine_at(), values.shape)
    inside = (slice(3, -3),) * 3 if min(values.shape) > 8 else (slice(2, -2),) * 3
    np.testing.assert_allclose(values[inside], wanted[inside], rtol=1e-4, atol=2)  # a ramp survives linear filters
    box = tuple(slice(1, length - 1) for length in view.shape)
    np.testing.assert_allclose(view.read(box)[0], values[1:-1, 1:-1, 1:-1], rtol=1e-5, atol=0.5)
    for length, old, step in zip(view.shape, view.lengths(), view.steps, strict=True):
        assert abs(length * step - old) <= step / 2 + 1e-9


def test_a_whole_volume_is_brought_to_a_shape(tmp_path):
    volume = ramp(tmp_path / "a.nii")
    view = View.of(volume, "RAS", shape=(7, 30, 5))
    values = view.read(whole(view))[0]
    assert values.shape == (5, 30, 7)
    wanted = worlds(view.affine_at(), values.shape)
    np.testing.assert_allclose(values[1:-1, 3:-3, 2:-2], wanted[1:-1, 3:-3, 2:-2], rtol=1e-4, atol=2)
    same = View.of(volume, "RAS", shape=View.of(volume).shape)
    assert not same.resampled


def test_coarser_grids_do_not_alias(tmp_path):
    """A pattern of single voxels is gone at four times the spacing, where every fourth voxel would keep it whole."""
    stripes = np.where(np.arange(64) % 4 == 0, 100.0, 0.0)[:, None, None] * np.ones((1, 16, 16))
    nib.save(nib.Nifti1Image(stripes.astype(np.float32), np.eye(4)), tmp_path / "a.nii")
    view = View.of(NiftiVolume(tmp_path / "a.nii"), "RAS", (4.0, None, None))
    assert view.read(whole(view))[0].std() < 10


def test_nan_is_filled_or_kept_and_infinity_refused(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(5, 4, 3) + 7
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    view = View.of(NiftiVolume(tmp_path / "a.nii"))
    assert view.read(whole(view))[0, 0, 0, 0] == 8
    assert np.isnan(view.read(whole(view), fill=False)).sum() == 1
    values[1, 1, 1] = np.inf
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "b.nii")
    view = View.of(NiftiVolume(tmp_path / "b.nii"))
    with pytest.raises(DataError, match="infinite"):
        view.read(whole(view))


@pytest.mark.parametrize("spoil", ["zero", "nan", "flat", "huge"])
def test_affines_that_place_nothing(spoil):
    affine = np.eye(4)
    if spoil == "zero":
        affine[:, 0] = 0
    elif spoil == "nan":
        affine[1, 1] = np.nan
    elif spoil == "flat":
        affine[:3, 1] = affine[:3, 0]
    else:
        affine *= 1e30
    with pytest.raises(DataError, match="affine"):
        check_affine("a.nii", affine)


# written back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_map_lies_where_its_source_lies(tmp_path, codes, suffix):
    sform, qform = codes
    source = nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32), oblique())
    source.header.set_sform(oblique(), sform)
    source.header.set_qform(oblique(), qform)
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, tmp_path / "source.nii")
    source = nib.load(tmp_path / "source.nii")
    volume = NiftiVolume(tmp_path / "source.nii")
    view = View.of(volume, "LPS")
    labels = (view.read(whole(view))[0] > 0).astype(np.uint8)
    written = nib.load(write_volume(tmp_path / f"map{suffix}", labels, view))
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
    assert int(written.header["sform_code"]) == int(source.header["sform_code"])
    assert int(written.header["qform_code"]) == int(source.header["qform_code"])
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(written.dataobj), (np.asarray(source.dataobj) > 0).astype(np.uint8))


def test_a_resampled_map_comes_back_to_the_grid_of_its_source(tmp_path):
    volume = ramp(tmp_path / "a.nii", (40, 36, 30))
    view = View.of(volume, "RAS", (3.0, 3.0, 3.0))
    values = view.read(whole(view))[0]
    written = nib.load(write_volume(tmp_path / "map.nii.gz", values, view))
    assert written.shape == volume.shape
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)
    inner = (slice(6, -6),) * 3
    wanted = nib.load(tmp_path / "a.nii").get_fdata()
    # a coordinate is given back where it was, within a hundredth of a voxel of 1.5 mm: z counts 10000 a millimetre
    np.testing.assert_allclose(written.get_fdata()[inner], wanted[inner], atol=150)
    codes = (values > np.median(values)).astype(np.int16) * 17
    again = nib.load(write_volume(tmp_path / "codes.nii", codes, view))
    assert again.get_data_dtype() == np.int16
    assert set(np.unique(np.asarray(again.dataobj))) == {0, 17}


def test_several_classes_become_a_4d_file(tmp_path):
    volume = NiftiVolume(fake_nifti(tmp_path / "a.nii", (6, 5, 4)))
    shares = np.random.default_rng(0).random((3, 6, 5, 4)).astype(np.float32)
    written = nib.load(write_volume(tmp_path / "map.nii.gz", shares, volume))
    assert written.shape == (6, 5, 4, 3)
    assert np.array_equal(np.asarray(written.dataobj), np.moveaxis(shares, 0, -1))


def test_equal_maps_are_equal_files(tmp_path):
    volume = NiftiVolume(fake_nifti(tmp_path / "a.nii", (6, 5, 4)))
    for name in ("b.nii.gz", "c.nii.gz"):
        write_volume(tmp_path / name, np.ones(volume.shape, np.uint8), volume)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_arrays_of_another_shape_or_type_are_refused(tmp_path):
    volume = NiftiVolume(fake_nifti(tmp_path / "a.nii", (6, 5, 4)))
    with pytest.raises(DataError, match="shape"):
        write_volume(tmp_path / "b.nii", np.zeros((4, 5, 6)), volume)
    with pytest.raises(DataError, match="float16"):
        write_volume(tmp_path / "b.nii", np.zeros((6, 5, 4), np.float16), volume)
    with pytest.raises(DataError, match="ending"):
        write_volume(tmp_path / "b.mha", np.zeros((6, 5, 4), np.uint8), volume)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]


# label volumes -----------------------------------------------------------------------------------------------------


def test_codes_follow_any_grid(tmp_path):
    """Codes of a label volume at the same places, whatever way either of the two is stored."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    codes = np.random.default_rng(0).integers(0, 30000, (10, 9, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(codes, affine), tmp_path / "codes.nii")
    turned = nib.as_closest_canonical(nib.Nifti1Image(codes, affine)).as_reoriented(
        nib.orientations.axcodes2ornt(("P", "I", "R"))
    )
    nib.save(turned, tmp_path / "turned.nii.gz")
    for name in ("codes.nii", "turned.nii.gz"):
        found = codes_on(tmp_path / name, affine, (8, 9, 10))
        assert np.array_equal(found, codes.T)
    finer = np.diag([1.0, 1.0, 1.0, 1.0])
    finer[:3, 3] = -0.5
    assert np.array_equal(codes_on(tmp_path / "codes.nii", finer, (16, 18, 20)), np.kron(codes.T, np.ones((2, 2, 2))))


def test_outside_of_a_label_volume_there_is_no_code(tmp_path):
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 3, np.uint8), np.eye(4)), tmp_path / "codes.nii")
    shifted = np.eye(4)
    shifted[:3, 3] = (-2, 0, 0)
    found = codes_on(tmp_path / "codes.nii", shifted, (4, 4, 4))
    assert (found[..., :2] == -1).all()
    assert (found[..., 2:] == 3).all()
    shifted[:3, 3] = (50, 0, 0)
    with pytest.raises(DataError, match="elsewhere"):
        codes_on(tmp_path / "codes.nii", shifted, (4, 4, 4))
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4)), tmp_path / "half.nii")
    with pytest.raises(DataError, match="no codes"):
        codes_on(tmp_path / "half.nii", np.eye(4), (4, 4, 4))
