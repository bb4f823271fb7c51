"""MAE training step against transformers' and lightly's: same sizes, same weights, steps interleaved.

    python -m benchmarks.mae_step                        # ViT-S/16, batch 16 and 32, fp32 and bf16
    python -m benchmarks.mae_step --size base --batch 8  # ViT-B/16
    python -m benchmarks.mae_step --compile              # the same under torch.compile
    python -m benchmarks.mae_step --size large --batch 128 --device cuda --precision bf16

A step is the mask, forward, backward and a fused AdamW step. Before anything is timed, all sides must give the same
loss for the same mask. `of matmul` is the share of the FLOP/s that a large matrix product of the same precision reaches
in the same rounds.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import environment, in_fresh_process, interleave, parser, peak_memory, report
from benchmarks.lightly_mae import LightlyMae, lightly_loss, lightly_pair
from benchmarks.vitmae import SIZES, OurMae, Size, pair, their_loss, their_mae
from maskwright.core.masking import sample_keys

MATMUL = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product is the yardstick."""
SIDES: dict[str, Callable[[Size], nn.Module]] = {"maskwright": OurMae, "transformers": their_mae, "lightly": LightlyMae}


def step_of(model: nn.Module, images: Tensor, precision: str, seed: int) -> Callable[[], float]:
    """One training step of a side, with a mask of its own making."""
    device = images.device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(seed)
    kind = type(getattr(model, "_orig_mod", model))

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            if kind is OurMae:
                loss = model(images, sample_keys(generator, len(images), device))
            else:
                loss = model(images) if kind is LightlyMae else model(pixel_values=images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def matmul(side: int, precision: str, device: str) -> Callable[[], Tensor]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def count_flops(size: Size, batch: int) -> int:
    """FLOPs of our forward and backward pass, counted operator by operator on tensors without data."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = OurMae(size)
        images = torch.empty(batch, size.in_chans, size.img_size, size.img_size)
        model(images, torch.empty(batch, dtype=torch.int64)).backward()
    return counter.get_total_flops()


def check_equal(size: Size, device: str, seed: int) -> float:
    """Largest difference to our loss for the same weights and masks, patches standardised and not."""
    differences = []
    peers: list[tuple[Any, Any]] = [(pair, their_loss), (lightly_pair, lightly_loss)]
    for (make_pair, loss_of), norm_pix in itertools.product(peers, (False, True)):
        ours, theirs = (model.to(device) for model in make_pair(size, norm_pix, seed))
        images = torch.randn(2, size.in_chans, size.img_size, size.img_size, device=device)
        mask = ours.masking(ours.encoder.grid, sample_keys(torch.Generator().manual_seed(seed), 2, device))
        with torch.no_grad():
            differences.append(float((ours.image_loss(images, mask) - loss_of(theirs, images, mask)).abs()))
    if max(differences) > 1e-4:
        raise SystemExit(f"The sides do not compute the same loss: they differ by {max(differences)}.")
    return max(differences)


def make(side: str, size: Size, args: Any) -> nn.Module:
    torch.manual_seed(args.seed)
    model = SIDES[side](size).to(args.device)
    return torch.compile(model) if args.compile else model


def images_for(size: Size, batch: int, args: Any) -> Tensor:
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randn(batch, size.in_chans, size.img_size, size.img_size, generator=generator).to(args.device)


def measure(size: Size, batch: int, precision: str, args: Any) -> list[dict[str, Any]]:
    images = images_for(size, batch, args)
    sides: dict[str, Callable[[], Any]] = {
        side: step_of(make(side, size, args), images, precision, args.seed) for side in SIDES
    }
    length = MATMUL["cuda" if args.device != "cpu" else "cpu"]
    sides["matmul"] = matmul(length, precision, args.device)
    times = interleave(sides, args.rounds, warmup=3, device=args.device)
    flops = count_flops(size, batch)
    peak = 2 * length**3
    rows = []
    for side in SIDES:
        found = times[side]
        memory = in_fresh_process("benchmarks.mae_step", _arguments(side, batch, precision, args))
        rows.append(
            {
                "side": side,
                "batch": batch,
                "precision": precision,
                "mode": "compiled" if args.compile else "eager",
                "min ms": found.fastest * 1e3,
                "median ms": found.median * 1e3,
                "images/s": batch / found.median,
                "ours / this": times["maskwright"].over(found),
                "of medians": times["maskwright"].over_medians(found),
                "GFLOP/s": flops / found.median / 1e9,
                "of matmul": flops / peak / found.over(times["matmul"]),
                "peak MiB": memory,
            }
        )
    return rows


def _arguments(side: str, batch: int, precision: str, args: Any) -> list[str]:
    text = f"--memory-of {side} --size {args.size} --batch {batch} --precision {precision} --device {args.device}"
    text += f" --threads {args.threads} --seed {args.seed}" + (" --compile" if args.compile else "")
    return text.split()


def main() -> None:
    options = parser(__doc__, rounds=10)
    options.add_argument("--size", choices=SIZES, default="small")
    options.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    options.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32", "bf16"])
    options.add_argument("--compile", action="store_true", help="torch.compile all sides")
    options.add_argument("--memory-of", choices=list(SIDES), help="print peak memory of three steps and stop")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    size = SIZES[args.size]
    if args.memory_of:
        step = step_of(
            make(args.memory_of, size, args), images_for(size, args.batch[0], args), args.precision[0], args.seed
        )
        for _ in range(3):
            step()
        print(peak_memory(args.device))
        return
    difference = check_equal(size, args.device, args.seed)
    print(f"losses for equal weights and masks differ by {difference:.1e}")
    rows = [
        row for precision in args.precision for batch in args.batch for row in measure(size, batch, precision, args)
    ]
    where = environment(args.seed, args.device, ["transformers", "lightly", "timm"])
    report(f"MAE training step, {args.size}: {size}", rows, where, args.json)


if __name__ == "__main__":
    main()
