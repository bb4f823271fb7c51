"""Partial clouds in files to completed ones, from the command line."""

import numpy as np
import pytest
from typer.testing import CliRunner

import maskwright as mw
from maskwright.cli.main import app
from maskwright.core.errors import ConfigError
from maskwright.pointcloud.completion import complete_files, load_completion
from maskwright.pointcloud.fake import fake_shapes
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.loaders import PointLoader

SIZES = {"data.loader": "points", "data.points": 256}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return fake_shapes(tmp_path_factory.mktemp("shapes") / "data", 6)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return mw.pretrain("p2c", data=shapes, run=out, preset="tiny", max_steps=3, batch_size=4, settings=SIZES)


def test_completed_clouds_lie_where_the_partial_ones_lie(run, shapes, tmp_path):
    done = CliRunner().invoke(app, ["pointcloud", "complete", str(run.path), str(shapes), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    loader, method = PointLoader(shapes, points=256), load_completion(run)
    assert len(list((tmp_path / "out").rglob("*.ply"))) == len(loader)
    for index in range(len(loader)):
        sample = loader.read(index)
        made = method.complete(sample["points"][None])[0].numpy()
        path = (tmp_path / "out" / loader.files[index].relative_to(loader.root)).with_suffix(".ply")
        (block,) = open_points(path).blocks()
        wanted = made * sample.meta.extra["scale"] + np.array(sample.meta.extra["centre"])
        np.testing.assert_allclose(block.xyz, wanted, atol=1e-5 * sample.meta.extra["scale"])


def test_what_cannot_complete(run, shapes, tmp_path):
    with pytest.raises(ConfigError, match="is one file"):
        complete_files(run, shapes, tmp_path / "a.ply")
    other = mw.pretrain("point-cmae", data=shapes, run=tmp_path / "run", preset="tiny", max_steps=1, batch_size=4,
                        settings={**SIZES, "data.points": 512})  # fmt: skip
    with pytest.raises(ConfigError, match="completes no clouds"):
        load_completion(other.path)
