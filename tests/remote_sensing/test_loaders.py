"""The two loaders on sound data."""

import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from rasterio.windows import Window

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.data import Plan, make_dataloader
from maskwright.remote_sensing.alignment import LOWEST_POWER, to_decibels
from maskwright.remote_sensing.fake import fake_bigearthnet, fake_s1s2, fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from maskwright.remote_sensing.writers import write_geotiff
from maskwright.testing import check_loader

CRS = "EPSG:32633"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return fake_s1s2(tmp_path_factory.mktemp("tiles"), tiles=2, size=96)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return fake_scene(tmp_path_factory.mktemp("scene") / "scene.tif", 700, bands=3, tile=256)


# contract --------------------------------------------------------------------------------------------------------


def test_contract_of_the_pair_loader(tiles):
    check_loader(PairLoader(tiles, 48))
    check_loader(PairLoader(tiles, 48, crop=(24, 96)))
    check_loader(PairLoader(tiles, size=None))


def test_contract_on_one_file_a_band(tmp_path):
    fake_bigearthnet(tmp_path)
    check_loader(PairLoader(tmp_path))
    check_loader(GeoTiffLoader(tmp_path / "S2", 60))


def test_contract_of_the_geotiff_loader(scene):
    check_loader(GeoTiffLoader(scene))
    check_loader(GeoTiffLoader(scene, size=None))
    check_loader(GeoTiffLoader(scene.parent, 100, bands=["band 3", "band 1"], flip=True, scale=0.0001))


# pixels ----------------------------------------------------------------------------------------------------------


def test_windows_are_the_files_own_pixels(scene):
    with rasterio.open(scene) as file:
        for aligned in (True, False):
            loader = GeoTiffLoader(scene, 224, aligned=aligned)
            for index in (0, len(loader) - 1):
                for generator in (None, seeded(index)):
                    sample = loader.read(index, generator)
                    row, column, height, width = sample.meta.window
                    window = Window(column, row, width, height)
                    assert (sample["image"].numpy() == file.read(window=window)).all()
                    assert Affine(*sample.meta.transform) == file.window_transform(window)
                    assert (sample.meta.crs, sample.meta.source) == (CRS, str(scene))


def test_chosen_bands_in_their_order_and_scale(scene):
    whole = GeoTiffLoader(scene, 224).read(0)["image"]
    some = GeoTiffLoader(scene, 224, bands=["band 3", "band 1"], scale=0.5)
    torch.testing.assert_close(some.read(0)["image"], whole[[2, 0]] * 0.5)
    assert some.spec["image"].channels == ("band 3", "band 1")


def test_coarse_bands_come_onto_the_finest_grid(tmp_path):
    transform = (10.0, 0, 0, 0, -10.0, 0)
    ramp = np.arange(120, dtype=np.float32)[None, None].repeat(120, 1)
    write_geotiff(tmp_path / "x_B02.tif", ramp, CRS, transform)
    write_geotiff(tmp_path / "x_B05.tif", ramp[:, ::2, ::2] + 0.5, CRS, (20.0, 0, 0, 0, -20.0, 0))
    image = GeoTiffLoader(tmp_path, 40, max_nodata=1.0).read(4)["image"]
    assert image[0, 0, 0] == 40, "the window in the middle begins at column 40"
    torch.testing.assert_close(image[1, :, 2:-2], image[0, :, 2:-2], atol=1e-3, rtol=0)


def test_both_sensors_show_the_same_window(tiles):
    loader = PairLoader(tiles, 48, crop=(30, 90))
    with rasterio.open(tiles / "S1" / "tile_0.tif") as radar, rasterio.open(tiles / "S2" / "tile_0.tif") as optical:
        for seed in range(6):
            sample = loader.read(0, seeded(seed))
            row, column, height, width = sample.meta.window
            assert height == width
            assert 30 <= height <= 90
            flipped = Affine(*sample.meta.transform)
            dims = [axis for axis, step in ((-1, flipped.a), (-2, -flipped.e)) if step < 0]
            for name, file in (("sar", radar), ("optical", optical)):
                expected = file.read(
                    window=Window(column, row, width, height), out_shape=(file.count, 48, 48),
                    resampling=rasterio.enums.Resampling.bilinear, out_dtype="float32",
                )  # fmt: skip
                torch.testing.assert_close(sample[name].flip(dims), torch.from_numpy(expected))


