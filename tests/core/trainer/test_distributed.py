"""Two gloo processes take the steps of one process with the same global batch."""

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from maskwright.core.trainer.run import Run

SCRIPT = """
import sys
import maskwright as mw
run, data, *settings = sys.argv[1:]
mw.pretrain("toy-mae", data=data, run=run, settings=settings)
"""
COMMON = [
    "trainer.max_steps=6",
    "trainer.log_every=1",
    "trainer.precision=32",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.lr=0.001",
]


def _run(tmp_path, name, data, settings):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / name), str(data), *COMMON, *settings],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Run.open(tmp_path / name)


def test_same_loss_and_weights_as_one_process(images, tmp_path):
    one = _run(tmp_path, "one", images, ["trainer.batch_size=8"])
    two = _run(tmp_path, "two", images, ["trainer.batch_size=4", "trainer.devices=2", "trainer.strategy=ddp"])
    assert two.recipe().trainer.devices == 2
    a, b = (load_file(str(run.path / "encoder.safetensors")) for run in (one, two))
    for name, tensor in a.items():
        # the bias of keys has no true gradient: what AdamW makes of its rounding errors is a share of the rate, 1e-3
        torch.testing.assert_close(tensor, b[name], atol=1e-4, rtol=1e-4)
    norms = [[row["gradient_norm"] for row in run.metrics()] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(norms[0]), torch.tensor(norms[1]), atol=1e-5, rtol=1e-4)
    losses = [[row["loss"] for row in run.metrics()] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5, rtol=1e-4)
