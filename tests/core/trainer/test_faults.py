"""What may go wrong during a long night: bad files, NaN gradients, full disks, torn files, signals to whole groups."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import BadFile
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer import keeper as keeper_module
from maskwright.core.trainer import module as module_module
from maskwright.core.trainer.data import StepSampler
from maskwright.core.trainer.files import DiskFullError
from maskwright.core.trainer.guard import bad_file_problem, effective_rank, uniformity
from maskwright.core.trainer.keeper import Interrupted
from maskwright.core.trainer.lock import locked
from maskwright.core.trainer.metrics import MetricsFile, whole_rows
from maskwright.core.trainer.pretrain import make_plan, resolve_trainer
from maskwright.core.trainer.run import Run
from tests.conftest import write_images

FAST = {"batch_size": 4, "log_every": 1, "precision": "32"}


def _interrupted(images, path, **settings):
    """A run that stopped after its first step, with `max_time` removed again."""
    with pytest.raises(Interrupted):
        mw.pretrain("toy-mae", data=images, run=path, max_time="0s", **{"epochs": 2, **FAST, **settings})
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_time: 0s", "max_time: null"))
    return Run.open(path)


# bad files ---------------------------------------------------------------------------------------------------------


def test_terms_are_means_over_the_passes_that_had_data(tmp_path):
    """Four images, one broken, one a pass, two passes a step: a step with one pass logs that pass's loss alone."""
    images = write_images(tmp_path / "images", 4)
    broken = sorted(images.glob("*.npy"))[1]
    broken.write_bytes(b"broken")
    common = {"batch_size": 1, "log_every": 1, "precision": "32", "max_bad_fraction": 1.0, "lr": 1e-12}
    single = mw.pretrain("toy-mae", data=images, run=tmp_path / "single", epochs=2, **common)
    pairs = mw.pretrain("toy-mae", data=images, run=tmp_path / "pairs", epochs=2, accumulate=2, **common)
    one = [row["loss"] for row in single.metrics()]
    assert sum(np.isnan(one)) == 2  # one an epoch, said as it is
    expected = [np.nanmean(one[i : i + 2]) for i in range(0, 8, 2)]
    assert [row["loss"] for row in pairs.metrics()] == pytest.approx(expected, abs=1e-5)


def test_a_first_step_without_any_data_loses_no_column(tmp_path):
    images = write_images(tmp_path / "images", 4)
    plan = make_plan(resolve_trainer(TrainerSection(batch_size=1, precision="32"), 4), 4)
    seed = next(s for s in range(99) if next(iter(StepSampler(plan, s)))[0][1] == 1)
    sorted(images.glob("*.npy"))[1].write_bytes(b"broken")
    settings = {**FAST, "batch_size": 1, "max_bad_fraction": 1.0}
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", settings={"seed": seed}, epochs=1, **settings)
    rows = run.metrics()
    assert np.isnan(rows[0]["loss"])
    assert "reconstruction" not in rows[0]
    assert all(row["reconstruction"] == row["loss"] for row in rows[1:])


def test_bad_file_rules():
    bad = BadFile("b.npy", '"image" holds NaN')
    skip = TrainerSection(max_bad_fraction=0.1)
    assert bad_file_problem({"b.npy"}, bad, 3, skip) is None  # a single file never ends a run
    assert bad_file_problem({"a", "b.npy"}, bad, 20, skip) is None
    text = bad_file_problem({"a", "b.npy", "c"}, bad, 20, skip)
    assert "3 files of 20 samples" in text
    assert 'b.npy: "image" holds NaN' in text  # the path is named even where the reason does not
    assert "on_bad_file=raise" in bad_file_problem({"b.npy"}, bad, 1000, TrainerSection(on_bad_file="raise"))


