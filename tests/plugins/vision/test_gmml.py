"""GMML's faithfulness checks, on the method."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

import maskwright as mw
from maskwright.core.build import build
from maskwright.core.encoder import unpatchify
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking
from maskwright.core.masking.groups import GroupMasking
from maskwright.core.recipe import make_recipe
from maskwright.core.sample import Batch, Meta, TensorSpec
from maskwright.core.trainer.keeper import Interrupted
from maskwright.plugins.vision.methods.gmml import Gmml, PixelHead, masked_l1
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.conftest import write_images
from tests.plugins.vision.helpers import batch_of, make
from tests.plugins.vision.helpers import keys as _keys

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "taps": (1, 2, 3)}


def _method(**options):
    return make(Gmml, **{**SMALL, **options})


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
    assert trainer["min_lr_ratio"] * trainer["base_lr"] == pytest.approx(1e-6)


# views, encoder, loss -----------------------------------------------------------------------------------------------


def test_views_are_crops_of_images_only():
    method, batch = _method(), batch_of(3, 48, 32, count=8)
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


def _caught(method, batch, keys):
    """One step: what went into the first block, what was corrupted into what and where, what the head made of it."""
    seen = {"clean": [], "corrupted": [], "hidden": []}
    corrupt = method.corrupt

    def spy(x, own, alone=False):
        corrupted, hidden = corrupt(x, own, alone)
        for name, value in (("clean", x), ("corrupted", corrupted), ("hidden", hidden)):
            seen[name].append(value)
        return corrupted, hidden

    def keep(module, inputs, output):
        output.retain_grad()
        seen["prediction"] = output

    method.corrupt = spy
    hooks = [
        method.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(first=inputs[0])),
        method.head.register_forward_hook(keep),
    ]
    step = method(batch, keys)
    step.loss.backward()
    for hook in hooks:
        hook.remove()
    return step, {name: torch.cat(value) if isinstance(value, list) else value for name, value in seen.items()}


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("views", [1, 2])
def test_all_tokens_are_encoded_and_nothing_says_where_they_were_corrupted(share, views):
    """No mask token, no mask: what goes in is a function of the corrupted pixels and of places."""
    method = _method(img_size=32, share=share, views=views)
    _, seen = _caught(method, batch_of(), _keys())
    assert seen["first"].shape == (4 * views, 1 + 16, 32)
    encoder = method.encoder
    tokens = encoder.patch_embed(encoder.tokens_of(seen["corrupted"]).values) + encoder.positions.table
    torch.testing.assert_close(seen["first"][:, 1:], tokens)
    assert torch.equal(seen["first"][:, 0], encoder.cls_token[:, 0].expand(4 * views, -1))
    assert not any("mask" in name for name in method.state_dict())


def test_gradient_at_overwritten_values_alone_over_both_views_together():
    method = _method()
    step, seen = _caught(method, batch_of(), _keys())
    hidden = method._patches(seen["hidden"][:, None].expand_as(seen["clean"]))
    error = (seen["prediction"] - method._patches(seen["clean"])).abs()
    torch.testing.assert_close(step.loss, error[hidden].mean())
    grad = seen["prediction"].grad
    assert torch.all(grad[~hidden] == 0)
    torch.testing.assert_close(grad[hidden].abs(), torch.full_like(grad[hidden], 1 / hidden.sum().item()))


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
    method, batch, keys = _method(crop_scale=None, alien_share=0), batch_of(), _keys()
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
    method, batch = _method().eval(), batch_of()
    tokens = method.encoder.tokenize(batch)
    with torch.no_grad():
        states = method.encoder.hidden_states(tokens, [0, 1, 2])
        kept = [state.clone() for state in states]
        expected = method.encoder.norm((states[0] + states[1] + states[2]) / 3)[:, 1:]
        torch.testing.assert_close(method.features(tokens), expected)
        method.encoder.hidden_states = lambda *of: states
        method.features(tokens)
    assert all(map(torch.equal, states, kept)), "the mean changes no hidden state in place"


@pytest.mark.parametrize("left_out", [6, 8, 10])
def test_every_tap_counts(left_out):
    method, batch = _method(depth=12, taps=(6, 8, 10, 12)).eval(), batch_of()
    tokens = method.encoder.tokenize(batch)
    with torch.no_grad():
        features = method.features(tokens)
        method.taps = tuple(tap for tap in method.taps if tap != left_out)
        assert (method.features(tokens) - features).abs().max() > 1e-3
    method.taps = (6, 8, 10, 12)
    cut = method.encoder.blocks[left_out].register_forward_hook(lambda module, inputs, output: output.detach())
    method.reconstruct(tokens).abs().sum().backward()
    cut.remove()
    assert method.encoder.blocks[left_out - 1].mlp.fc1.weight.grad.abs().sum() > 0, "by the short path"


def test_gradients_reach_the_first_tap_by_the_short_path():
    """Also where the blocks above pass nothing on."""
    method = _method().eval()
    tokens = method.encoder.tokenize(batch_of())
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
    batch = batch_of(*shape, count=4, name="x")
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
    method, batch, keys = _method().eval(), batch_of(), _keys()
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
        _method(align=16)(batch_of(), _keys())


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
    assert mw.load(whole).embed(batch_of()).tokens.shape == (4, 16, 96)


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
    batch = batch_of()
    x = batch["image"]
    plain, mirrored = (_method(flip=flip).view(x, _keys()) for flip in (0.0, 1.0))
    torch.testing.assert_close(plain.flip(-1), mirrored)
    with pytest.raises(ConfigError, match=r"method\.flip"):
        _method(flip=1.5)
