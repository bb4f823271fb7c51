"""Checkpoints under kill -9 at random instants: the newest that was reported as written is there, and whole."""

import os
import random
import signal
import time

import pytest
import torch

from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.checkpoint import Checkpoint

KILLS = 200
LENGTH = 20_000


def _save_for_ever(folder, step, report):
    """Body of the child: save and report, until killed."""
    while True:
        step += 1
        checkpoints.save(folder, Checkpoint(step, {"method.w": torch.full((LENGTH,), float(step))}), best=step % 3 == 0)
        os.write(report, step.to_bytes(4, "little"))


def _last_reported(pipe):
    with os.fdopen(pipe, "rb") as file:
        content = file.read()
    whole = len(content) // 4 * 4
    return int.from_bytes(content[whole - 4 : whole], "little") if whole else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_reported_checkpoint_survives_kill_9_at_any_instant(tmp_path):
    moment, reported, reached = random.Random(0), 0, 0
    for _ in range(KILLS):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:  # leaves only by the kill, or by an error, never into the rest of the tests
            try:
                _save_for_ever(tmp_path, reached, writable)
            finally:
                os._exit(1)
        os.close(writable)
        time.sleep(moment.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by an error of its own"
        reported = max(reported, _last_reported(readable))
        loaded, complaints = checkpoints.load_newest(tmp_path)
        assert complaints == []
        if loaded is None:
            assert reported == 0
            continue
        reached = loaded.step
        assert reached >= reported
        assert torch.equal(loaded.tensors["method.w"], torch.full((LENGTH,), float(reached)))
        best = tmp_path / "best.safetensors"
        assert not best.exists() or checkpoints.read(best).step % 3 == 0
    assert reached > KILLS / 10  # the kills fell among many saves, also on a busy machine
