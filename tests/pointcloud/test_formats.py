"""Files of points and meshes: every format gives the same points, and what cannot be is refused before it is made."""

import struct

import laspy
import numpy as np
import pytest

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import canonical, colour_top, duplicates
from maskwright.pointcloud.fake import fake_box, fake_pcd, fake_points, fake_scan, fake_sphere, write_mesh
from maskwright.pointcloud.formats import base, holds_points, open_points
from maskwright.pointcloud.formats.pcd import inflate
from maskwright.pointcloud.mesh import Mesh, sample_surface
from tests.faults.memory import resident

COLUMNS = ("normal_x", "normal_y", "normal_z", "red", "green", "blue")


@pytest.mark.parametrize("ending", ["ply", "npz", "xyz", "txt", "csv", "las", "laz"])
def test_formats_of_points_give_the_same_points(tmp_path, ending):
    wanted = sample_surface(fake_sphere(), 500, np.random.default_rng(3))
    file = open_points(fake_points(tmp_path / f"a.{ending}", 500, 3))
    cloud = file.read(COLUMNS)
    assert set(COLUMNS) <= set(file.columns)
    np.testing.assert_allclose(cloud.xyz, wanted.xyz, atol=6e-4 if "la" in ending else 0)
    np.testing.assert_allclose(cloud.columns["normal_y"], wanted.columns["normal_y"].astype(np.float32), atol=1e-7)
    colours = np.stack([cloud.columns[name] for name in COLUMNS[3:]], 1) / colour_top(cloud.columns)
    np.testing.assert_allclose(colours, ((wanted.xyz + 1) / 2).clip(0, 1), atol=0.002)


@pytest.mark.parametrize("form", ["ascii", "binary", "binary_compressed"])
def test_pcd(tmp_path, form):
    file = open_points(fake_pcd(tmp_path / "a.pcd", form, 200, 5))
    assert file.columns == ("red", "green", "blue", "intensity")
    cloud, generator = file.read(file.columns), np.random.default_rng(5)
    xyz = sample_surface(fake_sphere(), 200, generator).xyz.astype(np.float32)
    packed, intensity = generator.integers(2**24, size=200), generator.integers(2**16, size=200)
    np.testing.assert_allclose(cloud.xyz, xyz, atol=1e-7)
    assert np.array_equal(cloud.columns["intensity"], intensity)
    assert np.array_equal(cloud.columns["red"], packed >> 16)
    assert np.array_equal(cloud.columns["blue"], packed & 255)
    assert cloud.columns["red"].dtype == np.uint8


def test_pcd_as_another_library_reads_it(tmp_path):
    """Including a piece that was really compressed, which the made-up files are not."""
    try:
        import open3d
    except (ImportError, OSError):
        pytest.skip("open3d does not load here")
    generator = np.random.default_rng(0)
    xyz = np.round(generator.normal(size=(3000, 3)), 1)
    xyz[500:2500] = xyz[0]
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz))
    cloud.colors = open3d.utility.Vector3dVector(generator.integers(256, size=(3000, 3)) / 255)
    for name, options in (("a", {"compressed": True}), ("b", {}), ("c", {"write_ascii": True})):
        assert open3d.io.write_point_cloud(str(tmp_path / f"{name}.pcd"), cloud, **options)
        ours = open_points(tmp_path / f"{name}.pcd").read(["red", "green", "blue"])
        np.testing.assert_allclose(ours.xyz, xyz, atol=1e-6)
        colours = np.stack([ours.columns[axis] for axis in ("red", "green", "blue")], 1)
        np.testing.assert_allclose(colours, np.asarray(cloud.colors) * 255, atol=1e-6)
    assert (tmp_path / "a.pcd").stat().st_size < 0.8 * (tmp_path / "b.pcd").stat().st_size
    for name in ("binary", "text"):
        assert open3d.io.write_point_cloud(str(tmp_path / f"{name}.ply"), cloud, write_ascii=name == "text")
        np.testing.assert_allclose(open_points(tmp_path / f"{name}.ply").read().xyz, xyz, atol=1e-9)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [(b"\x02abc", b"abc"), (b"\x00a\x20\x00", b"aaaa"), (b"\x01ab\xe0\x09\x01", b"ab" * 10)],
)
def test_lzf(data, wanted):
    assert inflate(data, len(wanted)) == wanted
    for size in (len(wanted) - 1, len(wanted) + 1):
        with pytest.raises(ValueError, match="bytes"):
            inflate(data, size)
    with pytest.raises(ValueError, match="middle"):
        inflate(data[:-1], len(wanted))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.obj", {}), ("a.off", {}), ("a.stl", {}), ("b.stl", {"text": True}), ("a.ply", {}), ("b.ply", {"text": True}),
     ("c.ply", {"big_endian": True})],
)  # fmt: skip
def test_meshes(tmp_path, name, options):
    ball = fake_sphere(2.0)
    file = open_points(write_mesh(tmp_path / name, ball, **options))
    mesh = file.mesh()
    np.testing.assert_allclose(mesh.vertices[mesh.faces], ball.vertices[ball.faces], atol=1e-6)
    assert len(file.read()) == len(ball.vertices)


