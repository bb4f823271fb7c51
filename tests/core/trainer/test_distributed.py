"""Two gloo processes take the steps of one process with the same global batch, each with all weights or with a share."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from maskwright.core.trainer.run import Run

SCRIPT = """
import sys
import maskwright as mw
run, data, *settings = sys.argv[1:]
mw.pretrain("toy-mae", data=data, run=run, settings=settings)
"""
STOPPING = (
    """
import os, signal
from maskwright.core.trainer import module
finish = module.PretrainModule._finish_step
def stopping(self):
    finish(self)
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
module.PretrainModule._finish_step = stopping
"""
    + SCRIPT
)
RESUME = """
import sys
import maskwright as mw
mw.resume(sys.argv[1])
"""
COMMON = [
    "trainer.max_steps=6",
    "trainer.log_every=1",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.lr=0.001",
]


def _start(script, run, data, settings):
    return subprocess.run(
        [sys.executable, str(script), str(run), str(data), *COMMON, *settings],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )


def _run(tmp_path, name, data, settings):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = _start(script, tmp_path / name, data, settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return Run.open(tmp_path / name)


@pytest.fixture
def one(images, tmp_path):
    return _run(tmp_path, "one", images, ["trainer.batch_size=8"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_same_loss_and_weights_as_one_process(one, images, tmp_path, strategy):
    two = _run(tmp_path, "two", images, ["trainer.batch_size=4", "trainer.devices=2", f"trainer.strategy={strategy}"])
    assert two.recipe().trainer.devices == 2
    a, b = (load_file(str(run.path / "encoder.safetensors")) for run in (one, two))
    for name, tensor in a.items():
        # the bias of keys has no true gradient: what AdamW makes of its rounding errors is a share of the rate, 1e-3
        torch.testing.assert_close(tensor, b[name], atol=1e-4, rtol=1e-4)
    norms = [[row["gradient_norm"] for row in run.metrics()] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), atol=1e-5, rtol=1e-4)
    losses = [[row["loss"] for row in run.metrics()] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_fully_sharded_training_resumes(one, images, tmp_path):
    """Three steps, a stop, and three more."""
    settings = ["trainer.batch_size=4", "trainer.devices=2", "trainer.strategy=fsdp", "trainer.checkpoint_steps=3"]
    script = tmp_path / "train.py"
    script.write_text(STOPPING)
    stopped = _start(script, tmp_path / "two", images, settings)
    assert "Interrupted" in stopped.stderr
    script.write_text(RESUME)
    resumed = _start(script, tmp_path / "two", images, settings)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    two = Run.open(tmp_path / "two")
    assert [row["step"] for row in two.metrics()] == [1, 2, 3, 4, 5, 6]
    a, b = (load_file(str(run.path / "encoder.safetensors")) for run in (one, two))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=1e-4, rtol=1e-4)
