import json

import numpy as np

from maskwright.core.inspection import inspect_data
from maskwright.remote_sensing import inspection
from maskwright.remote_sensing.fake import fake_bigearthnet, fake_s1s2, fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from maskwright.remote_sensing.writers import write_geotiff

TRANSFORM = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)


def test_header_and_statistics_of_one_file(tmp_path):
    values = np.random.default_rng(0).normal(5, 2, (2, 100, 80)).astype(np.float32)
    values[:, :50] = -9999
    path = write_geotiff(tmp_path / "x.tif", values, "EPSG:32633", TRANSFORM, nodata=-9999, band_names=("red", "nir"))
    (row,) = GeoTiffLoader.inspect(path)
    statistics = row.pop("statistics")
    assert row == {
        "file": str(path), "format": "GTiff", "bands": "red, nir", "height": 100, "width": 80, "type": "float32",
        "CRS": "EPSG:32633", "pixel": "10 x 10", "nodata": -9999.0, "stored in": "one piece", "remark": None,
    }  # fmt: skip
    assert [band["band"] for band in statistics] == ["red", "nir"]
    seen = values[0, 50:]
    assert abs(statistics[0]["mean"] - seen.mean()) < 0.2
    assert statistics[0]["minimum"] >= seen.min() - 1e-5
    assert 0.3 < statistics[0]["share without data"] < 0.7


def test_bad_files_are_rows_with_a_reason(tmp_path):
    fake_s1s2(tmp_path, tiles=3, size=32)
    (tmp_path / "S2" / "tile_1.tif").write_bytes(b"")
    (tmp_path / "S1" / "tile_2.tif").unlink()
    rows = inspect_data(tmp_path)
    problems = {row["file"]: row["problem"] for row in rows if "problem" in row}
    assert "empty" in problems[str(tmp_path / "S2" / "tile_1.tif")]
    assert "no partner" in problems[str(tmp_path / "S2" / "tile_2.tif")]
    assert len(problems) == 2
    assert sum("statistics" in row for row in rows) == 3
    json.dumps(rows)


def test_pairs_that_do_not_fit_are_told(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=32)
    far = (10.0, 0.0, 900000.0, 0.0, -10.0, 4000000.0)
    radar = np.zeros((2, 32, 32), np.float32)
    path = write_geotiff(tmp_path / "S1" / "tile_0.tif", radar, "EPSG:32633", far, band_names=("VV", "VH"))
    rows = PairLoader.inspect(tmp_path)
    assert [row["file"] for row in rows if "does not overlap" in row.get("problem", "")] == [str(path)]


def test_several_possible_folders_are_all_shown(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=32)
    for name in ("S2L1C", "S2L2A"):
        fake_s1s2(tmp_path / "made", tiles=1, size=32, l1c=name == "S2L1C")
        (tmp_path / "made" / "S2").rename(tmp_path / name)
    (tmp_path / "S2" / "tile_0.tif").unlink()
    (tmp_path / "S2").rmdir()
    assert len(PairLoader.inspect(tmp_path)) == 4


def test_patch_folders_have_a_row_a_file_and_statistics_a_patch(tmp_path):
    fake_bigearthnet(tmp_path, patches=1)
    rows = inspect_data(tmp_path)
    assert len(rows) == 14
    assert [len(row["statistics"]) for row in rows if "statistics" in row] == [12, 2]


def test_remarks(tmp_path):
    fake_scene(tmp_path / "strips.tif", 2100, bands=1, tile=None, dtype="uint8")
    (striped,) = GeoTiffLoader.inspect(tmp_path / "strips.tif")
    assert "TILED=YES" in striped["remark"]
    assert striped["stored in"].endswith(" x 2100 strips")
    (tiled,) = GeoTiffLoader.inspect(fake_scene(tmp_path / "tiles.tif", 600, bands=1))
    assert (tiled["stored in"], tiled["remark"]) == ("256 x 256 tiles", None)
    write_geotiff(tmp_path / "bare.tif", np.ones((8, 8), np.uint8), None, None)
    assert GeoTiffLoader.inspect(tmp_path / "bare.tif")[0]["remark"] == "no CRS"


def test_pixels_of_the_first_images_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "WITH_STATISTICS", 2)
    fake_s1s2(tmp_path, tiles=4, size=16)
    rows = GeoTiffLoader.inspect(tmp_path / "S2")
    assert ["statistics" in row for row in rows] == [True, True, False, False]
