"""CRATE-MAE: checks of its paper and code."""

import math

import numpy as np
import pytest
import torch

from maskwright.core.build import build
from maskwright.core.encoder import sincos
from maskwright.core.errors import ConfigError
from maskwright.core.masking import RandomMasking
from maskwright.core.recipe import make_recipe
from maskwright.plugins.vision.methods.crate_mae import CrateMae
from maskwright.plugins.vision.methods.mae import Mae
from maskwright.testing import check_method
from tests.plugins.vision.helpers import ENCODER, images, keys, make, parameters

SIZES = {  # width, depth, heads: trainable weights of the released code, and those with its two frozen tables
    "tiny": (384, 12, 6, 11_404_032, 11_555_328),
    "small": (576, 12, 12, 25_178_880, 25_405_824),
    "base": (768, 12, 12, 44_335_872, 44_638_464),
    "large": (1024, 24, 16, 153_871_104, 154_274_560),
}


def _crate(**options):
    return make(CrateMae, **{**ENCODER, **options})


@pytest.mark.parametrize("options", [{}, {"norm_pix_loss": True}, {"block": "transformer"}])
def test_the_contract(options):
    check_method(lambda: _crate(**options), images())


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    width, depth, heads, trainable, total = SIZES[size]
    with torch.device("meta"):
        method = CrateMae(embed_dim=width, depth=depth, num_heads=heads)
    unused = width**2 + width  # a linear layer before the decoder, which the released code counts and never calls
    assert parameters(method) + unused == trainable
    assert trainable + 2 * 197 * width == total
    if size != "tiny":  # ours is smaller
        with torch.device("meta"):
            assert parameters(CrateMae(**CrateMae.presets[size]["method"])) == parameters(method)


def test_a_third_of_an_equally_wide_mae():
    with torch.device("meta"):
        mae = Mae(decoder_embed_dim=768, decoder_depth=8)
    with_tables = parameters(mae) + 2 * 197 * 768
    assert with_tables == 143_836_416
    assert round(44_638_464 / with_tables, 3) == 0.310
    biases = sum(p.numel() for name, p in mae.named_parameters() if name.endswith("qkv.bias"))
    assert with_tables - biases == 143_790_336, "the repository's own constructor leaves these out"


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_the_encoder_sees_all_tokens(ratio):
    method = _crate(masking=RandomMasking(ratio))
    lengths = []
    method.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    method(images(), keys())
    assert lengths == [1 + 16]


def test_mask_tokens_come_before_the_encoder_and_positions_go_to_all():
    method, seen = _crate(), {}
    method.encoder.blocks[0].register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    method.decoder.register_forward_pre_hook(lambda _, x: seen.update(decoder=x[0]))
    method.encoder.register_forward_hook(lambda _, __, out: seen.update(encoded=out))
    tokens = method.encoder.tokenize(images())
    mask = method.masking(tokens.grid, keys())
    method(images(), keys())
    table = sincos(tokens.grid.coordinates(), 32)
    patches = torch.where(mask.hidden[..., None], method.mask_token, method.encoder.patch_embed(tokens.values))
    torch.testing.assert_close(seen["x"][:, 1:], patches + table)
    assert torch.equal(seen["x"][:, 0], method.encoder.cls_token[:, 0].expand(4, -1)), "its row of the table is zero"
    assert torch.equal(seen["decoder"], seen["encoded"]), "nothing lies between encoder and decoder"
    assert len(method.decoder) == len(method.encoder.blocks)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_of_hidden_patches_against_the_formula(norm_pix):
    method, seen = _crate(norm_pix_loss=norm_pix), {}

    def keep(module, inputs, output):
        output.retain_grad()
        seen["prediction"] = output

    method.head.register_forward_hook(keep)
    loss = method(images(), keys()).loss
    loss.backward()
    prediction = seen["prediction"]
    assert prediction.shape == (4, 16, 192), "without the class token"
    tokens = method.encoder.tokenize(images())
    hidden, target = method.masking(tokens.grid, keys()).hidden, tokens.values
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(loss, ((prediction - target) ** 2).mean(-1)[hidden].mean())
    assert torch.all(prediction.grad[~hidden] == 0)
    assert torch.all(prediction.grad[hidden].abs().amax(-1) > 0)


def test_every_block_of_the_encoder_is_sparse_and_none_of_the_decoder():
    method, encoder, decoder = _crate(), [], []
    for blocks, found in ((method.encoder.blocks, encoder), (method.decoder, decoder)):
        for block in blocks:
            block.register_forward_hook(lambda _, __, out, found=found: found.append(out))
    method(images(), keys())
    assert len(encoder) == len(decoder) == 4
    for out in encoder:
        assert out.min() == 0
        assert 0.2 < (out == 0).float().mean() < 0.8
    for out in decoder:
        assert out.min() < 0
        assert (out != 0).all()


def test_initialisation_and_defaults():
    method = _crate(embed_dim=96)
    assert not method.norm_pix_loss
    for block in method.decoder:
        bound = math.sqrt(6 / 96)
        assert 0.98 * bound < block.dictionary.abs().max() <= bound
        for linear in (block.attn.subspaces, block.attn.proj):
            bound = math.sqrt(6 / (96 + 96))
            assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert torch.all(block.attn.proj.bias == 0)
        assert block.norm1.eps == block.norm2.eps == 1e-5
    for block in method.encoder.blocks:
        assert (block.step, block.threshold) == (0.1, 0.5)
    assert method.norm.eps == method.encoder.norm.eps == 1e-6
    bound = math.sqrt(6 / (96 + 192))
    assert 0.98 * bound < method.head.weight.abs().max() <= bound
    assert torch.all(method.head.bias == 0)
    assert 0.01 < method.mask_token.std() < 0.03
    own = {id(p) for p in method.decoder.parameters()}
    assert not any(id(p) in own for p in method.encoder.parameters()), "nothing is shared"


def test_a_misspelt_option_builds_nothing(tmp_path):
    """The released constructor takes it for a sign to build ordinary blocks."""
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 32, 32), np.float32))
    with pytest.raises(ConfigError, match=r"blok.*block"):
        build(make_recipe("crate-mae", tmp_path / "x.npy", "tiny", {"method.blok": "crate"}))
    with pytest.raises(TypeError, match="blok"):
        _crate(blok="crate")


def test_half_of_the_first_block_is_zero_at_the_start():
    """51 % in the released code."""
    method = make(CrateMae, embed_dim=768, depth=1, num_heads=12, img_size=112)
    tokens = method.encoder.tokenize(images(size=112))
    (out,) = method.encoder.hidden_states(tokens, [0], method.masking(tokens.grid, keys()), fill=method.mask_token)
    assert out.min() == 0
    assert (out == 0).float().mean() == pytest.approx(0.51, abs=0.04)


def test_layer_statistics():
    rows = _crate().layer_statistics(images())
    assert len(rows) == 4
    assert all(0 < row["non-zero"] < 1 and row["coding rate"] > 0 for row in rows)
    with pytest.raises(ConfigError, match="block=crate"):
        _crate(block="transformer").layer_statistics(images())
