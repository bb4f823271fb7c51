"""The loader of radiance fields on grids: where voxels go, and what it refuses."""

import zipfile

import numpy as np
import pytest
import torch

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import collate
from maskwright.pointcloud.grids import GridLoader, composite, density_to_alpha
from maskwright.testing import check_loader
from tests.pointcloud.grid_files import scene, write_grids


@pytest.fixture
def folder(tmp_path):
    return write_grids(tmp_path / "grids")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{"size": 16}, {"size": (8, 24, 12)}, {"size": None}])
def test_contract(folder, options):
    check_loader(GridLoader(folder, **options))


def test_density_to_alpha():
    """Check 2."""
    assert density_to_alpha(np.zeros(1), "exp")[0] == pytest.approx(1 - np.exp(-0.01), rel=1e-9)
    assert density_to_alpha(np.zeros(1), "relu")[0] == 0
    sigma = np.linspace(-2000, 2000, 4001).astype(np.float32)
    for density in ("exp", "relu"):
        alpha = density_to_alpha(sigma, density)
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert alpha[-1] > 0.999
        assert (np.diff(alpha) >= 0).all()
    assert density_to_alpha(sigma, "relu")[:2001].max() == 0
    assert density_to_alpha(np.array([100.0]), "relu")[0] == pytest.approx(1 - np.exp(-1))
    with pytest.raises(ConfigError, match="none of exp, relu, alpha"):
        density_to_alpha(sigma, "softplus")


def test_axes_and_padding(folder):
    stored = scene((20, 16, 12), seed=1)
    sample = GridLoader(folder, size=(16, 18, 24)).read(1)
    grid, valid = sample["grid"], sample["valid"]
    assert grid.shape == (4, 16, 18, 24)
    inside = stored.transpose(3, 2, 1, 0)
    assert np.array_equal(grid[:3, :12, :16, :20], inside[:3])
    assert np.allclose(grid[3, :12, :16, :20], density_to_alpha(inside[3], "exp"), atol=1e-6)
    assert valid[0, :12, :16, :20].eq(1).all()
    assert valid.sum() == 12 * 16 * 20
    assert grid[:, ~valid[0].bool()].eq(0).all()
    assert sample.meta.extra == {"scene": [12, 16, 20], "turned": False, "mirrored": [False, False], "start": [0, 0, 0]}
    # larger scenes lose what is at their ends
    small = GridLoader(folder, size=8).read(1)
    assert torch.equal(small["grid"], grid[:, :8, :8, :8])
    assert small["valid"].eq(1).all()


def test_augmentation_keeps_z_up(folder):
    loader = GridLoader(folder, size=None, rotate=0.5, flip=0.5)
    plain = loader.read(0)["grid"]
    seen = set()
    for seed in range(60):
        sample = loader.read(0, generator(seed))
        turned, (x, y) = sample.meta.extra["turned"], sample.meta.extra["mirrored"]
        seen.add((turned, x, y))
        back = sample["grid"]
        back = back.flip(2) if y else back
        back = back.flip(3) if x else back
        back = back.rot90(-1, (3, 2)) if turned else back
        assert torch.equal(back, plain)
        assert sample["valid"].eq(1).all()
    assert len(seen) == 8
    never = GridLoader(folder, size=None, rotate=0, flip=0)
    assert all(torch.equal(never.read(0, generator(seed))["grid"], plain) for seed in range(5))


def test_random_boxes_reach_everywhere(folder):
    loader = GridLoader(folder, size=8, rotate=0, flip=0)
    starts = np.array([loader.read(0, generator(seed)).meta.extra["start"] for seed in range(200)])
    assert starts.min(0).tolist() == [0, 0, 0]
    assert starts.max(0).tolist() == [4, 8, 12]
    whole = GridLoader(folder, size=None).read(0)["grid"]
    z, y, x = starts[7]
    assert torch.equal(loader.read(0, generator(7))["grid"], whole[:, z : z + 8, y : y + 8, x : x + 8])


