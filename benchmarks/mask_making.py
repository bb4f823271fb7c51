"""Masks for 256 images of 14 x 14 tokens, against lightly's and against loops over samples.

    python -m benchmarks.mask_making

Both sides make what their training needs: ours visible, masked and restore indices with exact counts; lightly's
random masks are indices too, its block masks (after DINOv2, a Python loop over images and rectangles) are booleans
whose counts vary from image to image. Where lightly has nothing, the other side is a loop over samples and rectangles
in NumPy, written here after the papers, which make their masks so in the loader: booleans of exact counts for
beit-block and group, pixels of 64 images of 224 x 224 for group corruption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightly.models.utils import random_block_mask, random_token_mask

from benchmarks.common import environment, interleave, parser, report
from maskwright.core.masking import (
    BeitBlockMasking,
    BlockMasking,
    ColourNoiseMasking,
    Grid,
    GroupMasking,
    RandomMasking,
    UnitMasking,
    group_corruption,
    sample_keys,
)

IMAGES, SIDE = 256, 14
CORRUPTED, PIXELS = 64, 224


def beit_blocks(random: np.random.Generator, wanted: int) -> np.ndarray:
    """One block-wise mask, rectangle by rectangle: (SIDE, SIDE) bool."""
    hidden = np.zeros((SIDE, SIDE), dtype=bool)
    while (remaining := wanted - int(hidden.sum())) > 0:
        area = random.uniform(min(16, remaining), max(16, remaining))
        aspect = np.exp(random.uniform(np.log(0.3), -np.log(0.3)))
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if height >= SIDE or width >= SIDE:
            continue
        top, left = random.integers(SIDE - height + 1), random.integers(SIDE - width + 1)
        block = hidden[top : top + height, left : left + width]
        if 0 < block.size - block.sum() <= remaining:
            block[...] = True
    return hidden


def groups(random: np.random.Generator, side: int, align: int, target: float, exact: bool = False) -> np.ndarray:
    """One mask of random rectangles, one by one: (side, side) bool. `exact` takes surplus pixels back at random."""
    hidden = np.zeros((side, side), dtype=bool)
    longest = int(0.3 * side)
    while hidden.sum() < target:
        top, left = (random.integers(side - align) // align * align for _ in range(2))
        height, width = (round(min(random.integers(align, longest), side - at) / align) * align for at in (top, left))
        before = hidden.copy() if exact else hidden
        hidden[top : top + height, left : left + width] = True
    if exact and (surplus := int(hidden.sum() - target)):
        last = np.flatnonzero(hidden & ~before)
        hidden.flat[random.choice(last, surplus, replace=False)] = False
    return hidden


def loop(make: Any, images: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([make() for _ in range(images)]))


def measured(name: str, sides: dict[str, Any], theirs: Any, rounds: int, device: str) -> dict[str, Any]:
    """A row of the table: our times, and those of the other side where there is one."""
    against, make = theirs or ("", None)
    if make is not None:
        sides = {**sides, "theirs": make}
    times = interleave(sides, rounds, device=device)
    row: dict[str, Any] = {
        "masks": name,
        "ms min": times["ours"].fastest * 1e3,
        "ms median": times["ours"].median * 1e3,
    }
    if make is not None:
        row["against"] = against
        row["its ms min"] = times["theirs"].fastest * 1e3
        row["its ms median"] = times["theirs"].median * 1e3
        row["times as fast"] = 1 / times["ours"].over(times["theirs"])
    return row


def main() -> None:
    args = parser(__doc__, rounds=40).parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    grid, tokens = Grid((SIDE, SIDE)), SIDE * SIDE
    random = np.random.default_rng(args.seed)
    ours = {
        "random, 75 %": RandomMasking(0.75),
        "block, 50 %": BlockMasking(0.5),
        "beit-block, 50 %": BeitBlockMasking(0.5),
        "group, 75 %": GroupMasking(0.75),
        "unit of 2 x 2, 50 %": UnitMasking(0.5, 2),
        "green noise, 75 %": ColourNoiseMasking(0.75, "green"),
    }
    theirs = {
        "random, 75 %": ("lightly", lambda: random_token_mask((IMAGES, tokens + 1), 0.75, device=args.device)),
        "block, 50 %": (
            "lightly",
            lambda: random_block_mask(
                size=(IMAGES, SIDE, SIDE),
                batch_mask_ratio=1.0,
                min_image_mask_ratio=0.5,
                max_image_mask_ratio=0.5,
                device=args.device,
            ),
        ),
        "beit-block, 50 %": ("loop", lambda: loop(lambda: beit_blocks(random, tokens // 2), IMAGES)),
        "group, 75 %": ("loop", lambda: loop(lambda: groups(random, SIDE, 1, 0.75 * tokens, exact=True), IMAGES)),
    }
    rows = []
    for name, masking in ours.items():
        hidden = masking(grid, sample_keys(generator, IMAGES, args.device)).hidden.sum(1)
        exact = masking.hidden_count(grid)
        if not bool((hidden == exact).all()):
            raise SystemExit(f"{name}: our masks hide {hidden.unique().tolist()} tokens, not {exact}.")
        sides = {"ours": lambda masking=masking: masking(grid, sample_keys(generator, IMAGES, args.device))}
        rows.append(measured(name, sides, theirs.get(name), args.rounds, args.device))
    for share, align in ((0.75, 1), (0.75, 16), (0.3, 16)):

        def corruption(share: float = share, align: int = align) -> torch.Tensor:
            keys = sample_keys(generator, CORRUPTED, args.device)
            return group_corruption(keys, (PIXELS, PIXELS), share, align)

        def painted(share: float = share, align: int = align) -> torch.Tensor:
            target = random.uniform(min(0.5, share), share) * PIXELS**2
            return loop(lambda: groups(random, PIXELS, align, target), CORRUPTED)

        reached = corruption().flatten(1).double().mean(1)
        if float(reached.min()) < min(0.5, share):
            raise SystemExit(f"Our group corruption reaches {float(reached.min()):.3f} only, not {min(0.5, share)}.")
        name = f"group corruption of pixels, {share:.0%}, align {align}"
        rows.append(measured(name, {"ours": corruption}, ("loop", painted), args.rounds, args.device))
    where = environment(args.seed, args.device, ["lightly"])
    report(f"Masks for {IMAGES} images of {SIDE} x {SIDE} tokens", rows, where, args.json)


if __name__ == "__main__":
    main()
