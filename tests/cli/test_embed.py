"""The command `maskwright embed`, in a process of its own."""

import pyarrow.parquet as pq
import pytest

import maskwright as mw
from tests.conftest import write_images
from tests.faults.command import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    images = write_images(folder / "images", 40)
    mw.pretrain("toy-mae", images, run=folder / "run", max_steps=1, batch_size=4)
    return folder / "run", images


def test_the_command_says_how_many_and_how_fast_and_goes_on(trained, tmp_path):
    model, images = trained
    code, text, errors = run("embed", model, "--data", images, "--out", tmp_path / "e.parquet", "--batch-size", 8)
    assert code == 0, errors
    assert "40 samples; 40 embedded in" in text
    assert "samples/s" in text
    assert pq.read_metadata(tmp_path / "e.parquet").num_rows == 40
    code, text, _ = run("embed", model, "--data", images, "--out", tmp_path / "e.parquet", "--batch-size", 8)
    assert (code, "nothing was left to embed" in text) == (0, True)


def test_too_many_bad_files_are_exit_code_5_and_one_sentence(trained, tmp_path):
    images = write_images(tmp_path / "images", 20)
    for path in sorted(images.glob("*.npy"))[3:7]:
        path.write_bytes(b"broken")
    code, text, errors = run("embed", trained[0], "--data", images, "--out", tmp_path / "e.parquet")
    assert (code, text) == (5, "")
    assert errors.startswith("Error: 4 of 20 samples could not be used, more than --max-bad 0.05 allows.")
    assert errors.count("\n") == 1
    assert (tmp_path / "e.parquet.bad.csv").read_text().count("broken") == 0
    assert (tmp_path / "e.parquet.bad.csv").read_text().count("\n") == 5


def test_neither_run_nor_encoder_is_exit_code_2(tmp_path):
    code, _, errors = run("embed", "--out", tmp_path / "e.parquet")
    assert (code, errors) == (2, "Error: Give a run directory, or an encoder (--encoder timm:NAME), and not both.\n")
