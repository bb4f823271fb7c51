"""GMML's faithfulness checks, on the method."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from sklearn.datasets import load_sample_images

import maskwright as mw
from maskwright.core.build import build
from maskwright.core.encoder import unpatchify
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, UnitMasking, normal, sample_keys
from maskwright.core.masking.groups import GroupMasking
from maskwright.core.recipe import make_recipe
from maskwright.core.sample import Batch, Meta, TensorSpec
from maskwright.core.trainer.keeper import Interrupted
from maskwright.plugins.vision.methods.gmml import Gmml, PixelHead, masked_l1, partners, shifted
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.conftest import write_images

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "taps": (1, 2, 3)}


def _method(**options):
    torch.manual_seed(0)
    return Gmml(**{**SMALL, **options})


def _batch(*shape, count=3, name="image", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (3, 32, 32)
    return Batch({name: torch.randn(count, *shape, generator=generator)}, [Meta(str(i)) for i in range(count)])


def _keys(count=3, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


# sizes --------------------------------------------------------------------------------------------------------------


def test_parameter_counts():
    """The published table of positions has a row for the class token, 384 numbers that are only added to it."""
    with torch.device("meta"):
        method = Gmml()
    assert sum(p.numel() for p in method.encoder.parameters()) == 21_665_664 - 384
    assert sum(p.numel() for p in method.head.parameters()) == 738_435
    assert method.taps == (6, 8, 10, 12)
    assert [round(block.residual2.drop_path, 4) for block in method.encoder.blocks][::11] == [0.0, 0.1]


def test_head_is_a_transposed_convolution():
    torch.manual_seed(0)
    head, x = PixelHead(8, 3, 16), torch.randn(2, 6, 8)
    torch.nn.init.normal_(head.bias)
    convolution = torch.nn.ConvTranspose2d(8, 3, 4, stride=4)
    with torch.no_grad():
        convolution.weight.copy_(head.patch.weight.T.unflatten(1, (3, 4, 4)))
        convolution.bias.copy_(head.bias)
        hidden = head.mlp(x)
        expected = convolution(hidden.transpose(1, 2).unflatten(2, (2, 3)))
        torch.testing.assert_close(unpatchify(head(x), Grid((2, 3)), (4, 4), 3), expected)
    assert isinstance(head.mlp[-1], torch.nn.GELU), "also after the third layer"


def test_published_optimiser_settings():
    trainer = Gmml.presets["small"]["trainer"]
    assert (trainer["base_lr"], trainer["betas"]) == (5e-4, (0.9, 0.999))
    assert (trainer["weight_decay"], trainer["weight_decay_end"]) == (0.04, 0.4)
    assert (trainer["clip_grad"], trainer["clip_tensors"]) == (3.0, True)  # each tensor by itself
    assert trainer["warmup"] * trainer["epochs"] == 10
    assert (trainer["weight_decay"], trainer["weight_decay_end"], trainer["clip_tensors"]) == (0.04, 0.4, True)
    assert trainer["min_lr_ratio"] * trainer["base_lr"] == pytest.approx(1e-6)


# corruption ---------------------------------------------------------------------------------------------------------


def _places(method, count=400, side=64, seed=0):
    """Clean, corrupted, mask, and which samples hold pixels of another one."""
    x = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, side, side).clone()
    corrupted, hidden = method.corrupt(x, _keys(count, seed))
    where = hidden[:, None]
    whole = torch.where(where, corrupted, x)
    foreign = (where & (corrupted == corrupted.round())).flatten(1).sum(1) == hidden.flatten(1).sum(1)
    return x, corrupted, hidden, whole, foreign


def test_shares_of_noise_and_alien_corruption():
    """Half of the samples each, never mixed: noise over U(0.5, 0.75) and a block, aliens over 0.3 and a block."""
    x, corrupted, hidden, _, alien = _places(_method(in_chans=1))
    assert torch.equal(x, torch.arange(400).float().view(-1, 1, 1, 1).expand(400, 1, 64, 64)), (
        "the input is not changed"
    )
    assert 0.42 < alien.float().mean() < 0.58
    share = hidden.flatten(1).float().mean(1)
    block = (18 / 64) ** 2
    assert share[~alien].min() >= 0.5
    assert share[~alien].max() < 0.75 + block
    assert 0.6 < share[~alien].mean() < 0.68
    assert share[alien].min() >= 0.3
    assert share[alien].max() < 0.3 + block
    for row in range(400):
        values = corrupted[row, 0][hidden[row]]
        assert torch.equal(corrupted[row, 0][~hidden[row]], x[row, 0][~hidden[row]])
        if alien[row]:
            assert values.unique().numel() == 1, "pixels of one other image"
        else:
            assert abs(values.mean()) < 0.1
            assert abs(values.std() - 1) < 0.1


def test_a_partner_is_never_the_image_itself():
    """A uniform draw over the batch, as in the released code, hides nothing in 1 of B alien images."""
    drawn = torch.stack([partners(_keys(4, seed)) for seed in range(600)])
    own = torch.arange(4)
    assert not (drawn == own).any()
    steps = (drawn - own) % 4
    assert torch.bincount(steps.flatten(), minlength=4)[1:].float().div(2400).sub(1 / 3).abs().max() < 0.04
    uniform = torch.randint(4, (600, 4), generator=torch.Generator().manual_seed(0))
    assert 0.2 < (uniform == own).float().mean() < 0.3
    assert partners(_keys(1)).tolist() == [0]
    _, corrupted, hidden, _, alien = _places(_method(in_chans=1), count=64)
    other = corrupted.flatten(1).gather(1, hidden.flatten(1).float().argmax(1, keepdim=True))[:, 0]
    assert (other[alien] != torch.arange(64)[alien]).all()


def test_alone_in_a_batch_it_is_noise():
    method = _method(in_chans=1)
    for seed in range(12):
        _, corrupted, hidden, _, alien = _places(method, count=1, seed=seed)
        assert not alien.any()
        assert corrupted[0, 0][hidden[0]].std() > 0.8


def test_kinds_of_fill():
    method = _method(in_chans=1, fills=("noise", "zeros", "copy"))
    x = (
        torch.arange(1.0, 32 * 32 + 1).view(1, 1, 32, 32).repeat(400, 1, 1, 1)
        + 5000 * torch.arange(400)[:, None, None, None]
    )
    corrupted, hidden = method.corrupt(x, _keys(400))
    kinds = dict.fromkeys(("zeros", "copy", "alien", "noise"), 0)
    for row in range(400):
        values = corrupted[row, 0][hidden[row]]
        own = (values > 5000 * row) & (values <= 5000 * row + 1024)
        kind = (
            "zeros" if (values == 0).all() else "copy" if own.all() else "alien" if (values % 1 == 0).all() else "noise"
        )
        kinds[kind] += 1
        if kind == "copy":
            assert (corrupted[row, 0] != x[row, 0])[hidden[row]].all(), "a shift by a whole cycle hides nothing"
    assert min(kinds.values()) > 60, f"a quarter each, not {kinds}"
    assert max(kinds.values()) < 140
    assert (_method(in_chans=1, alien_share=0).corrupt(x, _keys(400))[0] % 1 != 0).flatten(1).any(1).all()


def test_shift_is_a_cycle():
    x = torch.arange(2 * 2 * 3 * 5).float().view(2, 2, 3, 5)
    moved = shifted(x, _keys(2))
    for row in range(2):
        fits = [
            (a, b) for a in range(1, 3) for b in range(1, 5) if torch.equal(moved[row], x[row].roll((a, b), (1, 2)))
        ]
        assert len(fits) == 1


def test_noise_is_finite():
    """This key draws the largest of all uniform numbers, 1 - 2**-24; a batch of ImageNet holds several of them."""
    noise = normal(torch.tensor([-1363366138862247159]), 51_005)
    assert noise.isfinite().all()
    assert 5 < noise[0, -1] < 6


def test_corruption_belongs_to_the_key():
    method, x, keys = _method(alien_share=0), _batch(count=5)["image"], _keys(5)
    corrupted, hidden = method.corrupt(x, keys)
    again, same = method.corrupt(x[2:3], keys[2:3])
    assert torch.equal(corrupted[2:3], again)
    assert torch.equal(hidden[2:3], same)


def test_groups_of_whole_tokens_are_connected():
    """At a share of 0.3 the mean component is far larger than that of single patches (published code: 13 to 2.3)."""
    aligned = _method(align=16, patch_size=16, share=0.3)
    hidden = aligned.groups((224, 224), _keys(200), torch.zeros(200, dtype=torch.bool))
    patches = hidden.view(200, 14, 16, 14, 16)
    assert torch.equal(patches.amin((2, 4)), patches.amax((2, 4))), "whole tokens"

    def mean_size(masks):
        return np.mean([np.bincount(label(mask)[0].ravel())[1:].mean() for mask in masks])

    groups = patches[:, :, 0, :, 0].numpy()
    random = np.random.default_rng(0).permuted(groups.reshape(200, -1), axis=1).reshape(groups.shape)
    assert mean_size(groups) > 9
    assert mean_size(random) < 3.5


def test_another_masking_says_what_is_overwritten():
    method = _method(masking=UnitMasking(0.5, unit=2))
    x, keys = _batch()["image"], _keys()
    _, hidden = method.corrupt(x, keys)
    assert hidden.view(3, 2, 16, 2, 16).amin((2, 4)).sum((1, 2)).tolist() == [2, 2, 2]
    assert not _method().by_masking
    assert not _method(masking=GroupMasking(0.75)).by_masking
    assert _method(masking=GroupMasking(0.5)).by_masking
    assert _method(corruption="masking").by_masking
    with pytest.raises(ConfigError, match=r"method\.corruption=masking"):
        _method(corruption="group", masking=RandomMasking(0.5))


# views, encoder, loss -----------------------------------------------------------------------------------------------


def test_views_are_crops_of_images_only():
    method, batch = _method(), _batch(3, 48, 32, count=8)
    crops = method.view(batch["image"], _keys(8))
    assert crops.shape == batch["image"].shape
    assert not torch.allclose(crops, batch["image"], atol=0.1)
    image = torch.arange(32).float().expand(64, 1, 32, 32)
    right = (_method(in_chans=1, crop_scale=(0.5, 1.0)).view(image, _keys(64)).diff(dim=-1) > 0).float().mean((1, 2, 3))
    assert ((right > 0.9) | (right < 0.1)).all()
    assert 20 < (right < 0.1).sum() < 44, "half of them mirrored"
    assert _method(crop_scale=None).view(image, _keys(64)) is image
    series = _method(dims="C T", in_chans=2)
    assert series.view(batch["image"][:, :, 0], _keys(8)) is not None
    assert series.crop_scale is None


def _encoded(method, batch, keys):
    seen = {}
    hook = method.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    method(batch, keys)
    hook.remove()
    return seen["x"]


@pytest.mark.parametrize("share", [0.3, 0.75])
def test_all_tokens_are_encoded_whatever_the_share(share):
    """No mask token, and no sign of where it was corrupted: tokens are those of the corrupted pixels."""
    assert _encoded(_method(share=share, views=2), _batch(), _keys()).shape == (6, 1 + 16, 32)
    assert _encoded(_method(share=share, views=1), _batch(), _keys()).shape == (3, 1 + 16, 32)


def test_loss_over_overwritten_values_of_the_whole_batch_together():
    prediction = torch.randn(2, 4, 6, requires_grad=True)
    target = torch.zeros(2, 4, 6)
    hidden = torch.zeros(2, 4, 6, dtype=torch.bool)
    hidden[0, :3], hidden[1, 0, :2] = True, True
    loss = masked_l1(prediction, target, hidden)
    errors = torch.cat([prediction[0, :3].flatten(), prediction[1, 0, :2]]).abs()
    torch.testing.assert_close(loss, errors.mean())
    of_samples = (prediction[0, :3].abs().mean() + prediction[1, 0, :2].abs().mean()) / 2
    assert (loss - of_samples).abs() > 1e-3, "samples of larger masks weigh more"
    loss.backward()
    assert torch.all(prediction.grad[~hidden] == 0)
    assert torch.all(prediction.grad[hidden].abs() == 1 / 20)
    torch.testing.assert_close(masked_l1(prediction, target, None), prediction.abs().mean())


def test_target_is_the_clean_view_without_standardisation():
    """With crops off, a head that says 0 everywhere costs the mean absolute value of the clean overwritten pixels."""
    method, batch, keys = _method(crop_scale=None, alien_share=0), _batch(), _keys()
    for parameter in (method.head.patch.weight, method.head.bias):
        torch.nn.init.zeros_(parameter)
    hidden = []
    corrupt = method.corrupt

    def spy(x, own, alone=False):
        assert torch.equal(x, batch["image"])
        corrupted, where = corrupt(x, own, alone)
        hidden.append(where)
        return corrupted, where

    method.corrupt = spy
    with torch.no_grad():
        loss = method(batch, keys).loss
    clean = batch["image"].movedim(1, -1)
    torch.testing.assert_close(loss, torch.cat([clean[where] for where in hidden]).abs().mean())
    assert len(hidden) == 2
    assert not torch.equal(*hidden), "each view is corrupted on its own"
    method.masked_only = False
    with torch.no_grad():
        torch.testing.assert_close(method(batch, keys).loss, clean.abs().mean())


def test_mean_of_tapped_blocks():
    method, batch = _method().eval(), _batch()
    tokens = method.encoder.tokenize(batch)
    with torch.no_grad():
        features = method.features(tokens)
        first, second, third = method.encoder.hidden_states(tokens, [0, 1, 2])
        torch.testing.assert_close(features, method.encoder.norm((first + second + third) / 3)[:, 1:])
        again = method.features(tokens)
        assert torch.equal(features, again), "the mean changes no hidden state in place"
        method.taps = (2, 3)
        assert not torch.allclose(method.features(tokens), features, atol=1e-3)


def test_gradients_reach_the_first_tap_by_the_short_path():
    """Also where the blocks above pass nothing on."""
    method = _method().eval()
    tokens = method.encoder.tokenize(_batch())
    gradients = []
    for taps in ((1, 3), (3,)):
        method.zero_grad()
        method.taps = taps
        cut = method.encoder.blocks[1].register_forward_hook(lambda module, inputs, output: output.detach())
        method.reconstruct(tokens).abs().sum().backward()
        cut.remove()
        gradient = method.encoder.blocks[0].mlp.fc1.weight.grad
        gradients.append(0.0 if gradient is None else gradient.abs().sum().item())
    assert gradients[0] > 0
    assert gradients[1] == 0


# contract, previews, runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "patch", "shape"),
    [("C H W", 8, (3, 32, 40)), ("C T", 8, (4, 64)), ("C D H W", (4, 8, 8), (1, 16, 16, 16))],
)
def test_contract_on_one_to_three_axes(dims, patch, shape):
    options = {**SMALL, "dims": dims, "patch_size": patch, "in_chans": shape[0], "input_name": "x"}
    batch = _batch(*shape, count=4, name="x")
    check_method(lambda: Gmml(**options), batch)
    check_encoder(lambda: Gmml(**options).encoder, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"fills": ("noise", "zeros", "copy")},
        {"corruption": "masking"},
        {"masking": RandomMasking(0.5)},
        {"block": "crate"},
        {"align": 8, "max_block": 0.6, "masked_only": False},
    ],
)
def test_contract_of_its_options(options):
    check_method(lambda: Gmml(**{**SMALL, **options}), made_up_batch({"image": TensorSpec("C H W", 3)}, 4, 32))


def test_preview_pastes_the_reconstruction_where_it_was_overwritten():
    method, batch, keys = _method().eval(), _batch(), _keys()
    torch.nn.init.zeros_(method.head.patch.weight)
    torch.nn.init.constant_(method.head.bias, 7.0)
    panel = method.preview(batch, keys)["image"]
    assert 0.5 <= panel.hidden.float().mean() < 0.85
    where = panel.hidden[:, None].expand_as(panel.original)
    assert torch.all(panel.reconstruction[where] == 7)
    assert torch.equal(panel.reconstruction[~where], batch["image"][~where])


def test_clear_errors():
    with pytest.raises(ConfigError, match=r"method\.taps=\[1, 2\] must be some of the blocks 1 to 3"):
        _method(taps=(1, 2))
    with pytest.raises(ConfigError, match="blocks 1 to 3"):
        _method(taps=())
    with pytest.raises(ConfigError, match=r"method\.fills="):
        _method(fills=("alien",))
    with pytest.raises(ConfigError, match=r"method\.views=0"):
        _method(views=0)
    with pytest.raises(ConfigError, match="No block fits"):
        _method(align=16)(_batch(), _keys())


def test_pretrain_and_resume_to_equal_weights(tmp_path):
    data = write_images(tmp_path / "data", 12, 32, 3)
    settings = {"max_steps": 4, "batch_size": 4, "log_every": 1, "precision": "32", "threads": 1}
    whole = mw.pretrain("gmml", data, "tiny", tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        mw.pretrain("gmml", data, "tiny", tmp_path / "stopped", **settings, max_time="0s")
    recipe = tmp_path / "stopped" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_time: 0s", "max_time: null"))
    stopped = mw.Run.open(tmp_path / "stopped")
    assert len(stopped.metrics()) == 1
    resumed = mw.resume(stopped)
    losses = [row["loss"] for row in whole.metrics()]
    assert np.isfinite(losses).all()
    assert losses == [row["loss"] for row in resumed.metrics()]
    assert (whole.path / "previews" / "image.png").is_file()
    first, second = mw.load(whole).state_dict(), mw.load(resumed).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert mw.load(whole).embed(_batch()).tokens.shape == (3, 16, 96)


def test_the_recipe_s_masking_is_used_where_it_is_another(tmp_path):
    data = write_images(tmp_path / "data", 4, 32, 3)
    built = build(make_recipe("gmml", data, "tiny"))
    assert not built.method.by_masking
    assert not build(built.recipe).method.by_masking, "nor after the recipe was written down"
    assert build(make_recipe("gmml", data, "tiny", {"masking.name": "random"})).method.by_masking
    assert build(make_recipe("gmml", data, "tiny", {"masking.ratio": 0.5})).method.by_masking


@pytest.mark.slow
def test_groups_are_the_harder_task():
    """After equal training and at equal ratios a copy from next to a hidden patch solves less of a group (abstract)."""
    photos = [torch.tensor(photo).permute(2, 0, 1) / 127.5 - 1 for photo in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)

    def pieces(count, low, high):
        cut = []
        for number in torch.randint(2, (count,), generator=generator).tolist():
            top, left = (int(torch.randint(*span, (1,), generator=generator)) for span in ((0, 395), (low, high)))
            cut.append(photos[number][:, top : top + 32, left : left + 32])
        return Batch({"image": torch.stack(cut)}, [Meta(str(number)) for number in range(count)])

    batches, test, errors = [pieces(32, 0, 384) for _ in range(500)], pieces(256, 416, 608), {}
    for masking in (GroupMasking(0.3, max_block=0.5), RandomMasking(0.3)):
        method = _method(
            patch_size=4, embed_dim=64, views=1, crop_scale=None, alien_share=0, masking=masking, corruption="masking"
        )
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.04)
        for step, batch in enumerate(batches):
            torch.manual_seed(step)
            optimizer.zero_grad()
            method(batch, _keys(32, step)).loss.backward()
            optimizer.step()
        with torch.no_grad():
            errors[type(masking)] = method.eval()(test, _keys(256, 1000)).loss.item()
    assert errors[RandomMasking] < 0.6 * test["image"].sub(test["image"].mean()).abs().mean(), "it learns"
    assert errors[GroupMasking] > 1.1 * errors[RandomMasking]


def test_flips_can_be_left_out():
    """A view is mirrored or not, by the share that was asked for, and by nothing else."""
    batch = _batch()
    x = batch["image"]
    plain, mirrored = (_method(flip=flip).view(x, _keys()) for flip in (0.0, 1.0))
    torch.testing.assert_close(plain.flip(-1), mirrored)
    with pytest.raises(ConfigError, match=r"method\.flip"):
        _method(flip=1.5)
