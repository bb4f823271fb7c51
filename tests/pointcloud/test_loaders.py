"""The loader `points`: the contract, drawing, centring and scaling, features, bad files, pictures."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.inspection import inspect_data
from maskwright.core.masking.base import Grid
from maskwright.core.options import check_options, describe_options
from maskwright.core.sample import Meta, Sample
from maskwright.pointcloud import simple
from maskwright.pointcloud.base import chosen, world
from maskwright.pointcloud.fake import fake_pcd, fake_points, fake_scan, fake_shapes, fake_sphere, write_mesh
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.loaders import PointLoader, ScanLoader
from maskwright.pointcloud.writers import write_points
from maskwright.testing.loader import check_loader


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return fake_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One file of each format."""
    folder = tmp_path_factory.mktemp("mixed")
    for ending in ("ply", "xyz", "csv", "npz", "las", "laz"):
        fake_points(folder / f"points.{ending}", 700)
    for ending in ("obj", "off", "stl", "ply"):
        write_mesh(folder / f"mesh.{ending}", fake_sphere())
    for form in ("ascii", "binary", "binary_compressed"):
        fake_pcd(folder / f"{form}.pcd", form)
    return folder


OPTIONS = [{}, {"points": 5000}, {"points": 100, "scale": 2.5}, {"surface": False, "points": 64}]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_contract(mixed, options):
    loader = PointLoader(mixed, **options)
    assert not loader.bad_files
    assert len(loader) == 13
    check_loader(loader, samples=13)
    for index in range(len(loader)):
        sample = loader.read(index, torch.Generator().manual_seed(index))
        assert sample["points"].shape == (options.get("points", 1024), 3)
        assert sample["points"].dtype == torch.float32


def test_points_of_a_mesh_are_drawn_anew_each_time(shapes):
    loader = PointLoader(shapes, points=200)
    first, second = (loader.read(0, torch.Generator().manual_seed(seed))["points"] for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, loader.read(0, torch.Generator().manual_seed(1))["points"])


def test_groups_are_files_and_labels_folders(shapes):
    loader = PointLoader(shapes)
    assert [loader.label(index) for index in (0, 4, 8)] == ["ball", "box", "plate"]
    assert loader.group(0) == "ball/ball_00.obj"
    assert PointLoader(shapes / "ball").label(0) is None


def test_points_are_centred_and_the_farthest_is_one_away(mixed):
    loader = PointLoader(mixed)
    for index in range(len(loader)):
        points = loader.read(index, torch.Generator().manual_seed(0))["points"][:, :3]
        assert points.mean(0).abs().max() < 1e-5
        assert abs(points.norm(dim=1).max() - 1) < 1e-5


@pytest.mark.parametrize("scale", ["unit", 5.0])
@pytest.mark.parametrize("ending", ["las", "ply", "npz", "csv"])
def test_world_coordinates_come_back_to_a_millimetre(tmp_path, ending, scale):
    """At UTM coordinates, where float32 alone is half a metre off."""
    generator = np.random.default_rng(0)
    xyz = generator.random((400, 3)) * [300, 200, 40] + [5.3e5, 4.2e6, 120]
    write_points(tmp_path / f"a.{ending}", np.round(xyz, 3), crs="EPSG:32633")
    sample = PointLoader(tmp_path, points="all", scale=scale).read(0)
    assert np.abs(world(sample) - np.round(xyz, 3)).max() < 1e-4
    extra = sample.meta.extra
    by_hand = sample["points"].double().numpy() * extra["scale"] + np.array(extra["centre"])
    assert np.array_equal(by_hand, world(sample))
    assert (sample.meta.crs is not None) == (ending != "csv")
    assert extra["unit"] == ("unknown" if ending == "csv" else "metre")


def test_a_scale_is_in_metres_whatever_the_unit(tmp_path):
    fake_scan(tmp_path / "feet.las", 20, 2, crs="EPSG:2263")  # US survey feet
    sample = PointLoader(tmp_path, scale=10.0).read(0)
    assert sample.meta.extra["unit"] == "US survey foot"
    assert abs(sample.meta.extra["scale"] - 10 / (1200 / 3937)) < 1e-6
    fake_scan(tmp_path / "feet.las", 20, 2, crs="EPSG:4326", origin=(14, 38, 0))
    with pytest.raises(DataError, match="degree"):
        PointLoader(tmp_path, scale=10.0).read(0)
    PointLoader(tmp_path).read(0)


