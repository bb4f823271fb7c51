"""Tables of predictions, and the arithmetic of tiling."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

import maskwright as mw
from maskwright.core import predict_table
from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.heads import predict_samples
from maskwright.core.finetune import finetune
from maskwright.core.predict import PredictionStopped, predict
from maskwright.core.tiling import Blend, Tiling, bump, starts
from tests.conftest import write_images
from tests.task_models import rows

# tiling ------------------------------------------------------------------------------------------------------------


def test_windows_cover_an_axis_and_the_last_is_flush():
    assert starts(10, 4, 4) == [0, 4, 6]
    assert starts(12, 4, 4) == [0, 4, 8]
    assert starts(4, 4, 2) == [0]
    assert starts(3, 4, 2) == [0]
    for length in range(1, 60):
        for size in range(1, 20):
            for stride in range(1, size + 1):
                found = starts(length, size, stride)
                covered = {p for s in found for p in range(s, min(s + size, length))}
                assert covered == set(range(length))
                assert found == sorted(set(found))
                assert max(found[-1] + size, length) == max(length, size)


def test_weights_are_never_zero_and_every_pixel_is_seen():
    assert bump(120).min() > 0
    for overlap in (0.0, 0.1, 0.5, 0.8):
        for shape in ((100, 57), (33, 32), (12, 90)):
            tiling = Tiling.of(shape, (32, 32), overlap, (4, 4))
            total = np.zeros(shape)
            for _, places in tiling.bands():
                for at in places:
                    total[tiling.window(at)] += np.multiply.outer(*tiling.weights(at))
            assert total.min() > 0, (overlap, shape)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_blending_in_bands_equals_blending_all_at_once(axes):
    generator = np.random.default_rng(0)
    shape, size = (23, 17, 9)[:axes], (8, 6, 4)[:axes]
    tiling = Tiling.of(shape, size, 0.5, (1,) * axes)
    sums, weights = np.zeros((2, *shape)), np.zeros(shape)
    blend, found, known = Blend(2, tiling), np.full((2, *shape), np.nan), np.zeros(shape, bool)
    rows_ = [*tiling.axis_starts(0)[1:], shape[0]]
    valid = generator.random(shape) < 0.9
    for (_, places), stop in zip(tiling.bands(), rows_, strict=True):
        for at in places:
            window, weight = tiling.window(at), np.ones(())
            for along in tiling.weights(at):
                weight = np.multiply.outer(weight, along)
            values = generator.random((2, *weight.shape))
            sums[:, *window] += values * weight
            weights[window] += weight
            blend.add(at, values, valid[window])
        for span, means, here in blend.pop(stop):
            found[:, span], known[span] = means, here
    assert found == pytest.approx(sums / weights, abs=1e-6)
    assert np.array_equal(known, valid)


def test_overlaps_and_windows_that_make_no_sense_are_refused():
    for overlap in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="outside"):
            Tiling.of((9, 9), (4, 4), overlap, (1, 1))
    with pytest.raises(ConfigError, match="of 1 axes does not fit a scene of 2"):
        Tiling.of((9, 9), (4,), 0.5, (1,))


# tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    data = write_images(root / "images", count=30)
    lines = ["file,kind,tags,value"]
    for number, file in enumerate(sorted(data.glob("*.npy"))):
        tags = ";".join(name for name, has in (("even", number % 2 == 0), ("third", number % 3 == 0)) if has)
        lines.append(f"{file.name},{'ab'[number % 2]},{tags or 'none'},{number}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    run = mw.pretrain("toy-mae", data, run=root / "run", max_steps=1, batch_size=4)
    models = {
        task: finetune(run, data, task, labels=f"{root}/labels.csv:{column}", out=root / task, steps=2, holdout=0)
        for task, column in (("classification", "kind"), ("multilabel", "tags"), ("regression", "value"))
    }
    return data, models


def test_a_table_holds_what_the_model_says_of_each_sample(world, tmp_path):
    data, models = world
    loader = mw.open_data(data, "npy")
    done = predict(models["classification"].path, data, tmp_path / "out", batch_size=4)
    assert [path.name for path in done.outputs] == ["predictions.parquet"]
    table = rows(pq.read_table(done.outputs[0]))
    assert done.made == len(table) == 30
    for row, (index, says) in zip(
        table, predict_samples(models["classification"].model, loader, range(30), 4), strict=True
    ):
        assert row["index"] == index
        assert row["source"] == loader.sources(index)[0]
        assert row["group"] == loader.group(index)
        assert row["predicted"] == "ab"[int(says.argmax())]
        assert [row["p_a"], row["p_b"]] == pytest.approx(says.tolist(), abs=1e-7)
        assert row["x"] is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "predictions.parquet"]


def test_tables_of_labels_and_of_numbers(world, tmp_path):
    data, models = world
    table = pq.read_table(predict(models["multilabel"], data, tmp_path / "m").outputs[0]).to_pylist()
    for row in table:
        assert row["predicted"] == ";".join(name for name in ("even", "third") if row[f"p_{name}"] > 0.5)
    table = pq.read_table(predict(models["regression"], data, tmp_path / "r").outputs[0])
    assert "predicted_value" in table.column_names
    assert 0 < np.mean(table["predicted_value"].to_numpy()) < 29


def test_places_are_centres_in_the_units_of_the_crs():
    from maskwright.core.evaluation.task import Targets
    from maskwright.core.sample import Meta

    meta = Meta("a.tif", "a", 3, (10, 20, 4, 6), "EPSG:32633", (10, 0, 500200, 0, -10, 4999900))
    (row,) = predict_table.rows_of(Targets("classification", ("a", "b")), [meta], np.array([[0.25, 0.75]])).to_pylist()
    assert (row["x"], row["y"], row["crs"]) == (500230.0, 4999880.0, "EPSG:32633")
    assert (row["window_row"], row["window_width"], row["predicted"]) == (10, 6, "b")


def test_parts_and_shares_give_the_rows_of_one_undisturbed_process(world, tmp_path, monkeypatch):
    data, models = world
    monkeypatch.setattr(predict_table, "PART_SAMPLES", 4)
    model = models["classification"]
    whole = pq.read_table(predict(model, data, tmp_path / "one", batch_size=2).outputs[0])
    shares = [
        pq.read_table(predict(model, data, tmp_path / "many", batch_size=2, shard=f"{i}/3").outputs[0])
        for i in (1, 2, 3)
    ]
    assert sorted((r for t in shares for r in t.to_pylist()), key=lambda row: row["index"]) == rows(whole)

    real, calls = predict_table._predict_part, []

    def dies(job, span):
        calls.append(span)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(job, span)

    monkeypatch.setattr(predict_table, "_predict_part", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(model, data, tmp_path / "killed", batch_size=2)
    assert not (tmp_path / "killed" / "predictions.parquet").exists()
    done = predict(model, data, tmp_path / "killed", batch_size=2)
    assert len(calls) == 4 + 5  # three of eight parts were kept
    assert done.made == 30 - 12
    assert pq.read_table(done.outputs[0]).equals(whole)
    assert predict(model, data, tmp_path / "killed", batch_size=2).made == 0


def test_bad_samples_are_listed_and_the_list_survives_a_second_start(world, tmp_path):
    import shutil

    data = shutil.copytree(world[0], tmp_path / "data")
    (data / "image_003.npy").write_bytes(b"\x93NUMPY junk")
    np.save(data / "image_007.npy", np.full((1, 16, 16), np.nan, np.float32))
    model = world[1]["classification"]
    with pytest.raises(PredictionStopped, match=r"2 of 30 could not be used") as stopped:
        predict(model, data, tmp_path / "out")
    assert stopped.value.exit_code == 5
    for _ in range(2):
        done = predict(model, data, tmp_path / "out", max_bad=0.1)
        with done.bad_list.open() as file:
            assert [row["path"][-7:] for row in csv.DictReader(file)] == ["003.npy", "007.npy"]
        assert [row["index"] for row in rows(pq.read_table(done.outputs[0]))] == [
            i for i in range(30) if i not in (3, 7)
        ]


def test_options_that_do_not_fit_are_refused(world, tmp_path):
    data, models = world
    model = models["classification"]
    with pytest.raises(ConfigError, match="the option is for maps"):
        predict(model, data, tmp_path / "o", probabilities=True)
    with pytest.raises(ConfigError, match="shard="):
        predict(model, data, tmp_path / "o", shard="3/2")
    with pytest.raises(ConfigError, match="too few for 5 shares"):
        predict(model, data, tmp_path / "o", shard="5/5")
    with pytest.raises(ConfigError, match=r"daat: there is no such section"):
        predict(model, data, tmp_path / "o", settings=["daat.crop=3"])
    predict(model, data, tmp_path / "p")
    with pytest.raises(ConfigError, match="other model"):
        predict(models["regression"], data, tmp_path / "p")
