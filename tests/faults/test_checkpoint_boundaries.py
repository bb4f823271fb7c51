"""A process that ends at any boundary of a save: the newest or the previous checkpoint is whole (R2)."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import save

import maskwright as mw
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.checkpoint import Checkpoint
from tests.faults.command import EXIT, every_exit, exit_at, fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
LENGTH = 3000


def _in_chunks(tensors, path, metadata=None):
    """Write as safetensors does, in pieces, so that a process can end between two of them."""
    data = save(tensors, metadata)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    for at in range(0, len(data), len(data) // 4):
        os.write(handle, data[at : at + len(data) // 4])
    os.close(handle)


def _checkpoint(step):
    return Checkpoint(step, {"method.w": torch.full((LENGTH,), float(step))}, {"best": float(step)})


def test_every_boundary_of_a_save_leaves_a_whole_checkpoint(monkeypatch):
    """Steps 1 and 2 are there; the process ends inside the save of step 3."""
    monkeypatch.setattr(checkpoints, "save_file", _in_chunks)

    def make(folder):
        for step in (1, 2):
            checkpoints.save(folder, _checkpoint(step), best=True)
        return lambda: checkpoints.save(folder, _checkpoint(3), best=True)

    seen = []
    for _, folder in every_exit(make):
        loaded, complaints = checkpoints.load_newest(folder)
        assert complaints == [], "not even a damaged file lies where a checkpoint is looked for"
        assert torch.equal(loaded.tensors["method.w"], torch.full((LENGTH,), float(loaded.step)))
        assert loaded.state == {"best": float(loaded.step)}
        assert checkpoints.read(folder / "best.safetensors").step in (2, 3)
        checkpoints.save(folder, _checkpoint(4), best=True)  # training goes on
        assert checkpoints.load_newest(folder)[0].step == 4
        seen.append(loaded.step)
    assert seen == sorted(seen), "once the new checkpoint can be read, it stays so"
    assert set(seen) == {2, 3}
    assert len(seen) > 30, "open, write, sync, rename and link, each before and after"


def test_the_very_first_save_leaves_nothing_or_a_whole_checkpoint(monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", _in_chunks)
    steps = []
    for _, folder in every_exit(lambda folder: lambda: checkpoints.save(folder, _checkpoint(1))):
        loaded, complaints = checkpoints.load_newest(folder)
        assert complaints == []
        steps.append(0 if loaded is None else loaded.step)
    assert steps == sorted(steps)
    assert set(steps) == {0, 1}


def test_a_run_that_ended_inside_a_save_resumes_to_the_same_weights(images, tmp_path):
    """The third of four checkpoints is cut off at boundaries all over a save; resumed, the run ends as if nothing was."""
    settings = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "32", "checkpoint_steps": 1, "threads": 1}
    whole = mw.pretrain("toy-mae", data=images, run=tmp_path / "whole", **settings)
    expected = checkpoints.read(whole.checkpoints / "last.safetensors")

    def dying(number, path):
        save = checkpoints.save

        def cut(folder, checkpoint, best=False):
            if checkpoint.step != 3:
                return save(folder, checkpoint, best)
            exit_at(number, lambda: save(folder, checkpoint, best))()
            raise AssertionError("a save has fewer calls")

        checkpoints.save = cut
        mw.pretrain("toy-mae", data=images, run=path, **settings)

    resumed_from = set()
    for number in (2, 5, 8, 11, 14, 17):
        path = tmp_path / f"cut at {number}"
        child = fork(lambda number=number, path=path: dying(number, path))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT
        run = mw.Run.open(path)
        resumed_from.add(checkpoints.load_newest(run.checkpoints)[0].step)
        mw.resume(run)
        final = checkpoints.read(run.checkpoints / "last.safetensors")
        assert final.step == 4
        assert all(torch.equal(final.tensors[name], tensor) for name, tensor in expected.tensors.items())
        assert not list(run.path.rglob(".*.tmp")), "half-written files were removed"
    assert resumed_from == {2, 3}


def test_a_corrupt_checkpoint_falls_back_to_the_one_before_and_says_so(images, tmp_path, capsys):
    settings = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "32", "checkpoint_steps": 1, "threads": 1}
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "run", **settings)
    last = run.checkpoints / "last.safetensors"
    expected = checkpoints.read(last)
    data = bytearray(last.read_bytes())
    last.unlink()  # `best` may be the same file
    last.write_bytes(data[: len(data) // 2])
    mw.resume(run)
    said = capsys.readouterr().err
    assert f"Warning: {last}: is damaged or no checkpoint" in said
    assert "The checkpoint before it is used." in said
    final = checkpoints.read(last)
    assert final.step == 4
    assert all(torch.equal(final.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.slow
def test_plain_saving_beside_it(tmp_path, capsys):
    """What saving in place does under the same kills. No promise of ours; it shows that the kills are real."""
    moment, damaged = random.Random(0), {"torch.save in place": 0, "ours": 0}
    tensors = {"method.w": torch.zeros(2_000_000)}

    def in_place(folder):
        while True:
            torch.save(tensors, folder / "last.pt")

    def ours(folder):
        step = 0
        while True:
            step += 1
            checkpoints.save(folder, Checkpoint(step, tensors))

    kills = 30
    for number in range(kills):
        for name, body in (("torch.save in place", in_place), ("ours", ours)):
            folder = tmp_path / f"{name} {number}"
            folder.mkdir()
            child = fork(lambda body=body, folder=folder: body(folder))
            deadline = time.monotonic() + 20
            while not list(folder.glob("last.*")) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(moment.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            try:
                if body is in_place:
                    torch.load(folder / "last.pt", weights_only=True)
                else:
                    assert checkpoints.load_newest(folder)[0] is not None
            except Exception:
                damaged[name] += 1
    with capsys.disabled():
        print("\nunreadable after kill -9:", ", ".join(f"{k} {v} of {kills}" for k, v in damaged.items()))
    assert damaged["ours"] == 0
    assert damaged["torch.save in place"] > 0
