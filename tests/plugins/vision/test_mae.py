"""MAE's faithfulness checks, on the method."""

import math

import pytest
import torch

from maskwright.core.encoder import VisionTransformer, patchify, sincos
from maskwright.core.errors import ConfigError
from maskwright.core.loader import Statistics
from maskwright.core.masking import BlockMasking, ColourNoiseMasking, Grid, RandomMasking, UnitMasking
from maskwright.core.masking.hide import drop, restore, take
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.sample import Batch, Meta, TensorSpec
from maskwright.core.trainer.optim import parameter_groups
from maskwright.plugins.vision.methods.mae import Mae
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.plugins.vision.helpers import batch_of, make
from tests.plugins.vision.helpers import keys as _keys

SMALL = {
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
TRAINABLE = {"base": 111_655_680, "large": 329_239_296, "huge": 656_613_964}
TOTAL = {"base": 111_907_840, "large": 329_541_888, "huge": 657_074_508}
"""With both fixed position tables, which the published code counts as parameters."""


def _method(**options):
    return make(Mae, **{**SMALL, **options})


def _hidden_pixels(method, batch, keys):
    return method.preview(batch, keys)["image"].hidden[:, None]


# sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TRAINABLE)
def test_parameter_counts(preset):
    with torch.device("meta"):
        method = Mae(**Mae.presets[preset]["method"])
    trainable = sum(p.numel() for p in method.parameters())
    assert trainable == TRAINABLE[preset]
    tables = (1 + method.encoder.grid.count) * (method.encoder.embed_dim + method.decoder.embed.out_features)
    assert trainable + (tables if preset != "huge" else 257 * (1280 + 512)) == TOTAL[preset]


def test_base_is_the_constructors_default_and_hides_147_of_196():
    with torch.device("meta"):
        method = Mae()
    assert method.encoder.grid.shape == (14, 14)
    assert method.norm_pix_loss
    mask = method.masking(method.encoder.grid, _keys(5))
    assert mask.visible.shape == (5, 49)
    assert mask.masked.shape == (5, 147)
    assert torch.equal(mask.hidden.sum(1), torch.full((5,), 147))
    assert Mae.default_masking == {"name": "random", "ratio": 0.75}


def test_published_optimiser_settings():
    for preset in ("base", "large", "huge"):
        trainer = Mae.presets[preset]["trainer"]
        assert (trainer["base_lr"], trainer["betas"], trainer["weight_decay"]) == (1.5e-4, (0.9, 0.95), 0.05)
        assert trainer["warmup"] * trainer["epochs"] == 40
        assert 4096 / 256 * trainer["base_lr"] == pytest.approx(2.4e-3)
    groups = parameter_groups(_method(), 0.05)
    decayed = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decayed["encoder.cls_token"] == decayed["decoder.mask_token"] == 0.05
    assert decayed["encoder.norm.weight"] == decayed["encoder.patch_embed.bias"] == 0


# masking ------------------------------------------------------------------------------------------------------------


def test_restore_brings_the_original_order_back():
    mask = RandomMasking(0.75)(Grid((14, 14)), _keys(4))
    values = torch.randn(4, 196, 5)
    shuffled = torch.cat([drop(values, mask), take(values, mask.masked)], dim=1)
    assert torch.equal(take(shuffled, mask.restore), values)
    back = restore(drop(values, mask), mask, torch.zeros(5))
    assert torch.equal(back[~mask.hidden], values[~mask.hidden])
    assert torch.all(back[mask.hidden] == 0)


def test_gradient_at_hidden_patches_alone():
    method, seen = _method(), {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["prediction"] = output

    method.decoder.register_forward_hook(keep)
    batch, keys = batch_of(), _keys()
    method(batch, keys).loss.backward()
    hidden = method.masking(Grid((4, 4)), keys).hidden
    assert torch.all(seen["prediction"].grad[~hidden] == 0)
    assert torch.all(seen["prediction"].grad[hidden].abs().amax(-1) > 0)


def test_hidden_pixels_change_the_target_and_never_the_latent():
    method, batch, keys = _method(), batch_of(), _keys()
    image = batch["image"]
    changed = torch.where(_hidden_pixels(method, batch, keys), image.flip(-1) + 1, image)
    other = Batch({"image": changed}, batch.metas)
    with torch.no_grad():
        assert torch.equal(method.encode(batch, keys), method.encode(other, keys))
        assert method(batch, keys).loss != method(other, keys).loss


def test_loss_against_the_formula():
    """Unbiased variance over all values of a patch together; the mean over hidden patches of the batch."""
    method, batch, keys = _method(), batch_of(), _keys()
    patches = patchify(batch["image"], (8, 8)).double()
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, keys)
    with torch.no_grad():
        prediction, loss = method.decode(tokens, mask).double(), method(batch, keys).loss
    mean = patches.mean(-1, keepdim=True)
    variance = ((patches - mean) ** 2).sum(-1, keepdim=True) / (patches.shape[-1] - 1)
    for norm_pix, target in ((True, (patches - mean) / (variance + 1e-6).sqrt()), (False, patches)):
        method.norm_pix_loss = norm_pix
        error = ((prediction - target) ** 2).mean(-1)
        expected = (error * mask.hidden).sum() / mask.hidden.sum()
        with torch.no_grad():
            assert method(batch, keys).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss > 0


def test_blank_patches_are_no_division_by_zero():
    batch = Batch({"image": torch.full((2, 3, 32, 32), 5.0)}, [Meta("a"), Meta("b")])
    step = _method()(batch, _keys(2))
    step.loss.backward()
    assert step.loss.isfinite()


def test_the_target_is_in_network_units():
    """Physical units scaled and shifted, and the statistics with them: not a bit of difference that matters."""
    batch, keys = batch_of(), _keys()
    mean, std = [100.0, 2000.0, -3.0], [10.0, 500.0, 0.1]
    physical = batch["image"] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    other = _method(norm_pix_loss=False)
    other.encoder.fit_normalizers({"image": Statistics(mean, std, mean, mean, 1)})
    plain = _method(norm_pix_loss=False)(batch, keys).loss
    torch.testing.assert_close(other(Batch({"image": physical}, batch.metas), keys).loss, plain, rtol=1e-3, atol=0)


def test_order_of_a_patchs_values():
    """Ours is (channel, row, column), MAE's (row, column, channel); one permutation leads from one to the other."""
    image = torch.arange(2 * 4 * 4).float().view(1, 2, 4, 4)
    ours = _method(patch_size=2, in_chans=2).encoder.tokens_of(image).values
    theirs = patchify(image, (2, 2), channels_last=True)
    assert theirs[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert ours[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert torch.equal(ours.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2), theirs)


# positions, order, initialisation ----------------------------------------------------------------------------------


def test_encoder_positions_and_class_token():
    method, seen = _method(), {}
    method.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    tokens = method.encoder.tokens_of(torch.zeros(1, 3, 32, 32))
    method.encoder(tokens)
    assert torch.equal(seen["x"][:, 0], method.encoder.cls_token[:, 0]), "the class token has no position"
    table = seen["x"][0, 1:] - method.encoder.patch_embed.bias
    torch.testing.assert_close(table, sincos(Grid((4, 4)).coordinates(), 32))
    table = table.detach().view(4, 4, 32)
    torch.testing.assert_close(table[..., :16], table[:1, :, :16].expand(4, 4, 16))  # the column comes first
    torch.testing.assert_close(table[..., 16:], table[:, :1, 16:].expand(4, 4, 16))


def test_decoder_positions_go_to_all_tokens():
    method, seen = _method(), {}
    method.decoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    batch, keys = batch_of(), _keys()
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, keys)
    visible = method.encoder(tokens, mask)
    method.decoder(visible, mask, tokens.grid)
    embedded = method.decoder.embed(visible)
    table = sincos(tokens.grid.coordinates(), 16)
    torch.testing.assert_close(seen["x"][:, 0], embedded[:, 0])
    expected = method.decoder.mask_token[0, 0] + table
    for row in range(4):
        torch.testing.assert_close(seen["x"][row, 1:][mask.hidden[row]], expected[mask.hidden[row]])
        at = mask.visible[row]
        torch.testing.assert_close(seen["x"][row, 1:][at], embedded[row, 1:] + table[at])


def test_order_of_kept_patches_does_not_matter():
    from maskwright.core.masking import Mask

    method, batch = _method(masking=RandomMasking(0.5)), batch_of()
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, _keys())
    visible = mask.visible.flip(1)
    other = Mask(visible, mask.masked, torch.argsort(torch.cat([visible, mask.masked], 1), dim=1))
    with torch.no_grad():
        torch.testing.assert_close(method.decode(tokens, mask), method.decode(tokens, other), atol=1e-5, rtol=0)


