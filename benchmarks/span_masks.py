"""Hidden spans and distractors of a batch of speech, against transformers' functions for wav2vec 2.0.

    python -m benchmarks.span_masks

32 rows of 749 steps, spans of 10 steps, 100 distractors for each hidden step. Both sides make what their training
needs: theirs a boolean mask of spans and, for every step of the batch, places of other hidden steps; ours a mask, the
places of hidden steps and numbers of others among these. Before anything is timed, the distractors of both are checked:
hidden steps of the same row, never the step itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from benchmarks.common import environment, interleave, parser, report
from maskwright.core.masking import sample_keys
from maskwright.core.masking.spans import SpanMasking
from maskwright.speech.contrast import distractors, hidden_places

ROWS, STEPS, SPAN, SHARE, NUMBER = 32, 749, 10, 0.65, 100


def check_ours(hidden: Tensor, places: Tensor, counts: Tensor, others: Tensor) -> None:
    rows = torch.arange(ROWS)
    for row in rows.tolist():
        count = int(counts[row])
        mine = others[row, :count]
        own = torch.arange(count)[:, None]
        if bool((mine == own).any()) or int(mine.max()) >= count or not bool(hidden[row, places[row, :count]].all()):
            raise SystemExit("Our distractors are wrong.")


def check_theirs(hidden: np.ndarray, negatives: np.ndarray) -> None:
    row, step = np.nonzero(hidden)
    found = negatives[row, step]
    same_row = found // STEPS == row[:, None]
    if not (same_row.all() and hidden.reshape(-1)[found].all() and (found % STEPS != step[:, None]).all()):
        raise SystemExit("Their distractors are wrong.")


def main() -> None:
    args = parser(__doc__, rounds=40).parse_args()
    torch.set_num_threads(args.threads)
    np.random.seed(args.seed)  # noqa: NPY002 - theirs draws from the global generator
    generator = torch.Generator().manual_seed(args.seed)
    masking, lengths = SpanMasking(), torch.full((ROWS,), STEPS, device=args.device)

    def ours(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keys = sample_keys(generator, ROWS, args.device)
        hidden = getattr(masking, kind)(keys, lengths, STEPS)
        places, counts = hidden_places(hidden)
        return hidden, places, counts, distractors(keys, counts, places.shape[1], NUMBER)

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        hidden = _compute_mask_indices((ROWS, STEPS), SHARE, SPAN)
        return hidden, _sample_negative_indices((ROWS, STEPS), NUMBER, hidden)

    for kind in ("independent", "equal"):
        check_ours(*(tensor.cpu() for tensor in ours(kind)))
    check_theirs(*theirs())
    keys = sample_keys(generator, ROWS, args.device)
    sides = {
        "masks, independent": lambda: masking.independent(keys, lengths, STEPS),
        "masks, equal counts": lambda: masking.equal(keys, lengths, STEPS),
        "masks, transformers": lambda: _compute_mask_indices((ROWS, STEPS), SHARE, SPAN),
        "masks and distractors, independent": lambda: ours("independent"),
        "masks and distractors, equal counts": lambda: ours("equal"),
        "masks and distractors, transformers": theirs,
    }
    times = interleave(sides, args.rounds, device=args.device)
    rows = []
    for name in sides:
        other = times[f"{name.split(',')[0]}, transformers"]
        rows.append(
            {
                "what": name,
                "ms min": times[name].fastest * 1e3,
                "ms median": times[name].median * 1e3,
                "times as fast": 1 / times[name].over(other),
            }
        )
    where = environment(args.seed, args.device, ["transformers"])
    report(f"{ROWS} rows of {STEPS} steps, spans of {SPAN}, {NUMBER} distractors", rows, where, args.json)


if __name__ == "__main__":
    main()