def test_thirteen_bands_lose_the_cirrus_band(tmp_path, tiles):
    fake_s1s2(tmp_path, tiles=1, size=64, l1c=True)
    loader = PairLoader(tmp_path, 64)
    assert loader.spec["optical"].channels == PairLoader(tiles, 48).spec["optical"].channels
    with rasterio.open(tmp_path / "S2" / "tile_0.tif") as file:
        assert (loader.read(0)["optical"][9:].numpy() == file.read([10, 12, 13])).all()
    assert PairLoader(tmp_path, 64, drop_bands=[]).spec["optical"].channel_count == 13


def test_radar_with_further_bands_and_the_other_order(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=64)
    path = tmp_path / "S1" / "tile_0.tif"
    with rasterio.open(path) as file:
        vv, vh = file.read()
    transform = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    write_geotiff(path, np.stack([vh, vv, vv * 0]), CRS, transform, band_names=("VH", "VV", "angle"))
    assert (PairLoader(tmp_path, 64).read(0)["sar"].numpy() == np.stack([vv, vh])).all()


# radar -----------------------------------------------------------------------------------------------------------


def test_linear_power_becomes_decibels_and_is_said(tmp_path, tiles):
    fake_s1s2(tmp_path, tiles=2, size=96)
    for number in range(2):
        path = tmp_path / "S1" / f"tile_{number}.tif"
        with rasterio.open(path, "r+") as file:
            file.write((10 ** (file.read() / 10)).astype(np.float32))
    for unit in ("auto", "linear"):
        sample = PairLoader(tmp_path, 48, sar_unit=unit).read(0)
        torch.testing.assert_close(sample["sar"], PairLoader(tiles, 48).read(0)["sar"], atol=1e-3, rtol=0)
        assert sample.meta.extra["sar_unit_in_file"] == "linear"
    assert PairLoader(tiles, 48).read(0).meta.extra["sar_unit_in_file"] == "db"
    assert PairLoader(tmp_path, 48, sar_unit="db").read(0)["sar"].min() >= 0


def test_power_of_zero_is_no_data():
    found = to_decibels(np.array([1.0, 0.1, 0.0, -1.0, LOWEST_POWER / 10, np.nan]))
    np.testing.assert_allclose(found, [0, -10, np.nan, np.nan, -60, np.nan], atol=1e-5)


def shifted_radar(folder, metres: float, crs: str = CRS):
    """A pair whose radar image is a smooth ramp eastwards, moved by some metres."""
    fake_s1s2(folder, tiles=1, size=64)
    ramp = np.arange(64, dtype=np.float32)[None, None].repeat(64, 1).repeat(2, 0) - 100
    transform = (10.0, 0.0, 500000.0 + metres, 0.0, -10.0, 5000000.0)
    write_geotiff(folder / "S1" / "tile_0.tif", ramp, crs, transform, band_names=("VV", "VH"))
    return folder


def test_shift_below_a_tenth_of_a_pixel_is_none(tmp_path):
    sample = PairLoader(shifted_radar(tmp_path, 0.9), 64).read(0)
    assert sample.meta.extra["resampled"] is False
    assert sample["sar"][0, 0, :3].tolist() == [-100, -99, -98]


def test_shifted_radar_is_resampled_onto_the_optical_grid(tmp_path):
    loader = PairLoader(shifted_radar(tmp_path, 25), 64, max_nodata=0.1)
    sample = loader.read(0)
    assert sample.meta.extra["resampled"] is True
    torch.testing.assert_close(sample["sar"][0, 5, 4:62], torch.arange(4.0, 62) - 102.5, atol=1e-3, rtol=0)
    strict = PairLoader(tmp_path, 32, max_nodata=0.0)
    with pytest.raises(DataError, match='"sar" has no data in 6% of window'):
        strict.read(0)  # the two columns that the radar does not show
    assert strict.read(1)["sar"].isfinite().all()


