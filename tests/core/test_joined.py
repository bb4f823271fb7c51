"""Loaders of several kinds, and inputs of which a batch holds one."""

import numpy as np
import pytest
import torch

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.joined import MixedLoader
from maskwright.core.sample import TensorSpec, check_inputs


@pytest.fixture
def two_kinds(tmp_path):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "arrays.npz", images=generator.normal(size=(5, 1, 6, 7)))
    for number in range(3):
        np.save(tmp_path / f"toy_{number}.npy", generator.normal(size=(1, 8, 8)).astype(np.float32))
    return tmp_path


def _mixed(folder):
    return MixedLoader(folder, {"arrays": {"path": "arrays.npz", "input_name": "slice"}, "npy": {}})


def test_kinds_are_read_by_their_own_loaders(two_kinds):
    loader = _mixed(two_kinds)
    toy = open_loader(two_kinds, "npy")[1]
    assert len(loader) == 5 + len(toy) == 8
    assert all(spec.optional for spec in loader.spec.values())
    assert [set(loader.read(index).tensors) for index in (0, 4, 5, 7)] == [{"slice"}] * 2 + [{"image"}] * 2
    assert torch.equal(loader.read(6)["image"], toy.read(1)["image"])
    assert [loader.read(index).meta.index for index in range(8)] == list(range(8))
    assert loader.group(6) == toy.group(1)
    assert loader.label(6) == toy.label(1)
    assert loader.sources(6) == toy.sources(1)
    assert loader.buckets().tolist() == [0] * 5 + [1] * 3
    assert set(loader.statistics()) == {"slice", "image"}
    assert loader.statistics()["image"] == toy.statistics()["image"]
    assert loader.picture("slice", loader.read(0)["slice"]).shape == (6, 7, 3)
    assert loader.bytes_per_sample() == 4 * 64
    with pytest.raises(IndexError):
        loader.read(8)


def test_mixes_that_cannot_be(two_kinds):
    with pytest.raises(ConfigError, match="names no loader"):
        MixedLoader(two_kinds)
    with pytest.raises(ConfigError, match="arrays and npy both give image"):
        MixedLoader(two_kinds, {"arrays": {"path": "arrays.npz"}, "npy": {}})
    with pytest.raises(DataError, match="no such file"):
        MixedLoader(two_kinds, {"arrays": {"path": "elsewhere.npz"}})
    with pytest.raises(ConfigError, match="no such option"):
        MixedLoader(two_kinds, {"arrays": {"path": "arrays.npz", "sise": 3}})


IMAGE, VOLUME = TensorSpec("C H W", 3, optional=True), TensorSpec("C D H W", 1, optional=True)


def test_one_of_several_inputs_is_enough():
    wanted = {"image": IMAGE, "volume": VOLUME}
    check_inputs({"image": TensorSpec("C H W", 3)}, wanted, "loader", "method")
    check_inputs(wanted, wanted, "loader", "method")
    with pytest.raises(ConfigError, match=r'"image" \(C H W\) or "volume" \(C D H W\), but loader gives only points'):
        check_inputs({"points": TensorSpec("N C", 3)}, wanted, "loader", "method")
    with pytest.raises(ConfigError, match="built for 3 channels"):
        check_inputs({"image": TensorSpec("C H W", 1)}, wanted, "loader", "method")


def test_an_input_of_some_samples_only_does_not_serve_a_method_that_needs_it():
    with pytest.raises(ConfigError, match="gives it of some only"):
        check_inputs({"image": IMAGE, "volume": VOLUME}, {"image": TensorSpec("C H W", 3)}, "loader", "method")
