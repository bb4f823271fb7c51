"""Embeddings of georeferenced images as GeoParquet that geopandas opens, over several UTM zones."""

import json

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rasterio.warp import transform as transform_coordinates

from maskwright.core.embed import embed
from maskwright.core.encoder import VisionTransformer
from maskwright.remote_sensing.writers import write_geotiff

PLACES = {"a": ("EPSG:32633", 500000.0, 5000000.0), "b": ("EPSG:32718", 300000.0, 8000000.0)}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer(32, 8, in_chans=2, embed_dim=8, depth=1, num_heads=2, normalization="none").eval()


@pytest.fixture
def tiles(tmp_path):
    generator = np.random.default_rng(0)
    for name, (crs, x, y) in PLACES.items():
        values = generator.integers(1, 900, (2, 32, 64)).astype(np.uint16)
        write_geotiff(tmp_path / "tiles" / f"{name}.tif", values, crs, (10.0, 0.0, x, 0.0, -20.0, y))
    return tmp_path / "tiles"


def test_points_lie_where_the_windows_lie_in_every_zone(tiles, tmp_path, encoder):
    out = embed(encoder, tiles, tmp_path / "e.parquet", settings=["data.size=32"])
    frame = geopandas.read_parquet(out)
    assert frame.crs == "OGC:CRS84"
    assert len(frame) == 4
    assert frame["crs"].tolist() == ["EPSG:32633"] * 2 + ["EPSG:32718"] * 2
    for row in frame.itertuples():
        crs, x, y = PLACES[row.group]
        assert (row.x, row.y) == (x + 10 * (row.window_column + 16), y - 20 * 16)
        (longitude,), (latitude,) = transform_coordinates(crs, "EPSG:4326", [row.x], [row.y])
        assert (row.geometry.x, row.geometry.y) == pytest.approx((longitude, latitude), abs=1e-9)
    back = frame[frame["group"] == "b"].to_crs("EPSG:32718").geometry
    assert back.x.to_numpy() == pytest.approx(frame[frame["group"] == "b"]["x"].to_numpy(), abs=1e-3)
    geo = json.loads(pq.read_schema(out).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx(list(frame.total_bounds))


def test_tokens_lie_at_their_own_centres(tiles, tmp_path, encoder):
    frame = geopandas.read_parquet(
        embed(encoder, tiles / "a.tif", tmp_path / "t.parquet", level="tokens", settings=["data.size=32"])
    )
    assert len(frame) == 2 * 16
    row = frame[(frame["index"] == 1) & (frame["token_row"] == 2) & (frame["token_column"] == 3)].iloc[0]
    assert row["token"] == 2 * 4 + 3
    assert (row["x"], row["y"]) == (500000 + 10 * (32 + 3 * 8 + 4), 5000000 - 20 * (2 * 8 + 4))


def test_images_without_georeference_give_plain_parquet(tmp_path, encoder):
    write_geotiff(tmp_path / "tiles" / "a.tif", np.ones((2, 32, 32), np.uint16), None, None)
    out = embed(encoder, tmp_path / "tiles", tmp_path / "e.parquet", settings=["data.size=32"])
    schema = pq.read_schema(out)
    assert "geometry" not in schema.names
    assert b"geo" not in schema.metadata
    assert pq.read_table(out)["crs"].null_count == 1


def test_an_image_without_a_place_among_others_has_no_geometry(tiles, tmp_path, encoder):
    write_geotiff(tiles / "c.tif", np.ones((2, 32, 32), np.uint16), None, None)
    frame = geopandas.read_parquet(embed(encoder, tiles, tmp_path / "e.parquet", settings=["data.size=32"]))
    assert frame.geometry.isna().tolist() == [False] * 4 + [True]


def test_a_local_system_has_no_longitude(tmp_path, encoder):
    local = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    write_geotiff(tmp_path / "a.tif", np.ones((2, 32, 32), np.uint16), local, (1.0, 0.0, 5.0, 0.0, -1.0, 9.0))
    table = pq.read_table(embed(encoder, tmp_path / "a.tif", tmp_path / "e.parquet", settings=["data.size=32"]))
    assert "geometry" not in table.column_names
    assert (table["x"][0].as_py(), table["y"][0].as_py()) == (21.0, -7.0)
