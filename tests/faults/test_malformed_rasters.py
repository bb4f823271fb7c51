"""Broken, lying and hostile raster files (reliability promises R5, R6, R7)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.data import SampleReader
from maskwright.remote_sensing.fake import fake_bigearthnet, fake_s1s2, fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from maskwright.remote_sensing.raster import read_bands, read_classes, read_header
from maskwright.remote_sensing.writers import write_geotiff
from tests.faults.fuzz_rasters import BAD, FORMATS, run

TRANSFORM = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
CRS = "EPSG:32633"


@pytest.fixture
def tile(tmp_path):
    values = np.random.default_rng(0).integers(1, 3000, (4, 300, 300)).astype(np.uint16)
    return write_geotiff(tmp_path / "one" / "tile.tif", values, CRS, TRANSFORM)


def sparse(path: Path, side: int, **options) -> Path:
    """A file that declares many pixels and holds none."""
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint16", sparse_ok=True,
        crs=CRS, transform=rasterio.Affine(*TRANSFORM), compress="deflate", **options,
    ):  # fmt: skip
        pass
    return path


# one bad file, named by the user ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0" * 5000, "cannot be read"),
        (b"II*\0" + b"\xff" * 400, "cannot be read"),
        (b"just text", "cannot be read"),
    ],
)
def test_no_raster_at_all(tmp_path, content, words):
    path = tmp_path / "tile.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        GeoTiffLoader(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_cut_short(tile, share):
    data = tile.read_bytes()
    tile.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"tile\.tif"):
        GeoTiffLoader(tile)


def test_cut_short_behind_a_whole_directory_is_noticed_while_indexing(tmp_path):
    path = fake_scene(tmp_path / "scene.tif", 512, 2)  # its directory comes first
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(DataError, match="last block ends at byte"):
        read_header(path)


def test_damaged_block_is_an_error_not_zeros(tmp_path):
    path = fake_scene(tmp_path / "scene.tif", 512, 2)
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 200] = bytes(200)
    path.write_bytes(data)
    loader = GeoTiffLoader(path, 224)
    with pytest.raises(DataError, match=r"scene\.tif: cannot be read"):
        loader.read(0)
    assert loader.read(len(loader) - 1)["image"].shape == (2, 224, 224), "the rest of the scene is still of use"


def test_complex_numbers_are_refused(tmp_path):
    path = tmp_path / "slc.tif"
    with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="complex64") as file:
        file.write(np.ones((1, 64, 64), np.complex64))
    with pytest.raises(DataError, match="complex64"):
        read_header(path)


def test_vrt_is_not_opened(tmp_path, tile):
    path = tmp_path / "link.tif"
    path.write_text(
        f'<VRTDataset rasterXSize="300" rasterYSize="300"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{tile}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(path) as file:
        assert file.driver == "VRT", "GDAL itself follows it"
    with pytest.raises(DataError, match="cannot be read"):
        GeoTiffLoader(path)


def test_network_paths_are_no_files():
    with pytest.raises(DataError, match="no such file"):
        read_header("/vsicurl/http://127.0.0.1:9/tile.tif")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tile):
    tile.chmod(0)
    with pytest.raises(DataError, match="chmod"):
        GeoTiffLoader(tile)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        GeoTiffLoader(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no file ends in"):
        GeoTiffLoader(tmp_path)
    with pytest.raises(DataError, match="no folder for Sentinel-2"):
        PairLoader(tmp_path)


def test_image_smaller_than_a_window(tile):
    with pytest.raises(DataError, match=r"300 x 300 pixels.*data\.size"):
        GeoTiffLoader(tile, size=301)


# values ----------------------------------------------------------------------------------------------------------


def holed(tmp_path: Path, hole: float, nodata: float | None, share: int = 4) -> Path:
    values = np.random.default_rng(0).normal(5, 1, (2, 64, 64)).astype(np.float32)
    values[:, : 64 // share] = hole
    return write_geotiff(tmp_path / "holed.tif", values, CRS, TRANSFORM, nodata, band_names=("a", "b"))


@pytest.mark.parametrize(("hole", "nodata"), [(np.nan, None), (np.inf, None), (-9999, -9999), (np.nan, np.nan)])
def test_pixels_without_data_are_counted_and_never_leave(tmp_path, hole, nodata):
    path = holed(tmp_path, hole, nodata)
    with pytest.raises(DataError, match=r"no data in 25% of window.*data\.max_nodata"):
        GeoTiffLoader(path, 64).read(0)
    loader = GeoTiffLoader(path, 64, max_nodata=0.3)
    image = loader.read(0)["image"]
    assert image.isfinite().all()
    mean = torch.tensor(loader.statistics()["image"].mean)
    torch.testing.assert_close(image[:, :16], mean[:, None, None].expand(2, 16, 64))
    assert abs(mean[0] - 5) < 0.1, "the hole plays no part in the mean"


def test_nodata_beyond_float32(tmp_path):
    values = np.ones((1, 64, 64))
    values[:, :2] = -1.7976931348623157e308
    path = write_geotiff(tmp_path / "double.tif", values, CRS, TRANSFORM, nodata=-1.7976931348623157e308)
    image = GeoTiffLoader(path, 64).read(0)["image"]
    assert image.eq(1).all()


def test_zeros_in_every_sentinel2_band_are_no_data(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=64)
    path = tmp_path / "S2" / "tile_0.tif"
    with rasterio.open(path, "r+") as file:
        values = file.read()
        values[:, :32] = 0
        values[0, 40:] = 0  # zero in one band is a value
        file.write(values)
    for loader in (PairLoader(tmp_path, 64), GeoTiffLoader(path, 64)):
        with pytest.raises(DataError, match="no data in 50%"):
            loader.read(0)


# folders and pairs with one bad file -----------------------------------------------------------------------------


def test_one_bad_file_does_not_end_the_others(tmp_path):
    fake_s1s2(tmp_path, tiles=6, size=64)
    bad = tmp_path / "S2" / "tile_3.tif"
    bad.write_bytes(b"<html>not found</html>")
    for loader in (PairLoader(tmp_path, 32), GeoTiffLoader(tmp_path / "S2", 32)):
        assert [item.path for item in loader.bad_files] == [str(bad)]
        assert "web page" in loader.bad_files[0].reason
        reader = SampleReader(loader, seed=0)
        assert all(isinstance(reader[(0, index)].meta.source, str) for index in range(len(loader)))
        assert len(loader) == 5 * 4


def test_bad_window_is_set_aside_by_the_trainers_reader(tmp_path):
    path = holed(tmp_path, np.nan, None)
    result = SampleReader(GeoTiffLoader(path, 64), seed=0)[(0, 0)]
    assert (result.path, "no data" in result.reason) == (str(path), True)


def test_wrong_number_of_bands(tmp_path):
    fake_s1s2(tmp_path, tiles=3, size=64)
    odd = write_geotiff(tmp_path / "S2" / "tile_1.tif", np.ones((3, 64, 64), np.uint16), CRS, TRANSFORM)
    for loader in (PairLoader(tmp_path, 32), GeoTiffLoader(tmp_path / "S2", 32)):
        assert [item.path for item in loader.bad_files] == [str(odd)]
        assert "3 band" in loader.bad_files[0].reason or "band 1, band 2, band 3" in loader.bad_files[0].reason


def test_known_bands_in_another_order_are_not_mixed_up(tmp_path):
    values = np.ones((2, 64, 64), np.float32)
    write_geotiff(tmp_path / "a.tif", values, CRS, TRANSFORM, band_names=("VV", "VH"))
    write_geotiff(tmp_path / "b.tif", values, CRS, TRANSFORM, band_names=("VH", "VV"))
    loader = GeoTiffLoader(tmp_path, 32)
    assert [Path(item.path).name for item in loader.bad_files] == ["b.tif"]
    assert not GeoTiffLoader(tmp_path, 32, bands=["VV", "VH"]).bad_files, "asked for by name, both can be used"


def test_pairs_that_do_not_overlap(tmp_path):
    fake_s1s2(tmp_path, tiles=2, size=64)
    radar = np.full((2, 64, 64), -10, np.float32)
    far = (10.0, 0.0, 900000.0, 0.0, -10.0, 4000000.0)
    write_geotiff(tmp_path / "S1" / "tile_1.tif", radar, CRS, far, band_names=("VV", "VH"))
    loader = PairLoader(tmp_path, 64)
    assert len(loader) == 1
    assert "does not overlap" in loader.bad_files[0].reason


@pytest.mark.parametrize(("crs", "words"), [(None, "coordinate reference system"), ("EPSG:4326", "does not overlap")])
def test_pairs_in_another_or_no_crs(tmp_path, crs, words):
    fake_s1s2(tmp_path, tiles=1, size=64)
    radar = np.full((2, 64, 64), -10, np.float32)
    write_geotiff(tmp_path / "S1" / "tile_0.tif", radar, crs, (0.001, 0, 3, 0, -0.001, 3), band_names=("VV", "VH"))
    with pytest.raises(DataError, match=words):
        PairLoader(tmp_path, 64)


def test_broken_band_of_a_patch(tmp_path):
    fake_bigearthnet(tmp_path, patches=2)
    bad = next((tmp_path / "S2").glob("*_0_48/*_B05.tif"))
    bad.write_bytes(bad.read_bytes()[:200])
    loader = PairLoader(tmp_path)
    assert (len(loader), loader.bad_files[0].path) == (1, str(bad))


@pytest.mark.parametrize(
    "text",
    [b"", b"a,b\n1,2\n", b"s2,s1\n", b"s2,s1\nx,y\n", b"s2,s1\n\xff\xfe,\x00\n", b"s2,s1\n" + b"x" * 5000 + b",y"],
)
def test_broken_tables_of_pairs(tmp_path, text):
    fake_bigearthnet(tmp_path, patches=1)
    (tmp_path / "pairs.csv").write_bytes(text)
    with pytest.raises(DataError, match=r"pairs\.csv"):
        PairLoader(tmp_path)


# bombs (R6) ------------------------------------------------------------------------------------------------------


def test_declared_size_is_checked_before_allocation(tmp_path):
    path = sparse(tmp_path / "bomb.tif", 200_000, tiled=True, blockxsize=512, blockysize=512)
    assert path.stat().st_size < 8e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"needs 152588 MB; expected at most 512 MB.*MASKWRIGHT_MAX_READ_MB"):
        GeoTiffLoader(path, size=None).read(0)
    with pytest.raises(DataError, match="MASKWRIGHT_MAX_READ_MB"):
        read_classes(path)
    loader = GeoTiffLoader(path, 224)
    assert len(loader) == 893**2, "windows of it are fine, and cost nothing to index"
    assert loader.read(len(loader) - 1)["image"].shape == (1, 224, 224)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200, f"{grown} MB"


def test_one_giant_block_is_refused(tmp_path):
    path = sparse(tmp_path / "strip.tif", 30_000, tiled=False, blockysize=30_000)
    with pytest.raises(DataError, match=r"blocks of 30000 x 30000 pixels, 1717 MB.*TILED=YES"):
        GeoTiffLoader(path, 224)


def test_limit_can_be_changed_and_must_be_a_number(tile, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_MAX_READ_MB", "1")
    with pytest.raises(DataError, match="at most 1 MB"):
        GeoTiffLoader(tile, size=None).read(0)
    monkeypatch.setenv("MASKWRIGHT_MAX_READ_MB", "plenty")
    with pytest.raises(ConfigError, match="plenty"):
        GeoTiffLoader(tile, size=None).read(0)


# handles ---------------------------------------------------------------------------------------------------------


def test_file_written_anew_is_read_anew(tile):
    before = GeoTiffLoader(tile, 64).read(0)["image"]
    write_geotiff(tile, np.full((4, 300, 300), 7, np.uint16), CRS, TRANSFORM)
    assert GeoTiffLoader(tile, 64).read(0)["image"].eq(7).all()
    assert not before.eq(7).all()


def test_file_that_vanishes_is_a_data_error(tile):
    loader = GeoTiffLoader(tile, 64)
    tile.unlink()
    with pytest.raises(DataError, match=r"tile\.tif"):
        loader.read(0)
    with pytest.raises(DataError, match="any more"):
        loader.statistics()


def test_gdal_says_nothing_of_its_own(tmp_path):
    """GDAL's complaints belong in the error, not on the terminal of a run."""
    path = fake_scene(tmp_path / "scene.tif", 512, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    code = (
        "from rasterio.windows import Window; from maskwright.remote_sensing.raster import read_bands\n"
        f"try: read_bands({str(path)!r}, [1], Window(256, 256, 200, 200), (200, 200))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("DataError", "")


def test_read_of_no_file_names_it():
    with pytest.raises(DataError, match=r"nothing\.tif"):
        read_bands("/nothing.tif", [1], rasterio.windows.Window(0, 0, 1, 1), (1, 1))


# fuzzing (R5) ----------------------------------------------------------------------------------------------------


def test_damaged_files_give_data_errors_alone():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # a forked reader inherits this peak
    results = run(500, seed=0)
    assert len(results) == 500
    assert {result["kind"] for result in results} == set(FORMATS)
    wrong = [result for result in results if result["outcome"] in BAD]
    assert not wrong, wrong[:5]
    assert sum(result["outcome"] == "DataError" for result in results) > 100, "the damage must matter"
    assert max(result["peak"] for result in results) < before + 600, "MiB"