def test_few_points_are_repeated_and_it_is_said():
    for there, wanted in ((10, 4), (10, 10), (10, 37)):
        drawn = chosen(there, wanted, 5)
        counts = np.bincount(drawn, minlength=there)
        assert len(drawn) == wanted
        assert counts.max() - counts.min() <= 1
        assert np.array_equal(drawn, np.sort(drawn))
    assert np.array_equal(chosen(10, "all", 3), np.arange(10))
    assert not np.array_equal(chosen(1000, 10, 1), chosen(1000, 10, 2))


def test_drawing_is_without_replacement_and_favours_no_point(tmp_path):
    xyz = np.column_stack([np.arange(50.0), np.zeros(50), np.zeros(50)])
    write_points(tmp_path / "a.npz", xyz)
    loader, seen = PointLoader(tmp_path / "a.npz", points=10), np.zeros(50)
    for seed in range(500):
        sample = loader.read(0, torch.Generator().manual_seed(seed))
        places = world(sample)[:, 0].round().astype(int)
        assert len(set(places)) == 10
        seen[places] += 1
    assert ((seen - 100) ** 2 / 80).sum() < 95  # chi square of 49 degrees, p below 1e-4
    assert sample.meta.extra["repeated"] == 0
    assert PointLoader(tmp_path / "a.npz", points=120).read(0).meta.extra["repeated"] == 70


def test_features_follow_in_the_order_that_was_asked_for(tmp_path):
    file = open_points(fake_points(tmp_path / "a.ply", 300))
    cloud = file.read(file.columns)
    sample = PointLoader(tmp_path, points="all", features=["green", "nx", "Red"]).read(0)
    assert np.allclose(sample["points"][:, 3], cloud.columns["green"] / 255)
    assert np.allclose(sample["points"][:, 4], cloud.columns["normal_x"])
    assert np.allclose(sample["points"][:, 5], cloud.columns["red"] / 255)
    spec = PointLoader(tmp_path, features=["green", "nx", "Red"]).spec["points"]
    assert spec.channels == ("x", "y", "z", "green", "normal_x", "red")
    assert spec.dims == "N C"


def test_colours_of_eight_bits_in_sixteen(tmp_path):
    colours = np.array([[0, 128, 255]] * 9, dtype=np.uint16)
    columns = {name: colours[:, at] for at, name in enumerate(("red", "green", "blue"))}
    write_points(tmp_path / "a.npz", np.random.default_rng(0).normal(size=(9, 3)), columns)
    sample = PointLoader(tmp_path, points="all", features=["red", "green", "blue"]).read(0)
    assert np.allclose(sample["points"][0, 3:], [0, 128 / 255, 1])


def test_normals_come_from_the_surface_of_a_mesh(shapes):
    sample = PointLoader(shapes / "ball", features=["normal_x", "normal_y", "normal_z"]).read(0)
    points = sample["points"]
    assert torch.allclose(points[:, 3:].norm(dim=1), torch.ones(1024), atol=1e-5)
    assert ((points[:, :3] * points[:, 3:]).sum(1) > 0).float().mean() > 0.99


def test_files_without_a_column_are_set_aside(mixed):
    loader = PointLoader(mixed, features=["red", "intensity"])
    names = {loader.files[index].name for index in range(len(loader))}
    assert names == {"points.las", "points.laz", "ascii.pcd", "binary.pcd", "binary_compressed.pcd",
                     "mesh.obj", "mesh.off", "mesh.stl", "mesh.ply"}  # fmt: skip
    assert {bad.path.rsplit("/")[-1] for bad in loader.bad_files} == {
        "points.ply", "points.xyz", "points.csv", "points.npz",
    }  # fmt: skip
    assert all("no column intensity" in bad.reason for bad in loader.bad_files)
    with pytest.raises(DataError, match="no column red, intensity; it has normal_x"):  # known of a mesh when it is read
        loader.read([file.name for file in loader.files].index("mesh.obj"))


