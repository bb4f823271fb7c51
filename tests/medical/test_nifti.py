"""NIfTI files: what is read, and what is refused before anything is allocated."""

import gzip
import os
import struct
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from maskwright.core.errors import DataError
from maskwright.medical import cache
from maskwright.medical.fake import fake_ct, fake_nifti
from maskwright.medical.loaders import VolumeLoader
from maskwright.medical.nifti import NiftiVolume, is_nifti

EVERYTHING = (slice(None),) * 3


def change(path, place, form, *values):
    """Overwrite fields of a header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{form}", data, place, *values)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<i4", "<f4", "<f8", "<u2"])
@pytest.mark.parametrize("zipped", [False, True])
def test_reads_what_nibabel_reads(tmp_path, kind, dtype, zipped):
    values = (fake_ct((11, 9, 7)) // 16 + 100).astype(dtype)
    image = kind(
        values, np.diag([2.0, 2.0, 3.0, 1.0]), kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    )
    image.set_data_dtype(dtype)
    name = "a.img" if kind is nib.Nifti1Pair else "a.nii"
    if zipped:
        if kind is nib.Nifti1Pair:
            pytest.skip("pairs are rarely gzip'd")
        name += ".gz"
    nib.save(image, tmp_path / name)
    volume = NiftiVolume(tmp_path / name)
    wanted = nib.load(tmp_path / name)
    np.testing.assert_allclose(volume.read(EVERYTHING), wanted.get_fdata(), rtol=1e-6)
    np.testing.assert_array_equal(volume.affine, wanted.affine)
    part = (slice(2, 7), slice(0, 3), slice(6, 7))
    assert np.array_equal(volume.read(part), volume.read(EVERYTHING)[part])
    assert is_nifti(tmp_path / name)


def test_real_files_read_as_nibabel_reads_them(shared_data):
    for file in sorted((shared_data / "medical").rglob("*.nii*")):
        volume, image = NiftiVolume(file), nib.load(file)
        frame = volume.frames - 1
        values = image.get_fdata()
        np.testing.assert_allclose(
            volume.read(EVERYTHING, frame), values[..., frame] if values.ndim == 4 else values, rtol=1e-6, atol=1e-4
        )
        np.testing.assert_allclose(volume.affine, image.affine)


def test_scaling_is_applied(tmp_path):
    path = fake_nifti(tmp_path / "a.nii", (6, 5, 4))
    plain = NiftiVolume(path).read(EVERYTHING)
    change(path, 112, "ff", 2.5, -10)
    np.testing.assert_allclose(NiftiVolume(path).read(EVERYTHING), plain * 2.5 - 10)


BROKEN = [
    (40, "8h", (3, 0, 9, 9, 1, 1, 1, 1), "dimensions"),
    (40, "8h", (3, -5, 9, 9, 1, 1, 1, 1), "dimensions"),
    (40, "8h", (9, 5, 9, 9, 1, 1, 1, 1), "dimensions"),
    (40, "8h", (3, 3000, 3000, 3000, 1, 1, 1, 1), "at most 1073741824"),
    (40, "8h", (3, 900, 900, 900, 1, 1, 1, 1), "its header announces"),
    (40, "8h", (5, 6, 5, 2, 1, 2, 1, 1), "5 dimensions"),
    (70, "h", (128,), "RGB"),
    (70, "h", (2304,), "RGB"),
    (70, "h", (32,), "complex"),
    (70, "h", (999,), "unknown type"),
    (80, "3f", (0, 1, 1), "spacing of 0 x 1 x 1"),
    (80, "3f", (1, -2, 1), "spacing of 1 x -2 x 1"),
    (80, "3f", (1, 1, float("nan")), "spacing of 1 x 1 x nan"),
    (80, "3f", (float("inf"), 1, 1), "spacing"),
    (108, "f", (-64.0,), "byte -64"),
    (108, "f", (float("nan"),), "byte nan"),
    (108, "f", (1e20,), "byte 1e"),
    (112, "ff", (1.0, float("nan")), "not finite"),
    (280, "12f", (0,) * 12, "affine"),
    (280, "12f", (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0), "affine"),
    (280, "12f", (float("nan"),) * 12, "NaN"),
    (344, "4s", (b"abc\0",), "expected NIfTI-1 or NIfTI-2"),
    (344, "4s", (b"\0\0\0\0",), "Analyze"),
]


@pytest.mark.parametrize(("place", "form", "values", "words"), BROKEN)
def test_headers_that_lie(tmp_path, place, form, values, words):
    path = change(fake_nifti(tmp_path / "a.nii", (6, 5, 4)), place, form, *values)
    with pytest.raises(DataError, match=words) as caught:
        NiftiVolume(path)
    assert caught.value.path == str(path)
    with pytest.raises(DataError, match=words):
        VolumeLoader(path)
    fake_nifti(tmp_path / "b.nii", (6, 5, 4))
    loader = VolumeLoader(tmp_path)
    assert len(loader) == 1
    assert [bad.path for bad in loader.bad_files] == [str(path)]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"not gzip at all", b"\x1f\x8b" + b"\xff" * 500])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_no_nifti_at_all(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii"):
        VolumeLoader(tmp_path / name)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("gigabytes", [20, 0])
def test_cut_short(tmp_path, share, suffix, gigabytes):
    path = fake_nifti(tmp_path / f"a{suffix}")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match=r"announces|ends too early|gzip"):
        NiftiVolume(path, cache=gigabytes).read(EVERYTHING)


def test_one_wrong_bit_in_a_gzip_is_noticed(tmp_path):
    path = fake_nifti(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum at its end
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="checksum"):
        NiftiVolume(path).read(EVERYTHING)
    assert not list(cache.private_folder("volumes").glob(".*"))


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    """3 GB of zeros behind a header of 240 voxels: reading stops a megabyte behind what was announced."""
    header = fake_nifti(tmp_path / "small.nii", (6, 5, 4)).read_bytes()
    megabyte = gzip.compress(bytes(2**20))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header) + megabyte * 3000)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(DataError, match="inflates to more"):
        NiftiVolume(tmp_path / "a.nii.gz").read(EVERYTHING)
    assert time.perf_counter() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_header_that_announces_more_than_a_gzip_can_hold(tmp_path):
    path = change(fake_nifti(tmp_path / "a.nii", (6, 5, 4)), 40, "8h", 3, 900, 900, 900, 1, 1, 1, 1)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="gzipped"):
        NiftiVolume(tmp_path / "b.nii.gz")


def test_4d_needs_a_choice(tmp_path):
    nib.save(nib.Nifti1Image(np.arange(120.0).reshape(5, 4, 3, 2), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"4-D: 2 volumes .* data\.volume=0"):
        VolumeLoader(tmp_path)
    with pytest.raises(DataError, match="counted from 0"):
        VolumeLoader(tmp_path, volume=2)
    one, both = (
        VolumeLoader(tmp_path, volume=1).read(0)["volume"],
        VolumeLoader(tmp_path, volume="all").read(0)["volume"],
    )
    assert one.shape == (1, 3, 4, 5)
    assert both.shape == (2, 3, 4, 5)
    assert (one[0] == both[1]).all()


# the cache ---------------------------------------------------------------------------------------------------------


def test_a_file_is_inflated_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    path = fake_nifti(tmp_path / "a.nii.gz")
    volume = NiftiVolume(path)
    first = volume.read(EVERYTHING)
    (kept,) = (tmp_path / "cache" / "volumes").glob("*.raw")
    assert kept.parent.stat().st_mode & 0o077 == 0, "patients' data must be closed to others"
    monkeypatch.setattr(cache, "_pieces", lambda *_: pytest.fail("was inflated again"))
    assert np.array_equal(volume.read(EVERYTHING), first)
    monkeypatch.undo()
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    fake_nifti(path, seed=1)
    assert np.array_equal(NiftiVolume(path).read(EVERYTHING), nib.load(path).get_fdata())
    assert not np.array_equal(NiftiVolume(path).read(EVERYTHING), first)


def test_the_cache_stays_within_its_bound_and_forgets_what_was_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    paths = [fake_nifti(tmp_path / f"{number}.nii.gz", seed=number) for number in range(3)]
    size = 48 * 40 * 32 * 2
    limit = 2.5 * size / 1e9
    values = [NiftiVolume(path, cache=limit).read(EVERYTHING) for path in paths]
    folder = tmp_path / "cache" / "volumes"
    assert len(list(folder.glob("*.raw"))) == 2
    for file in folder.glob("*.raw"):
        os.utime(file, (1, 1))
    again = NiftiVolume(paths[2], cache=limit).read(EVERYTHING)
    assert np.array_equal(again, values[2])
    assert len(list(folder.glob("*.raw"))) == 2
    assert sum(file.stat().st_mtime > 10 for file in folder.glob("*.raw")) == 1


def test_an_unusable_cache_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    path = fake_nifti(tmp_path / "a.nii.gz")
    assert np.array_equal(NiftiVolume(path).read(EVERYTHING), nib.load(path).get_fdata())