def test_obj_of_polygons_colours_and_negative_numbers(tmp_path):
    text = "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 1 0 0 0 1\nv 0 1 0 1 1 1\nvt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3//1 -1\n"
    (tmp_path / "a.obj").write_text(text.replace("f 1/1/1", "f \\\n 1/1/1"))
    mesh = open_points(tmp_path / "a.obj").mesh()
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.columns["green"].tolist() == [0, 1, 0, 1]
    (tmp_path / "a.obj").write_text(text.replace("-1", "9"))
    with pytest.raises(DataError, match="between vertices 0 and 8"):
        open_points(tmp_path / "a.obj").mesh()


def test_off_as_modelnet_has_it(tmp_path):
    path = write_mesh(tmp_path / "a.off", fake_box())
    path.write_text(path.read_text().replace("OFF\n", "OFF"))
    assert len(open_points(path).mesh().faces) == 12


def test_ply_of_polygons_with_more_lists(tmp_path):
    head = (
        "ply\nformat binary_little_endian 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    )
    head += "element face 2\nproperty list uchar int vertex_indices\nproperty list uchar float texcoord\nproperty uchar q\nend_header\n"
    data = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4").tobytes()
    data += struct.pack("<B4iB2fB", 4, 0, 1, 2, 3, 2, 0.5, 0.5, 7) + struct.pack("<B3iBB", 3, 0, 1, 3, 0, 9)
    (tmp_path / "a.ply").write_bytes(head.encode() + data)
    assert open_points(tmp_path / "a.ply").mesh().faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 3]]
    (tmp_path / "a.ply").write_bytes(head.encode() + data[:-3])
    with pytest.raises(DataError, match=r"middle|bytes"):
        open_points(tmp_path / "a.ply").mesh()
    listed = head.replace("property float z", "property list uchar float z")
    (tmp_path / "a.ply").write_bytes(listed.encode() + data)
    with pytest.raises(DataError, match=r"lists \(z\)"):
        open_points(tmp_path / "a.ply")


def test_points_are_drawn_from_a_surface_by_area():
    """Shares of a box's sides are those of their areas; points lie on it; normals point outwards."""
    cloud = sample_surface(fake_box((1, 2, 3)), 60000, np.random.default_rng(0))
    ends = np.array([1, 2, 3]) / 2
    outside = np.abs(np.abs(cloud.xyz) - ends) < 1e-9
    assert (outside.sum(1) == 1).all()
    areas = np.array([6, 3, 2]) / 11
    np.testing.assert_allclose(outside.mean(0), areas, atol=0.01)
    normals = np.stack([cloud.columns[f"normal_{axis}"] for axis in "xyz"], 1)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((normals * cloud.xyz).sum(1) > 0).all()
    # within a side they are uniform too, not crowded at a corner or along the diagonal of its triangles
    side = cloud.xyz[outside[:, 0] & (cloud.xyz[:, 0] > 0)][:, 1:] / ends[1:]
    counts, *_ = np.histogram2d(side[:, 0], side[:, 1], bins=6, range=[(-1, 1)] * 2)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 75  # chi square of 35 degrees, p about 1e-4


