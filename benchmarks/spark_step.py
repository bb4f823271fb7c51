"""SparK's visible cells against dense layers that are set back to zero: same network, weights and masks, interleaved.

    python -m benchmarks.spark_step                                  # ResNet-50 and ConvNeXt-S, 224 pixels, one thread
    python -m benchmarks.spark_step --backbone resnet50 --batch 4
    python -m benchmarks.spark_step --device cuda --batch 64

`encoder` is the network, forward and backward; `step` also fills the maps, decodes, and takes the loss. `dense` is the
network that hides nothing, for scale. Before anything is timed, both sides must give the same maps for the same mask.
Memory is what one pass adds to the peak of a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import environment, in_fresh_process, interleave, parser, peak_memory, report
from benchmarks.spark_masked import MaskedNetwork
from maskwright.core.encoder.cells import Cells
from maskwright.core.encoder.outside_models import ModelText, build_timm
from maskwright.core.encoder.patches import patchify
from maskwright.core.masking import Grid, sample_keys
from maskwright.core.objective import masked_reconstruction
from maskwright.medical.methods.spark import SparK

SIDES = ("visible cells", "zeroed", "dense")
PARTS = ("encoder", "step")


class Bench:
    """One network on all sides, with the filling and decoding of `SparK` behind it."""

    def __init__(self, backbone: str, batch: int, size: int, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.method = SparK(backbone).to(device)
        stock = build_timm(ModelText.parse(f"timm:{backbone}"), 3)
        stock.load_state_dict(self.method.encoder.module.state_dict())
        self.dense = build_timm(ModelText.parse(f"timm:{backbone}"), 3).to(device)
        self.masked = MaskedNetwork(stock).to(device)
        stride = self.method.encoder.stride
        self.grid = Grid((size // stride,) * 2)
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.tokens = self.method.encoder.tokenize({"image": self.images})
        self.mask = self.method.mask(self.grid, sample_keys(torch.Generator().manual_seed(seed), batch, device))

    def maps(self, side: str) -> tuple[list[Tensor], Cells]:
        """Maps of the four scales: of visible cells, or whole."""
        if side == "visible cells":
            return self.method.encoder.pyramid(self.tokens, self.mask)
        active = ~self.mask.hidden.view(len(self.mask), 1, *self.grid.shape)
        if side == "zeroed":
            return self.masked(self.images, active)[-4:], Cells(self.grid, self.mask.visible)
        last, maps = self.dense.forward_intermediates(self.images, indices=4)
        return [*maps[:-1], last], Cells(self.grid, self.mask.visible)

    def encoder(self, side: str) -> float:
        maps, _ = self.maps(side)
        sum(x.square().mean() for x in maps).backward()  # type: ignore[union-attr]
        return 0.0

    def step(self, side: str) -> float:
        maps, cells = self.maps(side)
        if side != "visible cells":
            maps = [cells.gather(x) for x in maps]
        filled = [fill(x, cells) for fill, x in zip(self.method.fills, maps[::-1], strict=True)]
        picture = patchify(self.method.decoder(filled), self.method.encoder.patch_size)
        loss = masked_reconstruction(picture, self.tokens.values, self.mask, standardise=True)
        loss.backward()
        return float(loss.detach())

    def difference(self) -> float:
        """Of the maps of the two sparse sides, relative to the largest value."""
        with torch.no_grad():
            ours, cells = self.maps("visible cells")
            theirs, _ = self.maps("zeroed")
        pairs = [(cells.spread(a), b) for a, b in zip(ours, theirs, strict=True)]
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def added_memory(backbone: str, part: str, side: str, options: argparse.Namespace) -> float:
    """MiB that one pass adds to the highest memory of this process."""
    bench = Bench(backbone, options.batch, options.size, options.device, options.seed)
    before = peak_memory(options.device)
    getattr(bench, part)(side)
    return peak_memory(options.device) - before


def measure(backbone: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of the table for one network."""
    bench = Bench(backbone, options.batch, options.size, options.device, options.seed)
    far = bench.difference()
    if far > 1e-3:
        raise SystemExit(f"{backbone}: the two sides give different maps ({far:.1e}).")
    rows = []
    same = [
        f"--{name}={value}"
        for name, value in vars(options).items()
        if name in ("batch", "size", "device", "seed", "threads")
    ]
    for part in PARTS:
        run: Callable[[str], float] = getattr(bench, part)
        times = interleave(
            {side: (lambda side=side, run=run: run(side)) for side in SIDES}, options.rounds, 1, options.device
        )
        for number, side in enumerate(SIDES):
            memory = ["--memory-of", part, str(number), "--backbone", backbone, *same]
            rows.append(
                {
                    "network": backbone,
                    "part": part,
                    "side": side,
                    "s": times[side].median,
                    "times zeroed": 1 / times[side].over(times["zeroed"]),
                    "added MiB": in_fresh_process("benchmarks.spark_step", memory),
                    "maps differ by": far if side == "visible cells" else "",
                }
            )
    return rows


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--backbone", nargs="+", default=["resnet50", "convnext_small"])
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--memory-of", nargs=2, metavar=("PART", "SIDE"), help="print memory of one pass and stop")
    options.set_defaults(threads=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory_of:
        part, number = chosen.memory_of
        print(added_memory(chosen.backbone[0], part, SIDES[int(number)], chosen))
        return
    rows = [row for backbone in chosen.backbone for row in measure(backbone, chosen)]
    title = f"SparK at {chosen.size} pixels, 60 % hidden, batch {chosen.batch}, forward and backward, fp32"
    report(title, rows, environment(chosen.seed, chosen.device, ("timm",)), chosen.json)


if __name__ == "__main__":
    main()
