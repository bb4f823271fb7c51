"""CAE: checks of its paper and code."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import maskwright as mw
from maskwright.core.encoder import sincos
from maskwright.core.encoder.regressor import LatentRegressor, RegressorBlock
from maskwright.core.errors import ConfigError
from maskwright.core.masking import BeitBlockMasking, Grid, Mask, RandomMasking
from maskwright.core.masking.hide import take
from maskwright.core.objective import standardise_patches
from maskwright.core.objective.visible import visible_patch_statistics
from maskwright.core.sample import Batch, Meta
from maskwright.core.trainer.keeper import Interrupted
from maskwright.core.trainer.optim import parameter_groups
from maskwright.plugins.vision.methods.cae import Cae, exchanged
from maskwright.testing import check_method
from maskwright.testing.data import BatchLoader
from tests.plugins.vision.helpers import ENCODER, gradients, images, keys, make, parameters

SMALL = {**ENCODER, "regressor_depth": 2, "decoder_depth": 2, "vocabulary": 8}


def _cae(**options):
    """A small CAE whose codes were made from the batch of `images()`."""
    method = make(Cae, **{**SMALL, **options})
    method.prepare(BatchLoader(images(), method.inputs), torch.Generator().manual_seed(1))
    return method


def _parts(method, batch=None):
    batch = batch or images()
    tokens = method.encoder.tokenize(batch)
    return batch, tokens, method.masking(tokens.grid, keys(len(batch)))


# sizes --------------------------------------------------------------------------------------------------------------


def test_parameter_counts_of_base():
    with torch.device("meta"):
        method = Cae(**Cae.presets["base"]["method"])
    token = method.regressor.mask_token.numel()
    assert parameters(method.encoder) == 85_656_576
    assert parameters(method.regressor) - token == 28_368_384
    assert parameters(method.decoder) == 34_655_744
    assert token == 768
    assert parameters(method) == 148_681_472


def test_tokens_that_each_part_sees():
    with torch.device("meta"):
        method = Cae(embed_dim=12, depth=1, num_heads=2, target="pixels")
    method = method.to_empty(device="cpu")
    seen = {"encoder": [], "decoder": [], "regressor": []}
    method.encoder.blocks[0].register_forward_pre_hook(lambda _, x: seen["encoder"].append(x[0].shape[1]))
    method.decoder.blocks[0].register_forward_pre_hook(lambda _, x: seen["decoder"].append(x[0].shape[1]))
    method.regressor.blocks[0].register_forward_pre_hook(lambda _, x: seen["regressor"].append(x[1].shape[1]))
    batch = Batch({"image": torch.zeros(1, 3, 224, 224)}, [Meta("0")])
    _, tokens, mask = _parts(method, batch)
    method.decoder(method.regress(tokens, mask), mask, tokens.grid)
    method.representations(batch, tokens, mask)
    assert seen == {"encoder": [99, 99], "decoder": [98], "regressor": [98 + 98]}


def test_published_settings():
    for preset, epochs, warmup in (("base", 800, 20), ("large", 1600, 40)):
        trainer = Cae.presets[preset]["trainer"]
        assert trainer["base_lr"] * 2048 / 256 == pytest.approx(1.5e-3)
        assert (trainer["epochs"], trainer["warmup"] * trainer["epochs"]) == (epochs, warmup)
        assert trainer["min_lr_ratio"] * 1.5e-3 == pytest.approx(1e-5)
        assert (trainer["clip_grad"], trainer["weight_decay"], trainer["betas"]) == (3.0, 0.05, (0.9, 0.999))
    groups = parameter_groups(_cae(), 0.05)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay["encoder.cls_token"] == decay["regressor.mask_token"] == 0.05
    assert decay["regressor.blocks.0.residual1.gamma"] == decay["encoder.blocks.0.attn.q_bias"] == 0
    with torch.device("meta"):
        large = Cae(**Cae.presets["large"]["method"])
    assert large.encoder.options["layer_scale"] == 1e-5
    assert large.regressor.blocks[0].num_heads == 16
    assert [block.residual1.drop_path for block in large.decoder.blocks] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


def test_options_of_the_decoder_reach_the_modules():
    """In the released code its heads, its layer scale and its classes are read and never passed on."""
    method = make(
        Cae, **{**SMALL, "decoder_num_heads": 2, "decoder_layer_scale": 0.3, "decoder_embed_dim": 24, "vocabulary": 11}
    )
    for block in method.regressor.blocks:
        assert block.num_heads == 2
        assert torch.all(block.residual1.gamma == 0.3)
    for block in method.decoder.blocks:
        assert block.attn.num_heads == 2
        assert torch.all(block.residual2.gamma == 0.3)
    assert method.decoder.head.weight.shape == (11, 24)
    assert torch.all(method.encoder.blocks[0].residual1.gamma == 0.1)
    assert method.encoder.blocks[0].attn.num_heads == 4


def test_initialisation():
    method = _cae(embed_dim=96)
    block, regressor = method.encoder.blocks[0], method.regressor.blocks[0]
    for weight, fan in ((block.attn.qkv.weight, 4 * 96), (regressor.q.weight, 2 * 96), (block.mlp.fc1.weight, 5 * 96)):
        bound = math.sqrt(6 / fan)
        assert 0.97 * bound < weight.abs().max() <= bound
    for parameter in (method.encoder.patch_embed.weight, method.encoder.cls_token, method.regressor.mask_token):
        assert 0.018 < parameter.abs().max() <= 0.02
        assert parameter.std() > 0.008
    assert method.encoder.patch_embed.bias.abs().max() == block.attn.q_bias.abs().max() == 0
    assert regressor.k.bias is None
    assert torch.all(regressor.residual2.gamma == 0.1)
    assert torch.all(method.decoder.blocks[1].residual1.gamma == 0.1)


# the regressor -------------------------------------------------------------------------------------------------------


def _attention(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def test_regressor_block_against_the_formula():
    torch.manual_seed(0)
    block = RegressorBlock(16, 4, layer_scale=0.3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, c = torch.randn(2, 5, 16).double(), torch.randn(2, 9, 16).double()
    p, r = torch.randn(2, 5, 16).double(), torch.randn(2, 9, 16).double()
    attended = _attention(
        block.q(block.norm_q(x + p)), block.norm_k(c + r) @ block.k.weight.T, block.v(block.norm_v(c)), 4
    )
    y = block.norm(x + block.residual1.gamma * block.proj(attended))
    expected = y + block.residual2.gamma * block.mlp(y)  # the stream itself is normalised before the MLP
    torch.testing.assert_close(block(x, c, p, r), expected)


def test_regressor_queries_are_one_token_and_see_each_other():
    torch.manual_seed(0)
    regressor = LatentRegressor(16, 16, depth=2, num_heads=2).eval()
    grid, seen = Grid((4, 4)), []
    mask = RandomMasking(0.5)(grid, keys(2))
    for block in regressor.blocks:
        block.register_forward_pre_hook(lambda _, x: seen.append(x))
    visible = torch.randn(2, 8, 16)
    regressor(visible, mask, grid)
    (x, context, here, everywhere), (later, later_context, *_) = seen
    assert torch.equal(x, regressor.mask_token.expand(2, 8, 16))
    assert torch.equal(context, torch.cat([visible, x], 1))
    assert torch.equal(later_context, torch.cat([visible, later], 1)), "visible features stay, hidden ones move"
    table = sincos(grid.coordinates(), 16)
    assert torch.equal(here, table[mask.masked])
    assert torch.equal(everywhere, table[torch.cat([mask.visible, mask.masked], 1)])


def test_class_token_is_neither_given_to_the_regressor_nor_in_the_target():
    method = _cae().eval()
    batch, tokens, mask = _parts(method)
    before = method.regress(tokens, mask), method.representations(batch, tokens, mask)

    def disturb(module, inputs, output):
        return torch.cat([torch.randn_like(output[:, :1]), output[:, 1:]], dim=1)

    hook = method.encoder.register_forward_hook(disturb)
    after = method.regress(tokens, mask), method.representations(batch, tokens, mask)
    hook.remove()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert method(batch, keys()).loss.requires_grad
    assert gradients(method(batch, keys()).loss, method)["encoder.cls_token"].abs().sum() > 0, "by attention alone"


# the decoder ---------------------------------------------------------------------------------------------------------


def test_visible_patches_reach_the_decoder_through_the_regressor_alone():
    method = _cae().eval()
    batch, tokens, mask = _parts(method)
    image = batch["image"].clone().requires_grad_()
    tokens = method.encoder.tokens_of(image)
    latent = method.regress(tokens, mask)
    through = torch.autograd.grad(
        method.decoder(latent, mask, tokens.grid).square().sum(), image, retain_graph=True, allow_unused=True
    )
    assert through[0].abs().sum() > 0
    logits = method.decoder(latent.detach(), mask, tokens.grid)
    assert torch.autograd.grad(logits.square().sum(), image, allow_unused=True) == (None,)
    fixed = latent.detach()
    hook = method.regressor.register_forward_hook(lambda *_: fixed)
    other = method.encoder.tokens_of(torch.randn_like(image))
    same = method.decoder(method.regress(other, mask), mask, tokens.grid)
    hook.remove()
    assert torch.equal(same, logits)
    assert not torch.equal(method.decoder(method.regress(other, mask), mask, tokens.grid), logits)


def test_positions_are_added_once_before_the_decoder():
    method, seen = _cae().eval(), []
    _, tokens, mask = _parts(method)
    for block in method.decoder.blocks:
        block.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    latent = method.regress(tokens, mask)
    method.decoder(latent, mask, tokens.grid)
    table = method.decoder.positions.add(tokens.grid, None, latent.device)[0]
    assert torch.equal(seen[0][0], latent + table[mask.masked])
    assert torch.equal(seen[1][0], seen[0][1])


def test_permuting_hidden_patches_permutes_the_logits():
    method = _cae().eval()
    _, tokens, mask = _parts(method)
    order = torch.randperm(mask.masked.shape[1], generator=torch.Generator().manual_seed(0))
    masked = mask.masked[:, order]
    other = Mask(mask.visible, masked, torch.argsort(torch.cat([mask.visible, masked], 1), dim=1))
    with torch.no_grad():
        logits = method.decoder(method.regress(tokens, mask), mask, tokens.grid)
        permuted = method.decoder(method.regress(tokens, other), other, tokens.grid)
    torch.testing.assert_close(permuted, logits[:, order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(permuted, logits, atol=1e-3)


# losses --------------------------------------------------------------------------------------------------------------


def test_loss_against_the_formula():
    method = _cae(drop_path=0.0)
    batch, tokens, mask = _parts(method)
    with torch.no_grad():
        step = method(batch, keys())
        latent = method.regress(tokens, mask)
        logits = method.decoder(latent, mask, tokens.grid)
        target = method.encoder(tokens, exchanged(mask))[:, 1:]
    patches = take(tokens.values, mask.masked)
    centred = patches - patches.mean(-1, keepdim=True)
    codes = torch.cdist(centred, method.tokenizer.centres).argmin(-1)
    entropy = -logits.log_softmax(-1).gather(-1, codes[..., None]).mean()
    alignment = ((latent - target) ** 2).mean()
    torch.testing.assert_close(step.terms["reconstruction"], entropy)
    torch.testing.assert_close(step.terms["alignment"], alignment)
    torch.testing.assert_close(step.loss, entropy + 2 * alignment)
    torch.testing.assert_close(step.terms["accuracy"], (logits.argmax(-1) == codes).float().mean())


def test_pixels_as_target():
    method = _cae(target="pixels", alignment_weight=0)
    method.eval()
    batch, tokens, mask = _parts(method)
    with torch.no_grad():
        step = method(batch, keys())
        prediction = method.decoder(method.regress(tokens, mask), mask, tokens.grid)
    expected = F.mse_loss(prediction, standardise_patches(take(tokens.values, mask.masked)))
    torch.testing.assert_close(step.loss, expected)
    assert set(step.terms) == {"reconstruction"}
    assert method.notes == []


def test_reports_name_the_tokenizer():
    method = _cae()
    codes = method.tokenizer.vocabulary
    assert method.notes == [f"Targets are codes of k-means over the data's own patches, {codes} codes."]


def test_the_alignment_target_is_a_constant():
    """No gradient goes into the hidden patches, and the encoder's is that of a target put down as numbers."""
    method = _cae().eval()
    image = images()["image"].requires_grad_()
    batch = Batch({"image": image}, [Meta(str(i)) for i in range(4)])
    _, tokens, mask = _parts(method, batch)
    latent = method.regress(tokens, mask)
    loss = method.alignment(batch, tokens, mask, latent)
    (into,) = torch.autograd.grad(loss, image, retain_graph=True)
    per_token = method.encoder.tokens_of(into).values.abs().sum(-1)
    assert torch.all(per_token[mask.hidden] == 0)
    assert torch.all(per_token[~mask.hidden] > 0)
    constant = method.representations(batch, tokens, mask).clone()
    assert not constant.requires_grad
    found = gradients(loss, method.encoder)
    expected = gradients(F.mse_loss(method.regress(tokens, mask), constant), method.encoder)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert found["patch_embed.weight"].abs().sum() > 0


