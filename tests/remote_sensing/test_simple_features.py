import pytest
import torch

import maskwright as mw
from maskwright.core.masking import Grid

SAMPLES = "maskwright/remote_sensing/samples/terramesh"


@pytest.fixture(scope="module")
def loader():
    return mw.open_data(SAMPLES, "s1s2", size=56)


def test_indices_are_those_of_the_bands(loader):
    sample = loader.read(0)
    bands = loader.spec["optical"].channels
    features = loader.simple_features(sample)["band and index statistics"]
    nir, red = (sample["optical"][bands.index(name)] for name in ("B8", "B4"))
    ndvi = (nir - red) / (nir + red)
    indices = features[(len(bands) + 2) * 11 :]
    assert indices.shape == (4 * 11,)
    assert indices[0] == pytest.approx(ndvi.mean().item(), abs=1e-5)
    assert indices[4] == pytest.approx(ndvi.std(correction=0).item(), abs=1e-5)
    assert indices.abs().max() <= 1


def test_cells_describe_their_own_pixels(loader):
    sample = loader.read(0)
    cells = loader.simple_features(sample, Grid((7, 7)))
    assert cells["raw pixels"].shape == (49, 14 * 64)
    assert cells["band and index statistics"].shape == (49, 2 * (14 + 4))
    patch = sample["optical"][:, 8:16, 16:24]  # cell (1, 2)
    assert torch.allclose(cells["band and index statistics"][9, :12], patch.mean((1, 2)), rtol=1e-4)
    deviations = cells["band and index statistics"][9, 12:24]
    assert torch.allclose(deviations, patch.flatten(1).std(1, correction=0), rtol=1e-2, atol=0.5)
    assert torch.equal(cells["raw pixels"][9, : 12 * 64].reshape(12, 8, 8), patch)


def test_radar_alone_has_no_indices(tmp_path):
    loader = mw.open_data(f"{SAMPLES}/S1", "geotiff", size=56)
    assert set(loader.simple_features(loader.read(0))) == {"band statistics", "raw pixels"}
