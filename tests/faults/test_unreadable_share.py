"""One file in a hundred cannot be read (R7): everything finishes, lists them, and replaces none."""

import csv

import pyarrow.parquet as pq
import pytest

import maskwright as mw
from maskwright.core.embed import embed_archive
from maskwright.remote_sensing.fake import fake_s1s2
from tests.conftest import write_images


def spoil(files):
    """Break every hundredth file, each in another way."""
    ways = (lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:150]))
    bad = files[50::100]
    for number, path in enumerate(bad):
        ways[number % 2](path)
    return {str(path) for path in bad}


def listed(path):
    with path.open(newline="") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


@pytest.fixture
def archive(tmp_path):
    images = write_images(tmp_path / "images", 300)
    return images, spoil(sorted(images.glob("*.npy")))


def test_pretraining_and_embedding_finish_and_list_them(archive, tmp_path):
    images, bad = archive
    run = mw.pretrain("toy-mae", images, run=tmp_path / "run", epochs=1, batch_size=10, threads=1)
    assert {row["path"] for row in run.bad_files()} == bad
    assert all(row["reason"] for row in run.bad_files())
    done = embed_archive(run, None, tmp_path / "e.parquet")
    assert (done.samples, done.bad) == (297, 3)
    rows = listed(done.bad_list)
    assert {path for path, _ in rows} == bad
    assert all("cannot be read" in reason for _, reason in rows)
    sources = pq.read_table(done.path)["source"].to_pylist()
    assert len(set(sources)) == 297
    assert not bad & set(sources)


def test_rasters_too(tmp_path):
    fake_s1s2(tmp_path / "tiles", tiles=100, size=32)
    bad = spoil(sorted((tmp_path / "tiles" / "S2").glob("*.tif")))
    settings = ["data.size=32"]
    run = mw.pretrain("croma", tmp_path / "tiles", "tiny", tmp_path / "run", settings, max_steps=1, batch_size=4)
    assert {row["path"] for row in run.bad_files()} == bad
    done = embed_archive(run, None, tmp_path / "e.parquet")
    assert (done.samples, done.bad) == (99, 1)
    assert {path for path, _ in listed(done.bad_list)} == bad
