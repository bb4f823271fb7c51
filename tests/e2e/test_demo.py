"""The demo from beginning to end, with one seed and few steps."""

import json

import numpy as np
import pytest
import rasterio
from rich.console import Console

from maskwright.core.trainer.run import Run
from maskwright.remote_sensing import demo


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "SETTINGS", [*demo.SETTINGS, "trainer.max_steps=20", "trainer.batch_size=16"])
    try:
        console = Console(record=True, width=160)
        assert demo.run(folder, seeds=2, console=console) == folder / "report.html"
    finally:
        patch.undo()
    (folder / "printed.txt").write_text(console.export_text())
    return folder


def test_report_and_table_hold_every_baseline(out):
    html, printed = (out / "report.html").read_text(), (out / "printed.txt").read_text()
    for features in ("CROMA, joint", "random init, joint", "raw pixels of both sensors", "band means and deviations"):
        assert features in html
        assert features in printed
    assert "What this demo does not show" in html
    assert "Against random init, joint" in printed
    assert html.count("data:image/png;base64,") == 4  # curves, two sensors, the map
    scores = json.loads((out / "run-seed0" / "scores.json").read_text())
    by_name = {(row["features"], row["protocol"], row["metric"]): row["values"] for row in scores["rows"]}
    assert len(by_name["CROMA, joint", "linear probe", "accuracy"]) == 2
    assert len(by_name["raw pixels of both sensors", "linear probe", "accuracy"]) == 1
    assert all(0 <= value <= 1 for values in by_name.values() for value in values)


def test_the_held_out_tile_was_never_trained_on(out):
    for seed in (0, 1):
        recipe = Run.open(out / f"run-seed{seed}").recipe()
        assert recipe.data.path == str((out / "data" / "train").resolve())
    assert not list((out / "data" / "train").rglob(f"*{demo.HELD_OUT}*"))
    assert len(list((out / "data" / "train" / "S2").glob("*.tif"))) == 3


def test_the_map_lies_where_the_tile_lies(out):
    with (
        rasterio.open(out / "land_cover.tif") as map_file,
        rasterio.open(out / "data" / "held_out" / "S2" / f"{demo.HELD_OUT}.tif") as tile,
    ):
        assert map_file.crs == tile.crs
        assert map_file.bounds == pytest.approx(tile.bounds)
        assert map_file.shape == (28, 28)
        assert map_file.nodata == 0
        assert map_file.colormap(1)[1] == (65, 155, 223, 255)
        assert set(np.unique(map_file.read(1))) <= {1, 2, 3, 4, 5, 6, 9}


def test_losses_fall_and_seeds_differ(out):
    runs = [Run.open(out / f"run-seed{seed}") for seed in (0, 1)]
    for run in runs:
        losses = [row["loss"] for row in run.metrics()]
        assert losses[-1] < losses[0]
    assert runs[0].metrics()[0]["loss"] != runs[1].metrics()[0]["loss"]
