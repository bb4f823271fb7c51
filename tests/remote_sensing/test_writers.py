"""Georeferences survive reading, cutting and writing (R16)."""

import os
import uuid

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine

from maskwright.core.errors import DataError
from maskwright.core.trainer.files import DiskFullError
from maskwright.remote_sensing.loaders import GeoTiffLoader
from maskwright.remote_sensing.writers import write_geotiff

LOCAL = (
    'PROJCS["local",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Azimuthal_Equal_Area"],PARAMETER["latitude_of_center",47.5],'
    'PARAMETER["longitude_of_center",8.25],PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
)
SYSTEMS = [
    "EPSG:4326",
    "EPSG:32633",
    "EPSG:32701",
    "EPSG:3857",
    "EPSG:3035",
    "EPSG:2056",
    "EPSG:3031",
    "EPSG:2263",
    LOCAL,
]


@st.composite
def affines(draw):
    """Pixels of any size from centimetres to kilometres, anywhere, turned, sheared, upside down."""
    side = st.floats(0.01, 5000, allow_subnormal=False)
    sign = st.sampled_from([1, -1])
    place = st.floats(-1e7, 1e7, allow_subnormal=False)
    turn = draw(st.one_of(st.just(0.0), st.floats(-180, 180)))
    shear = draw(st.one_of(st.just(0.0), st.floats(-30, 30)))
    return (
        Affine.translation(draw(place), draw(place))
        * Affine.rotation(turn)
        * Affine.shear(shear, 0)
        * Affine.scale(draw(side) * draw(sign), draw(side) * draw(sign))
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    affine=affines(), crs=st.sampled_from(SYSTEMS), size=st.sampled_from([16, 33, None]), index=st.integers(0, 10**6)
)
def test_read_cut_write_keeps_the_georeference_exactly(tmp_path, affine, crs, size, index):
    folder = tmp_path / uuid.uuid4().hex
    values = np.arange(2 * 40 * 50, dtype=np.int32).reshape(2, 40, 50)
    whole = write_geotiff(folder / "whole.tif", values, crs, tuple(affine)[:6])
    with rasterio.open(whole) as file:
        stored = file.transform
        assert file.crs == CRS.from_string(crs)
        assert stored.almost_equals(affine, precision=1e-9) or np.allclose(stored, affine, rtol=1e-14, atol=0)
    loader = GeoTiffLoader(whole, size)
    sample = loader.read(index % len(loader))
    cut = write_geotiff(folder / "cut.tif", sample["image"].numpy(), sample.meta.crs, sample.meta.transform)
    row, column, height, width = sample.meta.window
    with rasterio.open(cut) as file:
        assert file.crs == CRS.from_string(crs)
        assert tuple(file.transform)[:6] == tuple(stored * Affine.translation(column, row))[:6]
        assert (file.read() == values[:, row : row + height, column : column + width]).all()


def test_what_is_written(tmp_path):
    codes = np.arange(300 * 280, dtype=np.uint32).reshape(300, 280).astype(np.uint8) % 5
    transform = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
    path = write_geotiff(
        tmp_path / "new" / "map.tif", codes, "EPSG:32633", transform, nodata=0,
        colormap={1: (10, 20, 30), 4: (200, 100, 0)}, band_names=["land cover"], tags={"encoder": "croma"},
    )  # fmt: skip
    with rasterio.open(path) as file:
        assert (file.read(1) == codes).all()
        assert (file.nodata, file.descriptions, file.tags()["encoder"]) == (0, ("land cover",), "croma")
        assert file.colormap(1)[4] == (200, 100, 0, 255)
        assert file.block_shapes == [(256, 256)]
        assert file.compression.value == "DEFLATE"
    assert [item.name for item in path.parent.iterdir()] == ["map.tif"], "no temporary file is left"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_comes_back(tmp_path, dtype):
    values = np.random.default_rng(0).normal(50, 20, (3, 40, 30)).astype(dtype)
    with rasterio.open(write_geotiff(tmp_path / "x.tif", values, None, None)) as file:
        assert (file.read() == values).all()
        assert file.crs is None


def test_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    values = np.ones((1, 8, 8), np.uint8)
    path = write_geotiff(tmp_path / "map.tif", values, "EPSG:4326", (1, 0, 0, 0, -1, 0))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"map\.tif: cannot be written"):
        write_geotiff(path, np.ones((1, 8, 8), np.complex128), "no such system", (1, 0, 0, 0, -1, 0))

    def full(file):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="What was there before is whole"):
        write_geotiff(path, values * 2, "EPSG:4326", (1, 0, 0, 0, -1, 0))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["map.tif"]
