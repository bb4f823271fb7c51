"""Figures on point sets: nothing that is tested was trained on, sums are right, the page is fresh."""

import json
from pathlib import Path

import laspy
import numpy as np
import pytest
import torch

from benchmarks.evidence import pointcloud
from benchmarks.evidence import pointcloud_completion as completion
from benchmarks.evidence import pointcloud_rooms as rooms
from maskwright.core.sample import Batch, Meta
from maskwright.pointcloud.fake import fake_box, fake_scan, write_mesh

# the stored figures -------------------------------------------------------------------------------------------------


def test_page_holds_the_stored_figures():
    shown = pointcloud.PAGE.read_text().split(pointcloud.START)[1].split(pointcloud.END)[0].strip()
    assert shown == pointcloud.tables().strip(), "run python -m benchmarks.evidence.pointcloud --page"


def test_every_set_has_three_seeds_and_no_place_of_one_machine():
    text = pointcloud.RESULT.read_text()
    stored = json.loads(text)
    assert set(stored) == {*pointcloud.RUNS, "environment"}
    assert not any(place in text for place in ("/tmp", "/home", "/work", "/root"))
    for name in ("shapes", "ground", "completion"):
        assert {len(row["values"]) for row in stored[name]["rows"]} == {3}
    assert {len(values) for row in stored["rooms"]["rows"].values() for values in row.values()} == {3}
    for name, methods in (("shapes", pointcloud.METHODS), ("ground", pointcloud.ON_GROUND)):
        rows = {row["features"] for row in stored[name]["rows"]}
        assert {*methods, pointcloud.RANDOM, pointcloud.SCRATCH} <= rows
    assert set(completion.TRAINED) <= {row["name"] for row in stored["completion"]["rows"]}


# shapes and ground --------------------------------------------------------------------------------------------------


@pytest.fixture
def shapes(tmp_path):
    """Twelve boxes in two classes as KayKit lays them out."""
    folder = tmp_path / "data" / "kaykit_shapes"
    for number in range(24):
        name = ("wall", "crate")[number % 2]
        write_mesh(folder / name / f"{name}{number:02d}.obj", fake_box((1 + number % 5 / 5, 1, 0.2 + number % 2)))
    return tmp_path / "data"


def test_each_class_is_split_and_no_file_is_on_both_sides(shapes, tmp_path):
    source = pointcloud.surfaces(shapes, tmp_path / "surfaces")
    sides = []
    for seed in range(2):
        train, test = pointcloud.split(source, tmp_path / f"split{seed}", seed, ".ply")
        names = [{path.relative_to(side).as_posix() for path in side.rglob("*.ply")} for side in (train, test)]
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 24
        assert sorted(Path(name).parent.name for name in names[1]) == ["crate"] * 4 + ["wall"] * 4
        sides.append(names[1])
    assert sides[0] != sides[1]


def test_no_tile_of_the_scan_is_trained_and_tested(tmp_path):
    scan = tmp_path / "data" / "lidar_las" / "autzen_trim.laz"
    fake_scan(scan, size=400.0, density=0.5)
    train, test = pointcloud.strips(tmp_path / "data", tmp_path / "strips")
    whole = np.asarray(laspy.read(scan).x)
    side = pointcloud.TILE / pointcloud.FOOT
    parts = [[np.asarray(laspy.read(file).x) for file in sorted(folder.iterdir())] for folder in (train, test)]
    columns = [{int(c) for x in part for c in np.unique(np.floor(x / side))} for part in parts]
    assert len(parts[1]) >= 2
    assert min(columns[1]) - max(columns[0]) == 2  # the column between them is in neither
    gap = np.floor(whole / side) == max(columns[0]) + 1
    assert sum(len(x) for part in parts for x in part) == len(whole) - gap.sum()


