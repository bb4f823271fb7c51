"""Memory stays flat over thousands of reads and embeddings (R17): less than 5 % of growth after a warm-up."""

import numpy as np
import pytest

from maskwright.core.embed_work import Work
from maskwright.core.encoder import VisionTransformer
from maskwright.core.parts import Parts
from maskwright.core.trainer.data import SampleReader, read_batches
from maskwright.remote_sensing.fake import fake_bigearthnet, fake_s1s2, fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from tests.conftest import write_images
from tests.faults.memory import growth
from tests.toy_plugin import NpyLoader

LIMIT = 5.0
"""Percent."""


def loaders(folder):
    """Each raster reader: tiles that are opened and closed in turn, one large scene, pairs, folders of single bands."""
    fake_s1s2(folder / "pairs", 60, 64)  # more files than handles are kept open
    fake_bigearthnet(folder / "patches", 2)
    return {
        "GeoTIFF tiles": GeoTiffLoader(folder / "pairs" / "S2", 32),
        "GeoTIFF scene": GeoTiffLoader(fake_scene(folder / "scene.tif", 1024, 13), 128),
        "pairs": PairLoader(folder / "pairs", 32),
        "BigEarthNet": PairLoader(folder / "patches", 60),
    }


def test_two_thousand_reads(tmp_path):
    reader = SampleReader(loaders(tmp_path)["GeoTIFF tiles"], 0)
    percent, slope = growth(lambda number: reader[(0, number * 7 % len(reader))], 2000, 400)
    assert percent < LIMIT, f"{percent:.1f} %, {slope:.2f} MB a thousand reads"


def test_unreadable_files_leave_nothing_behind(tmp_path):
    images = write_images(tmp_path / "images", 20)
    for path in sorted(images.glob("*.npy"))[1::2]:
        path.write_bytes(b"broken")
    reader = SampleReader(NpyLoader(images), 0)
    percent, slope = growth(lambda number: reader[(0, number % 20)], 2000, 400)
    assert percent < LIMIT, f"{percent:.1f} %, {slope:.2f} MB a thousand reads"


def test_two_thousand_batches_embedded_and_written(tmp_path):
    """The loop that embeds, and parts that are written and merged, without the cost of a large model."""
    from maskwright.core.embed_layout import Layout

    images = write_images(tmp_path / "images", 16, 32)
    loader = NpyLoader(images)
    encoder = VisionTransformer(32, 8, in_chans=1, embed_dim=64, depth=1, num_heads=2, normalization="none").eval()
    parts = Parts(tmp_path / "e.parquet", {})
    work = Work(loader, encoder, parts, (1, 1), "", "pooled", 8, 0, False, 1.0, None, {})
    layout = Layout(64, False, "", {}, False, False)
    batches = list(read_batches(loader, 8))
    parts.open({})

    def once(number):
        table, _, _ = work._rows(layout, list(range(8)), batches[number % 2])
        if number % 50 == 0:
            parts.write(number // 50, table, {"bad": []})

    percent, slope = growth(once, 2000, 400)
    parts.merge(range(48), {})
    assert percent < LIMIT, f"{percent:.1f} %, {slope:.2f} MB a thousand batches"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["GeoTIFF tiles", "GeoTIFF scene", "pairs", "BigEarthNet"])
def test_ten_thousand_chips_through_each_reader(tmp_path, name, capsys):
    reader = SampleReader(loaders(tmp_path)[name], 0)
    percent, slope = growth(lambda number: reader[(0, number * 7 % len(reader))], 10_000, 1000)
    with capsys.disabled():
        print(f"\n{name}: {percent:+.2f} % over 10,000 chips, {slope:+.2f} MB a thousand")
    assert percent < LIMIT


def test_the_measure_sees_a_leak():
    kept = []
    percent, _ = growth(lambda number: kept.append(np.ones(100_000)), 1000, 10)
    assert percent > LIMIT
