"""`maskwright evaluate`, `compare` and `report`, as a user types them."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

import maskwright as mw
from maskwright.cli.main import run as command


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Real digits, one folder a class, and two short runs on them."""
    folder = tmp_path_factory.mktemp("work")
    images, numbers = load_digits(n_class=3, return_X_y=True)
    (folder / "flat").mkdir()
    for at in range(90):
        image = np.kron(images[at].reshape(8, 8), np.ones((2, 2))).astype(np.float32)[None]
        np.save(folder / "flat" / f"d{at:03d}.npy", image)
    np.save(folder / "y.npy", numbers[:90])
    for seed in range(2):
        mw.pretrain(
            "toy-mae", folder / "flat", "tiny", folder / f"run{seed}", {"data.loader": "npy", "seed": seed},
            max_steps=10, batch_size=30, precision="32", log_every=5,
        )  # fmt: skip
    return folder


def _evaluate(work, *words, run="run0"):
    return command(
        ["evaluate", f"{work}/{run}", "--labels", f"{work}/y.npy", "--seeds", "2", "--folds", "3", *map(str, words)]
    )


def test_options_take_several_values_in_a_row(work, capsys):
    baselines = ["--baselines", "random-init", "simple"]
    assert _evaluate(work, "--protocol", "knn", "linear", "--fractions", "0.2", "1.0", *baselines) == 0
    printed = capsys.readouterr().out
    assert "With 0.2 of the labels" in printed
    assert "linear probe, balanced accuracy" in printed
    assert "Did it help?" in printed
    folder = work / "run0" / "evaluations" / "classification"
    assert json.loads((folder / "scores.json").read_text())["facts"]["protocols"] == ["knn", "linear"]
    assert f"report: {folder / 'report.html'}" in printed
    # again: nothing is overwritten, and repeating the option does the same
    assert _evaluate(work, "--protocol", "knn", "--protocol", "linear", *baselines, "--set", "knn.k=3") == 0
    assert (work / "run0" / "evaluations" / "classification-2" / "scores.json").is_file()


def test_compare_and_report(work, capsys):
    for run in ("run0", "run1"):
        assert (
            _evaluate(
                work, "--protocol", "knn", "--baselines", "simple", "--out", f"{work}/{run}/evaluations/digits", run=run
            )
            == 0
        )
    capsys.readouterr()
    assert command(["compare", f"{work}/run0", f"{work}/run1", "--out", f"{work}/both.html"]) == 0
    printed = capsys.readouterr().out
    assert "digits" in printed
    table = printed.partition("digits\n")[2].partition("page:")[0]  # the runs have another task in common, or not
    lines = [line.split("  ")[0] for line in table.splitlines()]
    assert lines.count("run0") == lines.count("run1") == 1
    assert lines.count("raw values") == 1  # the same for both runs, so shown once
    page = (work / "both.html").read_text()
    assert "run1" in page
    assert "data:image/png" in page
    (work / "run0" / "report.html").unlink()
    assert command(["report", f"{work}/run0"]) == 0
    assert "evaluations/digits/report.html" in (work / "run0" / "report.html").read_text()


def test_compare_says_what_is_not_on_one_footing(work, capsys, tmp_path):
    for run, seeds in (("run0", 1), ("run1", 2)):
        words = ["evaluate", f"{work}/{run}", "--labels", f"{work}/y.npy", "--seeds", str(seeds), "--protocol", "knn",
                 "--baselines", "simple", "--out", f"{work}/{run}/evaluations/uneven"]  # fmt: skip
        assert command(words) == 0
    capsys.readouterr()
    assert command(["compare", f"{work}/run0", f"{work}/run1", "--out", str(tmp_path / "c.html")]) == 0
    assert "Not on one footing: seeds differs (run0: 1; run1: 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evaluate"], 2, "Give a run directory, or an encoder"),
        (["evaluate", "nowhere"], 3, "there is no such folder"),
        (["evaluate", "{run}", "--protocol", "nearest"], 2, 'There is no protocol "nearest"'),
        (["evaluate", "{run}", "--task", "classify"], 2, 'Did you mean "classification"'),
        (["evaluate", "{run}", "--labels", "none.csv:x"], 3, "none.csv: there is no such file"),
        (["evaluate", "{run}", "--protocol", "knn", "--fractions", "2"], 2, "outside (0, 1]"),
        (["compare", "{run}/checkpoints"], 3, "holds no recipe.yaml"),
        (["report", "nowhere"], 3, "there is no such folder"),
    ],
)
def test_mistakes_are_one_clear_sentence(work, capsys, words, code, message):
    given = [word.replace("{run}", f"{work}/run1") for word in words]
    if given[0] == "evaluate" and len(given) > 1 and "--labels" not in given:
        given += ["--labels", f"{work}/y.npy"]
    assert command(given) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_run_that_was_not_evaluated_cannot_be_compared(tmp_path, work, capsys):
    run = mw.pretrain(
        "toy-mae", work / "flat", "tiny", tmp_path / "fresh", {"data.loader": "npy"}, max_steps=2, batch_size=30
    )
    assert command(["compare", str(run.path)]) == 2
    assert "None of fresh was evaluated yet" in capsys.readouterr().err


def test_a_model_of_timm_is_judged_on_the_same_footing(work, capsys, tmp_path):
    pytest.importorskip("timm")
    words = ["evaluate", "--encoder", "timm:resnet10t,pretrained=false", "--data", f"{work}/flat", "--labels",
             f"{work}/y.npy", "--seeds", "1", "--protocol", "knn", "--baselines", "random-init", "simple",
             "--set", "data.loader=npy", "--out", str(tmp_path / "out")]  # fmt: skip
    assert command(words) == 0, capsys.readouterr().err
    stored = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert stored["facts"]["encoder"].startswith("timm:resnet10t")
