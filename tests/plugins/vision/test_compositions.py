"""What a method does not know of, it takes by option: any masking, other blocks, other teachers."""

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright.core.host import get_host
from maskwright.core.trainer import Progress
from maskwright.core.trainer.keeper import Interrupted
from maskwright.testing.data import BatchLoader
from tests.plugins.vision.helpers import DECODER, ENCODER, images, keys, make

SMALL = {**ENCODER, "patch_size": 4, **DECODER}
METHODS = ("mae", "hpm", "dmae")
EIGHT = {  # what each needs to be small, beside the encoder
    "mae": DECODER,
    "colormae": DECODER,
    "hpm": DECODER,
    "dmae": DECODER,
    "crate-mae": {},
    "crop-mae": {**DECODER, "decoder_mlp_dim": 32},
    "cae": {"regressor_depth": 1, "decoder_depth": 1, "vocabulary": 8},
    "gmml": {"taps": (2,), "corruption": "masking", "views": 1},
}


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("masking", get_host().components("masking"))
def test_any_masking(name, masking):
    strategy = mw.component("masking", masking)()
    if strategy.needs_guide and name != "hpm":
        pytest.skip("hpm alone has scores to guide by")
    batch, score, asked = images(), strategy.score, []
    strategy.score = lambda *of, **more: asked.append(score(*of, **more)) or asked[-1]
    method = make(
        mw.component("method", name), **{**ENCODER, **EIGHT[name], "patch_size": 4, "depth": 2}, masking=strategy
    )
    method.prepare(BatchLoader(batch, method.inputs), torch.Generator().manual_seed(0))
    method.start_step(Progress(5, 10, 5, 10))
    step = method(batch, keys())
    assert [found.shape for found in asked] == [(4, 64)], "training asks this masking, once"
    step.loss.backward()
    assert step.loss.isfinite()
    assert method.encoder.patch_embed.weight.grad.abs().sum() > 0
    grid = method.encoder.tokenize(batch).grid
    assert grid.shape == (8, 8)
    seen = {"crate-mae": 1 + 64, "gmml": 64}.get(name, 1 + 64 - strategy.hidden_count(grid))
    assert method.encode(batch, keys()).shape[1] == seen


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of another width, with the same patches."""
    folder = tmp_path_factory.mktemp("teacher")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32))
    settings = [f"method.{key}={value}" for key, value in {**SMALL, "patch_size": 16, "embed_dim": 48}.items()]
    return mw.pretrain("mae", folder / "x.npy", run=folder / "run", settings=settings, max_steps=1, precision="32")


@pytest.mark.parametrize("teacher", ["ema", "run", "timm:vit_tiny_patch16_224,pretrained=false,depth=2,embed_dim=24"])
@pytest.mark.parametrize("option", ["dmae.teacher", "hpm.target", "cae.teacher"])
def test_any_teacher_for_any_method_that_takes_one(option, teacher, run):
    if teacher.startswith("timm"):
        pytest.importorskip("timm")
    name, _, key = option.partition(".")
    sizes = {**ENCODER, "patch_size": 16, **({} if name == "cae" else DECODER)}
    more = {"target": "pixels"} if name == "cae" else {}
    method = make(
        mw.component("method", name),
        **sizes,
        **more,
        **{key: str(run.path) if teacher == "run" else teacher},
        masking=mw.component("masking", "random")(0.5),
    )
    batch = images(size=64)
    method.prepare(BatchLoader(batch, method.inputs), torch.Generator().manual_seed(0))
    step = method(batch, keys())
    step.loss.backward()
    assert step.loss.isfinite()
    frozen = [p for key, p in method.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


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
