"""The Swin transformer: windows, shifts, padding, replaced tokens. tests/parity holds it against other people's."""

import math

import pytest
import torch

from maskwright.core.encoder.swin import SwinTransformer
from maskwright.core.encoder.swin_layers import (
    PatchMerging,
    SwinBlock,
    WindowAttention,
    allowed_pairs,
    join,
    partition,
    relative_index,
)
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, sample_keys
from maskwright.testing import check_encoder, made_up_batch

SMALL = {"patch_size": 2, "width": 12, "depths": (1, 2, 1), "num_heads": (2, 3, 4), "window_size": 3}


def make(**options):
    torch.manual_seed(0)
    return SwinTransformer(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 32),
        ({"mask_padding": False, "final_norm": False, "positions": "sincos"}, 20),
        ({"dims": "C D H W", "in_chans": 2, "positions": "sincos", "drop_path": 0.3}, 16),
        ({"dims": "C D H W", "in_chans": 2, "window_size": (2, 3, 4), "qkv_bias": False}, 12),
    ],
)
def test_contract(options, size):
    check_encoder(lambda: make(**options), made_up_batch(make(**options).inputs, 3, size))


@pytest.mark.parametrize(("size", "window"), [((6, 4), (3, 2)), ((4, 6, 2), (2, 3, 1))])
def test_windows_are_cut_and_joined(size, window):
    x = torch.randn(2, *size, 5)
    windows = partition(x, window)
    assert windows.shape == (2, math.prod(size) // math.prod(window), math.prod(window), 5)
    first = tuple(slice(w) for w in window)
    assert torch.equal(windows[:, 0], x[(slice(None), *first)].flatten(1, -2))
    assert torch.equal(join(windows, size, window), x)


def test_relative_index():
    """Pairs of equal offset have one entry, others another."""
    window = (2, 3, 2)
    index = relative_index(window)
    assert index.shape == (12, 12)
    assert set(index.flatten().tolist()) == set(range(3 * 5 * 3))
    at = Grid(window).coordinates()
    offset = (at[:, None] - at[None, :]).flatten(0, 1)
    same_offset = (offset[:, None] == offset[None, :]).all(-1)
    assert torch.equal(same_offset, index.flatten()[:, None] == index.flatten()[None, :])


def test_parameters_of_swin_t():
    with torch.device("meta"):
        encoder = SwinTransformer()
    assert sum(p.numel() for p in encoder.parameters()) == 27_519_354  # timm's swin_tiny without its classifier
    assert encoder.widths == (96, 192, 384, 768)
    assert encoder.strides == ((4, 4), (8, 8), (16, 16), (32, 32))


def reach(block, size, place):
    """Which positions the output at `place` depends on, (*size) bool."""
    x = torch.randn(1, *size, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(block.attend(x)[(0, *place)].sum(), x)
    return gradient[0].ne(0).any(-1)


def block_of(window, shift, mask_padding=True):
    torch.manual_seed(0)
    return SwinBlock(4, 2, window, shift, mask_padding=mask_padding)


def test_attention_stays_in_its_window():
    seen = reach(block_of((4, 4), (0, 0)), (8, 8), (1, 5))
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[:4, 4:] = True
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [((3, 3), (2, 6), (2, 6)), ((0, 0), (0, 2), (0, 2)), ((7, 3), (6, 8), (2, 6)), ((7, 0), (6, 8), (0, 2))],
)
def test_shifted_windows_do_not_wrap_around(place, rows, columns):
    seen = reach(block_of((4, 4), (2, 2)), (8, 8), place)
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[slice(*rows), slice(*columns)] = True
    assert torch.equal(seen, wanted)


def test_an_axis_of_one_window_is_not_shifted():
    seen = reach(block_of((4, 4), (2, 2)), (4, 8), (0, 0))
    wanted = torch.zeros(4, 8, dtype=torch.bool)
    wanted[:, :2] = True
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 2)])
def test_padding_changes_nothing_where_it_is_masked(shift):
    """What is computed of a map of 5 positions is what attention without any padding gives."""
    torch.manual_seed(0)
    size, window = (5, 5, 3), (4, 4, 4)
    block = block_of(window, shift)
    x = torch.randn(2, *size, 4)
    found = block.attend(x)
    # windows of the shifted map begin at -shift where the axis holds more than one window
    starts = [0 if length <= w else -s for length, w, s in zip(size, window, shift, strict=True)]
    at = Grid(size).coordinates().long()
    window_of = torch.stack(
        [torch.div(at[:, axis] - starts[axis], window[axis], rounding_mode="floor") for axis in range(3)], -1
    )
    together = (window_of[:, None] == window_of[None, :]).all(-1)
    offset = at[:, None] - at[None, :] + 3
    entry = (offset[..., 0] * 7 + offset[..., 1]) * 7 + offset[..., 2]
    bias = block.attn.relative_position_bias_table[torch.where(together, entry, 0)].permute(2, 0, 1)
    q, k, v = (p.unflatten(-1, (2, 2)).transpose(1, 2) for p in block.attn.qkv(x.flatten(1, 3)).chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(2) + bias
    scores = scores.masked_fill(~together, -torch.inf)
    wanted = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).view_as(x)
    assert torch.allclose(found, wanted, atol=1e-6)
    released = block_of(window, shift, mask_padding=False).attend(x)
    assert (released - wanted).abs().max() > 1e-4


