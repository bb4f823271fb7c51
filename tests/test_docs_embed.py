"""The page on embedding: its code runs on a file that its command made."""

import os
import subprocess
import sys

from maskwright.core.embed import embed
from maskwright.core.encoder import VisionTransformer
from maskwright.remote_sensing.fake import fake_s1s2
from tests.test_docs import ROOT, blocks


def test_the_script_that_reads_the_file_runs(tmp_path):
    fake_s1s2(tmp_path / "tiles", 3, 64)
    encoder = VisionTransformer(32, 8, in_chans=12, embed_dim=8, depth=1, num_heads=2).eval()
    embed(encoder, tmp_path / "tiles" / "S2", tmp_path / "archive.parquet", settings=["data.size=32"])
    (script,) = blocks(ROOT / "docs" / "embed.md", "python")
    script += "\nassert vectors.shape == (12, 8)\nassert frame.crs == 'OGC:CRS84'\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "POINT" in done.stdout
