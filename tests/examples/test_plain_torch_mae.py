"""The example runs and learns."""

import re
import runpy
from pathlib import Path

import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plain_torch_mae.py"


def test_it_beats_the_mean_image(capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    threads = torch.get_num_threads()
    errors = main(epochs=14)
    printed = capsys.readouterr().out
    torch.set_num_threads(threads)
    mean_image = float(re.search(r"mean image: ([\d.]+)", printed)[1])
    assert errors[-1] < 0.98 * mean_image < errors[0]
    assert f"epoch 14: error of hidden pixels {errors[-1]:.3f}" in printed


def test_it_stays_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60