def test_a_surface_far_from_the_origin_keeps_its_digits():
    box = fake_box((1, 2, 3))
    far = sample_surface(Mesh(box.vertices + np.array([530000, 4200000, 0]), box.faces), 500, np.random.default_rng(1))
    near = sample_surface(box, 500, np.random.default_rng(1))
    np.testing.assert_allclose(far.xyz - [530000, 4200000, 0], near.xyz, atol=1e-8)


def test_a_surface_without_area(tmp_path):
    with pytest.raises(DataError, match="no area"):
        sample_surface(Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])), 5, np.random.default_rng(0), tmp_path)


def test_names_of_columns():
    assert [canonical(name) for name in ("NX", "scalar_Classification", "GpsTime", "R", "Return Number", "foo")] == [
        "normal_x", "classification", "time", "red", "return_number", "foo",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 0 0 1 2 3\n1 1 1 255 0 9\n", ("red", "green", "blue")),
        ("0 0 0 0 0.6 0.8\n1 1 1 1 0 0\n", ("normal_x", "normal_y", "normal_z")),
        ("0 0 0 0.25\n1 1 1 1.5\n", ("intensity",)),
        ("0 0 0 0.25 7\n1 1 1 1.5 8\n", ("column_4", "column_5")),
        ("//X Y Z R G B\n0 0 0 1 2 3\n1 1 1 2 3 4\n", ("red", "green", "blue")),
        ("# made up\n\n# x y z scalar_height\n0;0;0;1\n1;1;1;2\n".replace(";", " "), ("height",)),
        ("\ufeffz;y;x;time\n3;2;1;4\n1;1;1;2\n", ("time",)),
    ],
)
def test_columns_of_text(tmp_path, text, names):
    (tmp_path / "a.txt").write_text(text)
    file = open_points(tmp_path / "a.txt")
    assert file.columns == names
    assert len(file.read(names)) == 2
    if "z;y;x" in text:
        assert file.read().xyz[0].tolist() == [1, 2, 3]


def test_pts_counts_its_points(tmp_path):
    (tmp_path / "a.pts").write_text("2\n0 0 0 5 1 2 3\n1 1 1 6 1 2 3\n")
    assert open_points(tmp_path / "a.pts").read(["intensity"]).columns["intensity"].tolist() == [5, 6]
    (tmp_path / "a.pts").write_text("3\n0.25 0.25 0.25\n1 1 1\n")
    with pytest.raises(DataError, match="declares 3 points but holds 2"):
        open_points(tmp_path / "a.pts").read()


def test_blocks_do_not_change_what_is_read(tmp_path, monkeypatch):
    paths = [fake_scan(tmp_path / "a.laz", 30, 2), fake_scan(tmp_path / "a.las", 30, 2)]
    paths += [fake_points(tmp_path / f"b.{ending}") for ending in ("ply", "xyz", "npz")]
    paths += [fake_pcd(tmp_path / "c.pcd", form) for form in ("binary",)]
    whole = [open_points(path).read(["red"]) for path in paths]
    for module in ("base", "las", "ply", "pcd", "arrays"):
        monkeypatch.setattr(f"maskwright.pointcloud.formats.{module}.BLOCK", 97)
    monkeypatch.setattr("maskwright.pointcloud.formats.text.LINES", 97)
    for path, wanted in zip(paths, whole, strict=True):
        blocks = list(open_points(path).blocks(["red"]))
        assert len(blocks) > 4
        assert max(map(len, blocks)) == 97
        assert np.array_equal(np.concatenate([block.xyz for block in blocks]), wanted.xyz)
        assert np.array_equal(np.concatenate([block.columns["red"] for block in blocks]), wanted.columns["red"])


# what is not believed ----------------------------------------------------------------------------------------------


def _ply(count, data=b"", form="binary_little_endian", more=""):
    head = (
        f"ply\nformat {form} 1.0\nelement vertex {count}\nproperty float x\nproperty float y\nproperty float z\n{more}"
    )
    return head.encode() + b"end_header\n" + data


