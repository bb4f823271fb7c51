"""Runs of every release load, embed and resume with the code of today (R14). `tests/fixtures/make_run.py` makes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import maskwright as mw
from maskwright.core.embed import embed
from maskwright.core.trainer import checkpoint as checkpoints

ROOT = Path(__file__).parents[3]
RUNS = sorted((ROOT / "tests" / "fixtures").glob("run-*"))
DATA = ROOT / "maskwright" / "remote_sensing" / "samples" / "terramesh"


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def old(request, tmp_path, monkeypatch):
    """A copy of an old run, and what it said then. Its paths are relative to the repository."""
    shutil.copytree(request.param, tmp_path / "run")
    monkeypatch.chdir(ROOT)
    return tmp_path / "run", json.loads((request.param / "expected.json").read_text())


def test_there_is_a_run_of_this_version():
    assert f"run-{'.'.join(mw.__version__.split('.')[:2])}" in {path.name for path in RUNS}
    for path in RUNS:
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 200_000


def test_an_old_encoder_says_what_it_said(old):
    path, expected = old
    encoder, loader = mw.load(path), mw.open_data(DATA, size=16)
    for index, vector in enumerate(expected["pooled"]):
        np.testing.assert_allclose(encoder.embed(loader.read(index)).pooled[0].numpy(), vector, atol=1e-5, rtol=1e-5)


def test_an_old_run_embeds_its_own_data(old, tmp_path):
    path, expected = old
    table = pq.read_table(embed(path, None, tmp_path / "e.parquet"))
    rows = table["embedding"].to_pylist()[: len(expected["pooled"])]
    np.testing.assert_allclose(rows, expected["pooled"], atol=1e-5, rtol=1e-5)


def test_an_old_run_resumes(old):
    path, _ = old
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 2", "max_steps: 4"))
    before = checkpoints.read(path / "checkpoints" / "last.safetensors")
    assert before.step == 2
    run = mw.resume(path)
    after = checkpoints.read(run.checkpoints / "last.safetensors")
    assert after.step == 4
    assert after.tensors.keys() == before.tensors.keys()
    assert any(not torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    rows = run.metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows)
