"""`maskwright pretrain mae` on arrays, tables, series and rasters, from the files to the encoder."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import maskwright as mw
from maskwright.cli.main import run as command
from maskwright.core.build import build, open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.recipe import make_recipe
from maskwright.remote_sensing.fake import fake_s1s2, fake_scene


def _pretrain(data, out, *settings, steps=3):
    """The command line, as a user would type it; the finished run."""
    words = ["pretrain", "mae", "--data", str(data), "--preset", "tiny", "--run", str(out)]
    for setting in (*settings, f"trainer.max_steps={steps}", "trainer.precision=32", "trainer.log_every=1"):
        words += ["--set", setting]
    assert command(words) == 0
    return mw.Run.open(out)


def _check(run, loader, name, shape, tokens):
    """A finished run whose encoder takes the loader's samples."""
    losses = [row["loss"] for row in run.metrics()]
    assert len(losses) >= 3
    assert np.isfinite(losses).all()
    assert (run.path / "report.html").is_file()
    assert (run.path / "previews" / f"{name}.png").is_file(), list(run.path.iterdir())
    encoder = mw.load(run)
    sample = loader.read(1)
    assert tuple(sample[name].shape) == shape
    embedding = encoder.embed(sample)
    assert embedding.tokens.shape == (1, tokens, 96)
    assert embedding.pooled.isfinite().all()
    offset = encoder.normalizers[name].offset
    torch.testing.assert_close(offset, torch.tensor(loader.statistics()[name].mean), rtol=1e-5, atol=1e-5)


@pytest.fixture
def digits(tmp_path):
    """Scikit-learn's 1797 real digits of 8 x 8 pixels as one .npy."""
    np.save(tmp_path / "digits.npy", load_digits().images.astype(np.float32))
    return tmp_path / "digits.npy"


def test_digits(digits, tmp_path):
    run = _pretrain(digits, tmp_path / "run", "method.patch_size=2", "method.norm_pix_loss=true")
    _check(run, mw.open_data(digits), "image", (1, 8, 8), 16)
    recipe = run.recipe()
    assert recipe.data.loader == "arrays"
    assert recipe.method.options["in_chans"] == 1
    built = build(recipe)  # as resuming does
    assert built.method.encoder.inputs == mw.load(run).inputs


def test_digits_are_learned(digits, tmp_path):
    """An epoch or so brings the error of hidden pixels well below their variance, which is what their mean costs."""
    run = _pretrain(digits, tmp_path / "run", "method.patch_size=2", "trainer.lr=2e-3", steps=60)
    losses = [row["loss"] for row in run.metrics()]
    assert losses[0] > 0.9
    assert np.mean(losses[-10:]) < 0.65


def test_statlog(shared_data, tmp_path):
    path = shared_data / "remote_sensing" / "statlog_landsat_mss" / "sat.trn"
    options = {"columns": "0:36", "shape": [3, 3, 4], "axes": "H W C"}
    settings = ("data.columns=0:36", "data.shape=[3,3,4]", "data.axes=H W C", "method.patch_size=1")
    run = _pretrain(path, tmp_path / "run", *settings)
    _check(run, mw.open_data(path, "arrays", **options), "image", (4, 3, 3), 9)


def test_fuel_moisture_hides_months(shared_data, tmp_path):
    folder = shared_data / "remote_sensing" / "s1s2_fuel_moisture_timeseries"
    options = {"loader": "arrays", "array": "s1_s2_era5_srtm", "axes": "T C", "group": "site"}
    settings = [f"data.{name}={value}" for name, value in options.items()]
    run = _pretrain(folder, tmp_path / "run", *settings, "method.patch_size=1", "masking.ratio=0.5")
    loader = mw.open_data(folder, **options)
    _check(run, loader, "series", (18, 3), 3)
    built = build(run.recipe())
    batch = mw.collate([loader.read(index) for index in range(4)])
    panel = built.method.preview(batch, torch.arange(4))["series"]
    assert panel.hidden.shape == (4, 3)
    assert panel.hidden.sum(1).tolist() == [2, 2, 2, 2], "whole months, all channels of each"


def test_real_geotiffs(shared_data, tmp_path):
    folder = shared_data / "remote_sensing" / "naip_chips"
    run = _pretrain(folder, tmp_path / "run", "data.size=64", "trainer.batch_size=8")
    _check(run, mw.open_data(folder, size=64), "image", (4, 64, 64), 64)
    assert run.recipe().data.loader == "geotiff"


def test_geotiffs(tmp_path):
    (tmp_path / "scenes").mkdir()
    fake_scene(tmp_path / "scenes" / "a.tif", 128, 5)
    run = _pretrain(tmp_path / "scenes", tmp_path / "run", "data.size=32", "trainer.batch_size=4")
    _check(run, mw.open_data(tmp_path / "scenes", size=32), "image", (5, 32, 32), 16)


def test_one_sensor_of_a_pair(tmp_path):
    """Where a loader gives several inputs, the user says which; channels follow from that one."""
    fake_s1s2(tmp_path / "tiles", 2, 64)
    settings = {"data.loader": "s1s2", "data.size": 64}
    with pytest.raises(ConfigError, match=r"reads one input.*method\.input_name=optical"):
        build(make_recipe("mae", tmp_path / "tiles", "tiny", settings))
    built = build(make_recipe("mae", tmp_path / "tiles", "tiny", {**settings, "method.input_name": "sar"}))
    assert built.method.encoder.in_chans == 2
    auto = build(make_recipe("mae", tmp_path / "tiles", "tiny", {"data.size": 64, "method.input_name": "optical"}))
    assert (auto.recipe.data.loader, auto.method.encoder.in_chans) == ("s1s2", 12)
    with pytest.raises(ConfigError, match=r'needs "radar".*gives only optical, sar'):
        build(make_recipe("mae", tmp_path / "tiles", "tiny", {**settings, "method.input_name": "radar"}))


def test_methods_with_inputs_of_their_own_are_found_as_before(tmp_path, digits):
    fake_s1s2(tmp_path / "tiles", 2, 64)
    built = build(make_recipe("croma", tmp_path / "tiles", "tiny", {"data.size": 64}))
    assert built.recipe.data.loader == "s1s2"
    with pytest.raises(DataError, match=r"arrays: gives image, not optical, sar"):
        build(make_recipe("croma", digits, "tiny"))
    name, _ = open_loader(digits)
    assert name == "arrays"


def test_clear_errors(digits):
    with pytest.raises(ConfigError, match=r"built for 3 channels of \"image\", but loader \"arrays\" gives 1"):
        build(make_recipe("mae", digits, "tiny", {"method.in_chans": 3}))
    with pytest.raises(ConfigError, match=r'needs "image" with dimensions \(C T\), but loader "arrays" gives'):
        build(make_recipe("mae", digits, "tiny", {"method.dims": "C T"}))
    built = build(make_recipe("mae", digits, "tiny", {"method.patch_size": 3}))
    batch = mw.collate([built.loader.read(0), built.loader.read(1)])
    with pytest.raises(ConfigError, match="8 x 8 pixels does not divide into patches of 3 x 3"):
        built.method(batch, torch.arange(2))