@pytest.mark.parametrize("count", [10**8, 4 * 10**9, 2**64])
@pytest.mark.parametrize("ending", ["ply", "txt.ply", "pcd", "packed.pcd", "off", "stl", "pts", "las", "laz"])
def test_a_small_file_that_declares_many_points(tmp_path, ending, count):
    path = tmp_path / f"a.{ending}"
    if ending == "ply":
        path.write_bytes(_ply(count, b"\0" * 120))
    elif ending == "txt.ply":
        path.write_bytes(_ply(count, b"0 0 0\n1 1 1\n", "ascii"))
    elif ending.endswith("pcd"):
        form = "binary_compressed" if "packed" in ending else "binary"
        data = fake_pcd(path, form, 100).read_bytes()
        path.write_bytes(data.replace(b"POINTS 100", b"POINTS %d" % count).replace(b"WIDTH 100", b"WIDTH %d" % count))
    elif ending == "off":
        path.write_text(f"OFF\n{count} 3 0\n0 0 0\n")
    elif ending == "stl":
        path.write_bytes(b"\0" * 80 + struct.pack("<I", count % 2**32 or 77) + b"\0" * 500)
    elif ending == "pts":
        path.write_text(f"{count}\n0 0 0\n1 1 1\n")
    else:
        data = bytearray(fake_scan(path, 10, 2).read_bytes())
        data[107:111] = bytes(4)
        data[247:255] = struct.pack("<Q", min(count, 2**64 - 1))
        path.write_bytes(data)
    before = resident()
    with pytest.raises(DataError, match=r"declares .*expected (at most )?\d+"):
        open_points(path, 2**70)
    assert resident() - before < 50


def test_the_largest_number_of_points_is_named(tmp_path):
    path = fake_points(tmp_path / "a.ply", 2000)
    with pytest.raises(DataError, match=r"declares 2000 points; expected at most 1000.*max_points"):
        open_points(path, 1000)
    path = fake_points(tmp_path / "a.xyz", 2000)
    with pytest.raises(DataError, match=r"more than 1000 points; expected at most 1000"):
        open_points(path, 1000).read()


def whole(path):
    file = open_points(path)
    return file.read(), file.mesh()


@pytest.mark.parametrize("ending", ["ply", "pcd", "las", "laz", "npz", "stl", "off", "pts"])
def test_files_that_were_cut_short(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending in ("las", "laz"):
        fake_scan(path, 20, 3)
    elif ending in ("stl", "off"):
        write_mesh(path, fake_sphere())
    elif ending == "pcd":
        fake_pcd(path)
    elif ending == "pts":
        path.write_text("400\n" + "0.5 0.25 0.125\n" * 400)
    else:
        fake_points(path)
    data = path.read_bytes()
    for share in (0.3, 0.8, 0.97):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError):
            whole(path)


def test_a_laz_that_is_damaged_inside(tmp_path):
    """A chunk of compressed points has no checksum: what is noticed is that it ends or lies elsewhere."""
    path = fake_scan(tmp_path / "a.laz", 40, 4)
    data, found = path.read_bytes(), 0
    start = open_points(path).header.offset_to_point_data + 8 + 40
    for seed in range(12):
        generator = np.random.default_rng(seed)
        changed = bytearray(data)
        for place in generator.integers(start, len(data) - 40, 20):
            changed[place] = int(generator.integers(256))
        path.write_bytes(changed)
        try:
            assert len(open_points(path).read()) == 6400
        except DataError:
            found += 1
    assert found >= 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ending", ["ply", "csv", "npz"])
def test_numbers_that_are_none_are_counted(tmp_path, ending, value, monkeypatch):
    monkeypatch.setattr(base, "BLOCK", 10)
    xyz, heat = np.random.default_rng(0).normal(size=(50, 3)), np.zeros(50, np.float32)
    xyz[[3, 40], 1], heat[[3, 17]] = value, value
    path = tmp_path / f"a.{ending}"
    if ending == "npz":
        np.savez(path, points=xyz, heat=heat)
    elif ending == "csv":
        rows = [",".join(map(str, [*row, hot])) for row, hot in zip(xyz.tolist(), heat.tolist(), strict=True)]
        path.write_text("\n".join(["x,y,z,heat", *rows]))
    else:
        rows = np.concatenate([xyz, heat[:, None]], 1).astype("<f4")
        path.write_bytes(_ply(50, rows.tobytes(), more="property float heat\n"))
    with pytest.raises(DataError, match="2 of its points"):
        open_points(path).read()
    with pytest.raises(DataError, match="3 of its points"):
        open_points(path).read(["heat"])
    with pytest.raises(DataError, match=r"no column cold; it has heat"):
        open_points(path).read(["cold"])


