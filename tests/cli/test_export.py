"""`maskwright export` on a small run."""

import json

import pytest

import maskwright as mw
from maskwright.cli.main import run
from tests.conftest import write_images


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    images = write_images(folder / "images", 4)
    return mw.pretrain("toy-mae", data=images, run=folder / "run", max_steps=1, batch_size=4, precision="32").path


def test_export_prints_the_files(capsys, small_run, tmp_path):
    out = tmp_path / "out"
    assert run(["export", str(small_run), "--out", str(out), "--format", "safetensors", "--format", "huggingface"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == sorted(str(path) for path in out.iterdir())
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "encoder.json",
        "encoder.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_export_prints_the_check(capsys, small_run, tmp_path):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    assert run(["export", str(small_run), "--out", str(out), "--format", "onnx", "--size", "8x12"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "encoder.onnx.json").read_text())
    assert record["inputs"] == {"image": ["batch", 1, 8, 12]}
    far = record["max_difference_relative_to_std"]["pooled"]
    assert f"ONNX and torch, pooled: largest difference {far:.1e} standard deviations" in printed
    assert "the run's data, cut to size" in printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--format", "pickle"], 2, 'no format "pickle"'),
        (["--format", "onnx", "--size", "wide"], 2, "such as 120"),
        (["--size", "120"], 2, "Leave it out"),
    ],
)
def test_export_explains_what_is_wrong(capsys, small_run, tmp_path, words, code, message):
    assert run(["export", str(small_run), "--out", str(tmp_path / "out"), *words]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_of_no_run(capsys, tmp_path):
    assert run(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    assert "holds no finished encoder" in capsys.readouterr().err
