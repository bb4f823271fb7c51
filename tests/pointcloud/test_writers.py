"""Writing points, and the commands of the domain."""

import csv

import laspy
import numpy as np
import pytest
from typer.testing import CliRunner

from maskwright.cli.main import app
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.files import DiskFullError
from maskwright.pointcloud import writers
from maskwright.pointcloud.convert import convert, write_tiles
from maskwright.pointcloud.fake import fake_pcd, fake_points, fake_scan, fake_sphere, write_mesh
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.writers import write_points


def same_records(a, b, but=()):
    one, other = laspy.read(a), laspy.read(b)
    for name in one.point_format.dimension_names:
        if name not in but:
            assert np.array_equal(np.asarray(one[name]), np.asarray(other[name])), name
    assert np.array_equal(one.header.scales, other.header.scales)
    assert np.array_equal(one.header.offsets, other.header.offsets)
    assert one.header.point_format.id == other.header.point_format.id
    assert one.header.version == other.header.version
    known = [
        [(vlr.user_id, vlr.record_id) for vlr in las.header.vlrs if vlr.record_id not in (22204, 4)]
        for las in (one, other)
    ]
    assert known[0] == known[1]
    return one, other


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_coordinates_of_a_real_scan_come_back_as_the_same_integers(shared_data, tmp_path, ending):
    source = shared_data / "pointcloud" / "lidar_las" / "autzen_trim.laz"
    file = open_points(source)
    cloud = file.read(file.columns)
    out = tmp_path / f"a.{ending}"
    assert write_points(out, cloud.xyz, cloud.columns, source) == []
    same_records(source, out)
    assert open_points(out).crs == file.crs
    heat = np.random.default_rng(0).normal(size=len(cloud)).astype(np.float32)
    codes = np.arange(len(cloud)) % 19
    write_points(out, cloud.xyz, {"classification": codes, "heat": heat, "of_64": heat.astype(float)}, file)
    _, written = same_records(
        source, out, but=[name for name in laspy.read(source).point_format.dimension_names if name not in "XYZ"]
    )
    assert np.array_equal(written.heat, heat)
    assert written["of_64"].dtype == np.float64
    assert np.array_equal(written.classification, codes)


def test_extended_records_and_extra_bytes_of_the_source_are_kept(tmp_path):
    path = fake_scan(tmp_path / "a.las", 10, 2)
    las = laspy.read(path)
    las.add_extra_dim(laspy.ExtraBytesParams("height", np.int16, scales=np.array([0.01]), offsets=np.array([5.0])))
    las.add_extra_dim(laspy.ExtraBytesParams("Amplitude", np.float32))
    las.add_extra_dim(laspy.ExtraBytesParams("three", "3u2"))
    las.height = np.linspace(0, 9, len(las))
    las.Amplitude = np.linspace(-1, 1, len(las))
    las.three = np.arange(3 * len(las)).reshape(-1, 3)
    las.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("someone", 77, "long", b"a record of its own")])
    las.write(path)
    file = open_points(path)
    cloud = file.read(file.columns)
    assert np.array_equal(cloud.columns["three_1"], 3 * np.arange(len(cloud)) + 1)
    with pytest.raises(DataError, match='cannot hold "three"'):
        write_points(tmp_path / "e.las", cloud.xyz, {"three_1": np.full(len(cloud), 70_000)}, file)
    with pytest.raises(DataError, match='cannot hold "height"'):
        write_points(tmp_path / "e.las", cloud.xyz, {"height": np.full(len(cloud), 1e9)}, file)
    assert np.allclose(cloud.columns["height"], np.linspace(0, 9, len(cloud)), atol=0.006)
    for out in (tmp_path / "b.laz", tmp_path / "c.las"):
        write_points(out, cloud.xyz, cloud.columns, file)
        _, written = same_records(path, out)
        assert [vlr.record_data for vlr in written.evlrs] == [b"a record of its own"]
    convert(path, tmp_path / "d.laz")
    _, written = same_records(path, tmp_path / "d.laz")
    assert [vlr.record_data for vlr in written.evlrs] == [b"a record of its own"]


