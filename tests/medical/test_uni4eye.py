"""Uni4Eye, as its method sheet says."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import maskwright as mw
from maskwright.core.encoder import patchify, unpatchify
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, sample_keys
from maskwright.core.sample import Batch, Meta
from maskwright.medical.fake import fake_nifti
from maskwright.medical.methods.uni4eye import Uni4Eye, UnifiedTransformer, gradient_map
from maskwright.testing import check_encoder, check_method
from maskwright.testing.data import made_up_batch

TINY = Uni4Eye.presets["tiny"]["method"]


def _keys(count=2):
    return sample_keys(torch.Generator().manual_seed(0), count)


def _batch(name, *shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Batch({name: x}, [Meta(f"{name} {at}", group=str(at)) for at in range(len(x))])


def _numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_parameter_counts():
    with torch.device("meta"):
        method = Uni4Eye()
    assert _numbers(method) == 363_512_832
    assert _numbers(method.encoder) == 307_295_232


@pytest.mark.parametrize("kinds", [{"image_chans": 0}, {"volume_chans": 0, "image_chans": 3}])
def test_contracts(kinds):
    torch.manual_seed(0)
    method = Uni4Eye(**{**TINY, **kinds})
    batch = made_up_batch(method.inputs, size=16)
    check_method(lambda: Uni4Eye(**{**TINY, **kinds}), batch)
    check_encoder(lambda: UnifiedTransformer(patch_size=8, embed_dim=32, depth=2, num_heads=2, **kinds), batch)


def test_one_module_takes_both_kinds():
    """196 and 112 tokens; blocks are shared; neither projection hears of the other kind."""
    method = Uni4Eye(embed_dim=48, depth=1, num_heads=4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    counts, reached = {}, {}
    for name, shape in (("image", (2, 3, 224, 224)), ("volume", (2, 1, 64, 112, 64))):
        batch = _batch(name, *shape)
        counts[name] = method.encoder.tokenize(batch).grid.count
        method.zero_grad()
        method(batch, _keys()).loss.backward()
        reached[name] = {key for key, p in method.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert counts == {"image": 196, "volume": 112}
    both = reached["image"] & reached["volume"]
    assert {key for key, _ in method.encoder.blocks.named_parameters(prefix="encoder.blocks")} <= both
    assert reached["image"] - both == {
        f"{part}.{kind}"
        for part in ("encoder.patch_embed.image", "heads.pixels_image", "heads.gradient_image")
        for kind in ("weight", "bias")
    }
    assert reached["image"] - both == {key.replace("volume", "image") for key in reached["volume"] - both}


def test_losses_are_of_hidden_patches_only():
    method = Uni4Eye(**TINY)
    batch = _batch("image", 2, 3, 32, 32)
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, _keys())
    latent = method.encoder(tokens, mask)
    made = {name: method.decode(name, latent, mask, tokens.grid) for name in ("pixels", "gradient")}
    for prediction in made.values():
        prediction.retain_grad()
    decode, method.decode = method.decode, lambda target, *rest: made[target]
    step = method(batch, _keys())
    step.loss.backward()
    for prediction in made.values():
        assert not prediction.grad[~mask.hidden].any()
        assert prediction.grad[mask.hidden].abs().amin(-1).min() > 0
    # without the gradient branch the loss is less by exactly that branch's mean error over hidden patches
    with torch.no_grad():
        error = ((made["gradient"] - method.gradients(tokens)) ** 2).mean(-1)[mask.hidden].mean()
        method.gradient_weight = 0.0
        less = step.loss - method(batch, _keys()).loss
    torch.testing.assert_close(less, error)
    torch.testing.assert_close(step.terms["gradient"], error)
    method.decode = decode


def test_gradient_weight_of_zero_has_no_second_decoder():
    assert not any("gradient" in key for key in Uni4Eye(**TINY, gradient_weight=0.0).state_dict())


def test_gradient_map_equals_an_independent_sobel():
    image = torch.rand(2, 3, 20, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    smooth, slope = np.array([1.0, 4, 6, 4, 1]), np.array([-1.0, -2, 0, 2, 1])
    for one, found in zip(image.numpy(), gradient_map(image).numpy(), strict=True):
        grey = np.tensordot([0.299, 0.587, 0.114], one, 1)
        across = ndimage.correlate1d(ndimage.correlate1d(grey, slope, 1, mode="mirror"), smooth, 0, mode="mirror")
        down = ndimage.correlate1d(ndimage.correlate1d(grey, slope, 0, mode="mirror"), smooth, 1, mode="mirror")
        np.testing.assert_allclose(found[0], 0.5 * abs(across) + 0.5 * abs(down), atol=1e-9)
    volume = image[:, :1, None].expand(-1, 1, 4, -1, -1)
    torch.testing.assert_close(gradient_map(volume)[:, 0, 2], gradient_map(image[:, :1])[:, 0])


def test_gradient_map_of_simple_images():
    assert gradient_map(torch.full((1, 3, 16, 16), 0.7)).abs().max() < 1e-5
    step = torch.zeros(1, 1, 16, 16)
    step[..., 8:] = 1
    found = gradient_map(step)[0, 0]
    assert found[:, 6:10].min() > 0
    assert not found[:, :6].any()
    assert not found[:, 10:].any()
    image = torch.rand(1, 1, 16, 16)
    turned = gradient_map(image.rot90(1, (-2, -1)))
    torch.testing.assert_close(turned, gradient_map(image).rot90(1, (-2, -1)))


def test_scaled_gradients_lie_between_0_and_1():
    method, batch = Uni4Eye(**TINY), _batch("volume", 2, 1, 8, 16, 24)
    found = method.gradients(method.encoder.tokenize(batch))
    assert found.amin((1, 2)).tolist() == [0, 0]
    torch.testing.assert_close(found.amax((1, 2)), torch.ones(2))
    assert Uni4Eye(**TINY, gradient_scale="none").gradients(method.encoder.tokenize(batch)).max() > 10


@pytest.mark.parametrize(("name", "shape"), [("image", (1, 3, 32, 32)), ("volume", (1, 1, 16, 24, 32))])
def test_hidden_patches_of_one_image_differ(name, shape):
    """In the released code all position tables are zero, and these are equal."""
    torch.manual_seed(0)
    method = Uni4Eye(**TINY)
    tokens = method.encoder.tokenize(_batch(name, *shape))
    mask = method.masking(tokens.grid, _keys(1))
    made = method.decode("pixels", method.encoder(tokens, mask), mask, tokens.grid)[0, mask.masked[0]]
    assert (made[0] - made[1]).abs().max() > 1e-3
    for decoder in method.decoders.values():  # as released
        decoder.positions.add = lambda grid, index, device: torch.zeros(1, 1, 1)
    made = method.decode("pixels", method.encoder(tokens, mask), mask, tokens.grid)[0, mask.masked[0]]
    assert (made[0] - made[1]).abs().max() < 1e-5


def test_volumes_of_three_side_lengths_survive_patches():
    x = torch.randn(2, 1, 16, 24, 32)
    assert torch.equal(unpatchify(patchify(x, (8, 8, 8)), Grid((2, 3, 4)), (8, 8, 8), 1), x)


def test_a_batch_of_both_or_neither_is_refused():
    method = Uni4Eye(**TINY)
    both = Batch({"image": torch.zeros(1, 3, 16, 16), "volume": torch.zeros(1, 1, 16, 16, 16)}, [Meta("a")])
    with pytest.raises(ConfigError, match="image or volume, but the batch holds"):
        method(both, _keys(1))
    with pytest.raises(ConfigError, match="at least one"):
        Uni4Eye(**TINY, image_chans=0, volume_chans=0)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """Photographs beside volumes of other shapes."""
    folder = tmp_path_factory.mktemp("clinic")
    generator = np.random.default_rng(0)
    (folder / "fundus").mkdir()
    for number in range(9):
        wave = np.add.outer(np.sin(np.arange(48) / (2 + number)), np.cos(np.arange(40) / 5))[..., None]
        pixels = 120 + 50 * wave + generator.normal(0, 5, (48, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "fundus" / f"{number}.png")
    for number in range(5):
        fake_nifti(folder / "oct" / f"eye{number}.nii.gz", (20 + 3 * number, 24, 18), seed=number)
    return folder


MIXED = {
    "data.loader": "mixed",
    "data.parts": {"images": {"size": 32}, "volumes": {"size": [16, 16, 24], "squash": True}},
}
SHORT = {"trainer.max_steps": 14, "trainer.batch_size": 2, "trainer.log_every": 1, "trainer.workers": 0}


@pytest.fixture(scope="module")
def trained(clinic, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return mw.pretrain("uni4eye", data=clinic, preset="tiny", run=out, settings={**MIXED, **SHORT})


def test_pictures_and_volumes_train_in_turns(trained):
    losses = [row["loss"] for row in trained.metrics()]
    assert len(losses) == 14
    assert np.isfinite(losses).all()
    assert {path.name for path in (trained.path / "previews").glob("*.png")} == {"image.png", "volume.png"}
    encoder = mw.load(trained.path)
    assert encoder.embed(_batch("image", 2, 3, 32, 32)).pooled.shape == (2, 96)
    assert encoder.embed(_batch("volume", 2, 1, 16, 16, 24)).tokens.shape == (2, 12, 96)


def test_the_run_embeds_either_kind(trained, clinic, tmp_path):
    import pyarrow.parquet as pq

    for loader, settings, rows in (
        ("images", {"data.size": 32}, 9),
        ("volumes", {"data.size": [16, 16, 24], "data.squash": True}, 5),
    ):
        out = mw.embed(trained, clinic, tmp_path / f"{loader}.parquet", settings={"data.loader": loader, **settings})
        assert pq.read_table(out).num_rows == rows


def test_pictures_alone_make_a_model_of_pictures(clinic, tmp_path):
    settings = {"data.size": 32, **SHORT, "trainer.max_steps": 2}
    run = mw.pretrain("uni4eye", data=clinic / "fundus", preset="tiny", run=tmp_path / "run", settings=settings)
    assert list(mw.load(run.path).inputs) == ["image"]
    with pytest.raises(ConfigError, match='needs "image"'):
        mw.embed(run, clinic / "oct", tmp_path / "a.parquet", settings={"data.loader": "volumes", "data.size": 16})


def test_dry_run_of_both_kinds(clinic):
    forecast = mw.dry_run(mw.make_recipe("uni4eye", data=clinic, preset="tiny", settings={**MIXED, **SHORT}))
    assert forecast.sample_bytes == 4 * 16 * 16 * 24
    assert any("several kinds" in note for note in forecast.notes)
