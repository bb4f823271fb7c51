import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.pictures import HIDDEN, _grid_figure, draw_panel, mask_preview, read_some
from maskwright.core.evaluation.report import draw_curves, read_scores, score_rows, write_report
from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict
from maskwright.core.masking import GuidedMasking, RandomMasking
from maskwright.core.sample import Meta, Sample, TensorSpec
from maskwright.core.trainer.method import Panel


class Stripes:
    """In-memory images of two channels; number 1 is broken."""

    spec = {"image": TensorSpec("C H W", ("a", "b"))}

    def __len__(self):
        return 4

    def read(self, index, generator=None):
        if index == 1:
            raise DataError("stripes_1.tif", "broken on purpose")
        image = torch.arange(32.0).expand(32, 32).clone() + index
        return Sample({"image": torch.stack([image, image.T])}, Meta(f"{index}.tif", group=f"scene {index}"))

    def picture(self, name, tensor):
        scaled = (tensor[0] / 40 * 255).clamp(0, 255).byte().numpy()
        return np.stack([scaled] * 3, axis=-1)

    def upright(self, name, picture):
        return picture


def test_read_some_leaves_out_broken_samples():
    assert [sample.meta.group for sample in read_some(Stripes(), 4)] == ["scene 0", "scene 2", "scene 3"]

    class AllBroken(Stripes):
        def read(self, index, generator=None):
            raise DataError("x.tif", "broken on purpose")

    with pytest.raises(DataError, match="broken on purpose"):
        read_some(AllBroken(), 2)


def test_panel_pictures_share_one_stretch_and_grey_out_hidden_pixels():
    sample = Stripes().read(0)
    hidden = torch.zeros(1, 32, 32, dtype=torch.bool)
    hidden[:, :16] = True
    panel = Panel(sample["image"][None], hidden, sample["image"][None] * 2)
    ((original, masked, filled),) = draw_panel(panel, "image", Stripes())
    assert original.shape == masked.shape == filled.shape == (32, 32, 3)
    assert np.array_equal(masked[16:], original[16:])
    assert np.all(masked[:16] == HIDDEN)
    assert int(filled[0, 10, 0]) == pytest.approx(2 * int(original[0, 10, 0]), abs=1)


def test_mask_preview_writes_a_picture(tmp_path):
    maskings = {"random": RandomMasking(0.5), "guided": GuidedMasking(0.5, strength=1.0)}
    out = mask_preview(Stripes(), maskings, tmp_path / "sub" / "masks.png", patch_size=8)
    picture = matplotlib.image.imread(out)
    grey = np.isclose(picture[..., :3], 128 / 255, atol=0.01).all(-1).mean()
    assert 0.1 < grey < 0.5  # two of three columns are half hidden

    class Sequences(Stripes):
        spec = {"waveform": TensorSpec("T")}

    with pytest.raises(ConfigError, match="need images"):
        mask_preview(Sequences(), maskings, tmp_path / "none.png")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("method: {name: croma}\n")
    rows = [{"step": step, "epoch": 0, "loss": 2.0 - step / 100, "seconds": step} for step in range(1, 101)]
    return SimpleNamespace(
        path=Path(tmp_path), metrics=lambda: rows, environment=lambda: {"torch": "2.14", "created": "today"}, notes=list
    )


TABLE = ScoreTable(
    "Land cover.",
    [Score("ours <b>", "kNN", "accuracy", [0.5, 0.7]), Score("raw", "kNN", "accuracy", [0.4])],
    [Verdict("raw", "kNN", "accuracy", 0.2, 0.1, 0.3)],
    ["A note."],
)


def test_report_is_one_page_with_everything_in_it(run):
    with (run.path / "bad_files.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "reason", "step"])
        writer.writeheader()
        writer.writerow({"path": "broken.tif", "reason": "truncated", "step": 3})
    (run.path / "previews").mkdir()
    mask_preview(Stripes(), {"random": RandomMasking()}, run.path / "previews" / "image.png")
    html = write_report(run, TABLE).read_text()
    assert "0.600 ± 0.141" in html
    assert "ours &lt;b&gt;" in html
    assert "Against raw (kNN, accuracy): helped" in html
    assert "broken.tif" in html
    assert "100 steps; loss 1.9450 at the start, 1.0450 at the end" in html
    assert html.count("data:image/png;base64,") == 2
    links = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', html)
    assert links == []  # nothing is fetched


def test_scores_are_stored_and_shown_again(run):
    write_report(run, TABLE)
    stored = read_scores(run.path / "scores.json")
    assert stored == TABLE
    assert "0.600 ± 0.141" in write_report(run).read_text()
    assert json.loads((run.path / "scores.json").read_text())["verdicts"][0]["words"] == "helped"


def test_report_without_scores_says_so(run):
    assert "does not say that pre-training helped" in write_report(run).read_text()


def test_curves_need_two_numbers():
    assert draw_curves([{"step": 1, "loss": 1.0}]) is None
    assert draw_curves([{"step": 1, "loss": ""}, {"step": 2, "loss": "nan?"}]) is None
    assert draw_curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])[:4] == b"\x89PNG"


def test_score_rows_keep_order_and_leave_gaps():
    table = ScoreTable("", [Score("a", "kNN", "accuracy", [1.0]), Score("b", "linear", "accuracy", [0.5])])
    columns, rows = score_rows(table)
    assert columns == ["kNN, accuracy", "linear, accuracy"]
    assert rows == [("a", ["1.000", ""]), ("b", ["", "0.500"])]


def test_pictures_have_titles_on_the_first_row_only():
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    figure = _grid_figure([[picture, picture]] * 2, ["before", "after"], ["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["before", "after", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["a", "", "b", ""]
