"""Exporting: what is written, that it loads, computes the same, and that cards claim no more than a run holds."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

import maskwright as mw
from maskwright.core import onnx_export
from maskwright.core.encoder import VisionTransformer
from maskwright.core.encoder.outside import open_encoder
from maskwright.core.errors import ConfigError, DataError, PluginError
from maskwright.core.evaluation.report import write_report
from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict
from maskwright.core.export import FORMATS, _check_inputs, export
from maskwright.core.model_card import gather
from maskwright.core.onnx_export import OnnxMismatch
from maskwright.core.trainer.files import DiskFullError
from tests.conftest import write_images

TILES = "maskwright/remote_sensing/samples/terramesh"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A run of the toy method's vision transformer."""
    folder = tmp_path_factory.mktemp("toy")
    images = write_images(folder / "images", 6)
    settings = {"batch_size": 4, "precision": "32", "log_every": 1}
    return mw.pretrain("toy-mae", data=images, preset="tiny", run=folder / "run", max_steps=3, **settings)


@pytest.fixture(scope="module")
def croma(tmp_path_factory):
    """A run of a small CROMA on the shipped tiles."""
    sizes = {"embed_dim": 32, "num_heads": 4, "optical_depth": 1, "sar_depth": 1, "fusion_depth": 1}
    small = {"decoder_dim": 32, "decoder_heads": 2, "patch_size": 24}
    settings = [f"method.{key}={value}" for key, value in (sizes | small).items()]
    return mw.pretrain(
        "croma",
        data=TILES,
        preset="tiny",
        run=tmp_path_factory.mktemp("croma") / "run",
        settings=[*settings, "data.size=120"],
        max_steps=1,
        batch_size=2,
        precision="32",
    )


def _copy(run, folder):
    shutil.copytree(run.path, folder)
    return mw.Run.open(folder)


def _onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["pooled", "tokens"], {name: tensor.numpy() for name, tensor in inputs.items()})


