"""White-box blocks (CRATE): the equations of the paper, and what is measured on them."""

import math

import pytest
import torch
import torch.nn.functional as F

from maskwright.core.encoder import CrateBlock, CrateDecoderBlock, VisionTransformer
from maskwright.core.encoder.crate import SubspaceAttention, coding_rate, density
from maskwright.core.errors import ConfigError
from maskwright.testing import check_encoder, made_up_batch


def _tokens(dim=24, seed=0):
    return torch.randn(3, 7, dim, generator=torch.Generator().manual_seed(seed))


def _attention(x, layer, heads):
    """MSSA by hand, and its logits."""
    w = (x @ layer.subspaces.weight.T).view(3, 7, heads, -1).transpose(1, 2)
    logits = w @ w.mT / math.sqrt(w.shape[-1])
    return (logits.softmax(-1) @ w).transpose(1, 2).flatten(2) @ layer.proj.weight.T + layer.proj.bias, logits


def test_attention_is_of_one_projection_and_symmetric_before_the_softmax():
    layer = SubspaceAttention(24, 4)
    expected, logits = _attention(_tokens(), layer, 4)
    torch.testing.assert_close(layer(_tokens()), expected)
    torch.testing.assert_close(logits, logits.mT)
    assert layer.subspaces.bias is None


def test_encoder_block_by_hand():
    block = CrateBlock(24, 4)
    x = _tokens()
    z = x + _attention(F.layer_norm(x, (24,)), block.attn, 4)[0]
    n = F.layer_norm(z, (24,))
    d = block.dictionary
    columns = n.mT  # tokens as columns, as in the paper
    step = columns + 0.1 * (d.T @ columns - d.T @ d @ columns) - 0.1 * 0.5
    torch.testing.assert_close(block(x), step.relu().mT, rtol=1e-4, atol=1e-5)


def test_decoder_block_by_hand():
    block = CrateDecoderBlock(24, 4)
    g = F.layer_norm(_tokens(), (24,)) @ block.dictionary.T
    torch.testing.assert_close(block(_tokens()), g - _attention(F.layer_norm(g, (24,)), block.attn, 4)[0])


def test_sparsity():
    block = CrateBlock(64, 4)
    out = block(_tokens(64))
    assert out.min() == 0
    assert 0.3 < density(out).mean() < 0.7
    assert CrateDecoderBlock(64, 4)(_tokens(64)).min() < 0


def test_an_orthogonal_dictionary_without_threshold():
    block = CrateBlock(24, 4, threshold=0.0)
    with torch.no_grad():
        block.dictionary.copy_(torch.linalg.qr(torch.randn(24, 24))[0])
    n = _tokens()
    expected = F.relu(0.9 * n + 0.1 * n @ block.dictionary)  # rows: D^T n is n @ D
    torch.testing.assert_close(block.sparsify(n), expected, rtol=1e-4, atol=1e-5)


def test_parameters_of_a_block_and_of_its_initial_weights():
    for block in (CrateBlock(96, 4), CrateDecoderBlock(96, 4)):
        assert sum(p.numel() for p in block.parameters()) == 3 * 96**2 + 5 * 96
        bound = math.sqrt(6 / 96)
        assert 0.98 * bound < block.dictionary.abs().max() <= bound
    encoder = VisionTransformer(16, 4, 3, 96, 2, 4, block="crate")
    assert encoder.blocks[0].dictionary.abs().max() > 0.98 * bound  # left so
    xavier = math.sqrt(6 / (2 * 96))
    assert 0.98 * xavier < encoder.blocks[0].attn.subspaces.weight.abs().max() <= xavier
    assert encoder.blocks[0].norm1.eps == 1e-5
    assert encoder.norm.eps == 1e-6


def test_coding_rate_by_hand():
    projected = _tokens(16)
    expected = torch.zeros(3)
    for head in range(2):
        w = F.normalize(projected[:, :, 8 * head : 8 * head + 8], dim=-1).mT  # (p, m) = (8, 7)
        expected += torch.logdet(torch.eye(7) + 8 / (7 * 0.01) * w.mT @ w) / 2
    torch.testing.assert_close(coding_rate(projected, 2), expected)
    wide = torch.cat([projected, projected], dim=1)  # more tokens than channels: the other Gram matrix
    by_hand = torch.zeros(3)
    for head in range(2):
        w = F.normalize(wide[:, :, 8 * head : 8 * head + 8], dim=-1).mT
        by_hand += torch.logdet(torch.eye(14) + 8 / (14 * 0.01) * w.mT @ w) / 2
    torch.testing.assert_close(coding_rate(wide, 2), by_hand, rtol=1e-4, atol=1e-4)
    same = torch.ones(1, 7, 16)
    assert coding_rate(same, 2) < coding_rate(projected, 2).min()  # what lies in one direction needs fewer bits


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope", "alibi"])
def test_as_blocks_of_the_vision_transformer(positions):
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "positions": positions}
    encoder = VisionTransformer(**options)
    check_encoder(
        lambda: VisionTransformer(**options, block="crate", drop_path=0.1), made_up_batch(encoder.inputs, 3, 16)
    )


def test_an_unknown_block():
    with pytest.raises(ConfigError, match="neither transformer nor crate"):
        VisionTransformer(block="mamba")