def test_what_cannot_be_a_sample(tmp_path):
    place = np.array([530000.1, 4200000.7, 3.3])
    write_points(tmp_path / "one.ply", place[None])
    write_points(tmp_path / "same.ply", np.tile(place, (7, 1)))
    write_points(tmp_path / "apart.ply", np.array([[-1e308, 0, 0], [1e308, 0, 0]]))
    write_mesh(tmp_path / "ball.obj", fake_sphere())
    loader = PointLoader(tmp_path, points="all")
    words = {"one.ply": "holds 1 point", "same.ply": "all of 7 points at one place", "apart.ply": "beyond what",
             "ball.obj": "data.surface=false"}  # fmt: skip
    for index, file in enumerate(loader.files):
        with pytest.raises(DataError, match=words[file.name]):
            loader.read(index)
    with pytest.raises(DataError, match="no usable file of points, and 0 broken"):
        PointLoader(_empty(tmp_path / "nothing"))


def _empty(folder):
    folder.mkdir()
    return folder


def test_bad_files_are_named_and_the_others_used(tmp_path):
    fake_points(tmp_path / "good.ply")
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    (tmp_path / "empty.ply").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("file,label\ngood.ply,ball\n")
    (tmp_path / ".hidden.ply").write_bytes(b"no")
    loader = PointLoader(tmp_path)
    assert [file.name for file in loader.files] == ["good.ply"]
    assert sorted(bad.path.rsplit("/")[-1] for bad in loader.bad_files) == ["bad.ply", "empty.ply"]
    (tmp_path / "good.ply").unlink()
    with pytest.raises(DataError, match="2 broken ones"):
        PointLoader(tmp_path)
    with pytest.raises(DataError, match="no element vertex"):
        PointLoader(tmp_path / "bad.ply")


BAD_OPTIONS = [{"points": 1}, {"points": 0}, {"scale": 0}, {"scale": -1.0}, {"features": ["x"]},
               {"features": ["red", "r"]}, {"max_points": 0}]  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_options_that_do_not_fit(shapes, options):
    with pytest.raises(ConfigError, match=r"data\."):
        PointLoader(shapes, **options)


def test_options_as_a_recipe_gives_them():
    problems = []
    given = {"points": "all", "scale": 3, "features": ["red"], "surface": False}
    assert check_options("data", PointLoader, given, problems) | given == {
        **check_options("data", PointLoader, {}, problems), **given,
    }  # fmt: skip
    check_options("data", PointLoader, {"points": "some"}, problems)
    check_options("data", ScanLoader, {"scale": "big"}, problems)
    assert len(problems) == 4  # each is none of two kinds
    for loader in (PointLoader, ScanLoader):
        assert all(description for *_, description in describe_options(loader))


