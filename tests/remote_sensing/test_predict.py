"""Maps of whole rasters: exact, georeferenced, of any size, resumable."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.predict import PredictionStopped, predict
from maskwright.core.sample import collate
from maskwright.core.trainer.files import DiskFullError
from maskwright.remote_sensing import scenes
from maskwright.remote_sensing.fake import fake_land_cover, fake_s1s2
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from tests.task_models import COLOURS, patch_local_model, random_scene, same_folder


@pytest.fixture
def world(tmp_path):
    data = tmp_path / "data"
    random_scene(data / "a.tif", 96, 128)
    return data, patch_local_model(tmp_path / "model", GeoTiffLoader(data, size=32))


def whole(folder, data, name):
    """Probabilities of an image in one piece, without any tiling."""
    loader = GeoTiffLoader(data / name, size=None)
    return folder.model.predict(collate([loader.read(0)]))[0].numpy()


def read(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.75])
def test_overlapping_windows_of_a_patch_local_encoder_equal_the_whole_image(tmp_path, world, overlap):
    data, model = world
    done = predict(model, data, tmp_path / "out", overlap=overlap, probabilities=True, batch_size=3)
    expected = whole(model, data, "a.tif")
    codes = np.array([1, 2, 5])
    assert [path.name for path in done.outputs] == ["a_probabilities.tif", "a.tif"]
    assert np.array_equal(read(tmp_path / "out" / "a.tif")[0], codes[expected.argmax(0)])
    assert np.abs(read(tmp_path / "out" / "a_probabilities.tif") - expected).max() < 1e-5
    assert len(np.unique(expected.argmax(0))) == 3  # there was something to tell apart


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (101, 37), (7, 50), (5, 3)])
def test_windows_that_agree_give_exactly_what_they_agree_on(tmp_path, monkeypatch, overlap, shape):
    random_scene(tmp_path / "data" / "a.tif", *shape)
    loader = GeoTiffLoader(tmp_path / "data", size=None)
    model = patch_local_model(tmp_path / "model", loader, constant=True)
    expected = torch.softmax(model.model.head.linear.bias, 0)
    predict(model, tmp_path / "data", tmp_path / "real", overlap=overlap, probabilities=True)
    shares = read(tmp_path / "real" / "a_probabilities.tif")  # the network's own interpolation rounds
    assert np.abs(shares - expected.numpy()[:, None, None]).max() < 1e-6
    assert (read(tmp_path / "real" / "a.tif") == [1, 2, 5][int(expected.argmax())]).all()

    monkeypatch.setattr(TaskModel, "predict", lambda self, batch: expected.view(1, 3, 1, 1).repeat(
        len(batch["image"]), 1, *self.spatial(batch)
    ))  # fmt: skip
    predict(model, tmp_path / "data", tmp_path / "exact", overlap=overlap, probabilities=True)
    shares = read(tmp_path / "exact" / "a_probabilities.tif")
    assert shares.shape == (3, *shape)
    assert (shares == expected.numpy()[:, None, None]).all()


@pytest.mark.parametrize(("crs", "transform"), [
    ("EPSG:32633", (10, 0, 500000, 0, -10, 5000000)),
    ("EPSG:4326", (1e-4, 2e-5, 13.25, -2e-5, -1e-4, 47.5)),
    (None, None),
])  # fmt: skip
def test_georeference_nodata_colours_and_names_are_there_when_it_is_read_back(tmp_path, crs, transform):
    data = tmp_path / "data"
    options = {"crs": crs, "transform": transform}
    values = random_scene(data / "a.tif", 64, 80, nodata=0, **options)
    values[:, 10:30, 40:] = 0
    values[1, 50:, :8] = 0  # one band alone lacks data
    from maskwright.remote_sensing.writers import write_geotiff

    write_geotiff(data / "a.tif", values, crs, transform, nodata=0)
    model = patch_local_model(tmp_path / "model", GeoTiffLoader(data, size=32, max_nodata=1))
    predict(model, data, tmp_path / "out", probabilities=True)
    with rasterio.open(data / "a.tif") as given, rasterio.open(tmp_path / "out" / "a.tif") as made:
        assert made.crs == given.crs
        assert made.transform == given.transform
        assert made.shape == given.shape
        assert made.dtypes == ("uint8",)
        assert made.nodata == 0
        assert {code: made.colormap(1)[code][:3] for code in (1, 2, 5)} == dict(zip((1, 2, 5), COLOURS, strict=True))
        assert made.tags(1)["CLASS_5"] == "class 5"
        assert json.loads(made.tags()["classes"]) == {"1": "class 1", "2": "class 2", "5": "class 5"}
        assert made.tags()["model"] == model.fingerprint()
        assert np.array_equal(made.read(1) == 0, (values == 0).any(0))
    with rasterio.open(tmp_path / "out" / "a_probabilities.tif") as made:
        shares = made.read()
        assert made.descriptions == ("class 1", "class 2", "class 5")
        assert np.array_equal(np.isnan(shares).all(0), (values == 0).any(0))
        assert np.nansum(shares, 0)[~(values == 0).any(0)] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("codes", "dtype", "nodata"), [
    ((0, 1), "uint8", 255), ((0, 255), "uint8", 1), ((1, 300), "uint16", 0), ((0, 65535), "int32", 65536),
])  # fmt: skip
def test_nodata_is_a_code_that_no_class_has(tmp_path, world, codes, dtype, nodata):
    from maskwright.core.predict_maps import class_format

    form = class_format(patch_local_model(tmp_path / "other", GeoTiffLoader(world[0], size=32), codes=codes))
    assert (form.dtype, form.nodata) == (dtype, nodata)


def test_pairs_on_a_grid_of_their_own_and_names_in_sub_folders(tmp_path):
    from maskwright.core.finetune import finetune

    data = fake_s1s2(tmp_path / "tiles", 3, 64)
    fake_land_cover(tmp_path / "labels", 3, 64)
    import maskwright as mw

    run = mw.pretrain("croma", data, "tiny", tmp_path / "run", {"data.size": 64}, max_steps=1, batch_size=2)
    model = finetune(
        run, data, "land-cover", labels=str(tmp_path / "labels" / "LULC"), holdout=0, steps=40, batch_size=3
    )
    done = predict(model, data, tmp_path / "out", size=32)
    assert [path.name for path in done.outputs] == ["tile_0.tif", "tile_1.tif", "tile_2.tif"]
    truth = read(tmp_path / "labels" / "LULC" / "tile_1.tif")
    assert (read(tmp_path / "out" / "tile_1.tif") == truth).mean() > 0.4  # five classes of a fifth each
    assert model.facts["data"] == {"path": str(data.resolve()), "loader": "s1s2", "options": run.recipe().data.options}

    for folder in ("x", "y"):
        random_scene(tmp_path / "deep" / folder / "same.tif", 40, 40)
    loader = GeoTiffLoader(tmp_path / "deep", size=None)
    assert [scene.name for scene in loader.scenes()] == ["x/same", "y/same"]


def test_pairs_tell_decibels_from_power_in_the_middle_of_whole_images(tmp_path):
    from maskwright.remote_sensing.writers import write_geotiff

    fake_s1s2(tmp_path, 1, 600)
    path = tmp_path / "S1" / "tile_0.tif"
    with rasterio.open(path) as file:
        power = 10 ** (file.read() / 10)
        crs, transform, names = file.crs.to_string(), tuple(file.transform)[:6], file.descriptions
    write_geotiff(path, power.astype(np.float32), crs, transform, band_names=names)
    (scene,) = PairLoader(tmp_path, size=None).scenes()
    values = scene.read((slice(0, 32), slice(568, 600)))["sar"]
    assert values.min() < -5
    assert values.shape == (2, 32, 32)


def test_what_is_there_is_not_made_again_unless_its_source_is_newer(tmp_path, world):
    import os

    data, model = world
    random_scene(data / "b.tif", 64, 64, seed=1)
    out = tmp_path / "out"
    assert predict(model, data, out).made == 2
    assert predict(model, data, out).made == 0
    (out / "b.tif").unlink()
    (out / ".b.tif.12345.tmp").write_bytes(b"half")  # what a killed process leaves
    done = predict(model, data, out)
    assert done.made == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.tif", "b.tif", "manifest.json"]
    later = (out / "b.tif").stat().st_mtime_ns + 10**9
    os.utime(data / "b.tif", ns=(later, later))
    assert predict(model, data, out).made == 1


def test_shares_together_equal_one_process(tmp_path, world):
    data, model = world
    for number in range(1, 5):
        random_scene(data / f"more_{number}.tif", 64, 40 + number, seed=number)
    predict(model, data, tmp_path / "one")
    made = [predict(model, data, tmp_path / "many", shard=f"{i}/3").made for i in (2, 1, 3)]
    assert sum(made) == 5
    assert same_folder(tmp_path / "one", tmp_path / "many")


def test_outputs_of_another_model_or_other_options_are_not_mixed(tmp_path, world):
    data, model = world
    predict(model, data, tmp_path / "out")
    other = patch_local_model(tmp_path / "other", GeoTiffLoader(data, size=32), seed=1)
    with pytest.raises(ConfigError, match=r"other model .*Choose another --out"):
        predict(other, data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"other overlap \(0\.5 there, 0\.25 now\)"):
        predict(model, data, tmp_path / "out", overlap=0.25)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with pytest.raises(ConfigError, match=r"not empty and holds no manifest\.json"):
        predict(model, data, tmp_path / "full")
    with pytest.raises(ConfigError, match="inside of the data"):
        predict(model, data, data / "maps")


def test_unreadable_images_are_listed_and_the_others_made(tmp_path, world):
    data, model = world
    for number in range(3):
        random_scene(data / f"more_{number}.tif", 64, 64, seed=number)
    (data / "web.tif").write_text("<html>not found</html>")
    done = predict(model, data, tmp_path / "out")  # one is never too many
    assert done.made == 4
    with done.bad_list.open() as file:
        (row,) = csv.DictReader(file)
    assert row["path"].endswith("web.tif")
    assert "web page" in row["reason"]

    broken = data / "more_1.tif"  # damaged inside: found only when its pixels are read
    content = bytearray(broken.read_bytes())
    with rasterio.open(broken) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content[offset : offset + 200] = b"\xff" * 200
    broken.write_bytes(content)
    with pytest.raises(PredictionStopped, match=r"2 of 5 could not be used") as stopped:
        predict(model, data, tmp_path / "again")
    assert stopped.value.exit_code == 5
    assert sorted(p.name for p in (tmp_path / "again").glob("*.tif")) == ["a.tif", "more_0.tif", "more_2.tif"]
    assert len((tmp_path / "again" / "bad_files.csv").read_text().splitlines()) == 3
    assert predict(model, data, tmp_path / "again", max_bad=0.5).made == 0


def test_a_map_that_reads_back_otherwise_never_gets_its_name(tmp_path, world, monkeypatch):
    data, model = world
    real = scenes.zlib.crc32
    calls = []
    monkeypatch.setattr(scenes.zlib, "crc32", lambda rows: calls.append(1) or real(rows) + (len(calls) > 1))
    (bad,) = predict(model, data, tmp_path / "out").bad
    assert "reads back otherwise" in bad.reason
    assert not list((tmp_path / "out").glob("*.tif"))


def test_a_full_disk_is_named_and_leaves_no_half_map(tmp_path, world, monkeypatch):
    data, model = world
    monkeypatch.setattr(scenes, "FULL_BYTES", 2**62)  # as if nothing were free

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scenes._Rows, "flush", refuse)
    with pytest.raises(DiskFullError, match="MB of disk are free"):
        predict(model, data, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.t*"))


def test_bands_in_another_order_are_refused(tmp_path):
    data = tmp_path / "data"
    random_scene(data / "a.tif", 64, 64, band_names=("B2", "B3"))
    model = patch_local_model(tmp_path / "model", GeoTiffLoader(data, size=32))
    random_scene(tmp_path / "new" / "a.tif", 64, 64, band_names=("B3", "B2"))
    with pytest.raises(ConfigError, match=r"channels B2, B3, but .* gives B3, B2"):
        predict(model, tmp_path / "new", tmp_path / "out")
    assert predict(model, tmp_path / "new", tmp_path / "out", settings=["data.bands=[B2, B3]"]).made == 1


def test_a_second_process_on_one_share_is_refused(tmp_path, world):
    from maskwright.core.trainer.lock import held

    data, model = world
    out = tmp_path / "out"
    out.mkdir()
    with held(out / ".share-1-of-1.lock", out), pytest.raises(ConfigError, match="in use by process"):
        predict(model, data, out)


def test_pieces_out_of_order_and_missing_rows_are_refused(tmp_path, world):
    data, model = world
    (scene,) = GeoTiffLoader(data, size=None).scenes()
    from maskwright.core.predict_maps import class_format

    with pytest.raises(ValueError, match="row 0 is next"), scene.writer(tmp_path / "m.tif", class_format(model)) as out:
        out.write((slice(5, 6), slice(0, 128)), np.zeros((1, 1, 128), np.uint8))
    with (
        pytest.raises(ValueError, match="only 4 of 96 rows"),
        scene.writer(tmp_path / "m.tif", class_format(model)) as out,
    ):
        out.write((slice(0, 4), slice(0, 128)), np.zeros((1, 4, 128), np.uint8))
    assert not (tmp_path / "m.tif").exists()


def test_a_folder_that_is_no_task_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="a task model made by `maskwright finetune`"):
        predict(tmp_path, tmp_path, tmp_path / "out")


MEASURE = """
import re, sys, torch
torch.set_num_threads(1)
from maskwright.core.predict import predict
done = predict(sys.argv[1], sys.argv[2], sys.argv[3], batch_size=64)
# the peak of this program alone: getrusage would count that of the process that started it
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_a_scene(tmp_path):
    from maskwright.remote_sensing.fake import fake_scene

    peaks = []
    for size in (1500, 6000):
        data = tmp_path / f"data_{size}"
        fake_scene(data / "a.tif", size, bands=1)
        loader = GeoTiffLoader(data, size=120)
        patch_local_model(tmp_path / f"model_{size}", loader, size=120, patch=8)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, tmp_path / f"model_{size}", data, tmp_path / f"out_{size}"],
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(float(done.stdout))
    assert read(tmp_path / "out_6000" / "a.tif").shape == (1, 6000, 6000)
    # a probability cube of it would be 6000 * 6000 * 3 * 8 bytes = 824 MB
    assert peaks[1] - peaks[0] < 200, peaks