def test_radar_in_another_reference_system(tmp_path):
    """The ramp of UTM zone 33 lies in web Mercator; what comes back must agree with a direct evaluation."""
    fake_s1s2(tmp_path, tiles=1, size=64)
    left, bottom, right, top = rasterio.warp.transform_bounds(CRS, "EPSG:3857", 499500, 4999000, 501500, 5000500)
    side = 200
    step_x, step_y = (right - left) / side, (top - bottom) / side
    ramp = (left + (np.arange(side) + 0.5) * step_x)[None, None].repeat(side, 1).repeat(2, 0)
    origin = ramp.mean()
    write_geotiff(
        tmp_path / "S1" / "tile_0.tif", (ramp - origin).astype(np.float32), "EPSG:3857", (step_x, 0, left, 0, -step_y, top),
        band_names=("VV", "VH"),
    )  # fmt: skip
    sample = PairLoader(tmp_path, 64).read(0)
    columns = [500000 + 10 * (column + 0.5) for column in range(64)]
    xs, _ = rasterio.warp.transform(CRS, "EPSG:3857", columns, [5000000 - 305] * 64)
    np.testing.assert_allclose(sample["sar"][0, 30].numpy(), np.array(xs) - origin, atol=step_x / 4)


# randomness, pickling, threads -----------------------------------------------------------------------------------


def test_only_the_generator_moves_windows(tiles):
    loader = PairLoader(tiles, 48, crop=(24, 96))
    torch.manual_seed(0)
    first = loader.read(1, seeded(3))
    torch.manual_seed(1)
    again = pickle.loads(pickle.dumps(loader)).read(1, seeded(3))  # noqa: S301 - as worker processes do it
    assert torch.equal(first["optical"], again["optical"])
    assert first.meta == again.meta
    windows = {loader.read(1, seeded(seed)).meta.window for seed in range(8)}
    assert len(windows) > 4


def test_worker_processes_read_what_this_one_reads(tiles):
    loader = PairLoader(tiles, 48)
    plan = Plan(len(loader), batch=2, world=1, accumulate=1, steps=4)
    here, there = (list(make_dataloader(loader, plan, 0, 0, 0, workers, pin=False)) for workers in (0, 2))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a["optical"], b["optical"])
        assert torch.equal(a["sar"], b["sar"])
        assert a.metas == b.metas


def test_threads_have_handles_of_their_own(scene):
    loader = GeoTiffLoader(scene, 224, aligned=False)
    alone = [loader.read(index, seeded(index))["image"] for index in range(len(loader))]
    barrier = threading.Barrier(4)

    def read(thread: int):
        barrier.wait()
        return [loader.read(index, seeded(index))["image"] for index in range(len(loader))]

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(read, range(4)):
            assert all(map(torch.equal, images, alone))


# options, warnings, pictures -------------------------------------------------------------------------------------


def test_options_that_make_no_sense(tiles, scene):
    for options in (
        {"max_nodata": 2},
        {"size": 0},
        {"crop": (60, 30)},
        {"crop": (2, 9)},
        {"size": None, "crop": (30, 60)},
    ):
        with pytest.raises(ConfigError, match=r"data\."):
            PairLoader(tiles, **options)
    with pytest.raises(ConfigError, match="max_nodata"):
        GeoTiffLoader(scene, max_nodata=-0.1)


def test_strips_are_warned_about_once_with_the_cure(tmp_path):
    for number in range(2):
        fake_scene(tmp_path / f"{number}.tif", 2100, bands=1, tile=None, dtype="uint8")
    with pytest.warns(UserWarning, match=r"2 files .* full-width strips.*TILED=YES") as caught:
        GeoTiffLoader(tmp_path)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GeoTiffLoader(fake_scene(tmp_path / "tiles" / "t.tif", 2100, bands=1, dtype="uint8"))


def test_group_is_the_image(tiles):
    loader = PairLoader(tiles, 48)
    assert [loader.group(index) for index in range(len(loader))] == ["tile_0"] * 4 + ["tile_1"] * 4
    assert loader.sources(5) == [str(tiles / "S2" / "tile_1.tif"), str(tiles / "S1" / "tile_1.tif")]
    assert loader.bytes_per_sample() == 14 * 48 * 48 * 4


def test_pictures(tiles, scene):
    loader = PairLoader(tiles, 48)
    sample = loader.read(0)
    colours = loader.picture("optical", sample["optical"])
    red = sample["optical"][3].numpy()
    assert (colours[..., 0].argmax(), colours[..., 0].max(), colours[..., 0].min()) == (
        colours[..., 0].argmax(),
        255,
        0,
    )
    assert np.corrcoef(colours[..., 0].ravel(), red.ravel())[0, 1] > 0.99
    radar = loader.picture("sar", sample["sar"])
    assert (radar.shape, radar.dtype) == ((48, 48, 3), np.uint8)
    one = GeoTiffLoader(scene, 100, bands=["band 2"])
    grey = one.picture("image", one.read(0)["image"])
    assert (grey[..., 0] == grey[..., 2]).all()
