"""MAE's checks on the parts of the core: vision transformer, mask-token decoder, random masking, masked loss."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskwright.core.encoder import MaskTokenDecoder, Tokens, VisionTransformer, patchify, sincos
from maskwright.core.masking import Grid, Mask, RandomMasking, sample_keys
from maskwright.core.objective import masked_reconstruction

SIZES = {  # width, depth, heads, patch, trainable parameters with the 512 x 8 x 16 decoder
    "base": (768, 12, 12, 16, 111_655_680),
    "large": (1024, 24, 16, 16, 329_239_296),
    "huge": (1280, 32, 16, 14, 656_613_964),
}


def _keys(count, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def _small(**options):
    torch.manual_seed(0)
    encoder = VisionTransformer(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, **options}
    )
    decoder = MaskTokenDecoder(32, 8 * 8 * encoder.in_chans, 16, 1, 2, num_prefix_tokens=encoder.num_prefix_tokens)
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    width, depth, heads, patch, expected = SIZES[size]
    with torch.device("meta"):
        encoder = VisionTransformer(224, patch, 3, width, depth, heads)
        decoder = MaskTokenDecoder(width, 3 * patch**2, 512, 8, 16, num_prefix_tokens=1)
    assert sum(p.numel() for module in (encoder, decoder) for p in module.parameters()) == expected


def test_no_gradient_at_visible_patches():
    encoder, decoder = _small()
    tokens = encoder.tokens_of(torch.randn(3, 3, 32, 32))
    mask = RandomMasking(0.75)(tokens.grid, _keys(3))
    prediction = decoder(encoder(tokens, mask), mask, tokens.grid)
    prediction.retain_grad()
    masked_reconstruction(prediction, tokens.values, mask, standardise=True).backward()
    assert torch.all(prediction.grad[~mask.hidden] == 0)
    assert torch.all(prediction.grad[mask.hidden].abs().amax(-1) > 0)


def test_hidden_pixels_change_the_target_and_never_the_latent():
    encoder, decoder = _small()
    x = torch.randn(3, 3, 32, 32)
    tokens = encoder.tokens_of(x)
    mask = RandomMasking(0.75)(tokens.grid, _keys(3))
    changed = Tokens(torch.where(mask.hidden[..., None], tokens.values + 1, tokens.values), tokens.grid)
    with torch.no_grad():
        before, after = encoder(tokens, mask), encoder(changed, mask)
        assert torch.equal(before, after)
        prediction = decoder(before, mask, tokens.grid)
        losses = [masked_reconstruction(prediction, t.values, mask) for t in (tokens, changed)]
    assert losses[0] != losses[1]


def test_multiplications_of_a_block():
    """12 n d^2 + 2 n^2 d for n tokens: 17.4 G for ViT-B at 197 tokens, 4.29 G at 50."""
    width, depth, heads = 768, 12, 12
    with torch.device("meta"):
        encoder = VisionTransformer(224, 16, 3, width, depth, heads)
        values = torch.empty(1, 196, 768)
        hidden = torch.empty(1, 147, dtype=torch.long)
        mask = Mask(torch.empty(1, 49, dtype=torch.long), hidden, torch.empty(1, 196, dtype=torch.long))
    for n, some, billions in ((197, None, 17.4), (50, mask, 4.29)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(Tokens(values, Grid((14, 14))), some)
        multiplications = depth * (12 * n * width**2 + 2 * n**2 * width)
        embedding = (n - 1) * 768 * width
        assert counter.get_total_flops() == 2 * (multiplications + embedding)
        assert multiplications / 1e9 == pytest.approx(billions, rel=5e-3)


def test_position_table_against_the_formula():
    """omega_k = 10000^(-k / (D / 4)); [sin, cos] of the column first, then of the row."""
    rows, columns, width = 5, 7, 16
    table = sincos(Grid((rows, columns)).coordinates(), width)
    for row in range(rows):
        for column in range(columns):
            omega = [10000 ** (-k / (width / 4)) for k in range(width // 4)]
            expected = [f(at * o) for at in (column, row) for f in (math.sin, math.cos) for o in omega]
            torch.testing.assert_close(table[row * columns + column], torch.tensor(expected), atol=1e-6, rtol=0)


def test_position_table_symmetries():
    table = sincos(Grid((6, 9)).coordinates(), 32).view(6, 9, 32)
    assert torch.equal(table[..., :16], table[:1, :, :16].expand(6, 9, 16))  # one column, one first half
    assert torch.equal(table[..., 16:], table[:, :1, 16:].expand(6, 9, 16))  # one row, one second half
    square = sincos(Grid((6, 6)).coordinates(), 32).view(6, 6, 32)
    assert torch.equal(square[..., :16], square.transpose(0, 1)[..., 16:])


def test_class_token_has_no_position():
    """With all patches at the same place and alike, the class token sees the same at any place."""
    encoder, _ = _small()
    grid, values = Grid((4, 4)), torch.zeros(1, 16, 192)
    seen = {}
    encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    encoder(Tokens(values, grid))
    assert torch.equal(seen["x"][:, 0], encoder.cls_token[:, 0])
    torch.testing.assert_close(seen["x"][0, 1:] - encoder.patch_embed.bias, sincos(grid.coordinates(), 32))


def test_order_of_kept_patches_does_not_matter():
    encoder, decoder = _small()
    tokens = encoder.tokens_of(torch.randn(2, 3, 32, 32))
    mask = RandomMasking(0.5)(tokens.grid, _keys(2))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    visible = mask.visible[:, order]
    back = torch.argsort(torch.cat([visible, mask.masked], 1), dim=1)
    other = Mask(visible, mask.masked, back)
    with torch.no_grad():
        first = decoder(encoder(tokens, mask), mask, tokens.grid)
        second = decoder(encoder(tokens, other), other, tokens.grid)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_initialisation():
    torch.manual_seed(0)
    encoder = VisionTransformer(64, 16, 3, 96, 1, 4)
    qkv = encoder.blocks[0].attn.qkv
    bound = math.sqrt(6 / (4 * 96))  # one (3 D, D) matrix, not three square ones
    assert 0.98 * bound < qkv.weight.abs().max() <= bound
    assert torch.all(qkv.bias == 0)
    assert 0.98 * math.sqrt(6 / (96 + 768)) < encoder.patch_embed.weight.abs().max() <= math.sqrt(6 / (96 + 768))
    assert encoder.patch_embed.bias.abs().max() > 0  # the framework's convolution default
    assert 0.015 < encoder.cls_token.std() < 0.025
    assert torch.all(encoder.norm.weight == 1)


def test_patch_order_is_row_column_channel_for_targets():
    x = torch.arange(2 * 4 * 4).float().view(1, 2, 4, 4)
    patches = patchify(x, (2, 2), channels_last=True)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


def test_training_lowers_the_loss():
    encoder, decoder = _small()
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=32, mode="bilinear")
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    losses = []
    for step in range(40):
        tokens = encoder.tokens_of(x)
        mask = RandomMasking(0.75)(tokens.grid, _keys(8, seed=step))
        loss = masked_reconstruction(decoder(encoder(tokens, mask), mask, tokens.grid), tokens.values, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
