import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.trainer.keeper import Interrupted
from maskwright.core.trainer.pretrain import locked
from maskwright.core.trainer.run import Run

FAST = {"batch_size": 4, "log_every": 1, "precision": "32"}


def _weights(run):
    return load_file(str(run.path / "encoder.safetensors"))


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_directory_explains_itself(images, tmp_path):
    run = mw.pretrain("toy-mae", data=images, preset="tiny", run=tmp_path / "run", epochs=20, **FAST)
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "metrics.csv",
        "tensorboard",
        "checkpoints",
        "encoder.safetensors",
        "encoder.json",
        "report.html",
        "previews",
    }
    assert {path.name for path in run.checkpoints.iterdir()} >= {"last.safetensors", "best.safetensors"}
    assert any((run.path / "tensorboard").iterdir())
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == list(range(1, 61))
    assert metrics[-1]["epoch"] == 19
    first, last = (np.mean([row["loss"] for row in rows]) for rows in (metrics[:10], metrics[-10:]))
    assert last < 0.95 * first
    recipe = run.recipe()
    assert recipe.method.options == {"in_chans": 1, "embed_dim": 16, "depth": 2, "poison_step": -1}
    assert recipe.masking.options == {"ratio": 0.75, "visible": None}
    assert recipe.data.loader == "npy"
    assert recipe.trainer.lr == 1e-3
    environment = run.environment()
    assert environment["torch"] == torch.__version__.split("+")[0] or environment["torch"] == torch.__version__
    assert environment["precision"] == "32"
    assert not (run.path / "run.lock").exists()


def test_encoder_comes_back_and_embeds(images, tmp_path):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=2, **FAST)
    # the toy plugin registers no encoder of its own: the core's is found by its target
    encoder = mw.load(run)
    assert type(encoder).__name__ == "VisionTransformer"
    assert not encoder.training
    sample = mw.open_data(images, "npy").read(0)
    embedding = encoder.embed(sample)
    assert embedding.pooled.shape == (1, 32)
    assert embedding.tokens.shape == (1, 16, 32)
    scale = encoder.normalizers["image"].scale
    assert scale.item() == pytest.approx(mw.open_data(images, "npy").statistics()["image"].std[0], rel=1e-5)
    assert _equal(_weights(run), dict(mw.load(run.path).state_dict()))


def test_same_seed_same_curve_and_other_seed_another(images, tmp_path):
    runs = [
        mw.pretrain("toy-mae", data=images, run=tmp_path / str(i), settings=[f"seed={seed}"], max_steps=5, **FAST)
        for i, seed in enumerate((0, 0, 1))
    ]
    curves = [[row["loss"] for row in run.metrics()] for run in runs]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]
    assert _equal(_weights(runs[0]), _weights(runs[1]))


def test_masks_do_not_depend_on_workers(images, tmp_path):
    runs = [
        mw.pretrain("toy-mae", data=images, run=tmp_path / str(w), max_steps=4, workers=w, **FAST) for w in (0, 1, 2)
    ]
    assert _equal(_weights(runs[0]), _weights(runs[1]))
    assert _equal(_weights(runs[0]), _weights(runs[2]))


def test_accumulation_equals_a_larger_batch(images, tmp_path):
    settings = {"max_steps": 3, "log_every": 1, "precision": "32"}
    one = mw.pretrain("toy-mae", data=images, run=tmp_path / "one", batch_size=12, **settings)
    three = mw.pretrain("toy-mae", data=images, run=tmp_path / "three", batch_size=4, accumulate=3, **settings)
    for name, tensor in _weights(one).items():
        torch.testing.assert_close(tensor, _weights(three)[name], atol=1e-5, rtol=1e-4)


def test_moving_average_is_what_is_exported(images, tmp_path):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=6, lr=1e-2, ema_decay=0.9, **FAST)
    checkpoint = load_file(str(run.checkpoints / "last.safetensors"))
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(_weights(run)[name], checkpoint[f"ema.module.{name}"])
    assert not torch.equal(_weights(run)[name], checkpoint[f"method.encoder.{name}"])


def test_an_existing_run_or_folder_is_not_overwritten(images, tmp_path):
    mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, **FAST)
    with pytest.raises(ConfigError, match=r"already holds a run.*maskwright resume"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, **FAST)
    with pytest.raises(ConfigError, match="is not empty"):
        mw.pretrain("toy-mae", data=images, run=images, max_steps=1, **FAST)


def test_two_processes_cannot_share_a_run(tmp_path):
    run = Run.create(tmp_path / "run")
    with locked(run), pytest.raises(ConfigError, match="is in use by process"), locked(run):
        pass
    (run.path / "run.lock").write_text(json.dumps({"pid": 2**22 + 1, "born": 0}))
    with locked(run):  # the lock of a dead process is taken over
        assert (run.path / "run.lock").exists()
    assert not (run.path / "run.lock").exists()


def test_bad_files_are_listed_and_training_goes_on(images, tmp_path):
    files = sorted(images.glob("*.npy"))
    files[3].write_bytes(b"not an array")
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", epochs=2, max_bad_fraction=0.1, **FAST)
    (row,) = run.bad_files()
    assert row["path"] == str(files[3])
    assert "cannot be read" in row["reason"]
    assert str(files[3]) in (run.path / "report.html").read_text()


