"""`maskwright finetune` and `predict`, through an app of their own."""

import pyarrow.parquet as pq
import pytest
import typer

import maskwright as mw
from maskwright.cli import finetune, predict
from maskwright.core.errors import MaskwrightError
from tests.conftest import write_images

app = typer.Typer()
finetune.add_commands(app)
predict.add_commands(app)


def run(words):
    """Exit code of one command line; errors of ours come through, as the main app expects them."""
    return typer.main.get_command(app).main([str(word) for word in words], standalone_mode=False) or 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    data = write_images(root / "images", count=12)
    files = sorted(path.name for path in data.glob("*.npy"))
    (root / "labels.csv").write_text("file,kind\n" + "".join(f"{f},{'ab'[i % 2]}\n" for i, f in enumerate(files)))
    return (
        mw.pretrain("toy-mae", data, run=root / "run", max_steps=1, batch_size=4).path,
        data,
        f"{root}/labels.csv:kind",
    )


def test_from_a_run_to_a_table(world, tmp_path, capsys):
    trained, data, labels = world
    model, out = tmp_path / "model", tmp_path / "out"
    words = ["finetune", trained, "--data", data, "--task", "classification", "--labels", labels, "--out", model]
    assert run([*words, "--set", "budget.steps=3", "--set", "budget.batch_size=4", "--holdout", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "classification: 2 outputs, 8 samples, 3 steps" in said
    assert "4 held-out samples: " in said
    assert "maskwright evaluate" in said
    assert f"model: {model}" in said
    assert run(["predict", model, "--data", data, "--out", out]) == 0
    said = capsys.readouterr().out
    assert "12 predicted in" in said
    assert f"output: {out / 'predictions.parquet'}" in said
    assert pq.read_table(out / "predictions.parquet").num_rows == 12
    assert run(["predict", model, "--data", data, "--out", out]) == 0
    assert "nothing was left to predict" in capsys.readouterr().out


def test_unreadable_files_are_named_and_too_many_end_with_code_5(world, tmp_path, capsys):
    import shutil

    trained, _, labels = world
    model, data = tmp_path / "model", shutil.copytree(world[1], tmp_path / "data")
    assert run(["finetune", trained, "--labels", labels, "--out", model, "--set", "budget.steps=1", "--frozen"]) == 0
    (data / "image_001.npy").write_bytes(b"junk")
    assert run(["predict", model, "--data", data, "--out", tmp_path / "one"]) == 0
    assert "1 could not be used: " in capsys.readouterr().out
    (data / "image_002.npy").write_bytes(b"junk")
    with pytest.raises(MaskwrightError, match=r"2 of 12 could not be used.*--max-bad") as stopped:
        run(["predict", model, "--data", data, "--out", tmp_path / "two"])
    assert stopped.value.exit_code == 5
    assert pq.read_table(tmp_path / "two" / "predictions.parquet").num_rows == 10


def test_wrong_options_have_an_exit_code_of_2(world, tmp_path):
    trained, data, labels = world
    for words, text in (
        (["finetune"], "not both"),
        (["finetune", trained, "--labels", labels, "--task", "classificatoin"], "Did you mean"),
        (["finetune", trained, "--labels", labels, "--set", "steps=3"], "steps: there is no such section"),
    ):
        with pytest.raises(MaskwrightError, match=text) as refused:
            run(words)
        assert refused.value.exit_code == 2
    with pytest.raises(MaskwrightError, match="maskwright finetune") as refused:
        run(["predict", tmp_path, "--data", data, "--out", tmp_path / "out"])
    assert refused.value.exit_code == 3
