"""From the command line on real data: pre-train a little, judge, and find the known floors of simple features."""

import json

import pytest

from maskwright.cli.main import run as command

pytestmark = pytest.mark.slow
SHORT = ["--set", "trainer.max_steps=30", "--set", "trainer.precision=32"]


def _scores(folder):
    stored = json.loads((folder / "scores.json").read_text())
    return stored, {(row["features"], row["protocol"], row["metric"]): row["mean"] for row in stored["rows"]}


def test_statlog_with_its_official_split(shared_data, tmp_path):
    data, out = shared_data / "remote_sensing" / "statlog_landsat_mss", tmp_path / "evaluation"
    rows = ["--set", "data.loader=arrays", "--set", "data.columns=0:36", "--set", "data.shape=[3,3,4]"]
    rows += ["--set", "data.axes=H W C", "--set", "method.img_size=3", "--set", "method.patch_size=1"]
    words = [
        "pretrain",
        "mae",
        "--data",
        f"{data}/sat.trn",
        "--preset",
        "tiny",
        "--run",
        f"{tmp_path}/run",
        *rows,
        *SHORT,
    ]
    assert command(words) == 0
    words = ["evaluate", f"{tmp_path}/run", "--labels", f"{data}/sat.trn:37", "--test", f"{data}/sat.tst"]
    words += ["--test-labels", f"{data}/sat.tst:37", "--seeds", "1", "--protocol", "knn", "linear", "--out", str(out)]
    assert command([*words, "--set", "finetune.steps=20"]) == 0
    stored, scores = _scores(out)
    # a plain linear model on the 36 values is known to reach 0.84
    assert scores["raw values", "linear probe", "accuracy"] == pytest.approx(0.84, abs=0.01)
    assert stored["facts"]["split"] == "given test data"
    assert ("supervised from scratch", "fine-tune", "accuracy") in scores


def test_fuel_moisture_with_folds_by_site(shared_data, tmp_path):
    data, out = shared_data / "remote_sensing" / "s1s2_fuel_moisture_timeseries", tmp_path / "evaluation"
    rows = ["--set", "data.loader=arrays", "--set", "data.axes=T C", "--set", f"data.group={data}/site.npy"]
    rows += ["--set", "method.img_size=3", "--set", "method.patch_size=1", "--set", "masking.ratio=0.34"]
    words = ["pretrain", "mae", "--data", f"{data}/s1_s2_era5_srtm.npy", "--preset", "tiny", "--run", f"{tmp_path}/run"]
    assert command([*words, *rows, *SHORT]) == 0
    words = ["evaluate", f"{tmp_path}/run", "--task", "regression", "--labels", f"{data}/target.npy", "--seeds", "2"]
    words += ["--baselines", "random-init", "simple", "--out", str(out)]
    assert command(words) == 0
    stored, scores = _scores(out)
    assert stored["facts"]["groups"] == 112
    # a plain linear model on the raw values with folds by site is known to reach 0.28
    assert scores["raw values", "linear probe", "R2"] == pytest.approx(0.28, abs=0.05)


def test_land_cover_by_tile(shared_data, tmp_path):
    data, out = shared_data / "remote_sensing" / "terramesh_s1s2", tmp_path / "evaluation"
    rows = ["--set", "data.s1=S1RTC", "--set", "data.s2=S2L2A", "--set", "data.size=56"]
    words = ["pretrain", "croma", "--data", str(data), "--preset", "tiny", "--run", f"{tmp_path}/run", *rows, *SHORT]
    assert command([*words, "--set", "trainer.batch_size=8"]) == 0
    words = ["evaluate", f"{tmp_path}/run", "--task", "land-cover", "--labels", f"{data}/LULC", "--seeds", "1"]
    assert command([*words, "--baselines", "random-init", "simple", "--out", str(out)]) == 0
    stored, scores = _scores(out)
    assert stored["facts"]["groups"] == 4
    assert stored["facts"]["folds"] == 4
    assert {row["features"] for row in stored["rows"]} == {
        "pre-trained",
        "random init",
        "band and index statistics",
        "raw pixels",
    }
    assert any("Only 4 test groups" in note for note in stored["notes"])
    assert 0 < scores["raw pixels", "linear probe", "mean IoU"] < 0.5