def _card(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def _nothing_left(folder):
    return [path.name for path in folder.iterdir()] if folder.exists() else []


# safetensors and its card -------------------------------------------------------------------------------------------


def test_safetensors_folder_loads_as_the_run_does(toy, tmp_path):
    done = export(toy, tmp_path / "out")
    assert sorted(path.name for path in done.files) == ["README.md", "encoder.json", "encoder.safetensors"]
    assert (tmp_path / "out" / "encoder.safetensors").read_bytes() == (toy.path / "encoder.safetensors").read_bytes()
    sample = mw.open_data(toy.recipe().data.path, "npy").read(0)
    ours, theirs = open_encoder(tmp_path / "out"), toy.load_encoder()
    assert torch.equal(ours.embed(sample).tokens, theirs.embed(sample).tokens)
    again = export(tmp_path / "out", tmp_path / "again")  # an exported folder can be exported
    assert {path.name for path in again.files} == {path.name for path in done.files}
    assert _nothing_left(tmp_path) == ["out", "again"] or sorted(_nothing_left(tmp_path)) == ["again", "out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == (toy.path / "checkpoints").stat().st_mode & 0o777


def test_a_card_says_what_the_run_holds(toy, tmp_path):
    export(toy, tmp_path / "out")
    front, body = _card(tmp_path / "out")
    assert front == {"library_name": "maskwright", "tags": ["maskwright", "masked-pretraining", "toy-mae"]}
    metrics = toy.metrics()
    normalizer = toy.load_encoder().normalizers["image"]
    count = sum(parameter.numel() for parameter in toy.load_encoder().parameters())
    for row in (
        "| method | toy-mae |",
        "| preset | tiny |",
        f"| parameters | {count:,} |",
        "| data | images (loader npy) |",
        "| masking | random (ratio=0.75) |",
        "| seed | 0 |",
        "| steps | 3 (the last that was logged) |",
        f"| loss at that step | {metrics[-1]['loss']:.4g} |",
        f"| image | 0 | not stated | standard | {normalizer.offset.item():.6g} | {normalizer.scale.item():.6g} |",
    ):
        assert row in body, row
    assert "No evaluation is stored with this run." in body
    assert "Not stated. Whoever publishes" in body
    assert str(toy.path.parent) not in body  # no paths of this machine


def test_a_card_shows_scores_and_verdicts(toy, tmp_path):
    run = _copy(toy, tmp_path / "run")
    rows = [Score("toy", "linear probe", "accuracy", [0.5, 0.6]), Score("raw | pixels", "kNN", "accuracy", [0.75])]
    verdict = Verdict("random init", "linear probe", "accuracy", -0.1, -0.2, -0.05)
    write_report(run, ScoreTable("Crops", rows, [verdict], ["two tiles only"]))
    second = run.path / "evaluations" / "later"
    second.mkdir(parents=True)
    (second / "scores.json").write_text(json.dumps(ScoreTable("Forests", rows[:1]).as_dict()))
    (run.path / "evaluations" / "scores.json").write_text("half a fi")
    export(run, tmp_path / "out")
    _, body = _card(tmp_path / "out")
    assert "| toy | linear probe | accuracy | 0.550 | 0.071 | 2 |" in body
    assert "| raw \\| pixels | kNN | accuracy | 0.750 |  | 1 |" in body
    assert f"Against random init (linear probe, accuracy): {verdict.words} (difference -0.100" in body
    assert "- two tiles only" in body
    assert "### Forests (evaluations/later)" in body
    assert "No evaluation" not in body


def test_a_card_of_a_bare_folder_claims_no_training(toy, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("encoder.json", "encoder.safetensors"):
        shutil.copy(toy.path / name, bare)
    export(bare, tmp_path / "out")
    _, body = _card(tmp_path / "out")
    for absent in ("## Training", "## Evaluation", "pre-trained by masking", "seed", "steps"):
        assert absent not in body
    assert "| method | toy-mae |" in body  # encoder.json says so


def test_a_run_without_metrics_names_no_loss(toy, tmp_path):
    run = _copy(toy, tmp_path / "run")
    (run.path / "metrics.csv").unlink()
    (run.path / "environment.json").unlink()
    export(run, tmp_path / "out")
    _, body = _card(tmp_path / "out")
    assert "loss" not in body
    assert "torch |" not in body
    assert "| seed | 0 |" in body


# Hugging Face -------------------------------------------------------------------------------------------------------


def test_huggingface_folder(croma, tmp_path):
    from huggingface_hub import ModelCard

    out = tmp_path / "out"
    export(croma, out, ["huggingface"])
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["CromaEncoder"]
    assert config["options"] == croma.load_encoder().options
    assert config["inputs"]["sar"]["channels"] == ["VV", "VH"]
    assert config["inputs"]["sar"]["unit"] == "dB"
    scaling = config["inputs"]["optical"]["normalization"]
    normalizer = croma.load_encoder().normalizers["optical"]
    assert scaling == {"kind": "two-sigma", "offset": normalizer.offset.tolist(), "scale": normalizer.scale.tolist()}
    assert json.loads((out / "preprocessor_config.json").read_text())["do_normalize"] is False
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "maskwright"
    assert "croma" in card.data.tags
    with safe_open(str(out / "model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(croma.load_encoder().state_dict())
    sample = mw.open_data(TILES, size=120).read(0)
    ours, theirs = mw.load(out).embed(sample), croma.load_encoder().embed(sample)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "os:system"}, "no installed plugin registers"),
        ({"model_type": "bert"}, "describes no encoder of maskwright"),
        ({"options": None}, "target and options"),
    ],
)
def test_a_changed_huggingface_folder_is_refused(toy, tmp_path, change, message):
    out = tmp_path / "out"
    export(toy, out, "huggingface")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=message):
        mw.load(out)


