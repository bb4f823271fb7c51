"""What `inspect` says of files whose loader has no inspection of its own."""

import numpy as np
from PIL import Image

from maskwright.core.inspection import inspect_data


def _picture(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(path)
    return path


def test_files_that_break_only_when_they_are_read_are_named(tmp_path):
    whole = _picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_text("no picture")
    (tmp_path / "d.png").touch()
    tensor, *bad = inspect_data(tmp_path)
    assert tensor["tensor"] == "image"
    assert tensor["samples"] == 3
    assert [row["channel"] for row in tensor["statistics"]] == ["red", "green", "blue"]
    problems = {row["file"].rsplit("/", 1)[-1]: row["problem"] for row in bad}
    assert set(problems) == {"b.png", "c.jpg", "d.png"}
    assert "truncated" in problems["b.png"]
    assert "is no image" in problems["c.jpg"]
    assert "empty" in problems["d.png"]


def test_where_nothing_can_be_read_there_are_no_statistics(tmp_path):
    (tmp_path / "c.png").write_text("no picture")
    tensor, bad = inspect_data(tmp_path)
    assert "statistics" not in tensor
    assert bad["problem"].startswith("is no image")