def test_labels_groups_and_buckets(tmp_path):
    write_grids(tmp_path / "kitchen", 2)
    write_grids(tmp_path / "bath", 1, size=(8, 8, 8))
    loader = GridLoader(tmp_path, size=None)
    assert [loader.label(index) for index in range(3)] == ["bath", "kitchen", "kitchen"]
    assert [loader.group(index) for index in range(3)] == [
        "bath/scene_0.npz",
        "kitchen/scene_0.npz",
        "kitchen/scene_1.npz",
    ]
    assert loader.buckets().tolist() == [0, 1, 1]
    fixed = GridLoader(tmp_path, size=16)
    assert fixed.buckets() is None
    assert collate([fixed.read(index) for index in range(3)])["grid"].shape == (3, 4, 16, 16, 16)


def test_npy_and_eight_bits(tmp_path):
    grid = scene()
    grid[..., 3] = density_to_alpha(grid[..., 3], "exp")
    np.save(tmp_path / "a.npy", grid)
    np.save(tmp_path / "b.npy", (grid * 255).round().astype(np.uint8))
    loader = GridLoader(tmp_path, size=16, density="alpha")
    assert (loader.read(0)["grid"] - loader.read(1)["grid"]).abs().max() <= 0.5 / 255 + 1e-6
    mapped = GridLoader(tmp_path, size=16)  # densities are not of 8 bits
    assert len(mapped) == 1
    assert "data.density=alpha" in mapped.bad_files[0].reason


# pictures ---------------------------------------------------------------------------------------------------------


def test_compositing():
    """A half transparent red layer above a solid green one, above a blue one that nobody sees."""
    grid = torch.zeros(4, 3, 1, 1)
    grid[:, 2, 0, 0] = torch.tensor([1, 0, 0, 0.5])
    grid[:, 1, 0, 0] = torch.tensor([0, 1, 0, 1.0])
    grid[:, 0, 0, 0] = torch.tensor([0, 0, 1, 1.0])
    assert composite(grid).flatten().tolist() == [0.5, 0.5, 0]
    assert composite(grid, from_end=False).flatten().tolist() == [0, 0, 1]


def test_pictures(folder):
    loader = GridLoader(folder, size=(12, 16, 20))
    grid = loader.read(0)["grid"]
    above = loader.picture("grid", grid)
    assert above.shape == (16, 20, 3)
    assert above.min() > 0  # the floor is everywhere
    front, top = loader.views(grid)
    assert front.shape == (12, 20, 3)
    assert front[-2:].min() > 0  # and at the bottom of the front view
    assert front[0].max() == 0
    assert np.array_equal(top, above[::-1])
    assert np.array_equal(
        loader.picture("grid", grid[:, 5]), (grid[:3, 5] * grid[3, 5] * 255).round().byte().permute(1, 2, 0)
    )
    assert loader.picture("valid", loader.read(0)["valid"]).min() == 255


# refusals ---------------------------------------------------------------------------------------------------------


def refuse(path, message, **options):
    with pytest.raises(DataError, match=message):
        GridLoader(path, **options).read(0)


def broken(tmp_path, change=None, **arrays):
    grid = scene()
    if change is not None:
        change(grid)
    np.savez(tmp_path / "x.npz", **(arrays or {"rgbsigma": grid}))
    return tmp_path / "x.npz"


def test_numbers_out_of_range(tmp_path):
    refuse(broken(tmp_path, lambda g: g.__setitem__((3, 4, 5, 1), np.nan)), "1 numbers are NaN or infinite")
    refuse(broken(tmp_path, lambda g: g.__setitem__((3, 4, 5, 3), np.inf)), "1 numbers are NaN or infinite")
    refuse(broken(tmp_path, lambda g: g.__setitem__((0, 0, 0, 0), 1.5)), "colours from .* to 1.5; expected 0 to 1")
    refuse(broken(tmp_path), "opacities from -10 to 8.*data.density=exp", density="alpha")
    loader = GridLoader(broken(tmp_path, lambda g: g.__setitem__((0, 0, 0, 0), 1.0005)), size=8)
    assert loader.read(0)["grid"].max() == 1  # rounding is put up with


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 4, 3), np.float32), r"\(W, L, H, 4\)"),
        (np.zeros((4, 4, 4), np.float32), r"\(W, L, H, 4\)"),
        (np.zeros((4, 0, 4, 4), np.float32), r"\(W, L, H, 4\)"),
        (np.zeros((4, 4, 4, 4), np.int64), "holds int64"),
        (np.array([["a"]]), r"\(W, L, H, 4\)"),
    ],
)
def test_other_arrays(tmp_path, array, message):
    path = broken(tmp_path, rgbsigma=array)
    refuse(path, message)
    assert not GridLoader.accepts(path)
    assert "problem" in GridLoader.inspect(path)[0]