def test_ply_keeps_doubles_types_and_the_reference_system(tmp_path):
    generator = np.random.default_rng(0)
    xyz = generator.random((100, 3)) + np.array([530000, 4200000, 0])
    columns = {"a": generator.integers(-9, 9, 100).astype(np.int8), "deep": generator.normal(size=100),
               "c": generator.normal(size=100).astype(np.float32), "d": np.arange(100) > 3,
               "e": generator.integers(0, 2**52, 100), "red": generator.integers(0, 65536, 100).astype(np.uint16)}  # fmt: skip
    assert write_points(tmp_path / "a.ply", xyz, columns, crs="EPSG:32633") == []
    file = open_points(tmp_path / "a.ply")
    cloud = file.read(file.columns)
    assert file.crs == "EPSG:32633"
    assert np.array_equal(cloud.xyz, xyz)
    for name, values in columns.items():
        assert np.array_equal(cloud.columns[name], values), name
    assert {name: cloud.columns[name].dtype.str[1:] for name in ("a", "deep", "c", "d", "e")} == {
        "a": "i1",
        "deep": "f8",
        "c": "f4",
        "d": "u1",
        "e": "f8",
    }
    lost = write_points(tmp_path / "a.ply", xyz, {"e": np.full(100, 2**60 + 1)})
    assert "53 bits" in lost[0]


@pytest.mark.parametrize("ending", ["las", "laz", "ply", "npz", "csv", "xyz", "txt"])
@pytest.mark.parametrize("kind", ["scan.laz", "points.ply", "points.pcd"])
def test_nothing_is_lost_that_the_target_can_hold(tmp_path, kind, ending):
    path = tmp_path / kind
    if kind == "scan.laz":
        fake_scan(path, 20, 2)
    else:
        (fake_pcd if kind.endswith("pcd") else fake_points)(path)
    done = convert(path, tmp_path / f"out.{ending}")
    source, out = open_points(path), open_points(tmp_path / f"out.{ending}")
    assert set(source.columns) <= set(out.columns)
    before, after = source.read(source.columns), out.read(source.columns)
    assert done.points == len(before) == len(after)
    exact = kind == "scan.laz" or ending not in ("las", "laz")
    assert np.abs(before.xyz - after.xyz).max() <= (0 if exact else 0.0005 + 1e-9)
    assert exact or any("rounded to steps" in one for one in done.lost)
    for name, values in before.columns.items():
        factor = (
            257 if ending in ("las", "laz") and values.dtype == np.uint8 and name in ("red", "green", "blue") else 1
        )
        found = after.columns[name]
        found = found.astype(values.dtype) if values.dtype.kind == "f" else found  # texts have digits for float32
        assert np.array_equal(values.astype(float) * factor, found), name
    if kind == "scan.laz" and ending in ("csv", "xyz", "txt"):
        assert any("reference system" in one for one in done.lost)
    else:
        assert source.crs == out.crs


def test_there_and_back_between_las_and_laz_is_the_same_file(tmp_path):
    path = fake_scan(tmp_path / "a.las", 20, 3)
    convert(path, tmp_path / "b.laz")
    assert (tmp_path / "b.laz").stat().st_size < 0.8 * path.stat().st_size
    convert(tmp_path / "b.laz", tmp_path / "c.las")
    same_records(path, tmp_path / "c.las")
    start = open_points(path).header.offset_to_point_data
    assert path.read_bytes()[start:] == (tmp_path / "c.las").read_bytes()[start:]


def test_triangles_that_are_lost_are_named(tmp_path):
    done = convert(write_mesh(tmp_path / "a.obj", fake_sphere()), tmp_path / "a.ply")
    assert done.lost == [f"{len(fake_sphere().faces)} triangles: only the vertices were written."]
    assert np.array_equal(open_points(tmp_path / "a.ply").read().xyz, fake_sphere().vertices)


