"""The Swin transformer against torchvision's, timm's and MONAI's: same weights, same numbers."""

import itertools

import pytest
import torch

from maskwright.core.encoder.swin import SwinTransformer
from maskwright.core.sample import Batch, Meta

IMAGE = {"patch_size": 4, "width": 16, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "normalization": "none"}


def scrambled(module):
    """In evaluation mode, with what begins as zeros or ones drawn at random: two of them would look alike."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def put(target, source):
    assert target.shape == source.shape
    with torch.no_grad():
        target.copy_(source)


def put_module(target, source):
    for name, parameter in target.named_parameters():
        put(parameter, source.get_parameter(name))


def put_convolution(encoder, weight, bias):
    put(encoder.patch_embed.weight, weight.flatten(1))
    put(encoder.patch_embed.bias, bias)


def batch_of(x, name="image"):
    return Batch({name: x}, [Meta(str(i), index=i) for i in range(len(x))])


def close(found, wanted):
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1)


@pytest.mark.parametrize(("size", "window"), [((64, 96), 4), ((72, 88), 7), ((20, 64), 4)])
def test_torchvision_on_images(size, window):
    """Maps that windows divide, and such that they do not: torchvision does not mask what fills them up."""
    outside = pytest.importorskip("torchvision.models.swin_transformer")
    torch.manual_seed(0)
    theirs = scrambled(outside.SwinTransformer([4, 4], 16, [2, 2, 2], [2, 4, 8], [window, window], num_classes=3))
    ours = SwinTransformer(**IMAGE, window_size=window, mask_padding=False).eval()
    put_convolution(ours, theirs.features[0][0].weight, theirs.features[0][0].bias)
    put_module(ours.patch_norm, theirs.features[0][2])
    put_module(ours.norm, theirs.norm)
    for stage, layer in enumerate(ours.layers):
        if stage:
            put_module(layer.downsample, theirs.features[2 * stage])
        for block, other in zip(layer.blocks, theirs.features[2 * stage + 1], strict=True):
            for part in ("norm1", "norm2", "attn.qkv", "attn.proj"):
                put_module(block.get_submodule(part), other.get_submodule(part))
            put(block.attn.relative_position_bias_table, other.attn.relative_position_bias_table)
            put_module(block.mlp.fc1, other.mlp[0])
            put_module(block.mlp.fc2, other.mlp[3])
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted = theirs.norm(theirs.features(x))
    found = ours.embed(batch_of(x))
    assert found.grid.shape == tuple(wanted.shape[1:3])
    close(found.tokens, wanted.flatten(1, 2))
    close(found.pooled, wanted.mean((1, 2)))


def test_timm_on_images():
    """timm's names fit as they are, but for the patch embedding."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4}
    theirs = scrambled(timm.models.SwinTransformer(img_size=(64, 128), num_classes=0, **sizes))
    ours = SwinTransformer(**IMAGE, window_size=4).eval()
    put_convolution(ours, theirs.patch_embed.proj.weight, theirs.patch_embed.proj.bias)
    put_module(ours.patch_norm, theirs.patch_embed.norm)
    put_module(ours.layers, theirs.layers)
    put_module(ours.norm, theirs.norm)
    x = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        wanted = theirs.forward_features(x)
    close(ours.embed(batch_of(x)).tokens, wanted.flatten(1, 2))
    with torch.no_grad():
        middle = theirs.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for found, each in zip(ours.pyramid(ours.tokenize(batch_of(x))), middle, strict=False):
        close(found, each)


@pytest.mark.parametrize(
    ("size", "window", "mask_padding"), [((32, 64, 32), (2, 2, 2), True), ((40, 56, 36), (3, 4, 2), False)]
)
def test_monai_on_volumes(size, window, mask_padding):
    """The maps of all stages before their merging. MONAI merges with the last axis running fastest, we with the first."""
    outside = pytest.importorskip("monai.networks.nets.swin_unetr")
    torch.manual_seed(0)
    theirs = scrambled(
        outside.SwinTransformer(
            2, 12, window, (2, 2, 2), (2, 2, 1, 1), (2, 3, 4, 4), patch_norm=True, downsample="mergingv2"
        )
    )
    ours = SwinTransformer(
        dims="C D H W",
        in_chans=2,
        patch_size=2,
        width=12,
        depths=(2, 2, 1, 1),
        num_heads=(2, 3, 4, 4),
        window_size=window,
        mask_padding=mask_padding,
        normalization="none",
    ).eval()
    put_convolution(ours, theirs.patch_embed.proj.weight, theirs.patch_embed.proj.bias)
    put_module(ours.patch_norm, theirs.patch_embed.norm)
    places = list(itertools.product(range(2), repeat=3))
    order = [places.index(place[::-1]) for place in places]  # where each of our neighbours is among theirs
    seen = []
    for stage, layer in enumerate(ours.layers):
        (other,) = getattr(theirs, f"layers{stage + 1}")
        for block, theirs_block in zip(layer.blocks, other.blocks, strict=True):
            for part in ("norm1", "norm2", "attn.qkv", "attn.proj"):
                put_module(block.get_submodule(part), theirs_block.get_submodule(part))
            put(block.attn.relative_position_bias_table, theirs_block.attn.relative_position_bias_table)
            put_module(block.mlp.fc1, theirs_block.mlp.linear1)
            put_module(block.mlp.fc2, theirs_block.mlp.linear2)
        other.blocks[-1].register_forward_hook(lambda module, given, found: seen.append(found.movedim(-1, 1)))
        if stage:
            (before,) = getattr(theirs, f"layers{stage}")
            width = ours.widths[stage - 1]
            columns = torch.cat([torch.arange(width) + width * place for place in order])
            put(layer.downsample.norm.weight, before.downsample.norm.weight[columns])
            put(layer.downsample.norm.bias, before.downsample.norm.bias[columns])
            put(layer.downsample.reduction.weight, before.downsample.reduction.weight[:, columns])
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        theirs(x, normalize=False)
        maps = ours.pyramid(ours.tokenize(batch_of(x)))
    assert len(maps) == len(seen) == 4
    for found, wanted in zip(maps, seen, strict=True):
        close(found, wanted)