def test_too_many_bad_files_stop_training_and_name_them(images, tmp_path):
    for file in sorted(images.glob("*.npy"))[2:6]:
        file.write_bytes(b"not an array")
    with pytest.raises(TrainingStopped, match=r"max_bad_fraction=0.05 allows"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", epochs=2, **FAST)
    assert len(Run.open(tmp_path / "run").bad_files()) >= 2
    with pytest.raises(TrainingStopped, match="on_bad_file=raise"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "raise", epochs=2, on_bad_file="raise", **FAST)


def test_a_step_with_nan_changes_nothing_and_is_diagnosed(images, tmp_path):
    settings = ["method.poison_step=2"]
    with pytest.raises(TrainingStopped, match="loss became NaN or Inf at step 2") as stopped:
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", settings=settings, max_steps=5, **FAST)
    assert ".npy" in str(stopped.value)
    report = json.loads((tmp_path / "run" / "diagnosis" / "step_000002.json").read_text())
    assert report["stage"] == "loss"
    assert len(report["sources"]) == 4
    assert load_file(str(tmp_path / "run" / "diagnosis" / "step_000002.safetensors"))["0.image"].shape == (4, 1, 16, 16)


def test_a_nan_step_may_be_left_out(images, tmp_path):
    """Weights after [good, good, NaN] equal those after [good, good]."""
    common = {**FAST, "warmup": 0.0, "min_lr_ratio": 1.0, "checkpoint_steps": 1}
    poisoned = mw.pretrain(
        "toy-mae",
        data=images,
        run=tmp_path / "poisoned",
        settings=["method.poison_step=2"],
        max_steps=3,
        max_bad_steps=1,
        **common,
    )
    clean = mw.pretrain("toy-mae", data=images, run=tmp_path / "clean", max_steps=2, **common)
    assert _equal(_weights(poisoned), _weights(clean))


def _watch(monkeypatch):
    """(weight decay, norm of each gradient) of the decayed and the other tensors, as the optimiser meets them."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        groups = {group["decays"]: group for group in self.param_groups}
        norms = [p.grad.norm().item() for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append((groups[True]["weight_decay"], groups[False]["weight_decay"], norms))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def test_weight_decay_can_follow_a_cosine(images, tmp_path, monkeypatch):
    seen = _watch(monkeypatch)
    decay = {"weight_decay": 0.0, "weight_decay_end": 0.4}
    mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=4, **decay, **FAST)
    assert [one[0] for one in seen] == pytest.approx([0.4 - 0.2 * (1 + np.cos(np.pi * k / 4)) for k in range(4)])
    assert [one[1] for one in seen] == [0.0] * 4


def test_each_tensor_can_be_clipped_by_itself(images, tmp_path, monkeypatch):
    seen = _watch(monkeypatch)
    clip = {"clip_grad": 1e-3, "max_steps": 2}
    each = mw.pretrain("toy-mae", data=images, run=tmp_path / "each", clip_tensors=True, **clip, **FAST)
    for _, _, norms in seen:
        assert max(norms) <= 1e-3 * 1.001
        assert np.linalg.norm(norms) > 2e-3  # all together would be at most the limit
    seen.clear()
    together = mw.pretrain("toy-mae", data=images, run=tmp_path / "together", **clip, **FAST)
    assert np.linalg.norm(seen[0][2]) == pytest.approx(1e-3, rel=1e-3)
    assert each.metrics()[0]["loss"] == together.metrics()[0]["loss"]


def test_max_time_checkpoints_and_can_be_resumed(images, tmp_path):
    with pytest.raises(Interrupted, match=r"max_time=0s is over after step 1 of 6.*maskwright resume") as stopped:
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", epochs=2, max_time="0s", **FAST)
    assert stopped.value.exit_code == 0
    run = Run.open(tmp_path / "run")
    with pytest.raises(DataError, match="holds no finished encoder"):
        run.load_encoder()


def test_environment_does_not_leak_between_runs(images, tmp_path):
    """Only registered encoders are built, whatever a description names."""
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, **FAST)
    description = json.loads((run.path / "encoder.json").read_text())
    description["target"] = "os:system"
    (run.path / "encoder.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="no installed plugin registers"):
        run.load_encoder()


def test_dry_run_forecasts_and_leaves_nothing(images, tmp_path):
    recipe = mw.make_recipe("toy-mae", images, settings={"trainer.epochs": 3, "trainer.batch_size": 4})
    forecast = mw.dry_run(recipe, tmp_path)
    assert forecast.plan.steps == 9
    assert forecast.parameters > forecast.encoder_parameters > 1000
    assert forecast.flops > 1e6
    assert forecast.hours > 0
    assert forecast.read_bytes == 9 * 4 * 16 * 16 * 4
    assert list(tmp_path.iterdir()) == [images]


def test_small_data_shrink_the_batch_and_say_so(images, tmp_path, capsys):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, batch_size=500, precision="32")
    assert run.recipe().trainer.batch_size == 12
    assert "batch_size=500 is more than the 12 samples fill" in capsys.readouterr().err
