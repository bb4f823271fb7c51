"""Reading CROMA checkpoints in the layout of their publication (`CROMA_base.pt`, `CROMA_large.pt`) or of torchgeo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from maskwright.core.errors import DataError
from maskwright.core.weights import read_state
from maskwright.remote_sensing.methods.croma import CromaEncoder

PARTS = {"s1_encoder": "sar", "s2_encoder": "optical", "joint_encoder": "fusion"}
POOLS = {"s1_GAP_FFN": "sar_pool", "s2_GAP_FFN": "optical_pool"}
_POOL_LAYERS = {"0": "norm", "1": "mlp.fc1", "3": "mlp.fc2"}
_SELF = {"input_norm": "norm1", "to_qkv": "attn.qkv", "to_out": "attn.proj"}
_CROSS = {
    "input_norm": "norm_cross",
    "to_q": "cross_attn.q",
    "to_k": "cross_attn.k",
    "to_v": "cross_attn.v",
    "to_out": "cross_attn.proj",
}
_FEED_FORWARD = {"input_norm": "norm2", "net.0": "mlp.fc1", "net.2": "mlp.fc2", "net.3": "mlp.fc2"}


def _our_name(part: str, name: str) -> str | None:
    """Our parameter name for `name` of one published part, or None if it has none."""
    if part in POOLS:
        layer, _, leaf = name.partition(".")
        return f"{POOLS[part]}.{_POOL_LAYERS[layer]}.{leaf}" if layer in _POOL_LAYERS else None
    prefix = PARTS[part]
    name = name.removeprefix("transformer.")
    if name.startswith("linear_input."):
        return f"{prefix}.embed.{name.removeprefix('linear_input.')}"
    if name.startswith("norm_out."):
        return f"{prefix}.norm.{name.removeprefix('norm_out.')}"
    match = re.fullmatch(r"layers\.(\d+)\.(\d)\.(.+)\.(weight|bias)", name)
    if match is None:
        return None
    block, position, module, leaf = match.groups()
    tables = [_SELF, _CROSS, _FEED_FORWARD] if part == "joint_encoder" else [_SELF, _FEED_FORWARD]
    ours = tables[int(position)].get(module) if int(position) < len(tables) else None
    return f"{prefix}.blocks.{block}.{ours}.{leaf}" if ours else None


def from_published(state: dict[str, Any], source: str = "checkpoint") -> CromaEncoder:
    """Build an encoder from a published state dict, nested by part or flat with `part.` prefixes.

    Sizes follow from the shapes; heads are 16 in all published models. The published code scales its inputs outside the
    network, so call `fit_normalizers` with statistics of your data (or of the paper's) before you embed physical units.

    Raises:
        DataError: a part is missing, or a tensor of either side is not accounted for.
    """
    nested: dict[str, dict[str, Tensor]] = {part: {} for part in (*PARTS, *POOLS)}
    for key, value in state.items():
        if key == "attn_bias":  # torchgeo stores the constant table of distances, which we compute
            continue
        if key in nested and isinstance(value, dict):
            nested[key].update(value)
        elif isinstance(value, Tensor) and key.partition(".")[0] in nested:
            part, _, name = key.partition(".")
            nested[part][name] = value
        else:
            raise DataError(source, f'holds "{key}", which no CROMA checkpoint has', ", ".join(nested))
    absent = [part for part, tensors in nested.items() if not tensors]
    if absent:
        raise DataError(
            source,
            f"lacks {', '.join(absent)}",
            f"all of {', '.join(nested)}",
            "Use a checkpoint of both sensors (modality both)",
        )
    ours: dict[str, Tensor] = {}
    for part, tensors in nested.items():
        for name, tensor in tensors.items():
            target = _our_name(part, name)
            if target is None:
                raise DataError(source, f'holds "{part}.{name}", which has no place in the encoder', "CROMA's layout")
            ours[target] = tensor

    def depth(part: str) -> int:
        return 1 + max(int(n.split(".")[2]) for n in ours if n.startswith(f"{part}.blocks."))

    dim, pixels = ours["sar.embed.weight"].shape
    optical_pixels = ours["optical.embed.weight"].shape[1]
    encoder = CromaEncoder(
        optical_chans=optical_pixels // 64,
        sar_chans=pixels // 64,
        embed_dim=dim,
        optical_depth=depth("optical"),
        sar_depth=depth("sar"),
        fusion_depth=depth("fusion"),
    )
    missing, unexpected = encoder.load_state_dict(ours, strict=False)
    missing = [name for name in missing if not name.startswith("normalizers.")]
    if missing or unexpected:
        raise DataError(source, f"lacks {missing} and has no place for {unexpected}", "every tensor accounted for")
    return encoder


def load_published(path: str | Path) -> CromaEncoder:
    """Read a published file (`CROMA_base.pt`, or torchgeo's) that the user has downloaded. Nothing in it is executed.

    Raises:
        DataError: the file is missing, holds anything but tensors, or is no CROMA checkpoint.
    """
    state = read_state(
        Path(path),
        "a published CROMA checkpoint",
        "Download CROMA_base.pt or CROMA_large.pt from the authors' page and give its path",
    )
    return from_published(state, str(path))
