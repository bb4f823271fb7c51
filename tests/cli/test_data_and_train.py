"""`maskwright inspect`, `preview`, `pretrain`, `resume` and `demo`, on small images and the toy method."""

import json

import numpy as np
import pytest
from PIL import Image

from maskwright.cli.main import run
from maskwright.core.inspection import inspect_data
from maskwright.core.trainer.run import Run

SMALL = ["--set", "trainer.batch_size=4", "--set", "trainer.precision=32", "--set", "method.embed_dim=16"]


def test_inspect_shows_tensors_and_statistics(capsys, images):
    assert run(["inspect", str(images)]) == 0
    out = capsys.readouterr().out
    assert "C H W" in out
    assert "statistics of image" in out


def test_inspect_as_json_is_what_the_function_returns(capsys, images):
    assert run(["inspect", str(images), "--json", "--loader", "npy"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_data(images, "npy")


def test_inspect_uses_a_loaders_own_rows_and_lists_what_cannot_be_used(capsys, images, monkeypatch):
    from maskwright.core.host import get_host

    loader = get_host().component("loader", "npy").load()
    rows = [
        {"file": "a.npy", "shape": (1, 16, 16), "bands": [{"band": "B1", "mean": 0.5}]},
        {"file": "b.npy", "problem": "is truncated"},
    ]
    monkeypatch.setattr(loader, "inspect", classmethod(lambda cls, path: rows), raising=False)
    assert run(["inspect", str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "shape"]
    assert lines[1].split() == ["a.npy", "1", "16", "16"]
    assert "bands of a.npy" in lines
    assert lines[-3:] == ["1 cannot be used", "file   problem", "b.npy  is truncated"]


@pytest.mark.parametrize("what", ["absent", "empty"])
def test_inspect_of_nothing_is_an_error(capsys, tmp_path, what):
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    assert run(["inspect", str(folder)]) == 3
    assert str(folder) in capsys.readouterr().err


def test_preview_draws_all_maskings(tmp_path, images):
    out = tmp_path / "deep" / "all.png"
    assert run(["preview", "--data", str(images), "--patch-size", "4", "--count", "2", "--out", str(out)]) == 0
    assert Image.open(out).width > Image.open(out).height  # more maskings than samples


def test_preview_of_a_method_takes_its_masking_and_options(tmp_path, images):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    words = ["preview", "toy-mae", "--data", str(images), "--patch-size", "4", "--out"]
    assert run([*words, str(one)]) == 0
    assert run([*words, str(two), "--set", "masking.ratio=0.25"]) == 0
    assert (np.asarray(Image.open(one)) != np.asarray(Image.open(two))).any()


@pytest.mark.parametrize("setting", ["trainer.epochs=3", "masking=random", "masking.ration=0.3", "data.nonsense=1"])
def test_preview_refuses_settings_that_do_not_fit(capsys, tmp_path, images, setting):
    words = ["preview", "random", "--data", str(images), "--out", str(tmp_path / "x.png"), "--set", setting]
    assert run(words) == 2
    assert not (tmp_path / "x.png").exists()


def test_dry_run_prints_a_forecast_and_leaves_nothing(capsys, tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert run(["pretrain", "toy-mae", "--data", str(images), "--epochs", "3", *SMALL, "--dry-run"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert lines["steps"].strip() == "9 of 4 samples"
    assert lines["method"].strip() == "toy-mae"
    assert set(tmp_path.iterdir()) == before


def test_pretrain_writes_a_run_that_previews_and_resumes(capsys, tmp_path, images):
    path = tmp_path / "run"
    words = ["pretrain", "toy-mae", "--data", str(images), "--preset", "tiny", "--epochs", "2", "--run", str(path)]
    assert run([*words, *SMALL, "--max-time", "01:00:00"]) == 0
    out = capsys.readouterr().out
    assert f"encoder: {path}/encoder.safetensors" in out
    done = Run.open(path)
    assert done.metrics()[-1]["step"] == 6
    assert done.recipe().trainer.max_time == "01:00:00"
    assert done.load_encoder().embed_dim == 16

    assert run(["preview", "--run", str(path), "--out", str(tmp_path / "filled")]) == 0
    assert (tmp_path / "filled" / "image.png").is_file()
    assert run(["resume", str(path)]) == 0  # finished: nothing more to train
    assert run([*words, *SMALL]) == 2
    assert "maskwright resume" in capsys.readouterr().err


def test_preview_of_a_run_refuses_maskings(capsys, tmp_path):
    assert run(["preview", "random", "--run", str(tmp_path)]) == 2
    assert run(["preview", "--run", str(tmp_path)]) == 3


def test_pretrain_lists_all_problems_at_once(capsys, images):
    words = ["pretrain", "toy-mae", "--data", str(images), "--set", "trainer.epoch=3", "--set", "trainer.lr=-1"]
    assert run(words) == 2
    err = capsys.readouterr().err
    assert 'trainer.epoch: there is no such option. Did you mean "epochs"?' in err
    assert "trainer.lr=-1" in err


def test_demo_hands_over_its_options(tmp_path, monkeypatch):
    from maskwright.core.component import Component

    calls = []
    monkeypatch.setattr(Component, "load", lambda self: lambda *given: calls.append((self.name, *given)))
    assert run(["demo", "--out", str(tmp_path / "d"), "--seeds", "2"]) == 0
    name, out, seeds, console = calls[0]
    assert (name, out, seeds) == ("remote-sensing", tmp_path / "d", 2)
    assert not console.is_terminal
