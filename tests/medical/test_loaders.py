"""The loaders `volumes` and `slices`: the contract, crops, windows, groups, labels, scenes."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.labels import labels_of
from maskwright.core.evaluation.pictures import HIDDEN, draw_panel
from maskwright.core.options import check_options, describe_options
from maskwright.core.scene import MapFormat
from maskwright.core.trainer.method import Panel
from maskwright.medical import find
from maskwright.medical.fake import fake_ct, fake_nifti, fake_series
from maskwright.medical.loaders import SliceLoader, VolumeLoader
from maskwright.testing.loader import check_loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two patients in NIfTI with two scans of one of them, and one in DICOM, in folders by class."""
    root = tmp_path_factory.mktemp("volumes")
    fake_nifti(root / "healthy" / "sub-01_scan1.nii.gz", seed=1)
    fake_nifti(root / "ill" / "sub-01_scan2.nii", seed=2)
    fake_nifti(root / "ill" / "sub-02.nii.gz", (40, 44, 20), (1.5, 1.5, 3.0), seed=3)
    fake_series(root / "ill" / "series", (32, 30, 12), seed=4)
    return root


OPTIONS = [
    (VolumeLoader, {"size": 24}),
    (VolumeLoader, {"size": (16, 48, 32), "spacing": 3.0, "window": "lung"}),
    (VolumeLoader, {"size": 24, "orientation": "LPS", "window": (0, 2000)}),
    (SliceLoader, {"size": 32}),
    (SliceLoader, {"axis": "coronal", "context": 1, "size": (40, 24), "spacing": 4.0, "window": "bone"}),
    (SliceLoader, {"axis": "sagittal", "slices": 4, "size": 40, "orientation": "stored"}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_the_contract(folder, kind, options):
    loader = kind(folder, **options)
    assert not loader.bad_files
    check_loader(loader, samples=5)
    wanted = options["size"] if isinstance(options["size"], tuple) else (options["size"],) * (3 - (kind is SliceLoader))
    for index in range(0, len(loader), 7):
        sample = loader.read(index, torch.Generator().manual_seed(index))
        assert tuple(next(iter(sample.tensors.values())).shape[1:]) == wanted


def test_groups_are_patients_and_labels_folders(folder):
    loader = VolumeLoader(folder)
    assert [loader.label(index) for index in range(4)] == ["healthy", "ill", "ill", "ill"]
    groups = [loader.group(index) for index in range(4)]
    hashed = [group for group in groups if group.startswith("patient-")]
    assert len(hashed) == 1
    assert "FAKE" not in hashed[0]
    assert sorted(set(groups) - set(hashed)) == ["sub-01", "sub-02"]
    assert VolumeLoader(folder, group_pattern=r"(scan\d)").group(0) == "scan1"
    assert VolumeLoader(folder, group_pattern="").group(0) == "healthy/sub-01_scan1"
    with pytest.raises(ConfigError, match="regular expression"):
        VolumeLoader(folder, group_pattern="(")


def test_a_patient_is_one_group_in_all_series_and_depends_on_the_key(tmp_path):
    fake_series(tmp_path / "a", (16, 16, 4), seed=1)
    fake_series(tmp_path / "b", (16, 16, 4), seed=2, fields={"PatientID": "FAKE0001"})
    (tmp_path / "one.key").write_text("a secret of some length")
    (tmp_path / "two.key").write_text("another secret of some length")
    groups = [
        [loader.group(index) for index in range(2)]
        for loader in (
            VolumeLoader(tmp_path, salt_file=str(tmp_path / f"{name}.key")) for name in ("one", "two", "one")
        )
    ]
    assert groups[0][0] == groups[0][1]
    assert groups[0] == groups[2]
    assert groups[0] != groups[1]
    with pytest.raises(ConfigError, match="salt_file"):
        VolumeLoader(tmp_path, salt_file="not there")


def test_crops_are_parts_of_the_whole_and_their_affine_says_where(folder):
    whole, crops = VolumeLoader(folder).read(0), VolumeLoader(folder, size=(10, 12, 14))
    for seed in range(4):
        crop = crops.read(0, torch.Generator().manual_seed(seed))
        x, y, z = crop.meta.extra["start"]
        assert torch.equal(crop["volume"], whole["volume"][:, z : z + 10, y : y + 12, x : x + 14])
        place = np.array(whole.meta.extra["affine"]) @ [x, y, z, 1]
        np.testing.assert_allclose(np.array(crop.meta.extra["affine"])[:, 3], place)
    starts = {tuple(crops.read(0, torch.Generator().manual_seed(seed)).meta.extra["start"]) for seed in range(20)}
    assert len(starts) > 15
    assert crops.read(0).meta.extra["start"] == [(48 - 14) // 2, (40 - 12) // 2, (32 - 10) // 2]


def test_small_volumes_are_padded_with_air(folder):
    sample = VolumeLoader(folder, size=64).read(0)
    assert sample["volume"].shape == (1, 64, 64, 64)
    x, y, z = (-at for at in sample.meta.extra["start"])
    inner = sample["volume"][0, z : z + 32, y : y + 40, x : x + 48]
    assert torch.equal(inner, VolumeLoader(folder).read(0)["volume"][0])
    assert sample["volume"][0, 0].unique().item() == inner.min()


def test_windows_clip_in_hu(folder):
    values = VolumeLoader(folder).read(0)["volume"]
    for window, low, high in (("lung", -1350, 150), ("brain", 0, 80), ("bone", -500, 1300), ("soft-tissue", -160, 240)):
        assert torch.equal(VolumeLoader(folder, window=window).read(0)["volume"], values.clamp(low, high))
    assert torch.equal(VolumeLoader(folder, window=[100, 50]).read(0)["volume"], values.clamp(75, 125))
    with pytest.raises(ConfigError, match='Did you mean "lung"'):
        VolumeLoader(folder, window="lungs")
    with pytest.raises(ConfigError, match="width"):
        VolumeLoader(folder, window=[40, 0])


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_are_slices_of_the_volume(folder, axis):
    volume, loader = VolumeLoader(folder).read(0)["volume"][0], SliceLoader(folder, axis=axis, context=1)
    along = {"axial": 0, "coronal": 1, "sagittal": 2}[axis]
    for at in (0, 5, volume.shape[along] - 1):
        sample = loader.read(at)
        assert sample.meta.extra["slice"] == at
        for channel, off in enumerate((-1, 0, 1)):
            wanted = volume.select(along, min(max(at + off, 0), volume.shape[along] - 1))
            assert torch.equal(sample["image"][channel], wanted)


def test_few_slices_are_spread_evenly(folder):
    loader = SliceLoader(folder, slices=5)
    assert len(loader) == 20
    assert [loader.read(index).meta.extra["slice"] for index in range(5)] == [0, 8, 16, 23, 31]
    assert [loader.label(index) for index in (0, 4, 5, 19)] == ["healthy", "healthy", "ill", "ill"]


BAD_OPTIONS = [{"size": 0}, {"size": [4, 4, -1]}, {"spacing": 0}, {"spacing": [1, 1, -2]}, {"orientation": "RAR"}]


@pytest.mark.parametrize("options", [*BAD_OPTIONS, {"cache": -1}, {"max_voxels": 0}])
def test_options_that_do_not_fit(folder, options):
    with pytest.raises(ConfigError, match=f"data.{next(iter(options))}"):
        VolumeLoader(folder, **options)


@pytest.mark.parametrize("kind", [VolumeLoader, SliceLoader])
def test_recipes_know_the_options_that_both_loaders_share(kind):
    rows = {name: text for name, _, _, text in describe_options(kind)}
    assert {"size", "spacing", "orientation", "window", "volume", "group_pattern", "salt_file", "cache"} <= set(rows)
    assert all(rows.values()), "an option without a description"
    problems = []
    checked = check_options("data", kind, {"window": [40, 400], "volume": "all", "spacing": "x", "windw": 1}, problems)
    assert not checked
    assert any('data.windw: there is no such option. Did you mean "window"' in problem for problem in problems)
    assert {problem.split(".")[1].split(":")[0] for problem in problems} == {"windw", "spacing"}


def test_max_voxels_bounds_the_resampled_volume_too(folder):
    with pytest.raises(DataError, match=r"spacing.*data\.spacing"):
        VolumeLoader(folder / "healthy", spacing=0.01)


def test_rasters_of_the_same_ending_are_not_taken(tmp_path):
    (tmp_path / "scene.hdr").write_text("ENVI\nsamples = 10\n" * 30)
    (tmp_path / "scene.img").write_bytes(bytes(1000))
    assert not VolumeLoader.accepts(tmp_path)
    assert not SliceLoader.accepts(tmp_path / "scene.img")


# labels ------------------------------------------------------------------------------------------------------------


def test_labels_of_a_table(folder, tmp_path):
    (tmp_path / "labels.csv").write_text("id,stage\nsub-01,2\nsub-02,4\n")
    loader = VolumeLoader(folder)
    labels = labels_of(f"{tmp_path / 'labels.csv'}:stage", loader, "id")
    found = {loader.group(index): label for index, label in enumerate(labels)}
    assert found["sub-01"] == "2"
    assert found["sub-02"] == "4"
    assert labels.count(None) == 1


@pytest.mark.parametrize("options", [{"size": (20, 24, 28)}, {"orientation": "LPS"}, {"size": 30, "spacing": 3.0}])
def test_label_volumes_lie_on_the_sample(folder, tmp_path, options):
    """Codes that are the air of the volume itself: they must lie where the sample has air."""
    source = nib.load(folder / "healthy" / "sub-01_scan1.nii.gz")
    codes = (source.get_fdata() < -500).astype(np.uint8) * 5
    nib.save(nib.Nifti1Image(codes, source.affine), tmp_path / "sub-01_scan1.nii.gz")
    loader = VolumeLoader(folder, **options)
    sample = loader.read(0, torch.Generator().manual_seed(0))
    labels = loader.read_labels(tmp_path, sample)
    assert labels.shape == tuple(sample["volume"].shape[1:])
    assert labels.dtype == np.int64
    known = labels >= 0
    air = sample["volume"][0].numpy() < -500
    agreement = (air == (labels == 5))[known].mean()
    assert agreement == 1 if "spacing" not in options else agreement > 0.85
    with pytest.raises(DataError, match="no label volume"):
        loader.read_labels(tmp_path, loader.read(1))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_label_volumes_of_slices(folder, tmp_path, axis):
    source = nib.load(folder / "healthy" / "sub-01_scan1.nii.gz")
    codes = (source.get_fdata() < -500).astype(np.uint8) * 5
    (tmp_path / "healthy").mkdir()
    nib.save(nib.Nifti1Image(codes, source.affine), tmp_path / "healthy" / "sub-01_scan1.nii.gz")
    loader = SliceLoader(folder, axis=axis, size=(20, 24))
    sample = loader.read(9, torch.Generator().manual_seed(1))
    assert np.array_equal(loader.read_labels(tmp_path, sample) == 5, sample["image"][0].numpy() < -500)


def test_pseudo_labels_of_the_real_volume(shared_data):
    folder = shared_data / "medical" / "ct_volume_nifti"
    loader = VolumeLoader(folder / "example_ct_sm.nii.gz", size=30)
    sample = loader.read(0, torch.Generator().manual_seed(0))
    codes = loader.read_labels(folder / "example_seg.nii.gz", sample)
    x, y, z = sample.meta.extra["start"]
    whole = np.asarray(nib.load(folder / "example_seg.nii.gz").dataobj)
    assert np.array_equal(codes, whole[x : x + 30, y : y + 30, z : z + 30].T)


# pictures and scenes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI"])
def test_pictures_are_upright(tmp_path, orientation):
    """The patient's front is above and the right on the left, whatever the orientation of the sample."""
    values = np.zeros((20, 20, 3), np.float32)
    values[17, 16] = 100  # to the right and the front
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    loader = SliceLoader(tmp_path, orientation=orientation)
    image = loader.read(1)["image"]
    drawn = loader.picture("image", image)
    assert np.argwhere(drawn[..., 0] == 255).tolist() == np.argwhere(image[0].numpy() == 100).tolist()
    picture = loader.upright("image", drawn)
    assert np.argwhere(picture[..., 0] == 255).tolist() == [[3, 2]]
    volumes = VolumeLoader(tmp_path, orientation=orientation)
    assert np.array_equal(volumes.upright("volume", volumes.picture("volume", volumes.read(0)["volume"])), picture)


def test_what_was_there_stands_before_what_was_made_of_it(tmp_path):
    """A panel is drawn in one stretch and cut in two; turning it first would swap and mirror the halves."""
    values = np.zeros((16, 16, 3), np.float32)
    values[14, 13] = 100
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    loader = SliceLoader(tmp_path)
    original = loader.read(1)["image"][None]
    hidden = torch.zeros(1, 16, 16, dtype=torch.bool)
    hidden[0, :4] = True
    panel = Panel(original, hidden, torch.full_like(original, 50.0))
    ((before, masked, after),) = draw_panel(panel, "image", loader)
    assert np.argwhere(before[..., 0] == 255).tolist() == [[2, 1]]
    assert (masked[-4:] == HIDDEN).all()  # rows count from the patient's back
    assert (after == after[0, 0]).all()
    assert 0 < after[0, 0, 0] < 255


@pytest.mark.parametrize("options", [{}, {"orientation": "LPS"}, {"spacing": (3.0, 3.0, 3.5)}])
def test_maps_of_scenes_lie_where_the_volumes_lie(folder, tmp_path, options):
    loader = VolumeLoader(folder, **VolumeLoader.scene_options({**options, "size": 16}))
    for number, scene in enumerate(loader.scenes()):
        path = tmp_path / f"{scene.name}{scene.suffix}"
        form = MapFormat("uint8", ("class",), 255, tags={"model": "abc"})
        with scene.writer(path, form) as writer:
            for start in range(0, scene.shape[0], 7):
                window = (slice(start, min(start + 7, scene.shape[0])), *(slice(0, size) for size in scene.shape[1:]))
                sample = scene.read(window)
                assert (sample.meta.label, sample.meta.group) == (loader.label(number), loader.group(number))
                writer.write(window, (sample["volume"].numpy() < -500).astype(np.uint8))
        written = nib.load(path)
        volume = scene.view.volume
        assert written.shape == volume.shape
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)
        air = volume.read(tuple(slice(0, length) for length in volume.shape)) < -500
        agreement = (np.asarray(written.dataobj) == air).mean()
        assert agreement == 1 if "spacing" not in options else agreement > 0.85
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 4


def test_maps_that_are_not_finished_leave_nothing(folder, tmp_path):
    scene = VolumeLoader(folder).scenes()[0]
    with pytest.raises(RuntimeError), scene.writer(tmp_path / "a.nii.gz", MapFormat("uint8", ("class",))):
        raise RuntimeError("the model failed")
    with pytest.raises(ValueError, match="slices"), scene.writer(tmp_path / "a.nii.gz", MapFormat("uint8", ("class",))):
        pass
    assert not list(tmp_path.iterdir())


def test_an_image_becomes_hu_in_samples_of_dicom(folder):
    loader = VolumeLoader(folder / "ill" / "series")
    assert loader.spec["volume"].unit == "HU"
    assert torch.equal(
        loader.read(0)["volume"][0], torch.from_numpy(fake_ct((32, 30, 12), 4)[::-1, ::-1].T.astype("f4"))
    )


def test_processes_that_start_together_hash_with_one_key(tmp_path, monkeypatch):
    """All find that there is no key yet; the first one's is everybody's."""
    monkeypatch.setattr(find, "private_folder", lambda name: tmp_path)
    monkeypatch.setattr(find.Path, "is_file", lambda path: False)
    keys = [find.read_salt("") for _ in range(3)]
    assert keys[0] == keys[1] == keys[2] == (tmp_path / "salt").read_bytes()
    assert len(keys[0]) == 64
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["salt"]


def test_statistics_are_kept_in_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path))
    found = VolumeLoader(folder, size=16).statistics()
    (entry,) = (tmp_path / "statistics").iterdir()
    again = VolumeLoader(folder, size=16)
    monkeypatch.setattr(again, "read", lambda index: pytest.fail("was read again"))
    assert again.statistics() == found
    assert VolumeLoader(folder, size=16, window="lung").statistics() != found
    assert SliceLoader(folder, size=16).statistics()["image"] != found["volume"]
    assert len(list((tmp_path / "statistics").iterdir())) == 3
    assert set(json.loads(entry.read_text())["volume"]) == {"mean", "std", "minimum", "maximum", "count"}


