"""Masks for 256 images of 14 x 14 tokens, random and block, against lightly's.

    python -m benchmarks.mask_making

Both sides make what their training needs: ours visible, masked and restore indices with exact counts; lightly's
random masks are indices too, its block masks (after DINOv2, a Python loop over images and rectangles) are booleans
whose counts vary from image to image.
"""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.utils import random_block_mask, random_token_mask

from benchmarks.common import environment, interleave, parser, report
from maskwright.core.masking import (
    BlockMasking,
    ColourNoiseMasking,
    Grid,
    RandomMasking,
    UnitMasking,
    sample_keys,
)

IMAGES, SIDE = 256, 14


def main() -> None:
    args = parser(__doc__, rounds=40).parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    grid, tokens = Grid((SIDE, SIDE)), SIDE * SIDE
    ours = {
        "random, 75 %": RandomMasking(0.75),
        "block, 50 %": BlockMasking(0.5),
        "unit of 2 x 2, 50 %": UnitMasking(0.5, 2),
        "green noise, 75 %": ColourNoiseMasking(0.75, "green"),
    }
    theirs = {
        "random, 75 %": lambda: random_token_mask(size=(IMAGES, tokens + 1), mask_ratio=0.75, device=args.device),
        "block, 50 %": lambda: random_block_mask(
            size=(IMAGES, SIDE, SIDE),
            batch_mask_ratio=1.0,
            min_image_mask_ratio=0.5,
            max_image_mask_ratio=0.5,
            device=args.device,
        ),
    }
    rows = []
    for name, masking in ours.items():
        hidden = masking(grid, sample_keys(generator, IMAGES, args.device)).hidden.sum(1)
        exact = masking.hidden_count(grid)
        if not bool((hidden == exact).all()):
            raise SystemExit(f"{name}: our masks hide {hidden.unique().tolist()} tokens, not {exact}.")
        sides = {"ours": lambda masking=masking: masking(grid, sample_keys(generator, IMAGES, args.device))}
        if name in theirs:
            sides["theirs"] = theirs[name]
        times = interleave(sides, args.rounds, device=args.device)
        row: dict[str, Any] = {
            "masks": name,
            "ms min": times["ours"].fastest * 1e3,
            "ms median": times["ours"].median * 1e3,
        }
        if "theirs" in times:
            row["lightly ms min"] = times["theirs"].fastest * 1e3
            row["lightly ms median"] = times["theirs"].median * 1e3
            row["times as fast"] = 1 / times["ours"].over(times["theirs"])
        rows.append(row)
    where = environment(args.seed, args.device, ["lightly"])
    report(f"Masks for {IMAGES} images of {SIDE} x {SIDE} tokens", rows, where, args.json)


if __name__ == "__main__":
    main()