def test_rows_hold_one_value_a_seed_under_the_name_of_their_method():
    key = ("pre-trained", "kNN", "accuracy")
    found = [
        ("A", {key: 0.1, ("random init", "kNN", "accuracy"): 0.2, ("pre-trained", "kNN", "AUC"): 0.9}),
        ("B", {key: 0.3}),
        ("A", {key: 0.5, ("random init", "kNN", "accuracy"): 0.4}),
    ]
    assert pointcloud.gather(found, "accuracy") == [
        {"features": "A", "protocol": "kNN", "values": [0.1, 0.5]},
        {"features": "random init", "protocol": "kNN", "values": [0.2, 0.4]},
        {"features": "B", "protocol": "kNN", "values": [0.3]},
    ]


# completion ---------------------------------------------------------------------------------------------------------


def test_what_is_left_lies_on_one_side_of_a_plane():
    """The kept points and the points that were cut away can be told apart by one direction."""
    whole = np.random.default_rng(0).normal(size=(completion.DENSE, 3)).astype(np.float32)
    for seed in range(4):
        left = completion.cut(whole, seed)
        assert np.array_equal(left, completion.cut(whole, seed))
        assert len(left) == completion.PARTIAL
        direction = np.random.default_rng(seed).normal(size=3)
        along, all_along = left @ direction, whole @ direction
        assert 0.4 <= (all_along > along.max()).mean() <= 0.62  # what is kept is a sample, so its edge lies inside
        assert along.min() < np.quantile(all_along, 0.01)
    assert not np.array_equal(completion.cut(whole, 0), completion.cut(whole, 1))


def test_no_object_is_trained_and_tested(shapes):
    wholes = completion.whole_clouds(shapes)
    assert len(wholes) == 12
    for one in wholes:
        np.testing.assert_allclose(one.mean(0), 0, atol=1e-5)
        assert np.linalg.norm(one, axis=1).max() == pytest.approx(1)
    clouds = completion.clouds_of(wholes, 0)
    assert [len(clouds[name]) for name in ("train", "test", "truth")] == [3, completion.HELD_OUT, completion.HELD_OUT]
    places = [{point.tobytes() for point in whole} for whole in wholes]

    def owners(x):
        return [next(at for at, place in enumerate(places) if point[0].tobytes() in place) for point in x.numpy()]

    assert owners(clouds["test"]) == owners(clouds["truth"])
    assert sorted(owners(clouds["train"]) + owners(clouds["test"])) == list(range(12))


def test_the_plain_autoencoder_reproduces_all_of_its_input():
    method = completion.method_of(completion.PLAIN, 0).eval()
    points = torch.rand(2, completion.PARTIAL, 3, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(2)
    loss = method(Batch({"points": points}, [Meta("a", "a", 0)] * 2), keys).loss
    seen = completion.mirrored(points, keys)
    both = torch.cdist(method.generator(method.encoder.encode_points(seen)), seen)
    expected = (both.min(2).values.mean() + both.min(1).values.mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert completion.method_of(completion.ALONE, 0).weights["completion"] == 0
    assert completion.method_of(completion.FULL, 0).weights["completion"] == 1000


def test_training_lowers_the_distance_and_is_not_done_again(shapes, tmp_path):
    wholes = completion.whole_clouds(shapes)
    clouds = completion.clouds_of(wholes, 0)
    before = completion.completed(completion.FULL, clouds, 0, 1)
    after = completion.completed(completion.FULL, clouds, 0, 25)
    assert torch.equal(before, completion.completed(completion.FULL, clouds, 0, 1))
    assert np.mean(completion.distances(after, clouds["truth"])) < 0.8 * np.mean(
        completion.distances(before, clouds["truth"])
    )
    found = completion.run(shapes, tmp_path / "out", 1, 0.008)
    assert (tmp_path / "out" / "completion.png").is_file()
    stored = tmp_path / "out" / "completion-seed0-steps2.npz"
    written = stored.stat().st_mtime_ns
    assert completion.run(shapes, tmp_path / "out", 1, 0.008) == found
    assert stored.stat().st_mtime_ns == written
    values = {row["name"]: row["values"][0] for row in found["rows"]}
    assert values[completion.INPUT] == pytest.approx(completion.distances(clouds["test"], clouds["truth"]), abs=1e-2)
    assert found["differences"][completion.INPUT]["mean"] == pytest.approx(
        np.mean(values[completion.FULL]) - np.mean(values[completion.INPUT]), abs=1e-2
    )
    assert "| P2C |" in "\n".join(completion.table(found))


# rooms --------------------------------------------------------------------------------------------------------------


def test_volumes_have_z_up_and_normals_as_colours(tmp_path):
    file = write_mesh(tmp_path / "box.obj", fake_box((2.0, 1.0, 1.0)))  # long in x, y is up
    made = rooms.volume(file, 0)
    filled = made[..., 3] > rooms.OPAQUE
    extents = [int(np.ptp(np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis}))))) + 1 for axis in range(3)]
    assert extents[0] > 1.8 * extents[2]
    assert extents[1] == pytest.approx(extents[2], abs=1)
    top = np.flatnonzero(filled.any(axis=(0, 1))).max()
    middle = made[16, 16, top]
    np.testing.assert_allclose(middle[:3], [0.5, 0.5, 1.0], atol=0.01)  # the normal points up along the last axis
    assert not made[0, 0, 0].any()


