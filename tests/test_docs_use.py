"""The script of docs/use.md runs as it stands there."""

import subprocess
import sys

import maskwright as mw
from maskwright.remote_sensing.fake import fake_land_cover, fake_s1s2
from tests.test_docs import ROOT, blocks


def test_the_script_of_the_page_makes_maps(tmp_path):
    fake_s1s2(tmp_path / "tiles", 2, 64)
    fake_s1s2(tmp_path / "new_tiles", 1, 96, seed=1)
    fake_land_cover(tmp_path / "labels", 2, 64)
    mw.pretrain("croma", tmp_path / "tiles", "tiny", tmp_path / "runs" / "croma-1", {"data.size": 64}, max_steps=1)
    (script,) = blocks(ROOT / "docs" / "use.md", "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["maps/tile_0.tif"]
