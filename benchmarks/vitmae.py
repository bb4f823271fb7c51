"""The method `mae`, and transformers' ViTMAE of the same size with the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskwright.core.masking import Mask, RandomMasking
from maskwright.plugins.vision.methods.mae import Mae


@dataclass(frozen=True)
class Size:
    """Sizes of an MAE; the defaults are ViT-S/16 with a decoder of 192 x 4."""

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    decoder_dim: int = 192
    decoder_depth: int = 4
    decoder_heads: int = 3
    mask_ratio: float = 0.75


SIZES = {
    "small": Size(),
    "base": Size(embed_dim=768, num_heads=12, decoder_dim=512, decoder_depth=8, decoder_heads=16),
    "large": Size(embed_dim=1024, depth=24, num_heads=16, decoder_dim=512, decoder_depth=8, decoder_heads=16),
}


class OurMae(Mae):
    """The method `mae` of a size, on plain images (B, C, H, W) in network units."""

    def __init__(self, size: Size, norm_pix: bool = True) -> None:
        super().__init__(
            img_size=size.img_size,
            patch_size=size.patch_size,
            in_chans=size.in_chans,
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
            decoder_embed_dim=size.decoder_dim,
            decoder_depth=size.decoder_depth,
            decoder_num_heads=size.decoder_heads,
            norm_pix_loss=norm_pix,
            masking=RandomMasking(size.mask_ratio),
        )

    def image_loss(self, images: Tensor, mask: Mask) -> Tensor:
        return self.loss(self.encoder.tokens_of(images), mask)

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        return self.image_loss(images, self.masking(self.encoder.grid, keys))


def their_mae(size: Size, norm_pix: bool = True) -> nn.Module:
    """transformers' ViTMAE of the same size, attention through SDPA, norms with MAE's epsilon."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=size.embed_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.embed_dim,
        image_size=size.img_size,
        patch_size=size.patch_size,
        num_channels=size.in_chans,
        decoder_hidden_size=size.decoder_dim,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_dim,
        layer_norm_eps=1e-6,
        mask_ratio=size.mask_ratio,
        norm_pix_loss=norm_pix,
        attn_implementation="sdpa",
    )
    return ViTMAEForPreTraining(config)


def their_names(size: Size) -> dict[str, list[str]]:
    """For each of our parameters, the parameters of theirs that it is stacked of."""
    names = {
        "encoder.cls_token": ["vit.embeddings.cls_token"],
        "decoder.mask_token": ["decoder.mask_token"],
    }
    pairs = {
        "encoder.patch_embed": "vit.embeddings.patch_embeddings.projection",
        "encoder.norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.head": "decoder.decoder_pred",
    }
    stacks = (
        ("encoder.blocks", "vit.layers", size.depth),
        ("decoder.blocks", "decoder.decoder_layers", size.decoder_depth),
    )
    for ours, theirs, depth in stacks:
        for k in range(depth):
            a, b = f"{ours}.{k}", f"{theirs}.{k}"
            pairs |= {
                f"{a}.norm1": f"{b}.layernorm_before",
                f"{a}.norm2": f"{b}.layernorm_after",
                f"{a}.attn.proj": f"{b}.attention.o_proj",
                f"{a}.mlp.fc1": f"{b}.mlp.fc1",
                f"{a}.mlp.fc2": f"{b}.mlp.fc2",
            }
            for kind in ("weight", "bias"):
                names[f"{a}.attn.qkv.{kind}"] = [f"{b}.attention.{part}_proj.{kind}" for part in "qkv"]
    for a, b in pairs.items():
        names |= {f"{a}.{kind}": [f"{b}.{kind}"] for kind in ("weight", "bias")}
    return names


def as_ours(theirs: dict[str, Tensor], size: Size) -> dict[str, Tensor]:
    """Their parameters, or their gradients, under our names and in our order of numbers.

    Their decoder predicts the numbers of a patch as (row, column, channel), ours as (channel, row, column).
    """
    ours = {}
    for name, parts in their_names(size).items():
        value = torch.cat([theirs[part] for part in parts])
        if name == "encoder.patch_embed.weight":
            value = value.flatten(1)
        elif name.startswith("decoder.head"):
            value = value.unflatten(0, (size.patch_size**2, size.in_chans)).transpose(0, 1).flatten(0, 1)
        ours[name] = value
    return ours


def pair(size: Size, norm_pix: bool = True, seed: int = 0, spread: float = 0.1) -> tuple[OurMae, nn.Module]:
    """Both models with the same weights: their initialisation plus noise of standard deviation `spread`.

    The noise is large enough that every parameter, the positions included, shows in the loss.
    """
    torch.manual_seed(seed)
    theirs, ours = their_mae(size, norm_pix), OurMae(size, norm_pix)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * spread)
        # transformers 5.23 leaves both fixed tables at zero unless it loads a checkpoint
        grid, device = ours.encoder.grid, torch.device("cpu")
        theirs.vit.embeddings.position_embeddings[:, 1:] = ours.encoder.positions.add(grid, None, device)
        theirs.decoder.decoder_pos_embed[:, 1:] = ours.decoder.positions.add(grid, None, device)
    ours.load_state_dict(as_ours(theirs.state_dict(), size), strict=False)
    return ours, theirs


def their_loss(theirs: nn.Module, images: Tensor, mask: Mask) -> Tensor:
    """Their loss with our mask: sorting this noise brings the tokens into the order of `mask`."""
    return theirs(pixel_values=images, noise=mask.restore.to(torch.float32)).loss