def test_pictures_show_three_views(mixed):
    loader = PointLoader(mixed, points=2000)
    sample = loader.read([file.name for file in loader.files].index("mesh.obj"))
    picture = loader.picture("points", sample["points"])
    side = picture.shape[0]
    assert picture.shape == (side, 3 * side + 4, 3)
    for at in range(3):  # a ball is round from everywhere: its middle is covered, its corners are not
        view = picture[:, at * (side + 2) : at * (side + 2) + side].min(2) < 255
        assert view[side // 2 - 10 : side // 2 + 10, side // 2 - 10 : side // 2 + 10].any()
        assert not view[: side // 8, : side // 8].any()
    points = torch.zeros(100, 3)
    points[:, 2] = torch.linspace(-1, 1, 100)
    rows = np.flatnonzero((loader.picture("points", points)[:, :64] < 255).any((1, 2)))
    front = loader.picture("points", points)[:, :64]
    top, bottom = front[rows[0]].astype(int).min(0), front[rows[-1]].astype(int).min(0)
    assert top[1] > bottom[1]  # viridis is brighter for what is higher, and higher is further up


def test_the_right_loader_opens_a_path(mixed, shapes, tmp_path):
    assert open_loader(shapes)[0] == "points"
    assert open_loader(fake_scan(tmp_path / "scan" / "a.laz", 30))[0] == "scans"
    assert open_loader(tmp_path / "scan", "points", points=64)[0] == "points"
    (tmp_path / "table.csv").write_text("1,2,3\n4,5,6\n")
    assert open_loader(tmp_path / "table.csv")[0] == "arrays"
    assert open_loader(tmp_path / "table.csv", "points")[1].read(0)["points"].shape == (1024, 3)


def test_inspecting_says_what_is_there(mixed, tmp_path):
    rows = {row["file"].rsplit("/")[-1]: row for row in inspect_data(mixed)}
    assert len(rows) == 13
    assert rows["points.ply"]["points"] == 700
    assert rows["points.ply"]["columns"] == ["normal_x", "normal_y", "normal_z", "red", "green", "blue"]
    assert rows["mesh.obj"]["triangles"] == len(fake_sphere().faces)
    scan = fake_scan(tmp_path / "scan.las", 30, 2, crs="EPSG:2263")
    xyz = open_points(scan).read().xyz
    write_points(tmp_path / "twice.las", np.concatenate([xyz, xyz[:5]]), source=scan)
    (tmp_path / "bad.ply").write_bytes(b"ply\n")
    rows = {row["file"].rsplit("/")[-1]: row for row in inspect_data(tmp_path)}
    assert rows["scan.las"]["duplicates"] + 5 == rows["twice.las"]["duplicates"]
    assert "US survey foot" in rows["scan.las"]["reference system"]
    assert abs(rows["scan.las"]["points per m2"] - 2 / (1200 / 3937) ** 2) < 0.5
    assert "header" in rows["bad.ply"]["problem"]


def test_histograms_tell_shapes_apart(shapes):
    loader = PointLoader(shapes)
    samples = [loader.read(index) for index in range(len(loader))]
    features = [loader.simple_features(sample) for sample in samples]
    histograms = torch.stack([one["shape histograms"] for one in features])
    assert histograms.shape == (12, 80)
    assert torch.allclose(histograms.sum(1), torch.tensor(4.0))
    ball = histograms[0]
    assert ball[:16].sum() < 0.01  # nothing is near the middle of a ball
    distances = torch.cdist(histograms, histograms).fill_diagonal_(9)
    labels = [loader.label(index) for index in range(12)]
    assert [labels[index] for index in distances.argmin(1)] == labels
    assert loader.simple_features(samples[0], Grid((4, 4))) == {}


def test_features_of_groups_tell_a_line_a_plane_and_a_ball():
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 400, 3, generator=generator) * torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1.0]])[:, None]
    centres = torch.tensor([[-50.0, 0, 0], [0, 0, 7], [50, 0, 0], [0, 900, 0]])
    points = torch.cat([(part + centre) for part, centre in zip(parts, centres[:3], strict=True)])
    heat = torch.cat([torch.full((400, 1), float(value)) for value in (1, 2, 3)])
    sample = Sample({"points": torch.cat([points, heat], 1)}, Meta("made up"))
    found = simple.group_features(sample, centres)
    linear, planar, scattered, leaning = found["local shape"].T
    assert linear.argmax() == 0
    assert linear[0] > 0.99
    assert planar.argmax() == 1
    assert planar[1] > 0.8  # 400 points of a round normal distribution
    assert scattered.argmax() == 2
    assert scattered[2] > 0.8
    assert leaning[1] < 1e-4
    share, height, *_ = found["group statistics"].T
    assert torch.allclose(share, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert torch.allclose(height, torch.tensor([0, 7, 0, 0.0]), atol=0.2)
    assert torch.equal(found["group statistics"][:, 5], torch.tensor([1, 2, 3, 0.0]))
    assert all(torch.isfinite(values).all() for values in found.values())


def test_real_shapes(shared_data):
    """All meshes are read, and a linear model on histograms is at the level that the data's description names."""
    loader = PointLoader(shared_data / "pointcloud" / "kaykit_shapes")
    assert (len(loader), loader.bad_files) == (194, [])
    labels = np.array([loader.label(index) for index in range(194)])
    assert len(set(labels)) == 17
    values = np.stack([loader.simple_features(loader.read(i))["shape histograms"].numpy() for i in range(194)])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.3))
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    score = cross_val_score(model, values, labels, cv=folds, scoring="balanced_accuracy").mean()
    assert 0.45 < score < 0.75
