"""Real tiles: those that ship, and more where they lie beside the checkout."""

import warnings
from importlib import resources

import numpy as np
import pytest
import rasterio

from maskwright.core.errors import ConfigError
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from maskwright.testing import check_loader

SAMPLES = resources.files("maskwright.remote_sensing") / "samples"


@pytest.fixture
def real(shared_data):
    return shared_data / "remote_sensing"


@pytest.mark.parametrize(("name", "size", "count"), [("terramesh", 112, 16), ("bigearthnet", 120, 4)])
def test_shipped_samples(name, size, count):
    loader = PairLoader(SAMPLES / name, size)
    check_loader(loader)
    assert (len(loader), loader.bad_files) == (count, [])
    statistics = loader.statistics()
    assert all(0 < low < 20000 for low in statistics["optical"].mean)
    assert all(-40 < mean < 5 for mean in statistics["sar"].mean), "decibels"
    assert loader.read(0).meta.extra["sar_unit_in_file"] == "db"
    assert len({loader.group(index) for index in range(count)}) == 4


def test_both_products_of_one_tile_lie_alike(real):
    with pytest.raises(ConfigError, match=r"S2L1C, S2L2A.*data\.s2="):
        PairLoader(real / "terramesh_s1s2")
    samples = [PairLoader(real / "terramesh_s1s2", 224, s2=name).read(0) for name in ("S2L1C", "S2L2A")]
    top, surface = (sample["optical"].numpy() for sample in samples)
    assert top.shape == surface.shape == (12, 224, 224)
    assert samples[0].meta.transform == samples[1].meta.transform
    for band in range(12):
        assert np.corrcoef(top[band].ravel(), surface[band].ravel())[0, 1] > 0.9, f"band {band} is another one"


def test_shipped_tiles_are_the_originals(real):
    ours = PairLoader(SAMPLES / "terramesh", None).read(0)
    theirs = PairLoader(real / "terramesh_s1s2", None, s2="S2L2A").read(0)
    assert (ours["optical"] == theirs["optical"]).all()
    assert (ours["sar"] - theirs["sar"]).abs().max() < 1e-5
    assert ours.meta.transform == theirs.meta.transform


def test_patches_at_three_resolutions(real):
    loader = PairLoader(real / "bigearthnet_pairs")
    sample = loader.read(0)
    blue = next(file for file in loader.sources(0) if file.endswith("B02.tif"))
    with rasterio.open(blue) as file:
        assert (sample["optical"][1].numpy() == file.read(1)).all(), "10 m bands are not resampled"
    fine, coarse = sample["optical"][7].numpy(), sample["optical"][8].numpy()
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.9, "B8 at 10 m and B8A at 20 m"


def test_aerial_chips_of_several_sizes_and_zones(real):
    loader = GeoTiffLoader(real / "naip_chips", 96, max_nodata=1)
    check_loader(loader)
    assert len({loader.read(index).meta.crs for index in range(len(loader))}) == 3


def test_landsat_and_modis(real):
    check_loader(GeoTiffLoader(real / "landsat8_crop", 128))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # 2400 pixels wide, but in tiles
        snow = GeoTiffLoader(real / "modis_samples" / _extent(real), 224, max_nodata=0.5)
    check_loader(snow)
    assert "Sinusoidal" in snow.read(0).meta.crs


def _extent(real) -> str:
    return next(path.name for path in (real / "modis_samples").glob("*Extent.tif"))
