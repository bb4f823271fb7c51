"""CRATE-MAE: checks of its paper and code."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import RandomMasking
from maskwright.core.objective import masked_reconstruction
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


def test_a_third_of_an_equally_wide_mae():
    with torch.device("meta"):
        mae = Mae(decoder_embed_dim=768, decoder_depth=8)
    with_tables = parameters(mae) + 2 * 197 * 768
    assert with_tables == 143_836_416
    assert round(44_638_464 / with_tables, 3) == 0.310


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_the_encoder_sees_all_tokens(ratio):
    method = _crate(masking=RandomMasking(ratio))
    lengths = []
    method.encoder.blocks[0].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    method(images(), keys())
    assert lengths == [1 + 16]


def test_no_gradient_at_visible_patches():
    method = _crate()
    tokens = method.encoder.tokenize(images())
    mask = method.masking(tokens.grid, keys())
    prediction = method.decode(tokens, mask)
    prediction.retain_grad()
    masked_reconstruction(prediction, tokens.values, mask).backward()
    assert torch.all(prediction.grad[~mask.hidden] == 0)
    assert torch.all(prediction.grad[mask.hidden].abs().amax(-1) > 0)


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