def test_files_that_were_bad_when_indexed_count_too(images, tmp_path, monkeypatch):
    loader_class = mw.component("loader", "npy")
    build = loader_class.__init__

    def index_finds_bad_files(self, path, crop: int = 0):
        build(self, path, crop)
        self.bad_files = [BadFile(f"lost_{i}.npy", "holds nothing") for i in range(6)]

    monkeypatch.setattr(loader_class, "__init__", index_finds_bad_files)
    with pytest.raises(TrainingStopped, match="6 files of 18 samples could not be used"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, **FAST)
    with pytest.raises(TrainingStopped, match=r"lost_5.npy: holds nothing\. Training stops"):
        mw.dry_run(mw.make_recipe("toy-mae", images, settings=["trainer.on_bad_file=raise"]), tmp_path)
    assert not (tmp_path / "run").exists()
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, max_bad_fraction=0.5, **FAST)
    assert len(run.bad_files()) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes_are_one_clear_sentence(images, tmp_path, workers):
    np.save(sorted(images.glob("*.npy"))[3], np.ones((1, 12, 12), np.float32))
    with pytest.raises(ConfigError, match="has shape") as error:
        mw.pretrain("toy-mae", data=images, run=tmp_path / "run", epochs=1, workers=workers, **FAST)
    assert "Traceback" not in str(error.value)


def test_more_processes_than_samples_are_refused():
    with pytest.raises(ConfigError, match="3 samples cannot be shared among 4 processes"):
        resolve_trainer(TrainerSection(devices=4, precision="32", accelerator="cpu"), 3)


# numbers -----------------------------------------------------------------------------------------------------------


def test_a_nan_gradient_changes_nothing(images, tmp_path, monkeypatch):
    """The loss is finite, its gradient is not: the state after the refused step is the one before it, bit by bit."""
    backward = module_module.PretrainModule.manual_backward

    def poisoned(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        if self.step == 2:
            next(p for p in self.method.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")

    monkeypatch.setattr(module_module.PretrainModule, "manual_backward", poisoned)
    settings = {**FAST, "checkpoint_steps": 1, "ema_decay": 0.9}
    with pytest.raises(TrainingStopped, match="gradient became NaN or Inf at step 2"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "stop", max_steps=5, **settings)
    assert checkpoints.read(tmp_path / "stop" / "checkpoints" / "last.safetensors").step == 2
    assert (tmp_path / "stop" / "diagnosis" / "step_000002.safetensors").exists()

    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "skip", max_steps=3, max_bad_steps=1, **settings)
    after, before = (load_file(str(run.checkpoints / f"{name}.safetensors")) for name in ("last", "previous"))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_step_left_out_does_not_disturb_the_best(images, tmp_path):
    run = mw.pretrain(
        "toy-mae",
        data=images,
        run=tmp_path / "run",
        settings=["method.poison_step=2"],
        max_steps=6,
        max_bad_steps=1,
        checkpoint_steps=1,
        **FAST,
    )
    losses = [row["loss"] for row in run.metrics()]
    assert np.isnan(losses[2])
    best = checkpoints.read(run.checkpoints / "best.safetensors")
    assert best.step == int(np.nanargmin(losses)) + 1
    assert best.state["best"] == np.nanmin(losses)


def test_uniformity_is_0_for_a_collapse_and_near_minus_4_on_a_wide_sphere():
    generator = torch.Generator().manual_seed(0)
    assert uniformity(torch.ones(50, 8) + 1e-4 * torch.randn(50, 8, generator=generator)) == pytest.approx(0, abs=1e-3)
    assert uniformity(torch.randn(1500, 512, generator=generator)) == pytest.approx(-4, abs=0.05)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)  # squared distance 4, t = 2


def test_effective_rank():
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(50, 1, generator=generator) * torch.randn(1, 8, generator=generator)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.randn(2000, 8, generator=generator)) == pytest.approx(8, abs=0.1)


# files -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_tried_again_and_then_stops_training(images, tmp_path, monkeypatch, capsys):
    save, calls = checkpoints.save, []

    def full(folder, checkpoint, best=False):
        calls.append(checkpoint.step)
        if checkpoint.step in failing:
            raise DiskFullError("last.safetensors: not written, 0 MB of disk are free.")
        return save(folder, checkpoint, best)

    monkeypatch.setattr(keeper_module.checkpoints, "save", full)
    failing = {3, 4}
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=6, checkpoint_steps=1, **FAST)
    assert calls == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err.count("Training goes on and tries again") == 2
    assert checkpoints.read(run.checkpoints / "last.safetensors").step == 6
    failing = {3, 4, 5}
    with pytest.raises(DiskFullError, match="A checkpoint needs about"):
        mw.pretrain("toy-mae", data=images, run=tmp_path / "stopped", max_steps=9, checkpoint_steps=1, **FAST)
    assert checkpoints.read(tmp_path / "stopped" / "checkpoints" / "last.safetensors").step == 2
    assert not (tmp_path / "stopped" / "run.lock").exists()