def test_a_table_may_name_the_folder_of_a_series(tmp_path):
    for number in range(3):
        fake_series(tmp_path / "scans" / f"patient {number}" / "series", (16, 14, 4), seed=number)
    (tmp_path / "t.csv").write_text("id,ill\n" + "".join(f"scans/patient {n}/series,{n}\n" for n in (2, 0, 1)))
    loader = VolumeLoader(tmp_path / "scans")
    assert labels_of(f"{tmp_path / 't.csv'}:ill", loader) == ["0", "1", "2"]


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_maps_made_of_slices_lie_where_the_volumes_lie(folder, tmp_path, axis):
    loader = SliceLoader(folder, **SliceLoader.scene_options({"axis": axis, "size": 8, "slices": 2, "context": 1}))
    for scene in loader.scenes():
        path = tmp_path / f"{scene.name}{scene.suffix}"
        rows, columns = scene.shape[1:]
        with scene.writer(path, MapFormat("uint8", ("class",), 255)) as writer:
            for at in range(scene.shape[0]):
                whole = (slice(at, at + 1), slice(0, rows), slice(0, columns))
                sample = scene.read(whole)
                assert sample["image"].shape == (3, rows, columns)
                assert (sample.meta.extra["slice"], loader.read(sample.meta.index).meta) == (at, sample.meta)
                assert torch.equal(
                    scene.read((whole[0], slice(2, 9), slice(3, 5)))["image"], sample["image"][:, 2:9, 3:5]
                )
                writer.write(whole, (sample["image"][1:2].numpy() < -500).astype(np.uint8)[None])
        volume = scene.view.volume
        air = volume.read(tuple(slice(0, length) for length in volume.shape)) < -500
        assert np.array_equal(np.asarray(nib.load(path).dataobj), air)
