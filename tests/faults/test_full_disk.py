"""Full disks (R12): a real small file system where one may be mounted, else a limit on the size of files.

A tmpfs needs the right to mount. Without it the operating system's limit on file sizes (`RLIMIT_FSIZE`) stands in; the
error is then another one (EFBIG), but the place where it hits, in the middle of a write, is the same.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError

import maskwright as mw
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.checkpoint import Checkpoint
from maskwright.core.trainer.files import DiskFullError
from tests.conftest import write_images
from tests.faults.command import run, start

SIZE = 8_000_000
PARTS = 30


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs may not be mounted here; the tests with a limit on file sizes stand in")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # lazily: it goes once no file in it is open


def fill(folder, leave):
    """Take all space but `leave` bytes, at once; the file that takes it."""
    path = folder / f"filler {time.monotonic()}"
    taken = max(1, shutil.disk_usage(folder).free - leave)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, taken)
    return path


def test_a_checkpoint_that_does_not_fit_leaves_the_last_whole(small_disk):
    tensors = {"method.w": torch.arange(80_000.0)}  # 320 kB
    for step in (1, 2):
        checkpoints.save(small_disk, Checkpoint(step, tensors))
    filler = fill(small_disk, 100_000)
    with pytest.raises(DiskFullError, match=r"not written, 0 MB of disk are free\. What was there before is whole"):
        checkpoints.save(small_disk, Checkpoint(3, tensors))
    loaded, complaints = checkpoints.load_newest(small_disk)
    assert (loaded.step, complaints) == (2, [])
    assert torch.equal(loaded.tensors["method.w"], tensors["method.w"])
    assert not list(small_disk.glob(".*.tmp")), "the half-written file takes no space"
    filler.unlink()
    checkpoints.save(small_disk, Checkpoint(3, tensors))
    assert checkpoints.load_newest(small_disk)[0].step == 3


def test_training_on_a_full_disk_ends_with_bytes_and_resumes_after(images, small_disk, tmp_path):
    settings = ["trainer.batch_size=4", "trainer.max_steps=8", "trainer.checkpoint_steps=1", "trainer.precision=32"]
    settings.append("trainer.threads=1")
    options = [word for setting in settings for word in ("--set", setting)]
    expected = mw.pretrain("toy-mae", images, run=tmp_path / "whole", settings=settings)
    size = (expected.checkpoints / "last.safetensors").stat().st_size
    disk = small_disk / "run"
    filler = fill(small_disk, int(2.4 * size) + 30_000)  # two checkpoints fit, a third does not
    code, _, errors = run("pretrain", "toy-mae", "--data", images, "--run", disk, *options)
    assert code == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert "A checkpoint needs about" in last
    assert "of disk are free" in last
    assert "Traceback" not in errors
    newest, complaints = checkpoints.load_newest(disk / "checkpoints")
    assert complaints == []
    assert newest is not None
    filler.unlink()
    code, _, errors = run("resume", disk)
    assert code == 0, errors
    one, other = (checkpoints.load_newest(path / "checkpoints")[0] for path in (disk, expected.path))
    assert one.step == other.step == 8
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    images = write_images(folder / "images", 120)
    model = mw.pretrain("toy-mae", images, run=folder / "run", max_steps=1, batch_size=4, threads=1)
    code, _, errors = run(*_command(model.path, images, folder / "whole.parquet"))
    assert code == 0, errors
    return model.path, images, pq.read_table(folder / "whole.parquet").replace_schema_metadata()


def _command(model, images, out):
    return "embed", model, "--data", images, "--out", out, "--batch-size", 4, "--part-samples", 4, "--level", "tokens"


def test_too_small_a_disk_is_refused_before_anything_is_computed(trained, small_disk):
    model, images, _ = trained
    fill(small_disk, 100_000)
    code, text, errors = run(*_command(model, images, small_disk / "e.parquet"))
    assert (code, text, errors.count("\n")) == (1, "", 1)
    assert "needs about 0.5 MB while it is made, and 0.1 MB of disk are free" in errors
    assert not list(small_disk.glob("e.parquet.parts/part-*"))


@pytest.mark.slow
@pytest.mark.parametrize("merging", [False, True])
def test_a_disk_that_fills_while_embedding_keeps_the_parts(trained, small_disk, merging):
    """Another program takes the space: all but a few parts, or so much that only the merged file does not fit."""
    model, images, whole = trained
    out = small_disk / "e.parquet"
    process = start(*_command(model, images, out))
    while len(parts := list(small_disk.glob("e.parquet.parts/part-*"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in parts) / len(parts)
    fill(small_disk, int(size * (PARTS - 2 if merging else 3)))
    text, errors = process.communicate(timeout=100)
    assert (process.returncode, text) == (1, ""), errors
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    assert "MB of disk are free. What was there before is whole" in errors
    assert "This step needs about" in errors
    assert "run the same command again" in errors
    assert not out.exists()
    before = len(list(small_disk.glob("e.parquet.parts/part-*")))
    assert (before == PARTS) if merging else (3 <= before < PARTS)
    for filler in small_disk.glob("filler*"):
        filler.unlink()
    code, text, errors = run(*_command(model, images, out))
    assert code == 0, errors
    assert ("nothing was left" if merging else f"{120 - 4 * before} embedded") in text
    assert pq.read_table(out).replace_schema_metadata().equals(whole)


@pytest.mark.slow
def test_predicting_on_a_full_disk_goes_on_after(trained, small_disk, tmp_path):
    """No space for a part, and not even for the lock."""
    model, images, _ = trained
    names = sorted(path.stem for path in images.glob("*.npy"))
    labels = tmp_path / "labels.csv"
    labels.write_text("id,kind\n" + "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)))
    options = ["--labels", f"{labels}:kind", "--holdout", 0, "--set", "budget.steps=2", "--out", tmp_path / "model"]
    code, _, errors = run("finetune", model, "--data", images, *options)
    assert code == 0, errors
    out = small_disk / "predictions"
    for leave in (0, 16_000):
        filler = fill(small_disk, leave)
        code, text, errors = run("predict", tmp_path / "model", "--data", images, "--out", out)
        assert (code, text, errors.count("\n")) == (1, "", 1), errors
        assert errors.startswith("Error: ")
        assert "unexpected" not in errors
        assert "full" in errors if leave == 0 else "needs about" in errors
        assert not list(out.glob("*.parquet"))
        filler.unlink()
    code, text, errors = run("predict", tmp_path / "model", "--data", images, "--out", out)
    assert code == 0, errors
    (table,) = out.glob("*.parquet")
    assert pq.read_metadata(table).num_rows == 120


# without the right to mount ----------------------------------------------------------------------------------------


def _limited(size):
    """Set the largest size of a file in a child, as a quota would."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_file_sizes_damages_no_checkpoint(tmp_path):
    import resource

    tensors = {"method.w": torch.arange(50_000.0)}
    checkpoints.save(tmp_path, Checkpoint(1, tensors))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises((OSError, SafetensorError)) as error:
            checkpoints.save(tmp_path, Checkpoint(2, tensors))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(errno.EFBIG) in str(error.value) or "too large" in str(error.value)
    assert checkpoints.load_newest(tmp_path)[0].step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]
    checkpoints.save(tmp_path, Checkpoint(2, tensors))
    assert checkpoints.load_newest(tmp_path)[0].step == 2


@pytest.mark.slow
def test_a_limit_on_file_sizes_damages_no_part(trained, tmp_path):
    """Parts are small and fit; the merged file does not."""
    model, images, whole = trained
    out = tmp_path / "e.parquet"
    code, text, errors = run(*_command(model, images, out), preexec_fn=_limited(40_000))
    assert (code, text) != (0, "")
    assert "Error: " in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert len(list(tmp_path.glob("e.parquet.parts/part-*"))) == PARTS
    code, text, errors = run(*_command(model, images, out))
    assert code == 0, errors
    assert "nothing was left to embed" in text
    assert pq.read_table(out).replace_schema_metadata().equals(whole)