def test_initialisation_of_encoder_and_decoder():
    method = _method(embed_dim=96, decoder_embed_dim=64)
    for module, width in ((method.encoder, 96), (method.decoder, 64)):
        qkv = module.blocks[0].attn.qkv
        bound = math.sqrt(6 / (4 * width))  # one (3 D, D) matrix
        assert 0.97 * bound < qkv.weight.abs().max() <= bound
        assert torch.all(qkv.bias == 0)
        assert torch.all(module.norm.weight == 1)
        assert torch.all(module.norm.bias == 0)
    bound = math.sqrt(6 / (64 + 192))
    assert 0.97 * bound < method.decoder.head.weight.abs().max() <= bound
    assert torch.all(method.decoder.head.bias == 0)
    assert torch.all(method.decoder.embed.bias == 0)
    assert method.encoder.patch_embed.bias.abs().max() > 0, "the convolution's default stays"
    assert 0.01 < method.encoder.cls_token.std() < 0.03
    assert 0.01 < method.decoder.mask_token.std() < 0.03
    assert method.encoder.norm.eps == method.decoder.norm.eps == 1e-6


# what it takes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "patch", "shape"),
    [("C H W", 8, (5, 32, 48)), ("C T", 1, (18, 12)), ("C T", (4,), (2, 32)), ("C D H W", (2, 4, 4), (1, 8, 16, 16))],
)
@pytest.mark.parametrize("norm_pix", [False, True])
def test_contract_on_one_to_three_axes(dims, patch, shape, norm_pix):
    options = {
        **SMALL,
        "dims": dims,
        "patch_size": patch,
        "in_chans": shape[0],
        "input_name": "x",
        "norm_pix_loss": norm_pix,
    }
    batch = batch_of(*shape, count=4, name="x")
    check_method(lambda: Mae(**options), batch)
    if not norm_pix:
        check_encoder(lambda: Mae(**options).encoder, batch)