def test_guesses_know_visible_voxels_only():
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(4, 8, 8, 8, generator=generator)
    hidden = torch.zeros(8, 8, 8, dtype=torch.bool)
    hidden[4:] = True
    made = rooms.guesses(grid, hidden, torch.zeros_like(grid))
    other = rooms.guesses(torch.where(hidden, 0.99, grid), hidden, torch.zeros_like(grid))
    for name in (rooms.VISIBLE, rooms.NEAREST):
        torch.testing.assert_close(made[name][:, hidden], other[name][:, hidden])
    assert made[rooms.VISIBLE][3, 0, 0, 0] == pytest.approx(grid[3, :4].mean().item(), abs=1e-5)
    assert torch.equal(made[rooms.NEAREST][3, 4], grid[3, 3])
    assert torch.equal(made[rooms.NEAREST][3, 7], grid[3, 3])


def test_scores_are_those_of_hidden_voxels():
    truth, made = torch.zeros(4, 1, 1, 4), torch.zeros(4, 1, 1, 4)
    truth[3, 0, 0], made[3, 0, 0] = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    truth[:3], made[:3, 0, 0, 0] = 0.5, 0.4
    hidden = torch.tensor([True, True, True, False]).view(1, 1, 4)
    found = rooms.scores(rooms.counts(made, truth, hidden))
    assert found["alpha IoU"] == pytest.approx(1 / 3)  # both, the truth alone, the guess alone; the last was seen
    assert found["RGB PSNR"] == pytest.approx(-10 * np.log10((0.1**2 + 0.5**2) / 2), abs=1e-4)


def test_rooms_are_rebuilt_and_not_again(shapes, tmp_path):
    found = pointcloud.run_rooms(shapes, tmp_path / "out", 1, 0.01)
    assert set(found["rows"]) == {rooms.NETWORK, rooms.FRESH, rooms.VISIBLE, rooms.NEAREST, rooms.AVERAGE}
    weights = tmp_path / "out" / "seed0" / "run" / "encoder.safetensors"
    written = weights.stat().st_mtime_ns
    assert pointcloud.run_rooms(shapes, tmp_path / "out", 1, 0.01) == found
    assert weights.stat().st_mtime_ns == written
    assert str(tmp_path) not in json.dumps(found)
    assert found["rows"][rooms.NEAREST]["alpha IoU"][0] > 0
    assert "| nearest visible voxel |" in "\n".join(rooms.table(found))