def test_other_names_and_pickles(tmp_path):
    refuse(broken(tmp_path, density=np.zeros((2, 2, 2, 4))), 'holds density; expected an array "rgbsigma"')
    refuse(broken(tmp_path, rgbsigma=np.array([[[[{}] * 4]]], dtype=object)), "Python objects")
    (tmp_path / "y.npz").write_bytes(b"PK\x03\x04 not a zip archive")
    refuse(tmp_path / "y.npz", "cannot be read")
    refuse(tmp_path / "z.npz", "no such file")


def header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_absurd_headers_allocate_nothing(tmp_path):
    huge = header((100_000, 100_000, 100_000, 4))
    (tmp_path / "a.npy").write_bytes(huge + bytes(64))
    refuse(tmp_path / "a.npy", "holds 64 bytes behind its header")
    for name, shape, message in (
        ("b.npz", (100_000, 100_000, 100_000, 4), "voxels; expected at most"),
        ("c.npz", (300, 300, 300, 4), "holds 64 bytes behind its header"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("rgbsigma.npy", header(shape) + bytes(64))
        refuse(tmp_path / name, message)


def test_bad_files_are_set_aside(folder):
    np.savez(folder / "a.npz", rgbsigma=np.zeros((4, 4, 3)))
    cut = (folder / "scene_1.npz").read_bytes()
    (folder / "b.npz").write_bytes(cut[: len(cut) // 2])
    (folder / "c.npz").touch()
    loader = GridLoader(folder, size=8)
    assert len(loader) == 4
    assert GridLoader.accepts(folder)
    assert sorted(bad.path[-5:] for bad in loader.bad_files) == ["a.npz", "b.npz", "c.npz"]
    assert GridLoader(folder, size=8, max_voxels=3840).shapes == [(12, 16, 20)] * 4
    with pytest.raises(DataError, match="at most 3000"):
        GridLoader(folder, size=8, max_voxels=3000)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": (8, 8)}, {"rotate": 1.5}, {"density": "none"}, {"max_voxels": 8, "size": 16}]
)
def test_options_out_of_range(folder, options):
    with pytest.raises(ConfigError, match="data\\."):
        GridLoader(folder, **options)


def test_inspect_helps_to_choose_a_density(folder):
    row = GridLoader.inspect(folder)[0]
    assert row["W x L x H"] == [20, 16, 12]
    assert row["fourth channel"] == [-10, 8]
    assert 0.1 < row["opaque as exp"] < 0.6
    assert row["opaque as relu"] == 0
    assert GridLoader.accepts(folder)


def test_labels_of_voxels_follow_turns_flips_and_crops(folder, tmp_path):
    """Codes are made of opacity, so they must lie where the sample is opaque."""
    for number in range(4):
        grid = scene(seed=number)
        np.save(tmp_path / f"scene_{number}.npy", (grid[..., 3] > 0).astype(np.uint8))
    for size in (8, (16, 18, 24), None):
        loader = GridLoader(folder, size=size)
        for seed in range(8):
            sample = loader.read(seed % 4, generator(seed))
            codes = loader.read_labels(tmp_path, sample)
            inside = sample["valid"][0].numpy() > 0
            assert np.array_equal(codes == -1, ~inside)
            assert np.array_equal(codes[inside] == 1, sample["grid"][3].numpy()[inside] > 0.5)
    np.save(tmp_path / "scene_0.npy", np.zeros((12, 16, 20), np.uint8))
    with pytest.raises(DataError, match="whole numbers of shape"):
        loader.read_labels(tmp_path, loader.read(0))
    with pytest.raises(DataError, match="holds no codes"):
        loader.read_labels(folder, loader.read(1))
