"""lightly's MAE, put together from its modules as its documentation shows, with the weights of ours."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.vitmae import OurMae, Size
from maskwright.core.masking import Mask
from maskwright.core.objective import standardise_patches


class LightlyMae(nn.Module):
    """Encoder and decoder of lightly, its random mask, and the error of hidden patches."""

    def __init__(self, size: Size, norm_pix: bool = True) -> None:
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM
        from timm.models.vision_transformer import VisionTransformer

        self.utils: Any = utils
        vit = VisionTransformer(
            img_size=size.img_size,
            patch_size=size.patch_size,
            in_chans=size.in_chans,
            num_classes=0,
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the name of the class is about to change
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=size.patch_size,
                in_chans=size.in_chans,
                embed_dim=size.embed_dim,
                decoder_embed_dim=size.decoder_dim,
                decoder_depth=size.decoder_depth,
                decoder_num_heads=size.decoder_heads,
            )
        self.size, self.norm_pix = size, norm_pix

    def forward(self, images: Tensor, index: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Loss of (B, C, H, W) in network units. `index`: tokens kept and hidden, counted from the class token 0."""
        length = self.backbone.sequence_length
        keep, hidden = index or self.utils.random_token_mask(
            (len(images), length), self.size.mask_ratio, device=images.device
        )
        encoded = self.decoder.embed(self.backbone.encode(images, idx_keep=keep))
        whole = self.utils.repeat_token(self.decoder.mask_token, (len(images), length))
        whole = self.utils.set_at_index(whole, keep, encoded.type_as(whole))
        predicted = self.decoder.predict(self.utils.get_at_index(self.decoder.decode(whole), hidden))
        target = self.utils.get_at_index(self.utils.patchify(images, self.size.patch_size), hidden - 1)
        return F.mse_loss(predicted, standardise_patches(target) if self.norm_pix else target)


def lightly_pair(size: Size, norm_pix: bool, seed: int = 0, spread: float = 0.1) -> tuple[OurMae, LightlyMae]:
    """Both models with the same weights, large enough that every parameter shows in the loss."""
    torch.manual_seed(seed)
    ours, theirs = OurMae(size, norm_pix), LightlyMae(size, norm_pix)
    patch, channels = size.patch_size, size.in_chans
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    state = {}
    for name, value in ours.state_dict().items():
        part, _, rest = name.partition(".")
        if "normalizers" in name:
            continue
        if part == "encoder":
            whole = value.unflatten(1, (channels, patch, patch)) if rest == "patch_embed.weight" else value
            state[f"backbone.vit.{rest.replace('patch_embed', 'patch_embed.proj')}"] = whole
        elif rest.startswith("head"):  # their patches are ordered (row, column, channel)
            value = value.unflatten(0, (channels, patch**2)).transpose(0, 1).flatten(0, 1)
            state[f"decoder.decoder_pred{rest.removeprefix('head')}"] = value
        else:
            state["decoder." + (rest if rest == "mask_token" else f"decoder_{rest}")] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"backbone.vit.pos_embed", "backbone.mask_token", "decoder.decoder_pos_embed"}, missing
    grid, cpu = ours.encoder.grid, torch.device("cpu")
    with torch.no_grad():
        theirs.backbone.vit.pos_embed[:, 1:] = ours.encoder.positions.add(grid, None, cpu)
        theirs.decoder.decoder_pos_embed[:, 1:] = ours.decoder.positions.add(grid, None, cpu)
    return ours, theirs


def lightly_loss(theirs: LightlyMae, images: Tensor, mask: Mask) -> Tensor:
    """Their loss under our mask."""
    keep = torch.cat([torch.zeros_like(mask.visible[:, :1]), mask.visible + 1], dim=1)
    return theirs(images, (keep, mask.masked + 1))
