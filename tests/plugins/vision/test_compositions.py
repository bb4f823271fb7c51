"""What a method does not know of, it takes by option: any masking, other blocks, other teachers."""

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright.core.host import get_host
from maskwright.core.trainer import Progress
from maskwright.core.trainer.keeper import Interrupted
from tests.plugins.vision.helpers import DECODER, ENCODER, images, keys, make

SMALL = {**ENCODER, "patch_size": 4, **DECODER}
METHODS = ("mae", "hpm", "dmae")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("masking", get_host().components("masking"))
def test_any_masking(name, masking):
    strategy = mw.component("masking", masking)()
    if strategy.needs_guide and name != "hpm":
        pytest.skip("hpm alone has scores to guide by")
    method = make(mw.component("method", name), **SMALL, masking=strategy)
    method.start_step(Progress(5, 10, 5, 10))
    step = method(images(), keys())
    step.loss.backward()
    assert step.loss.isfinite()
    assert method.encoder.patch_embed.weight.grad.abs().sum() > 0
    grid = method.encoder.tokenize(images()).grid
    assert grid.shape == (8, 8)
    assert method.encode(images(), keys()).shape[1] == 1 + 64 - strategy.hidden_count(grid)


@pytest.mark.parametrize("name", [*METHODS, "colormae", "crate-mae"])
def test_white_box_blocks_from_the_recipe_to_the_encoder(name, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32))
    wanted = {key: value for key, value in SMALL.items() if name != "crate-mae" or not key.startswith("decoder")}
    settings = [f"method.{key}={value}" for key, value in {**wanted, "block": "crate"}.items()]
    run = mw.pretrain(name, tmp_path / "x.npy", run=tmp_path / "run", settings=settings, max_steps=2, precision="32")
    encoder = mw.load(run)
    assert encoder.options["block"] == "crate"
    assert encoder.embed(images()).pooled.shape == (4, 32)
    assert run.recipe().method.options["block"] == "crate"


def test_a_resumed_run_has_the_teacher_and_the_schedule_it_began_with(tmp_path):
    """HPM in one go, and interrupted after its first step, ends with the same weights."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32))
    settings = [f"method.{key}={value}" for key, value in SMALL.items()] + ["method.ema_start=0.5"]
    common = {"settings": settings, "precision": "32", "batch_size": 8, "epochs": 4}
    whole = mw.pretrain("hpm", tmp_path / "x.npy", run=tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        mw.pretrain("hpm", tmp_path / "x.npy", run=tmp_path / "part", **common, max_time="0s")
    recipe = tmp_path / "part" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_time: 0s", "max_time: null"))
    resumed = mw.resume(tmp_path / "part")
    first, second = (mw.load(run).state_dict() for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