def test_the_alignment_target_is_of_the_hidden_patches_alone():
    """Of these and the class token, not of the whole image."""
    method = _cae().eval()
    batch, tokens, mask = _parts(method)
    target = method.representations(batch, tokens, mask)
    for where, same in ((~mask.hidden, True), (mask.hidden, False)):
        values = torch.where(where[..., None], tokens.values + 1, tokens.values)
        assert torch.equal(method.representations(batch, type(tokens)(values, tokens.grid), mask), target) == same
    with torch.no_grad():
        whole = take(method.encoder(tokens)[:, 1:], mask.masked)
    assert (target - whole).abs().max() > 0.01


def test_without_weight_there_is_no_alignment():
    method = _cae(alignment_weight=0, drop_path=0.0)
    method.representations = None  # is not called
    batch, tokens, mask = _parts(method)
    step = method(batch, keys())
    assert "alignment" not in step.terms
    alone, _ = method.reconstruction(
        batch, tokens, mask, method.decoder(method.regress(tokens, mask), mask, tokens.grid)
    )
    found, expected = gradients(step.loss, method), gradients(alone, method)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    other = _cae(drop_path=0.0)
    differs = gradients(other(batch, keys()).loss, other)
    assert not torch.equal(differs["encoder.patch_embed.weight"], found["encoder.patch_embed.weight"])