@pytest.mark.parametrize("masking", [ColourNoiseMasking(0.75, "red"), BlockMasking(0.6), UnitMasking(0.6)])
def test_any_masking_works(masking):
    assert _method(masking=masking)(batch_of(), _keys()).loss.isfinite()


def test_any_size_is_taken_whatever_was_written_down():
    method = _method(img_size=64)
    for side in (8, 24, 64, 96):
        embedding = method.encoder.embed(batch_of(3, side, 32))
        assert embedding.tokens.shape == (4, side // 8 * 4, 32)


def test_pooled_is_the_mean_or_the_class_token():
    batch = batch_of()
    mean, token = _method().encoder, _method(pool="token").encoder
    torch.testing.assert_close(mean.embed(batch).pooled, mean.embed(batch).tokens.mean(1))
    with torch.no_grad():
        torch.testing.assert_close(token.embed(batch).pooled, token.eval()(token.tokenize(batch))[:, 0])


def test_options_follow_from_the_one_input_that_can_be_used():
    series = {"series": TensorSpec("C T", tuple("abc"))}
    assert Mae.options_for(series) == {"input_name": "series", "dims": "C T", "in_chans": 3}
    points = {"points": TensorSpec("N C", 3), "volume": TensorSpec("C D H W")}
    assert Mae.options_for(points) == {"input_name": "volume", "dims": "C D H W"}
    with pytest.raises(ConfigError, match=r"several|one input.*method.input_name=optical"):
        Mae.options_for({"optical": TensorSpec("C H W", 12), "sar": TensorSpec("C H W", 2)})
    with pytest.raises(ConfigError, match=r"C T or C H W or C D H W.*points \(N C\)"):
        Mae.options_for({"points": TensorSpec("N C", 3)})


def test_clear_errors():
    with pytest.raises(ConfigError, match=r"norm_pix_loss=false"):
        _method(dims="C T", patch_size=1, in_chans=1)
    with pytest.raises(ConfigError, match=r"method\.patch_size=\(4, 4\) does not fit an input \(C T\)"):
        _method(dims="C T", patch_size=(4, 4))
    with pytest.raises(ConfigError, match=r"method\.img_size=0"):
        _method(img_size=0)
    with pytest.raises(ConfigError, match="does not divide into patches of 8 x 8"):
        _method()(batch_of(3, 30, 32), _keys())
    with pytest.raises(ConfigError, match="built for 3 channels, but the input has 4"):
        _method()(batch_of(4, 32, 32), _keys())
    with pytest.raises(ConfigError, match="none of C T"):
        _method(dims="N C")


def test_preview_uses_no_statistic_of_hidden_pixels():
    method, batch, keys = _method(), batch_of(), _keys()
    hidden = _hidden_pixels(method, batch, keys)
    changed = Batch({"image": torch.where(hidden, 9.0, batch["image"])}, batch.metas)
    before, after = (method.preview(b, keys)["image"].reconstruction for b in (batch, changed))
    where = hidden.expand_as(before)
    assert torch.equal(before[where], after[where])
    torch.testing.assert_close(before[~where], batch["image"][~where])


def test_statistics_of_neighbours():
    """Alike patches have just these statistics; of two halves, each hidden patch takes after its own side."""
    grid = Grid((6, 6))
    mask = RandomMasking(0.5)(grid, _keys(2))
    mean, std = visible_patch_statistics(torch.full((2, 36, 10), 3.0), mask, grid)
    torch.testing.assert_close(mean, torch.full((2, 36, 1), 3.0))
    torch.testing.assert_close(std, torch.zeros(2, 36, 1))
    left = (torch.arange(36) % 6 < 3).float()
    mean, _ = visible_patch_statistics(left[None, :, None].expand(2, 36, 4), mask, grid)
    edges = mean[:, :, 0].view(2, 6, 6)
    assert edges[..., 0].mean() > 0.6 > 0.4 > edges[..., 5].mean()


def test_training_reconstructs_waves():
    """After the plateau at their mean, which every MAE knows, waves are told from half of their patches."""
    torch.manual_seed(0)
    options = {**Mae.presets["tiny"]["method"], "in_chans": 1, "embed_dim": 64, "depth": 1, "decoder_depth": 1}
    method = Mae(**options, masking=RandomMasking(0.5))
    y, x = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 6, 32), indexing="ij")
    phase = torch.linspace(0, 6, 16)[:, None, None]
    batch = Batch({"image": torch.sin(x + y + phase)[:, None]}, [Meta(str(i)) for i in range(16)])
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for step in range(500):
        loss = method(batch, _keys(16, step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    variance = batch["image"].var().item()
    assert losses[0] > 0.9 * variance
    assert sum(losses[-5:]) / 5 < 0.15 * variance


def test_encoder_is_the_cores_transformer():
    """So that a run's encoder loads wherever maskwright is installed."""
    assert type(_method().encoder) is VisionTransformer
    batch = made_up_batch(_method().inputs, 2, 32)
    assert _method().encoder.embed(batch).pooled.shape == (2, 32)