def test_las_outside_of_its_bounds(tmp_path):
    path = fake_scan(tmp_path / "a.las", 10, 2)
    data = bytearray(path.read_bytes())
    data[131:139] = struct.pack("<d", 0.01)  # the scale of x
    path.write_bytes(data)
    with pytest.raises(DataError, match="about what its header says"):
        open_points(path).read()
    data[131:139] = struct.pack("<d", np.nan)
    path.write_bytes(data)
    with pytest.raises(DataError, match="scales"):
        open_points(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ply", b"", "is empty"),
        ("a.ply", b"play\n", "does not begin"),
        ("a.ply", _ply(2, b"0 0 0\n1 1 1\n2 2 2\n", "ascii"), "goes on behind"),
        ("a.ply", _ply(1, b"\0" * 24), "goes on behind"),
        ("a.ply", _ply(0), "no points"),
        ("a.ply", _ply(2, b"\0" * 24, "binary_middle_endian"), "format binary_middle_endian"),
        ("a.ply", _ply(2, b"\0" * 40, more="property float x\n"), "each once"),
        ("a.las", b"LASF" + b"\0" * 100, "a header of 227"),
        ("a.las", b"PLY" * 200, "LASF"),
        ("a.pcd", b"VERSION 0.7\n", "without FIELDS"),
        ("a.off", b"OBJ\n1 2 3\n", "OFF"),
        ("a.stl", b"nothing", "84 at least"),
        ("a.obj", b"f 1 2 3\n", "no vertices"),
        ("a.xyz", b"1 2\n3 4\n", "2 numbers"),
        ("a.xyz", b"1 2 3\n3 4\n", "line 2.*has 2 fields"),
        ("a.xyz", b"1 2 3\n3 4 x\n", 'line 2.*holds "x"'),
        ("a.xyz", b"1 2 3\n3 4 1_0\n", 'holds "1_0"'),
        ("a.txt", b"height,width,depth\n1,2,3\n", "begins with"),
        ("a.npy", b"no", "cannot be read"),
        ("a.docx", b"no", "ending"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_points(tmp_path / name).read()


def test_a_text_ply_of_numbers_beyond_their_type(tmp_path):
    (tmp_path / "a.ply").write_bytes(_ply(1, b"0 0 0 300\n", "ascii", "property uchar red\n"))
    with pytest.raises(DataError, match=r"red.*300"):
        open_points(tmp_path / "a.ply").read(["red"])


def test_which_tables_and_arrays_are_points(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\na.obj,chair\n")
    (tmp_path / "numbers.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "points.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    np.save(tmp_path / "a.npy", np.zeros((5, 3)))
    np.savez(tmp_path / "a.npz", points=np.zeros((5, 3)))
    np.savez(tmp_path / "b.npz", image=np.zeros((5, 3)))
    found = sorted(file.name for file in tmp_path.iterdir() if holds_points(file))
    assert found == ["a.npz", "points.csv"]


def test_duplicates_are_counted():
    assert duplicates(np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0.0]])) == 2


def test_real_scans(shared_data):
    """laspy reads the same, and the CRS of one of them is found with its unit."""
    folder = shared_data / "pointcloud" / "lidar_las"
    for name in ("autzen_trim.laz", "simple.las", "simple.laz"):
        file, las = open_points(folder / name), laspy.read(folder / name)
        cloud = file.read(("time", "classification"))
        assert np.array_equal(cloud.xyz, las.xyz)
        assert np.array_equal(cloud.columns["time"], las.gps_time)
        assert np.array_equal(cloud.columns["classification"], las.classification)
    assert "Lambert" in open_points(folder / "autzen_trim.laz").crs