def test_target_has_no_drop_path():
    """Stochastic depth in the target branch, as released, gives one image another target at every step."""
    method = _cae(drop_path=0.5).train()
    batch, tokens, mask = _parts(method)
    targets, released = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        targets.append(method.representations(batch, tokens, mask))
        with torch.no_grad():
            released.append(method.encoder(tokens, exchanged(mask))[:, 1:])
    assert torch.equal(*targets)
    assert (released[0] - released[1]).abs().max() > 0.01
    assert all(module.training for module in method.modules() if module is not method.teacher)
    method.eval()
    assert torch.equal(method.representations(batch, tokens, mask), targets[0])
    assert not method.encoder.training


def test_the_encoder_as_its_own_teacher_is_no_second_copy():
    method = _cae()
    assert method.teacher is None
    assert {name.split(".")[0] for name in method.state_dict()} == {"encoder", "tokenizer", "regressor", "decoder"}
    batch, tokens, mask = _parts(method)
    before = method.representations(batch, tokens, mask)
    with torch.no_grad():
        method.encoder.norm.bias += 1
    torch.testing.assert_close(method.representations(batch, tokens, mask), before + 1)


def test_exchanged_mask():
    mask = RandomMasking(0.7)(Grid((5, 4)), keys(3))
    other = exchanged(mask)
    assert torch.equal(other.hidden, ~mask.hidden)
    assert torch.equal(torch.cat([other.visible, other.masked], 1).gather(1, other.restore)[0], torch.arange(20))
    assert torch.equal(exchanged(other).restore, mask.restore)


