"""Embedding under kill -9, at random moments and at every boundary: the resumed file is the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time

import pyarrow.parquet as pq
import pytest
import torch

from maskwright.core import parts as parts_module
from maskwright.core.embed import embed
from maskwright.core.encoder import VisionTransformer
from tests.conftest import write_images
from tests.faults.command import every_exit, fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KILLS = 24
OPTIONS = {"batch_size": 2, "part_samples": 2}


@pytest.fixture
def encoder():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield VisionTransformer(16, 4, in_chans=1, embed_dim=8, depth=1, num_heads=2, normalization="none").eval()
    torch.set_num_threads(threads)


def rows(path):
    return pq.read_table(path).replace_schema_metadata()


def test_kill_9_at_random_moments_loses_no_finished_part(tmp_path, encoder, monkeypatch):
    """Every third kill waits for the merge; each start goes on in what the one before left."""
    images = write_images(tmp_path / "images", 2 * 3 * KILLS)
    sorted(images.glob("*.npy"))[5].write_bytes(b"broken")
    whole = rows(embed(encoder, images, tmp_path / "whole.parquet", **OPTIONS))
    write = parts_module.pq.ParquetWriter.write_table

    def slowly(self, *arguments, **named):
        time.sleep(0.005)
        return write(self, *arguments, **named)

    monkeypatch.setattr(parts_module.pq.ParquetWriter, "write_table", slowly)  # so that kills fall into the work
    moment, out, merges, deaths = random.Random(0), tmp_path / "e.parquet", 0, 0
    folder = out.with_name("e.parquet.parts")
    parts: set[str] = set()

    def temporary():
        return list(tmp_path.glob(".e.parquet.*.tmp"))

    for number in range(10 * KILLS):
        child = fork(lambda: embed(encoder, images, out, **OPTIONS))
        if number % 3 == 2 or len(parts) == 3 * KILLS:
            while not temporary() and os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.0005)
            time.sleep(moment.uniform(0, 0.05))
        else:
            time.sleep(moment.uniform(0.01, 0.15))
        try:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
        except (ChildProcessError, ProcessLookupError):  # it was waited for above
            killed = False
        if out.exists():
            assert rows(out).equals(whole), "the file appears at once, and whole"
            out.unlink()  # begin anew, for more kills
            parts = set()
            for path in folder.glob("*") if folder.exists() else ():
                path.unlink()
        deaths += killed
        merges += killed and bool(temporary())
        now = {path.name for path in folder.glob("part-*")} if folder.exists() else set()
        assert parts <= now, "a finished part stays"
        parts = now
        if deaths >= KILLS and merges >= 5:
            break
    assert deaths >= KILLS
    assert merges >= 5, "some kills fell into the merge"
    assert rows(embed(encoder, images, out, **OPTIONS)).equals(whole)
    assert (tmp_path / "e.parquet.bad.csv").read_text() == (tmp_path / "whole.parquet.bad.csv").read_text()
    assert not temporary()
    assert not folder.exists()


def test_the_end_at_every_boundary_loses_no_finished_part(tmp_path, encoder):
    """The process ends before and after every call that changes the disk, of two parts, the merge and the clearing up."""
    images = write_images(tmp_path / "images", 4)
    sorted(images.glob("*.npy"))[1].write_bytes(b"broken")
    whole = rows(embed(encoder, images, tmp_path / "whole.parquet", **OPTIONS))
    also = {parts_module.pq: ("write_table",), parts_module.pq.ParquetWriter: ("write_table", "close")}
    finished, ends = [], 0
    for _, folder in every_exit(
        lambda folder: lambda: embed(encoder, images, folder / "e.parquet", **OPTIONS), also=also
    ):
        ends += 1
        out = folder / "e.parquet"
        finished.append(out.exists())
        if out.exists():
            assert rows(out).equals(whole)
        else:
            for part in folder.glob("*.parts/part-*"):
                assert len(rows(part)) in (1, 2), "what has its name is whole"
        assert rows(embed(encoder, images, out, **OPTIONS)).equals(whole)
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["e.parquet", "e.parquet.bad.csv"]
    assert ends > 60
    assert finished == sorted(finished)
    assert any(finished)
