"""From clouds in files to a run, its pictures and an evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch

import maskwright
from maskwright.core.build import build
from maskwright.core.evaluation.pictures import draw_panel
from maskwright.core.host import get_host
from maskwright.core.masking import sample_keys
from maskwright.core.recipe import make_recipe
from maskwright.core.sample import collate

PLUGIN = Path(__file__).with_name("points_plugin.py")


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """Balls and boxes, 16 of each, and the plugin that reads them."""
    monkeypatch.setenv("MASKWRIGHT_PLUGINS", str(PLUGIN))
    get_host.cache_clear()
    generator = np.random.default_rng(0)
    for kind in ("ball", "box"):
        (tmp_path / "shapes" / kind).mkdir(parents=True)
        for number in range(16):
            points = generator.normal(size=(128, 3))
            norm = np.linalg.norm(points, axis=1) if kind == "ball" else np.abs(points).max(1)
            np.save(tmp_path / "shapes" / kind / f"{number}.npy", (points / norm[:, None]).astype(np.float32))
    yield tmp_path / "shapes"
    get_host.cache_clear()


SMALL = ["num_groups=12", "group_size=12", "embed_dim=32", "depth=2", "num_heads=4", "decoder_depth=1"]


def test_a_run_on_clouds_is_drawn_and_evaluated(shapes, tmp_path):
    settings = [f"method.{option}" for option in SMALL]
    run = maskwright.pretrain(
        "trial-cmae", shapes, preset="tiny", run=tmp_path / "run", settings=settings, max_steps=6, batch_size=16
    )
    assert (run.path / "previews" / "points.png").stat().st_size > 1000
    encoder = maskwright.load(run)
    batch = collate([maskwright.open_data(shapes).read(index) for index in range(3)])
    embedding = encoder.embed(batch)
    assert embedding.pooled.shape == (3, 64)
    found = maskwright.evaluate(
        run,
        shapes,
        "classification",
        protocols=["linear"],
        baselines=["simple"],
        seeds=1,
        folds=2,
        out=tmp_path / "judged",
    )
    own = {row.protocol for row in found.table.rows if row.features == "pre-trained"}
    assert own == {"linear probe"}, found.table.rows


def test_hidden_points_are_not_drawn(shapes):
    built = build(make_recipe("trial-cmae", shapes, "tiny", [f"method.{option}" for option in SMALL]))
    batch = collate([built.loader.read(index) for index in range(2)])
    panel = built.method.eval().preview(batch, sample_keys(torch.Generator().manual_seed(0), 2))["points"]
    for original, seen, made in draw_panel(panel, "points", built.loader):
        assert (seen == 0).sum() < (original == 0).sum()
        assert bool(((seen == 0) <= (original == 0)).all())
        assert bool((made == 0).any())
