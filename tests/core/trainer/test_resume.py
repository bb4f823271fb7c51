"""A run that is killed and resumed ends with the very weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maskwright as mw
from maskwright.core.trainer.run import Run

STEPS = 40
SETTINGS = [
    "data.crop=12",
    f"trainer.max_steps={STEPS}",
    "trainer.batch_size=4",
    "trainer.log_every=1",
    "trainer.checkpoint_steps=3",
    "trainer.precision=32",
    "trainer.threads=1",
]
SCRIPT = """
import sys, time
import maskwright as mw
from maskwright.core.trainer import module
slow = module.PretrainModule._finish_step
def finish(self):
    time.sleep(0.01)  # so that a kill falls into the training, not after it
    slow(self)
module.PretrainModule._finish_step = finish
verb, run, data, *settings = sys.argv[1:]
if verb == "resume":
    mw.resume(run)
else:
    mw.pretrain("toy-mae", data=data, run=run, settings=settings)
"""


def _start(verb: str, run: Path, data: Path, settings=()) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, verb, str(run), str(data), *SETTINGS, *settings],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = (run / "metrics.csv").read_text().count("\n") - 1 if (run / "metrics.csv").exists() else 0
        if rows >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1][-2000:]}")


def _final(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of the last checkpoint."""
    return load_file(str(run / "checkpoints" / "last.safetensors"))


def _assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run and its data."""
    from tests.conftest import write_images

    folder = tmp_path_factory.mktemp("whole")
    data = write_images(folder / "images")
    process = _start("pretrain", folder / "run", data)
    assert process.wait(120) == 0, process.communicate()[1]
    return folder / "run", data


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_and_resume_is_bit_exact(whole, tmp_path, workers):
    run, data = tmp_path / "run", whole[1]
    process = _start("pretrain", run, data, [f"trainer.workers={workers}"])
    _wait_for_step(run, random.Random(workers).randrange(4, STEPS - 8), process)
    process.kill()
    process.wait()
    assert not (run / "encoder.safetensors").exists()
    again = _start("resume", run, data)
    _wait_for_step(run, STEPS - 6, again)
    again.kill()  # and once more
    again.wait()
    final = _start("resume", run, data)
    assert final.wait(120) == 0, final.communicate()[1]
    _assert_equal(_final(run), _final(whole[0]))
    resumed, uninterrupted = Run.open(run).metrics(), Run.open(whole[0]).metrics()
    assert [row["step"] for row in resumed] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in resumed] == [row["loss"] for row in uninterrupted]
    _assert_equal(load_file(str(run / "encoder.safetensors")), load_file(str(whole[0] / "encoder.safetensors")))


def test_a_changed_number_of_workers_changes_nothing(whole, tmp_path):
    run, data = tmp_path / "run", whole[1]
    process = _start("pretrain", run, data, ["trainer.workers=1"])
    _wait_for_step(run, 10, process)
    process.kill()
    process.wait()
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("workers: 1", "workers: 0"))
    mw.resume(run)
    _assert_equal(_final(run), _final(whole[0]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_the_step_at_hand(whole, tmp_path, number, code):
    run, data = tmp_path / "run", whole[1]
    process = _start("pretrain", run, data, ["trainer.checkpoint_steps=1000"])
    _wait_for_step(run, 5, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "Interrupted" in errors
    assert f"Stopped by {number.name} after step" in errors
    assert f"maskwright resume {run}" in errors
    assert code == 128 + number
    last = Run.open(run).metrics()[-1]["step"]
    from maskwright.core.trainer import checkpoint

    assert checkpoint.read(run / "checkpoints" / "last.safetensors").step == last < STEPS
    assert not (run / "run.lock").exists()
    mw.resume(run)
    assert Run.open(run).metrics()[-1]["step"] == STEPS
    for name, tensor in _final(whole[0]).items():
        assert torch.equal(tensor, _final(run)[name]), name


def test_resume_without_a_checkpoint_starts_again(whole, tmp_path):
    run, data = tmp_path / "run", whole[1]
    process = _start("pretrain", run, data, ["trainer.checkpoint_steps=1000"])
    _wait_for_step(run, 3, process)
    process.kill()
    process.wait()
    assert not list((run / "checkpoints").glob("*.safetensors"))
    mw.resume(run)
    _assert_equal(_final(run), _final(whole[0]))


def test_resume_of_a_damaged_checkpoint_uses_the_one_before(whole, tmp_path, capsys):
    run, data = tmp_path / "run", whole[1]
    process = _start("pretrain", run, data)
    _wait_for_step(run, 12, process)
    process.kill()
    process.wait()
    os.truncate(run / "checkpoints" / "last.safetensors", 1000)
    mw.resume(run)
    assert "last.safetensors: is damaged" in capsys.readouterr().err
    _assert_equal(_final(run), _final(whole[0]))


def test_a_finished_run_can_be_resumed_to_its_report(whole, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "encoder.safetensors").unlink()  # killed after the last step, before the encoder was written
    mw.resume(run)
    _assert_equal(load_file(str(run / "encoder.safetensors")), load_file(str(whole[0] / "encoder.safetensors")))