def test_what_cannot_be_written(tmp_path):
    xyz = np.random.default_rng(0).random((5, 3))
    scan = fake_scan(tmp_path / "scan.las", 10, 2)
    with pytest.raises(ConfigError, match=r"\.pcd"):
        write_points(tmp_path / "a.pcd", xyz)
    for values, columns, words in (
        (xyz[:, :2], {}, "coordinates of shape"),
        (xyz * np.nan, {}, "NaN"),
        (xyz[:0], {}, "no points"),
        (xyz, {"a": np.zeros(4)}, "5 numbers"),
        (xyz, {"a b": np.zeros(5)}, 'named "a b"'),
        (xyz, {"a": np.array(["x"] * 5)}, "5 numbers"),
    ):
        with pytest.raises(DataError, match=words):
            write_points(tmp_path / "a.ply", values, columns)
    with pytest.raises(DataError, match=r"cannot hold x from .* in steps of 0.001"):
        write_points(tmp_path / "a.las", xyz * 1e9, source=scan)
    with pytest.raises(DataError, match=r'cannot hold "classification" from 0 to 300; expected 0 to 255'):
        write_points(tmp_path / "a.las", xyz, {"classification": np.array([0, 1, 2, 3, 300])})
    with pytest.raises(DataError, match="32 bytes"):
        write_points(tmp_path / "a.las", xyz, {"n" * 33: np.zeros(5)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scan.las"]
    with pytest.raises(ConfigError, match="file itself"):
        convert(scan, scan)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = fake_points(tmp_path / "a.ply")
    before = path.read_bytes()

    def full(*arguments):
        arguments[0].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "_ply", full)
    with pytest.raises(DiskFullError):
        write_points(path, np.zeros((3, 3)))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ending", ["laz", "las", "ply"])
def test_tiles_hold_every_point_once(tmp_path, ending):
    path = fake_scan(tmp_path / "scan.laz", 50, 3)
    if ending != "laz":
        path = convert(path, tmp_path / f"scan.{ending}").path
    written = write_tiles(path, tmp_path / "out", 20.0)
    assert len(written) == 9
    source = open_points(path)
    whole = source.read(source.columns)
    with (tmp_path / "out" / "tiles.csv").open() as table:
        rows = {row["path"]: row for row in csv.DictReader(table)}
    parts = []
    for one in written:
        assert one.path.suffix == f".{ending}"
        file, row = open_points(one.path), rows[one.path.name]
        parts.append(file.read(source.columns))
        assert len(parts[-1]) == int(row["points"]) == one.points
        assert file.crs == source.crs
        assert (parts[-1].xyz[:, :2] >= [float(row["x_min"]), float(row["y_min"])]).all()
        assert (parts[-1].xyz[:, :2] < [float(row["x_max"]), float(row["y_max"])]).all()
    names = sorted(source.columns)
    rows_of = [np.column_stack([c.xyz, *(c.columns[name] for name in names)]) for c in (whole, *parts)]
    together = np.concatenate(rows_of[1:])
    assert np.array_equal(together[np.lexsort(together.T)], rows_of[0][np.lexsort(rows_of[0].T)])
    assert len(list((tmp_path / "out").iterdir())) == 10
    with pytest.raises(ConfigError, match="not empty"):
        write_tiles(path, tmp_path / "out", 20.0)
    with pytest.raises(ConfigError, match="metres above 0"):
        write_tiles(path, tmp_path / "other", 0)


def test_commands(tmp_path):
    scan, run = fake_scan(tmp_path / "a.laz", 30, 2), CliRunner().invoke
    done = run(app, ["pointcloud", "convert", str(scan), str(tmp_path / "a.xyz")])
    assert done.exit_code == 0, done.output
    assert "1800 points" in done.output
    assert "reference system" in done.output
    done = run(app, ["pointcloud", "tiles", str(scan), str(tmp_path / "tiles"), "--tile", "10"])
    assert done.exit_code == 0, done.output
    assert "9 tiles with 1800 points" in done.output
    done = run(app, ["inspect", str(tmp_path / "tiles")])
    assert done.exit_code == 0, done.output
    assert "UTM zone 33N" in done.output
