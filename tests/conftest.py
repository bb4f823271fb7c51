"""Shared fixtures. The toy plugin comes in as a user's would: by the environment variable for single files."""

import os
from pathlib import Path

import numpy as np
import pytest

TOY = Path(__file__).parent / "toy_plugin.py"
os.environ["MASKWRIGHT_PLUGINS"] = str(TOY)
os.environ.setdefault("OMP_NUM_THREADS", "2")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    os.environ["MASKWRIGHT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shared_data():
    """Folder of the real data sets that do not ship with the package."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data sets is not beside this checkout")
    return SHARED


def write_images(folder: Path, count: int = 12, size: int = 16, channels: int = 1, seed: int = 0) -> Path:
    """Smooth seeded .npy images for the toy plugin."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for number in range(count):
        a, b, c = generator.normal(size=3)
        image = np.stack([np.sin(6 * (a * x + b * y) + c + k) for k in range(channels)]).astype(np.float32)
        np.save(folder / f"image_{number:03d}.npy", image)
    return folder


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")