def test_huggingface_weights_must_fit(toy, tmp_path):
    out = tmp_path / "out"
    export(toy, out, "huggingface")
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(DataError, match="does not fit the encoder"):
        mw.load(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no such file"):
        mw.load(out)
    (out / "config.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        mw.load(out)


# ONNX ---------------------------------------------------------------------------------------------------------------


def test_onnx_of_two_sensors_on_real_tiles(croma, tmp_path):
    pytest.importorskip("onnxruntime")
    done = export(croma, tmp_path / "out", ["onnx"])
    record = json.loads((tmp_path / "out" / "encoder.onnx.json").read_text())
    assert record == done.check
    assert record["inputs"] == {"optical": ["batch", 12, 120, 120], "sar": ["batch", 2, 120, 120]}
    assert record["checked_on"] == "4 samples: the run's data"
    assert max(record["max_difference_relative_to_std"].values()) < 1e-4
    loader = mw.open_data(TILES, size=120)
    batch = mw.collate([loader.read(index) for index in range(5)])  # another batch size than any before
    embedding = croma.load_encoder().embed(batch)
    pooled, tokens = _onnx(tmp_path / "out" / "encoder.onnx", batch.tensors)
    assert np.allclose(pooled, embedding.pooled, atol=1e-4)
    assert np.allclose(tokens, embedding.tokens, atol=1e-4)
    _, body = _card(tmp_path / "out")
    assert "in standard deviations: pooled" in body
    assert "`optical` (batch, 12, 120, 120)" in body
    assert "mw.load" not in body  # the files for it are not there


def test_onnx_without_the_data(toy, tmp_path):
    pytest.importorskip("onnxruntime")
    run = _copy(toy, tmp_path / "run")
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    recipe["data"]["path"] = str(tmp_path / "gone")
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = export(run, tmp_path / "out", ["onnx", "safetensors"], size=24)
    assert done.check["checked_on"] == "4 samples: random values in the range of the statistics"
    assert done.check["inputs"] == {"image": ["batch", 1, 24, 24]}
    x = torch.randn(1, 1, 24, 24)
    pooled, _ = _onnx(tmp_path / "out" / "encoder.onnx", {"image": x})
    expected = run.load_encoder().embed(mw.Batch({"image": x}, [mw.Meta("x")])).pooled
    assert np.allclose(pooled, expected, atol=1e-4)
    own, _ = _check_inputs(gather(run.load_encoder(), run.path), None)  # the size that the encoder was built for
    assert own["image"].shape == (4, 1, 16, 16)
    normalizer = run.load_encoder().normalizers["image"]
    assert own["image"].mean().item() == pytest.approx(normalizer.offset.item(), abs=0.2 * normalizer.scale.item())


def test_a_size_that_is_not_known_must_be_given(croma, tmp_path):
    pytest.importorskip("onnxruntime")
    for name in ("encoder.json", "encoder.safetensors"):
        shutil.copy(croma.path / name, tmp_path)
    with pytest.raises(ConfigError, match="Give it: --size 120"):
        export(tmp_path, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_onnx_of_an_encoder_from_outside(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("timm")
    images = mw.open_data(write_images(tmp_path / "images", 4, 40, 2), "npy")
    encoder = open_encoder("timm:resnet10t,pretrained=false", images)
    (tmp_path / "onnx").mkdir()
    batch = mw.collate([images.read(index) for index in range(4)])
    record = onnx_export.export_onnx(encoder, batch.tensors, tmp_path / "onnx", "a test")
    assert max(record["max_difference_relative_to_std"].values()) < 1e-4


def test_an_onnx_file_that_computes_something_else_is_removed(toy, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    compare = onnx_export.compare

    def off(wrapped, inputs, path):
        assert path.is_file()
        moved = {name: tensor + 0.05 * tensor.std() for name, tensor in inputs.items()}
        with torch.no_grad():
            theirs = wrapped(*moved.values())
        monkeypatch.setattr(wrapped, "forward", lambda *_: theirs)  # torch sees other inputs than the file
        return compare(wrapped, inputs, path)

    monkeypatch.setattr(onnx_export, "compare", off)
    with pytest.raises(OnnxMismatch, match="It was removed"):
        export(toy, tmp_path / "new" / "out", FORMATS)
    assert _nothing_left(tmp_path / "new") == []


def test_an_onnx_file_that_does_not_run_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    class Broken:
        def save(self, path, **_):
            (tmp_path / "encoder.onnx").write_bytes(b"no model")

    monkeypatch.setattr(onnx_export, "_convert", lambda *_: Broken())
    encoder = VisionTransformer(img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=1)
    with pytest.raises(OnnxMismatch, match="onnxruntime cannot run"):
        onnx_export.export_onnx(encoder, {"image": torch.randn(3, 1, 8, 8)}, tmp_path, "a test")
    assert _nothing_left(tmp_path) == []


def test_onnx_names_its_libraries(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LIBRARIES", ("onnx", "no_such_library"))
    with pytest.raises(PluginError, match=r'no_such_library.*pip install "maskwright\[onnx\]"'):
        export(toy, tmp_path / "out", "onnx")
    assert _nothing_left(tmp_path) == []


# nothing half-written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["write_huggingface", "write_card"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(toy, tmp_path, monkeypatch, failing, error):
    def fail(*_args, **_named):
        raise error

    monkeypatch.setattr(f"maskwright.core.export.{failing}", fail)
    with pytest.raises(type(error)):
        export(toy, tmp_path / "out", ["safetensors", "huggingface"])
    assert _nothing_left(tmp_path) == []


def test_a_full_disk_is_a_sentence(toy, tmp_path, monkeypatch):
    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskwright.core.huggingface.save_file", full)
    with pytest.raises(DiskFullError, match="MB of disk are free"):
        export(toy, tmp_path / "out", ["safetensors", "huggingface"])
    assert _nothing_left(tmp_path) == []


def test_what_cannot_be_exported(toy, tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "safetensors"'):
        export(toy, tmp_path / "out", "safetensor")
    with pytest.raises(ConfigError, match="No format"):
        export(toy, tmp_path / "out", [])
    with pytest.raises(ConfigError, match="Leave it out"):
        export(toy, tmp_path / "out", size=120)
    with pytest.raises(DataError, match="no such folder"):
        export(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="does not divide into patches"):
        export(toy, tmp_path / "out", "onnx", size=15)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(DataError, match="holds no finished encoder"):
        export(tmp_path / "unfinished", tmp_path / "out")
    assert sorted(_nothing_left(tmp_path)) == ["unfinished"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export(toy, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["theirs.txt"]
    (tmp_path / "empty").mkdir()
    assert export(toy, tmp_path / "empty").files
