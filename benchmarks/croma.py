"""CROMA beside torchgeo's port and the authors' code.

    python -m benchmarks.croma                                   # against torchgeo
    python -m benchmarks.croma --official PATH/pretrain_croma.py # also against a clone of antofuller/CROMA
    python -m benchmarks.croma --device cuda --batch 64

Rows: the attention bias of one pre-training step (three biases; from coordinates, or sliced from a table of all pairs),
inference of a whole image, and a pre-training step (forward and backward). Results are compared before anything is
timed. The authors' file is only imported from where the user keeps it; it needs einops.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.common import environment, interleave, parser, peak_memory, report
from maskwright.core.encoder import alibi_bias, alibi_slopes
from maskwright.core.masking import Grid, RandomMasking, fold, sample_keys
from maskwright.core.sample import Batch, Meta
from maskwright.remote_sensing.methods.croma import Croma
from maskwright.remote_sensing.methods.croma_published import from_published

SIDE = 15
"""Patches along each side of CROMA's 120 px images."""


def load_official(path: Path) -> ModuleType:
    """Import the authors' module from the user's clone, with what it needs of the past and of a process group."""
    setattr(np, "float", float)  # noqa: B010  # an alias that numpy has dropped and the file uses
    if not torch.distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29577")
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    spec = importlib.util.spec_from_file_location("pretrain_croma", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_into_official(method: Croma, official: Any) -> None:
    """Give the authors' model our weights."""
    ours = method.state_dict()
    names = {
        "encoder.sar.": "radar_encoder.",
        "encoder.optical.": "optical_encoder.",
        "encoder.fusion.": "cross_encoder.",
    }
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in ours.items():
        for prefix, target in names.items():
            if name.startswith(prefix):
                theirs[target + _official_layer(name[len(prefix) :], target)] = tensor
        if name.startswith(("encoder.sar_pool.", "encoder.optical_pool.")):
            pool, layer, *leaf = name.removeprefix("encoder.").split(".")
            head = "GAP_FFN_radar" if pool == "sar_pool" else "GAP_FFN_optical"
            number = {"norm": "0", "fc1": "1", "fc2": "3"}[leaf[0] if layer == "mlp" else layer]
            theirs[f"{head}.{number}.{leaf[-1]}"] = tensor
        if name.startswith(("optical_projection.", "sar_projection.")):
            sensor, leaf_name = name.split("_projection.")
            theirs[f"global_contrast_loss.{'radar' if sensor == 'sar' else 'optical'}_proj.{leaf_name}"] = tensor
        if name.startswith("decoder."):
            theirs["decoder." + _official_decoder(name.removeprefix("decoder."))] = tensor
    theirs["global_contrast_loss.logit_scale"] = ours["log_scale"]
    missing, unexpected = official.load_state_dict(theirs, strict=False)
    missing = [name for name in missing if "pos_embed" not in name]
    if missing or unexpected:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")


def _official_layer(name: str, target: str) -> str:
    transformer = "" if target == "cross_encoder." else "transformer."
    if name.startswith("embed."):
        return "linear_input." + name.removeprefix("embed.")
    if name.startswith("norm."):
        return f"{transformer}norm_out." + name.removeprefix("norm.")
    return transformer + _official_block(name, cross=target == "cross_encoder.")


def _official_block(name: str, cross: bool) -> str:
    _, block, rest = name.split(".", 2)
    last = 2 if cross else 1
    table = {
        "norm1.": "0.input_norm.",
        "attn.qkv.": "0.create_qkv.",
        "attn.proj.": "0.out.",
        "norm_cross.": "1.input_norm.",
        "cross_attn.q.": "1.create_q.",
        "cross_attn.k.": "1.create_k.",
        "cross_attn.v.": "1.create_v.",
        "cross_attn.proj.": "1.to_out.",
        "norm2.": f"{last}.input_norm.",
        "mlp.fc1.": f"{last}.net.0.",
        "mlp.fc2.": f"{last}.net.2.",
    }
    ours = next(key for key in table if rest.startswith(key))
    return f"layers.{block}.{table[ours]}{rest.removeprefix(ours)}"


def _official_decoder(name: str) -> str:
    if name == "mask_token":
        return name
    for ours, theirs in (
        ("embed.", "encoder_to_decoder."),
        ("head.", "linear_output."),
        ("norm.", "decoder.norm_out."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return "decoder." + _official_block(name, cross=False)


def mask_info(mask: Any) -> dict[str, Any]:
    """A mask as the authors' code passes it."""
    return {
        "ids_restore": mask.restore,
        "ids_keep": mask.visible,
        "len_keep": mask.visible.shape[1],
        "mask_for_mae": mask.hidden.float(),
    }


def check(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> float:
    gap = (ours - theirs).abs().max().item()
    if not gap <= tolerance:
        raise RuntimeError(f"{name}: results differ by {gap:.2e}; nothing is timed")
    return gap


def compare(row: str, ours: Any, theirs: Any, peer: str, options: Any, gap: float) -> dict[str, Any]:
    times = interleave({"maskwright": ours, peer: theirs}, options.rounds, device=options.device)
    return {
        "case": row,
        "peer": peer,
        "ours ms (min)": times["maskwright"].fastest * 1e3,
        "ours ms (median)": times["maskwright"].median * 1e3,
        "peer ms (min)": times[peer].fastest * 1e3,
        "peer ms (median)": times[peer].median * 1e3,
        "ours / peer": times["maskwright"].over(times[peer]),
        "largest difference": f"{gap:.1e}",
    }


def main() -> None:
    options = parser(__doc__, rounds=7)
    options.add_argument("--batch", type=int, default=8, help="images of inference and of the training step")
    options.add_argument("--bias-batch", type=int, default=64, help="images of the bias rows")
    options.add_argument("--official", type=Path, help="pretrain_croma.py of a clone of antofuller/CROMA")
    options.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = arguments.device
    size = {"embed_dim": 192, "optical_depth": 2, "sar_depth": 1, "fusion_depth": 1} if arguments.tiny else {}
    method = Croma(**size, normalization="none").to(device)  # type: ignore[arg-type]
    encoder = method.encoder
    generator = torch.Generator().manual_seed(arguments.seed)
    batch = Batch(
        {
            "optical": torch.rand(arguments.batch, 12, 120, 120, generator=generator),
            "sar": torch.rand(arguments.batch, 2, 120, 120, generator=generator),
        },
        [Meta("made up")] * arguments.batch,
    ).to(device)
    rows: list[dict[str, Any]] = []

    # bias of one step
    grid = Grid((SIDE, SIDE))
    keys = sample_keys(generator, arguments.bias_batch, device)
    masks = [RandomMasking(0.75)(grid, fold(keys, i)) for i in range(2)]
    coordinates, slopes = grid.coordinates(device), alibi_slopes(16).to(device)

    def from_coordinates() -> list[torch.Tensor]:
        sar, optical = (coordinates[mask.visible] for mask in masks)
        return [alibi_bias(sar, sar, slopes), alibi_bias(optical, optical, slopes), alibi_bias(sar, optical, slopes)]

    if arguments.official:
        official = load_official(arguments.official)
        table = official.get_alibi(16, SIDE * SIDE).to(device)

        def from_table() -> list[torch.Tensor]:
            pairs = ((0, 0), (1, 1), (0, 1))
            return [
                official.apply_mask_to_alibi(
                    table, masks[q].visible, masks[k].visible, arguments.bias_batch, SIDE * SIDE, 56, 16
                )
                for q, k in pairs
            ]

        gap = max(check("bias", a, b) for a, b in zip(from_coordinates(), from_table(), strict=True))
        case = f"bias of one step, batch {arguments.bias_batch}"
        rows.append(compare(case, from_coordinates, from_table, "authors' code", arguments, gap))

    # inference
    from torchgeo.models.croma import CROMA

    depth = len(encoder.optical.blocks)
    port = CROMA(encoder_dim=encoder.embed_dim, encoder_depth=depth, num_heads=16, image_size=120).eval().to(device)
    if isinstance(port.attn_bias, torch.Tensor):
        port.attn_bias = port.attn_bias.to(device)
    copied = from_published({k: v for k, v in port.state_dict().items() if k != "attn_bias"}).eval().to(device)
    copied.normalizers.load_state_dict(encoder.normalizers.state_dict())
    for normalizer in copied.normalizers.values():
        normalizer.kind = "none"

    @torch.no_grad()
    def ours_whole() -> torch.Tensor:
        return copied.embed_batch(batch).tokens

    @torch.no_grad()
    def theirs_whole() -> torch.Tensor:
        return port(x_sar=batch["sar"], x_optical=batch["optical"])["joint_encodings"]

    gap = check("inference", ours_whole(), theirs_whole())
    rows.append(compare(f"inference, batch {arguments.batch}", ours_whole, theirs_whole, "torchgeo", arguments, gap))

    # a pre-training step
    if arguments.official:
        peer = official.CROMA(encoder_dim=encoder.embed_dim, encoder_layers=depth).to(device)
        peer.attn_bias = peer.attn_bias.to(device)
        copy_into_official(method, peer)
        keys = sample_keys(generator, arguments.batch, device)
        step_masks = method.masks(grid, keys)
        images = torch.cat([batch["optical"], batch["sar"]], dim=1)

        def ours_step() -> torch.Tensor:
            method.zero_grad()
            loss = method(batch, keys).loss
            loss.backward()
            return loss.detach()

        def theirs_step() -> torch.Tensor:
            peer.zero_grad()
            info = {name: mask_info(mask) for name, mask in step_masks.items()}
            loss = sum(peer(images, info["sar"], info["optical"], 0, 1))
            loss.backward()
            return loss.detach()

        gap = check("pre-training loss", ours_step(), theirs_step())
        for name in ("optical.blocks.0.attn.qkv.weight", "sar.embed.weight"):
            mine = dict(encoder.named_parameters())[name].grad
            prefix = "optical_encoder." if name.startswith("optical") else "radar_encoder."
            other = dict(peer.named_parameters())[prefix + _official_layer(name.split(".", 1)[1], prefix)].grad
            assert mine is not None
            gap = max(gap, check(f"gradient of {name}", mine, other))
        case = f"pre-training step, batch {arguments.batch}"
        rows.append(compare(case, ours_step, theirs_step, "authors' code", arguments, gap))

    title = f"CROMA of width {encoder.embed_dim}, 120 px; peak memory of this process {peak_memory(device):.0f} MiB"
    report(title, rows, environment(arguments.seed, device, ("torchgeo",)), arguments.json)


if __name__ == "__main__":
    main()
