"""The loader `scans`: tiles, their cache, classification and other codes, reference systems."""

import json
import os
import time

import numpy as np
import pytest
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.task import Segmentation
from maskwright.core.trainer.data import generator_for
from maskwright.pointcloud import tiles
from maskwright.pointcloud.base import world
from maskwright.pointcloud.crs import same_system, to_lonlat, unit_of
from maskwright.pointcloud.fake import UTM, fake_points, fake_scan
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.loaders import ScanLoader
from maskwright.testing.loader import check_loader


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    fake_scan(folder / "west.laz", seed=1)
    fake_scan(folder / "north" / "east.las", seed=2, origin=(UTM[0] + 60, *UTM[1:]))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scans"


OPTIONS = [
    {"features": ["red", "green", "blue", "intensity"]},
    {"tile": 7.5, "points": 64, "min_points": 2, "scale": "unit"},
    {"tile": 1000.0, "points": 500, "scale": 3.0, "features": ["time", "classification"]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_contract(scans, options):
    loader = ScanLoader(scans, **options)
    assert not loader.bad_files
    check_loader(loader, samples=5)
    sample = loader.read(1, torch.Generator().manual_seed(0))
    assert sample["points"].shape == (options.get("points", 4096), 3 + len(options.get("features", [])))
    assert {loader.group(index) for index in range(len(loader))} == {"west.laz", "north/east.las"}
    assert {loader.label(index) for index in range(len(loader))} == {None, "north"}


def test_every_point_is_in_the_tile_where_it_lies(scans):
    loader = ScanLoader(scans, tile=20.0, points="all", min_points=2)
    assert len(loader) == 9 + 9
    found = {}
    for index in range(len(loader)):
        sample = loader.read(index)
        places, tile = world(sample), np.array(sample.meta.extra["tile"])
        corner = tile * 20.0
        assert (places[:, :2] > corner - 1e-3).all()
        assert (places[:, :2] < corner + 20 + 1e-3).all()
        found.setdefault(sample.meta.source, []).append((loader.numbers(sample), places))
    for path, parts in found.items():
        cloud = open_points(path).read()
        numbers = np.concatenate([numbers for numbers, _ in parts])
        assert np.array_equal(np.sort(numbers), np.arange(len(cloud)))
        places = np.concatenate([places for _, places in parts])
        assert np.abs(places - cloud.xyz[numbers]).max() < 1e-4


@pytest.mark.parametrize("ending", ["laz", "ply", "csv"])
def test_blocks_do_not_change_the_tiles(tmp_path, monkeypatch, cache, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "laz":
        fake_scan(path, 40, 3)
    else:
        fake_points(path, 3000)
    options = {"tile": 9.0 if ending == "laz" else 0.3, "points": "all", "min_points": 2, "features": ["red"]}
    whole = ScanLoader(path, **options)
    wanted = [whole.read(index) for index in range(len(whole))]
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "other"))
    for module in ("las", "ply"):
        monkeypatch.setattr(f"maskwright.pointcloud.formats.{module}.BLOCK", 77)
    monkeypatch.setattr("maskwright.pointcloud.formats.text.LINES", 77)
    loader = ScanLoader(path, **options)
    assert len(loader) == len(wanted) > 10
    for index, sample in enumerate(wanted):
        assert torch.equal(loader.read(index)["points"], sample["points"])
        assert loader.read(index).meta == sample.meta


def test_small_tiles_are_left_out(scans):
    sizes = ScanLoader(scans / "west.laz", tile=13.0, min_points=2)
    counts = np.array([sizes.read(index).meta.extra["points"] for index in range(len(sizes))])
    least = int(np.median(counts)) + 1
    assert len(ScanLoader(scans / "west.laz", tile=13.0, min_points=least)) == (counts >= least).sum() > 0
    with pytest.raises(DataError, match=r"none of its \d+ tiles holds 100000 points"):
        ScanLoader(scans / "west.laz", min_points=100_000)


def test_tiles_in_metres_of_a_scan_in_feet(tmp_path, cache):
    foot = 1200 / 3937
    fake_scan(tmp_path / "a.las", 200, 0.5, crs="EPSG:2263")
    sample = ScanLoader(tmp_path, tile=20.0, points="all").read(0)
    assert np.ptp(world(sample)[:, :2], axis=0).max() < 20 / foot + 1e-3
    assert abs(sample.meta.extra["scale"] - 10 / foot) < 1e-3
    fake_scan(tmp_path / "a.las", 1, 100, crs="EPSG:4326", origin=(14, 38, 0))
    with pytest.raises(DataError, match=r"degrees, and data.tile is in metres"):
        ScanLoader(tmp_path)


def test_several_reference_systems_in_a_folder(tmp_path, cache):
    fake_scan(tmp_path / "a.las", 20, 1)
    fake_scan(tmp_path / "b.laz", 20, 1, crs="EPSG:32634")
    with pytest.raises(DataError, match=r"UTM zone 34N \(metre\), but .*a.las in WGS 84 / UTM zone 33N"):
        ScanLoader(tmp_path)
    fake_scan(tmp_path / "b.laz", 20, 1, crs=None)
    with pytest.raises(DataError, match="no reference system that it says"):
        ScanLoader(tmp_path)
    fake_scan(tmp_path / "b.laz", 20, 1)
    assert len(ScanLoader(tmp_path, min_points=2)) == 2


def test_reference_systems():
    wkt = 'LOCAL_CS["somewhere",UNIT["metre",1]]'
    assert unit_of("EPSG:32633").name == "metre"
    assert unit_of("EPSG:4326").metres == 0
    assert unit_of("nonsense").name == "unknown"
    assert unit_of(None).metres == 1
    assert same_system(None, None)
    assert not same_system("EPSG:32633", None)
    assert not same_system("EPSG:32633", wkt)
    longitude, latitude = to_lonlat("EPSG:32633", np.array([500000.0, np.nan]), np.array([0.0, 0.0]))
    assert abs(longitude[0] - 15) < 1e-6
    assert abs(latitude[0]) < 1e-6
    assert np.isnan(longitude[1])
    assert np.isnan(to_lonlat("nonsense", np.zeros(1), np.zeros(1))[0]).all()


# the cache ---------------------------------------------------------------------------------------------------------


def test_tiles_are_made_once(scans, cache, monkeypatch):
    ScanLoader(scans / "west.laz")
    kept = {place: place.stat().st_mtime_ns for place in cache.rglob("points.npy")}
    assert len(kept) == 1
    monkeypatch.setattr(tiles, "_survey", None)  # nothing is read again
    ScanLoader(scans / "west.laz", points=10)
    assert {place: place.stat().st_mtime_ns for place in cache.rglob("points.npy")} == kept
    with pytest.raises(TypeError):
        ScanLoader(scans / "west.laz", tile=21.0)


def test_a_changed_scan_is_cut_anew(tmp_path, cache):
    path = fake_scan(tmp_path / "a.laz", 20, 3, seed=1)
    first = ScanLoader(path, points="all", min_points=2).read(0)
    fake_scan(path, 20, 3, seed=2)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(ScanLoader(path, points="all", min_points=2).read(0)["points"], first["points"])


def test_a_damaged_cache_is_made_anew(scans, cache):
    wanted = ScanLoader(scans / "west.laz").read(0)
    for name, content in (("points.npy", b"no"), ("tiles.npy", b""), ("scan.json", b"{")):
        (file,) = cache.rglob(name)
        file.write_bytes(content)
        again = ScanLoader(scans / "west.laz")
        assert torch.equal(again.read(0)["points"], wanted["points"])
    file.with_name("points.npy").unlink()
    with pytest.raises(DataError, match="is not what was written there"):
        again.read(0)


def test_the_cache_is_bounded(scans, cache, monkeypatch):
    with pytest.raises(ConfigError, match=r"GB, and the cache in .* may take 1e-05"):
        ScanLoader(scans / "west.laz", cache=1e-5)
    ScanLoader(scans / "west.laz")
    (place,) = cache.iterdir()
    size = sum(file.stat().st_size for file in place.iterdir()) / 1e9
    with pytest.raises(ConfigError, match="cache"):  # it was used just now
        ScanLoader(scans / "north", cache=1.5 * size)
    old = time.time() - 2 * tiles.IN_USE
    os.utime(place, (old, old))
    ScanLoader(scans / "north", cache=1.5 * size)
    assert len(list(cache.iterdir())) == 1
    assert not place.exists()


def test_a_process_that_comes_second_takes_what_is_there(scans, cache, monkeypatch):
    fill, done = tiles._fill, []

    def slow(*arguments):
        if not done:
            done.append(1)
            ScanLoader(scans / "west.laz")
        fill(*arguments)

    monkeypatch.setattr(tiles, "_fill", slow)
    assert len(ScanLoader(scans / "west.laz")) == 9
    assert [place.name[0] for place in cache.iterdir()] != ["."]
    assert len(list(cache.iterdir())) == 1


def test_nothing_is_left_of_tiles_that_failed(scans, cache, monkeypatch):
    monkeypatch.setattr(tiles.np, "save", None)
    with pytest.raises(TypeError):
        ScanLoader(scans / "west.laz")
    assert not list(cache.iterdir())


def test_points_at_the_end_of_the_world(tmp_path, cache):
    (tmp_path / "a.xyz").write_text("0 0 0\n1e300 0 0\n")
    with pytest.raises(DataError, match="from the origin"):
        ScanLoader(tmp_path, min_points=2)


# codes -------------------------------------------------------------------------------------------------------------


def test_classification_in_the_order_of_the_sample(scans):
    loader = ScanLoader(scans, features=["classification"])
    seen = set()
    for index in range(0, len(loader), 4):
        for generator in (None, generator_for(index)):
            sample = loader.read(index, generator)
            wanted = sample["points"][:, 3].long().numpy()
            seen |= set(wanted.tolist())
            for path in (scans, loader.sources(index)[0]):
                assert np.array_equal(loader.read_labels(path, sample), wanted)
    assert seen == {2, 5, 6}


def test_classification_that_is_no_feature(scans):
    loader, with_codes = ScanLoader(scans), ScanLoader(scans, features=["classification"])
    wanted = with_codes.read(3, generator_for(1))["points"][:, 3].long().numpy()
    assert np.array_equal(loader.read_labels(scans, loader.read(3, generator_for(1))), wanted)


def test_codes_of_a_file(scans, tmp_path):
    loader = ScanLoader(scans, points=300)
    sample = loader.read(12, generator_for(2))
    assert sample.meta.group == "west.laz"
    cloud = open_points(scans / "west.laz").read(["classification"])
    codes = np.random.default_rng(0).integers(0, 9, len(cloud))
    np.save(tmp_path / "west.npy", codes.astype(np.uint8))
    wanted = codes[loader.numbers(sample)]
    for path in (tmp_path, tmp_path / "west.npy"):
        assert np.array_equal(loader.read_labels(path, sample), wanted)
    (tmp_path / "codes.txt").write_text("\n".join(map(str, codes)))
    assert np.array_equal(loader.read_labels(tmp_path / "codes.txt", sample), wanted)
    assert np.array_equal(
        loader.read_labels(scans / "west.laz", sample), cloud.columns["classification"][loader.numbers(sample)]
    )


def test_codes_that_do_not_fit(scans, tmp_path):
    loader = ScanLoader(scans, points=300)
    sample = loader.read(12)
    count = len(open_points(scans / "west.laz").read())
    for values, words in (
        (np.zeros(count - 1, int), f"one for each of the {count} points"),
        (np.full(count, 0.5), "no codes"),
        (np.full(count, -2), "-1 to"),
        (np.full(count, np.nan), "no codes"),
    ):
        np.save(tmp_path / "west.npy", values)
        os.utime(tmp_path / "west.npy", ns=(time.time_ns(), time.time_ns() + hash(words) % 10**9))
        with pytest.raises(DataError, match=words):
            loader.read_labels(tmp_path, sample)
    (tmp_path / "west.npy").unlink()
    with pytest.raises(DataError, match=r"no codes for west.laz; expected west.npy"):
        loader.read_labels(tmp_path, sample)
    points = ScanLoader(fake_points(tmp_path / "a.ply"), tile=1.0)
    with pytest.raises(DataError, match="no column classification"):
        points.read_labels(tmp_path / "a.ply", points.read(0))


def test_names_of_classes(scans, tmp_path):
    legend = ScanLoader(scans).legend(scans)
    assert legend[2] == ("ground", (166, 116, 70))
    assert legend[6][0] == "building"
    assert all(len(colour) == 3 for _, colour in legend.values())
    assert ScanLoader(scans).legend(tmp_path / "west.npy") == {}
    targets = Segmentation(str(scans)).targets(ScanLoader(scans, points=512))
    assert targets.codes == (2, 5, 6)
    assert targets.classes == ("ground", "high vegetation", "building")


def test_views_from_above(scans):
    loader = ScanLoader(scans, tile=20.0, points=4096)
    points = torch.zeros(400, 3)
    points[:200, 0], points[:200, 1] = torch.linspace(-1, 1, 200), 1.0
    points[200:, 0], points[200:, 1] = -1.0, torch.linspace(-1, 1, 200)
    points[:, 2] = 0.5
    dark = loader.picture("points", points).min(2) < 255
    side = len(dark)
    assert dark[: side // 4].any(0).mean() > 0.9  # north is at the top
    assert dark[:, : side // 4].any(1).mean() > 0.9  # west is at the left
    assert not dark[side // 2 :, side // 2 :].any()
    coloured = ScanLoader(scans, features=["red", "green", "blue"], points=4096)
    picture = coloured.picture("points", coloured.read(0)["points"])
    inside = picture[(picture < 255).any(2)]
    assert (inside[:, 0].astype(int) - inside[:, 2]).mean() > 15  # the ground of made-up scans is brown


def test_options_that_do_not_fit(scans):
    for options in ({"tile": 0}, {"tile": -5.0}, {"min_points": 1}, {"cache": 0}, {"points": 1}, {"scale": -2.0}):
        with pytest.raises(ConfigError, match=r"data\."):
            ScanLoader(scans, **options)
    with pytest.raises(DataError, match=r"2 broken ones.*no column heat"):
        ScanLoader(scans, features=["heat"])


def test_a_real_scan(shared_data, cache):
    folder = shared_data / "pointcloud" / "lidar_las"
    loader = ScanLoader(folder / "autzen_trim.laz", tile=50.0, features=["red", "green", "blue"])
    check_loader(loader)
    sample = loader.read(5)
    assert sample.meta.extra["unit"] == "foot"
    assert 0.1 < sample["points"][:, 3:].mean() < 0.9
    codes = loader.read_labels(folder, sample)
    assert set(np.unique(codes)) == {1, 2}
    heights = sample["points"][:, 2].numpy()
    assert heights[codes == 1].mean() > heights[codes == 2].mean() + 0.01  # what is no ground stands on it
    assert json.loads((loader.tiles[0].folder / "scan.json").read_text())["top"] == 255
    with pytest.raises(DataError, match="one reference system"):
        ScanLoader(folder)