def test_allowed_pairs_are_none_where_all_may():
    cpu = torch.device("cpu")
    assert allowed_pairs((8, 8), (4, 4), (0, 0), True, cpu) is None
    assert allowed_pairs((5, 8), (4, 4), (0, 0), False, cpu) is None
    allowed = allowed_pairs((5, 8), (4, 4), (0, 2), True, cpu)
    assert allowed.shape == (4, 16, 16)
    assert allowed.diagonal(dim1=1, dim2=2).all()


def test_attention_with_and_without_pairs_is_the_same():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (2, 3))
    x = torch.randn(3, 4, 6, 8)
    everything = torch.ones(4, 6, 6, dtype=torch.bool)
    assert torch.allclose(attention(x), attention(x, everything), atol=1e-6)


def test_merging():
    """The first axis runs fastest; odd maps are filled up with zeros."""
    merging = PatchMerging(3, 2)
    seen = []
    merging.norm.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    x = torch.randn(1, 5, 4, 3)
    assert merging(x).shape == (1, 3, 2, 6)
    assert torch.equal(seen[0][0, 1, 0], torch.cat([x[0, 2, 0], x[0, 3, 0], x[0, 2, 1], x[0, 3, 1]]))
    assert torch.equal(seen[0][0, 2, 1], torch.cat([x[0, 4, 2], torch.zeros(3), x[0, 4, 3], torch.zeros(3)]))
    assert PatchMerging(3, 3)(torch.randn(2, 4, 5, 2, 3)).shape == (2, 2, 3, 1, 6)


# hidden tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", ["C H W", "C D H W"])
def test_hidden_tokens_are_replaced_after_the_position(dims):
    encoder = make(dims=dims, positions="sincos").eval()
    batch = made_up_batch(encoder.inputs, 2, 16)
    tokens = encoder.tokenize(batch)
    mask = RandomMasking(0.5)(tokens.grid, sample_keys(torch.Generator().manual_seed(0), 2))
    fill = torch.randn(12)
    seen = []
    encoder.layers[0].register_forward_hook(lambda module, given, found: seen.append(given[0].flatten(1, -2)))
    maps = encoder.pyramid(tokens, mask, fill)
    assert torch.equal(seen[0][mask.hidden], fill.expand(int(mask.hidden.sum()), -1))
    table = encoder.positions.add(tokens.grid, None, fill.device)
    visible = (encoder.patch_norm(encoder.patch_embed(tokens.values)) + table)[~mask.hidden]
    assert torch.equal(seen[0][~mask.hidden], visible)
    changed = type(tokens)(torch.where(mask.hidden[..., None], 9.0, tokens.values), tokens.grid)
    assert all(torch.equal(a, b) for a, b in zip(maps, encoder.pyramid(changed, mask, fill), strict=True))
    assert [tuple(x.shape[2:]) for x in maps] == [(size,) * encoder_axes(dims) for size in (8, 4, 2)]
    assert torch.equal(encoder(tokens, mask, fill), encoder.norm(maps[-1].flatten(2).transpose(1, 2)))


def encoder_axes(dims):
    return len(dims.split()) - 1


def test_initialisation_and_stochastic_depth():
    encoder = make(depths=(2, 2, 6), width=96, num_heads=(3, 6, 12), drop_path=0.2)
    table = encoder.layers[2].blocks[0].attn.relative_position_bias_table
    assert table.std().item() == pytest.approx(0.02, rel=0.15)
    assert encoder.layers[1].downsample.reduction.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.layers[0].blocks[0].attn.qkv.bias.eq(0).all()
    rates = [block.residual1.drop_path for layer in encoder.layers for block in layer.blocks]
    assert rates == pytest.approx([0.2 * number / 9 for number in range(10)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": "C T"}, "neither"),
        ({"depths": (1, 1)}, "as many stages"),
        ({"depths": (1, 0, 1)}, "1 or more"),
        ({"window_size": (3, 3, 3)}, "window_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_heads": (5, 3, 4)}, "does not divide into num_heads"),
        ({"positions": "learned"}, "neither sincos nor none"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_it_cannot_drop_tokens():
    encoder = make()
    tokens = encoder.tokenize(made_up_batch(encoder.inputs, 2, 16))
    mask = RandomMasking(0.5)(tokens.grid, torch.arange(2))
    with pytest.raises(ConfigError, match="replaces hidden tokens"):
        encoder(tokens, mask)
    with pytest.raises(ConfigError, match="does not divide into patches"):
        encoder.tokenize(made_up_batch(encoder.inputs, 2, 15))