def test_blocks_are_hidden_that_hang_together():
    """Each mask has exactly 98 of 196; the largest connected piece of it is far larger than of random masks."""
    from scipy.ndimage import label

    def largest(masking):
        hidden = masking(Grid((14, 14)), keys(64)).hidden.view(-1, 14, 14).numpy()
        assert (hidden.sum((1, 2)) == 98).all()
        return np.mean([np.bincount(label(one)[0].ravel())[1:].max() for one in hidden])

    assert type(Cae.made_masking()) is BeitBlockMasking
    assert Cae.default_masking["ratio"] == 0.5
    assert largest(Cae.made_masking()) > 1.5 * largest(RandomMasking(0.5))


# what it takes -------------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"target": "pixels"},
    {"teacher": "ema"},
    {"alignment_weight": 0},
    {"decoder_embed_dim": 24, "decoder_num_heads": 2},
    {"block": "crate"},
    {"positions": "rope"},
    {"decoder_layer_scale": None, "layer_scale": None, "qkv_bias": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract(options):
    check_method(lambda: make(Cae, **{**SMALL, **options}), images())


@pytest.mark.parametrize(("dims", "patch", "shape"), [("C T", 4, (2, 32)), ("C D H W", 4, (1, 8, 8, 16))])
def test_contract_on_series_and_volumes(dims, patch, shape):
    batch = Batch({"x": torch.randn(4, *shape)}, [Meta(str(i)) for i in range(4)])
    options = {"dims": dims, "patch_size": patch, "in_chans": shape[0], "input_name": "x"}
    check_method(lambda: make(Cae, **{**SMALL, **options}, masking=RandomMasking(0.5)), batch)


def test_preview_shows_the_most_likely_code_on_its_neighbours_mean():
    method = _cae().eval()
    _, tokens, mask = _parts(method)
    with torch.no_grad():
        values = method.predict(tokens, mask)
        codes = method.decoder(method.regress(tokens, mask), mask, tokens.grid).argmax(-1)
    mean, _ = visible_patch_statistics(tokens.values, mask, tokens.grid)
    expected = method.tokenizer.centres[codes] + take(mean, mask.masked)
    torch.testing.assert_close(take(values, mask.masked), expected)
    torch.testing.assert_close(take(values, mask.visible), take(tokens.values, mask.visible))


def test_moving_average_as_teacher():
    method = _cae(teacher="ema", ema_decay=0.9)
    batch, tokens, mask = _parts(method)
    before = method.representations(batch, tokens, mask)
    own = method.encoder.eval()(tokens, exchanged(mask))[:, 1:]
    torch.testing.assert_close(before, own)
    with torch.no_grad():
        method.encoder.norm.bias += 1
    assert torch.equal(method.representations(batch, tokens, mask), before)
    method.after_step(0, 10)
    torch.testing.assert_close(method.representations(batch, tokens, mask), before + 0.1)
    disturbed = torch.where(mask.hidden[..., None], tokens.values, tokens.values + 1)
    again = method.representations(batch, type(tokens)(disturbed, tokens.grid), mask)
    torch.testing.assert_close(again, before + 0.1)  # it sees the hidden patches alone


def test_clear_errors():
    with pytest.raises(ConfigError, match=r"larger method\.patch_size"):
        make(Cae, **{**SMALL, "dims": "C T", "patch_size": 1, "in_chans": 1})
    with pytest.raises(ConfigError, match=r"larger method\.patch_size"):
        make(Cae, **{**SMALL, "dims": "C T", "patch_size": 1, "in_chans": 1, "target": "pixels"})
    with pytest.raises(ConfigError, match="neither tokens nor pixels"):
        make(Cae, **SMALL, target="words")
    with pytest.raises(ConfigError, match="alignment_weight=-1 must be 0 or more"):
        make(Cae, **SMALL, alignment_weight=-1)
    with pytest.raises(ConfigError, match="needs one block or more, not 0"):
        make(Cae, **{**SMALL, "regressor_depth": 0})
    with pytest.raises(ConfigError, match=r"none is hidden\. Raise masking\.ratio"):
        _cae(masking=RandomMasking(0.0))(images(), keys())
    with pytest.raises(ConfigError, match=r"call method\.prepare"):
        make(Cae, **SMALL)(images(), keys())
    with pytest.raises(ConfigError, match=r"800 codes cannot be made from 64 different patches.*method\.vocabulary=8"):
        _cae(vocabulary=800)


# runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(24, 3, 32, 32)).astype(np.float32) * 4 + 2)
    return path


def test_a_run_and_a_resumed_one_end_with_equal_weights(data, tmp_path):
    common = {"preset": "tiny", "settings": ["method.drop_path=0.1"], "precision": "32", "batch_size": 8, "epochs": 2}
    whole = mw.pretrain("cae", data, run=tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        mw.pretrain("cae", data, run=tmp_path / "part", **common, max_time="0s")
    recipe = tmp_path / "part" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_time: 0s", "max_time: null"))
    resumed = mw.resume(tmp_path / "part")
    first, second = (mw.load(run).state_dict() for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [row["loss"] for row in whole.metrics()]
    assert np.isfinite(losses).all()
    assert (whole.path / "previews" / "image.png").is_file()
    assert mw.load(whole).embed(images()).pooled.shape == (4, 96)


def test_a_frozen_run_as_teacher(data, tmp_path):
    """Of another width, which a linear layer makes up for; it scales the input by statistics of its own."""
    options = {**ENCODER, "embed_dim": 48, "depth": 2}
    settings = [f"method.{name}={value}" for name, value in options.items()]
    run = mw.pretrain("cae", data, run=tmp_path / "run", settings=[*settings, "method.vocabulary=8"], max_steps=1)
    method = _cae(teacher=str(run.path))
    assert method.to_teacher.out_features == 48
    batch, tokens, mask = _parts(method)
    encoder = mw.load(run)
    with torch.no_grad():
        expected = encoder(encoder.tokenize(batch), exchanged(mask))[:, 1:]
    torch.testing.assert_close(method.representations(batch, tokens, mask), expected)
    check_method(lambda: make(Cae, **SMALL, teacher=str(run.path)), images())
    same = _cae(teacher=str(run.path), decoder_embed_dim=48)
    assert isinstance(same.to_teacher, torch.nn.Identity)
    assert same(batch, keys()).loss.isfinite()


def test_an_outside_model_as_teacher():
    pytest.importorskip("timm")
    teacher = "timm:vit_tiny_patch16_224,depth=1,pretrained=false,img_size=32,patch_size=8"
    method = _cae(teacher=teacher)
    batch, tokens, mask = _parts(method)
    everything = method.teacher.encoder.embed_batch(batch).tokens
    torch.testing.assert_close(method.representations(batch, tokens, mask), take(everything, mask.masked))
    step = method(batch, keys())
    step.loss.backward()
    assert method.to_teacher.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.teacher.parameters())
