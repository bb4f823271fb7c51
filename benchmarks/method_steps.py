"""Training step of every vision method as a ratio to plain MAE's: same encoder, same images, steps interleaved.

    python -m benchmarks.method_steps                      # ViT-S/16 at 224, batch 16
    python -m benchmarks.method_steps --size base --batch 8
    python -m benchmarks.method_steps --methods hpm cae    # some of them
    python -m benchmarks.method_steps --device cuda --size base --batch 128

A step is forward with its mask, backward, a fused AdamW step and what the method does after it (moving averages). Decoders
are each method's own at that size. `FLOPs / MAE` is counted operator by operator on one forward and backward pass, the
teacher's included; `time / FLOPs` is how much dearer a step is than its multiplications say, relative to MAE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import environment, interleave, parser, report
from maskwright.core.api import component
from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch, Meta
from maskwright.core.trainer import Method, Progress
from maskwright.testing.data import BatchLoader

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
METHODS: dict[str, dict[str, Any]] = {
    "mae": DECODER,
    "colormae": DECODER,
    "hpm": DECODER,
    "dmae": DECODER,
    "crate-mae": {},
    "gmml": {},
    "crop-mae": {},
    "cae": {"target": "pixels"},
}
"""Options that differ from each method's own. CAE regresses pixels here: its tokenizer is no part of the step."""


def make(name: str, size: str, seed: int, device: str) -> Method:
    torch.manual_seed(seed)
    return component("method", name)(**SIZES[size], **METHODS[name]).to(device)


def images_for(batch: int, seed: int, device: str) -> Batch:
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    return Batch({"image": x.to(device)}, [Meta(str(number), index=number) for number in range(batch)])


def step_of(method: Method, batch: Batch, seed: int) -> Callable[[], Any]:
    """One whole training step, late in a run (so that HPM mines)."""
    method.prepare(BatchLoader(batch, method.inputs), torch.Generator().manual_seed(seed))
    method.train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(seed)
    method.start_step(Progress(999, 1000, 99, 100))

    def step() -> Any:
        loss = method(batch, sample_keys(generator, len(batch), batch.device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(999, 1000)
        return loss.detach()

    return step


def flops(method: Method, batch: Batch) -> int:
    """Of one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        method(batch, sample_keys(torch.Generator().manual_seed(0), len(batch), batch.device)).loss.backward()
    method.zero_grad()
    return counter.get_total_flops()


def main() -> None:
    options = parser(__doc__, rounds=8)
    options.add_argument("--size", choices=SIZES, default="small")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    names = list(dict.fromkeys(["mae", *args.methods]))
    batch = images_for(args.batch, args.seed, args.device)
    methods = {name: make(name, args.size, args.seed, args.device) for name in names}
    sides = {name: step_of(method, batch, args.seed) for name, method in methods.items()}
    counted = {name: flops(method, batch) for name, method in methods.items()}
    times = interleave(sides, args.rounds, warmup=2, device=args.device)
    rows = []
    for name in names:
        ratio, work = times[name].over(times["mae"]), counted[name] / counted["mae"]
        rows.append(
            {
                "method": name,
                "median ms": times[name].median * 1e3,
                "images/s": args.batch / times[name].median,
                "time / MAE": ratio,
                "FLOPs / MAE": work,
                "time / FLOPs": ratio / work,
                "GFLOP": counted[name] / 1e9,
                "parameters": sum(p.numel() for p in methods[name].parameters() if p.requires_grad),
            }
        )
    where = environment(args.seed, args.device)
    report(f"Training steps, ViT-{args.size} at 224, batch {args.batch}", rows, where, args.json)


if __name__ == "__main__":
    main()
