"""Scans from pre-training to classified points, through the public functions."""

import laspy
import numpy as np
import pytest

import maskwright as mw
from maskwright.core.scene import MapFormat
from maskwright.pointcloud.fake import UTM, fake_scan
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.loaders import ScanLoader

READ = {"data.loader": "scans", "data.tile": 15, "data.points": 256}
SIZES = {
    "method.num_groups": 32, "method.group_size": 16, "method.embed_dim": 32, "method.depth": 2, "method.num_heads": 2,
    "method.decoder_depth": 1, "method.drop_path": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        fake_scan(
            folder / f"scan{number}.{'laz' if number else 'las'}", seed=number, origin=(UTM[0] + 100 * number, *UTM[1:])
        )
    return folder


@pytest.mark.parametrize("points", [256, 10_000, "all"])
def test_pieces_cover_every_point(scans, points):
    loader = ScanLoader(scans, **ScanLoader.scene_options({"tile": 15, "points": points, "min_points": 500}))
    for scene in loader.scenes():
        seen = np.zeros(scene.count, dtype=int)
        for sample, numbers in scene.pieces():
            assert len(sample["points"]) == len(numbers)
            assert points == "all" or len(numbers) == points
            seen[np.unique(numbers)] += 1
        assert scene.count == open_points(scene.sources[0]).count
        assert (seen > 0).all()
        assert (seen > 1).mean() < (0.5 if points == 256 else 0.01)


def test_a_copy_of_the_scan_gets_columns_and_keeps_everything_else(scans, tmp_path):
    for scene in ScanLoader(scans, tile=15).scenes():
        codes = (np.arange(scene.count) % 3).astype(np.uint8)
        codes[:5] = 255
        share = np.linspace(0, 1, scene.count, dtype=np.float32)
        out = tmp_path / f"{scene.name}{scene.suffix}"
        scene.write(out, {"class": codes, "house": share}, MapFormat("uint8", ("class",), 255))
        before, after = laspy.read(scene.sources[0]), laspy.read(out)
        assert np.array_equal(after.classification[5:], codes[5:])
        assert not np.array(after.classification[:5]).any()
        assert np.array_equal(after["house"], share)
        assert after.header.are_points_compressed == (scene.suffix == ".laz")
        for name in before.point_format.dimension_names:
            if name != "classification":
                assert np.array_equal(before[name], after[name]), name
        assert np.array_equal(before.header.offsets, after.header.offsets)
        assert np.array_equal(before.header.scales, after.header.scales)
        assert after.header.parse_crs() == before.header.parse_crs()


def test_ground_and_houses_from_pre_training_to_classified_scans(scans, tmp_path):
    run = mw.pretrain("point-cmae", data=scans, run=tmp_path / "run", preset="tiny", max_steps=4, batch_size=8,
                      settings={**READ, **SIZES})  # fmt: skip
    model = mw.finetune(
        run, task="segmentation", labels=str(scans), out=tmp_path / "model", steps=120, lr=5e-3, batch_size=8
    )
    predicted = mw.predict(model, scans, tmp_path / "out", probabilities=True)
    assert not predicted.bad
    assert len(predicted.outputs) == 6
    right, largest = [], []
    for path in sorted(scans.iterdir()):
        found, truth = laspy.read(tmp_path / "out" / path.name), np.array(laspy.read(path).classification)
        codes = np.array(found.classification)
        assert set(np.unique(codes)) <= set(np.unique(truth))
        right.append((codes == truth).mean())
        largest.append(np.bincount(truth).max() / len(truth))
        shares = laspy.read(tmp_path / "out" / f"{path.stem}_probabilities{path.suffix}")
        names = list(shares.point_format.extra_dimension_names)
        total = sum(np.array(shares[name]) for name in names[-len(np.unique(truth)) :])
        np.testing.assert_allclose(total, 1, atol=1e-4)
    assert np.mean(right) > np.mean(largest) + 0.03, (right, largest)
    again = mw.predict(model, scans, tmp_path / "out", probabilities=True)
    assert again.made == 0


def test_separate_test_scans_have_their_own_labels(scans, tmp_path):
    """Numbers of test samples are those of their own loader when their codes are read."""
    run = mw.pretrain("point-cmae", data=scans, run=tmp_path / "run", preset="tiny", max_steps=1, batch_size=8,
                      settings={**READ, **SIZES})  # fmt: skip
    result = mw.evaluate(run, task="segmentation", labels=str(scans), protocols=["knn"], seeds=1, baselines=["simple"],
                         test=scans / "scan2.laz", test_labels=str(scans / "scan2.laz"))  # fmt: skip
    assert any(row.features == "group statistics" for row in result.table.rows)


def test_tokens_of_scans_are_judged(scans, tmp_path):
    run = mw.pretrain("point-cmae", data=scans, run=tmp_path / "run", preset="tiny", max_steps=2, batch_size=8,
                      settings={**READ, **SIZES})  # fmt: skip
    result = mw.evaluate(run, task="segmentation", labels=str(scans), protocols=["linear"], seeds=1,
                         baselines=["random-init", "simple"], folds=3)  # fmt: skip
    names = {row.features for row in result.table.rows}
    assert any("random" in name for name in names)
    assert any("statistics" in name or "shape" in name for name in names)
