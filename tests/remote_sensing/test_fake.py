import numpy as np
import rasterio

from maskwright.remote_sensing.fake import fake_bigearthnet, fake_land_cover, fake_s1s2, fake_scene
from maskwright.remote_sensing.loaders import PairLoader
from maskwright.remote_sensing.raster import read_classes
from maskwright.remote_sensing.tasks import LAND_COVER


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def test_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fake_s1s2(tmp_path / name, tiles=1, size=32, seed=seed)
    same, other = (read(tmp_path / name / "S2" / "tile_0.tif") for name in ("b", "c"))
    assert (read(tmp_path / "a" / "S2" / "tile_0.tif") == same).all()
    assert not (same == other).all()


def test_sensors_and_land_cover_share_a_landscape(tmp_path):
    fake_s1s2(tmp_path, tiles=2, size=64)
    fake_land_cover(tmp_path, tiles=2, size=64)
    for number in range(2):
        radar = read(tmp_path / "S1" / f"tile_{number}.tif")[0]
        optical = read(tmp_path / "S2" / f"tile_{number}.tif").astype(float)
        assert max(abs(np.corrcoef(radar.ravel(), band.ravel())[0, 1]) for band in optical) > 0.5
        classes = read_classes(tmp_path / "LULC" / f"tile_{number}.tif")
        assert set(np.unique(classes)) <= set(LAND_COVER)
        water, bare = radar[classes == 1].mean(), radar[classes == 6].mean()
        assert bare - water > 2, "the classes are heights of the landscape, which the radar sees"


def test_formats(tmp_path):
    fake_bigearthnet(tmp_path / "ben", patches=1)
    loader = PairLoader(tmp_path / "ben")
    assert (len(loader), loader.spec["optical"].channel_count, loader.bad_files) == (1, 12, [])
    with rasterio.open(fake_scene(tmp_path / "s.tif", 300, bands=2, tile=None, dtype="float32", nodata=-1)) as file:
        assert (file.count, file.shape, file.dtypes[0], file.nodata) == (2, (300, 300), "float32", -1)
        assert file.block_shapes[0][1] == 300