def test_metrics_keep_whole_rows_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, 0)
    for step in (1, 2, 3, 4):
        file.add({"step": step, "loss": step / 2, "seconds": step * 1.5})
    file.close()
    with path.open("a") as torn:
        torn.write("5,2.5")  # killed while writing
    assert [row["step"] for row in whole_rows(path)] == ["1", "2", "3", "4"]
    file = MetricsFile(path, 3)
    assert file.seconds == 4.5
    file.add({"step": 4, "loss": 9.0, "seconds": 6.0})
    file.add({"step": 5, "loss": 9.0, "seconds": 7.0, "late": 1})  # a term that a method adds later
    file.close()
    assert path.read_text() == "step,loss,seconds,late\n1,0.5,1.5,\n2,1.0,3.0,\n3,1.5,4.5,\n4,9.0,6.0,\n5,9.0,7.0,1\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_row_that_does_not_fit_is_an_error_that_says_how_to_go_on(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv", 0)
    file.add({"step": 1})
    file.close()
    with open("/dev/full", "ab", buffering=0) as file._file, pytest.raises(DiskFullError, match="maskwright resume"):
        file.add({"step": 2})


def test_a_torn_log_does_not_hinder_a_resume(images, tmp_path):
    run = _interrupted(images, tmp_path / "run")
    with (run.path / "metrics.csv").open("a") as file:
        file.write("2,0,1.")
    mw.resume(run)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_resume_with_other_data_says_so(images, tmp_path, capsys):
    run = _interrupted(images, tmp_path / "run")
    sorted(images.glob("*.npy"))[0].unlink()
    mw.resume(run)
    assert "the data held 12 samples when training stopped and hold 11 now" in capsys.readouterr().err


def test_a_refused_second_process_touches_nothing(images, tmp_path):
    run = _interrupted(images, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with locked(run):
        with pytest.raises(ConfigError, match="is in use by process"):
            mw.resume(run)
        (run.path / "run.lock").rename(tmp_path / "lock")  # not one of the run's own files
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    run = Run.create(tmp_path / "run")
    left = run.checkpoints / ".next.safetensors.12345.tmp"
    left.write_bytes(b"half")
    with locked(run):
        assert not left.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"target": 3}', '{"target": "x:Y", "options": 3}'])
def test_a_damaged_description_of_an_encoder_is_one_clear_sentence(images, tmp_path, text):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", max_steps=1, **FAST)
    (run.path / "encoder.json").write_text(text)
    with pytest.raises(DataError, match=r"encoder\.json: (is no JSON|describes no encoder)"):
        run.load_encoder()


# signals -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import maskwright as mw
from maskwright.core.trainer import module
finish_step = module.PretrainModule._finish_step
def finish(self):
    time.sleep(float(sys.argv[4]) if self.step > 3 else 0.01)
    finish_step(self)
module.PretrainModule._finish_step = finish
mw.pretrain("toy-mae", data=sys.argv[1], run=sys.argv[2], max_steps=400, batch_size=4, log_every=1, precision="32",
            workers=int(sys.argv[3]), threads=1)
"""


def _start(images, run, workers, seconds_a_step):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(images), str(run), str(workers), str(seconds_a_step)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.csv").exists() and (run / "metrics.csv").read_text().count("\n") > 4:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate()[1][-2000:])


def test_a_signal_to_the_whole_group_still_checkpoints(images, tmp_path):
    """SLURM and systemd signal loader processes too; these must live until the main process has stopped in order."""
    process = _start(images, tmp_path / "run", workers=2, seconds_a_step=0.03)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "Stopped by SIGTERM after step" in errors
    assert "is killed by signal" not in errors
    last = Run.open(tmp_path / "run").metrics()[-1]["step"]
    assert checkpoints.read(tmp_path / "run" / "checkpoints" / "last.safetensors").step == last


def test_a_second_signal_ends_at_once(images, tmp_path):
    """The step at hand would take a minute; the first signal waits for it, the second does not."""
    process = _start(images, tmp_path / "run", workers=0, seconds_a_step=60)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.stderr.close()
