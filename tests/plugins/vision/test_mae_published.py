"""Checkpoints in the layout of MAE's publication, made here by independent means."""

import pytest
import torch

from maskwright.core.encoder import patchify, sincos
from maskwright.core.errors import DataError
from maskwright.core.masking import Grid, RandomMasking, sample_keys
from maskwright.plugins.vision.methods.mae_published import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    from_published,
    load_published,
    load_published_method,
)

WIDTH, DEPTH, HEADS, PATCH, SIDE = 64, 2, 4, 4, 6
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 32, 1, 2


def _block(prefix, width, generator):
    shapes = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    state = {}
    for name, shape in shapes.items():
        state[f"{prefix}.{name}.weight"] = 0.1 * torch.randn(*shape, generator=generator)
        state[f"{prefix}.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return state


def published(decoder=True):
    """Tensors under the names and in the shapes of the released files."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    def table(width):
        return torch.cat([torch.zeros(1, width), sincos(Grid((SIDE, SIDE)).coordinates(), width)])[None]

    state = {
        "cls_token": normal(1, 1, WIDTH),
        "pos_embed": table(WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": normal(WIDTH),
        "norm.weight": normal(WIDTH),
        "norm.bias": normal(WIDTH),
    }
    for number in range(DEPTH):
        state |= _block(f"blocks.{number}", WIDTH, generator)
    if decoder:
        values = 3 * PATCH**2
        state |= {
            "mask_token": normal(1, 1, DECODER_WIDTH),
            "decoder_pos_embed": table(DECODER_WIDTH),
            "decoder_embed.weight": normal(DECODER_WIDTH, WIDTH),
            "decoder_embed.bias": normal(DECODER_WIDTH),
            "decoder_norm.weight": normal(DECODER_WIDTH),
            "decoder_norm.bias": normal(DECODER_WIDTH),
            "decoder_pred.weight": normal(values, DECODER_WIDTH),
            "decoder_pred.bias": normal(values),
        }
        for number in range(DECODER_DEPTH):
            state |= _block(f"decoder_blocks.{number}", DECODER_WIDTH, generator)
    return state


def _written(tmp_path, state):
    torch.save({"model": state}, tmp_path / "mae.pth")
    return tmp_path / "mae.pth"


def _transformer(x, state, prefix, depth, heads):
    """The published blocks, written out with the functions of torch."""
    for number in range(depth):

        def weights(name, number=number):
            at = f"{prefix}blocks.{number}.{name}"
            return state[f"{at}.weight"], state[f"{at}.bias"]

        functional = torch.nn.functional
        y = functional.layer_norm(x, x.shape[-1:], *weights("norm1"), eps=1e-6)
        qkv = functional.linear(y, *weights("attn.qkv")).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + functional.linear((scores @ v).transpose(1, 2).flatten(2), *weights("attn.proj"))
        y = functional.layer_norm(x, x.shape[-1:], *weights("norm2"), eps=1e-6)
        x = x + functional.linear(functional.gelu(functional.linear(y, *weights("mlp.fc1"))), *weights("mlp.fc2"))
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], state[f"{prefix}norm.weight"], state[f"{prefix}norm.bias"], 1e-6
    )


def _their_tokens(state, images, keep=None):
    """Published order of operations: convolve, add positions without the class row, keep, prepend the class token."""
    x = torch.nn.functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH
    ).flatten(2)
    x = x.transpose(1, 2) + state["pos_embed"][:, 1:]
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, WIDTH))
    class_token = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    return _transformer(torch.cat([class_token, x], 1), state, "", DEPTH, HEADS)


def test_encoder_gives_the_published_features(tmp_path):
    for decoder in (True, False):
        state = published(decoder)
        encoder = load_published(_written(tmp_path, state), num_heads=HEADS)
        images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(
                encoder(encoder.tokens_of(images)), _their_tokens(state, images), atol=1e-5, rtol=0
            )
    assert encoder.options["img_size"] == 24
    assert (encoder.options["depth"], encoder.options["mlp_ratio"]) == (DEPTH, 4.0)


def test_method_gives_the_published_loss(tmp_path):
    state = published()
    method = load_published_method(
        _written(tmp_path, state), norm_pix_loss=False, num_heads=HEADS, decoder_num_heads=DECODER_HEADS
    )
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    mask = RandomMasking(0.75)(Grid((6, 6)), sample_keys(torch.Generator().manual_seed(2), 3))
    latent = _their_tokens(state, images, mask.visible)
    x = torch.nn.functional.linear(latent, state["decoder_embed.weight"], state["decoder_embed.bias"])
    hidden = state["mask_token"].expand(3, mask.masked.shape[1], -1)
    body = torch.cat([x[:, 1:], hidden], 1).gather(1, mask.restore[..., None].expand(-1, -1, DECODER_WIDTH))
    x = torch.cat([x[:, :1], body], 1) + state["decoder_pos_embed"]
    x = _transformer(x, state, "decoder_", DECODER_DEPTH, DECODER_HEADS)
    prediction = torch.nn.functional.linear(x, state["decoder_pred.weight"], state["decoder_pred.bias"])[:, 1:]
    error = ((prediction - patchify(images, (4, 4), channels_last=True)) ** 2).mean(-1)
    expected = (error * mask.hidden).sum() / mask.hidden.sum()
    with torch.no_grad():
        torch.testing.assert_close(method.loss(method.encoder.tokens_of(images), mask), expected, atol=1e-5, rtol=1e-5)


def test_scaling_is_imagenets_for_eight_bits(tmp_path):
    encoder = load_published(_written(tmp_path, published()), num_heads=HEADS)
    physical = torch.tensor(IMAGENET_MEAN)[:, None, None] * 255 * torch.ones(1, 3, 24, 24)
    assert encoder.normalizers["image"](physical).abs().max() < 1e-5
    more = physical + 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    torch.testing.assert_close(encoder.normalizers["image"](more), torch.ones(1, 3, 24, 24), atol=1e-5, rtol=0)


def test_heads_of_the_published_sizes():
    state = {name: value for name, value in published(False).items() if "blocks" not in name}
    state["pos_embed"] = torch.cat([torch.zeros(1, 1280), sincos(Grid((2, 2)).coordinates(), 1280)])[None]
    state["patch_embed.proj.weight"] = torch.zeros(1280, 3, 14, 14)
    state |= {name: torch.zeros(1280) for name in ("patch_embed.proj.bias", "norm.weight", "norm.bias")}
    state["cls_token"] = torch.zeros(1, 1, 1280)
    state |= _block("blocks.0", 1280, torch.Generator().manual_seed(0))
    encoder, decoder = from_published(state)
    assert encoder.options["num_heads"] == 16, "not 1280 / 64"
    assert decoder is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "encoder lacks .*attn.qkv.bias"),
        (lambda s: s.pop("cls_token"), "lacks cls_token"),
        (lambda s: s.pop("decoder_norm.weight"), "decoder lacks .*norm.weight"),
        (lambda s: s.pop("mask_token"), "lacks mask_token of the decoder"),
        (lambda s: s.pop("decoder_pos_embed"), "lacks decoder_pos_embed"),
        (lambda s: s.update({"head.weight": torch.zeros(10, WIDTH)}), '"head.weight".*fine-tuned model'),
        (lambda s: s.update({"blocks.0.gamma": torch.zeros(1)}), '"blocks.0.gamma", which has no place'),
        (lambda s: s.update(epoch=3), '"epoch", a int'),
        (lambda s: s["pos_embed"].add_(0.01), "differs from the fixed sine-cosine table by 0.01"),
        (lambda s: s["decoder_pos_embed"][:, 0].add_(1), "decoder_pos_embed differs"),
        (lambda s: s.update(pos_embed=s["pos_embed"][:, 1:]), "a square number"),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), "does not fit"),
        (lambda s: s.update({"decoder_pred.bias": torch.zeros(3)}), "predicts 3 numbers"),
    ],
)
def test_every_tensor_is_accounted_for(change, message):
    state = published()
    change(state)
    with pytest.raises(DataError, match=message):
        from_published(state, num_heads=HEADS, decoder_num_heads=DECODER_HEADS)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_published(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(DataError, match="could not be read as weights"):
        load_published(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        load_published(tmp_path / "list.pth")
    with pytest.raises(DataError, match="encoder only"):
        load_published_method(_written(tmp_path, published(False)), num_heads=HEADS)
