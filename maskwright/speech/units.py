"""Discrete units of speech: the codes that a w2v-BERT run gives each step of each utterance."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import Batch
from maskwright.core.trainer.data import read_batches
from maskwright.core.trainer.files import write_text
from maskwright.core.trainer.run import Run
from maskwright.speech.methods.w2v_bert import W2vBert


@torch.no_grad()
def unit_ids(method: W2vBert, batch: Batch) -> list[Tensor]:
    """The likeliest code of each true step of each sample, nothing hidden: B tensors (N,) int64."""
    training = method.training
    method.eval()
    try:
        steps = method.encoder.tokenize(batch)
        ids = method.quantizer.logits(steps.values).argmax(-1).cpu()
    finally:
        method.train(training)
    return [row[:length] for row, length in zip(ids, steps.lengths.tolist(), strict=True)]


def units(
    run: str | Path | Run, out: str | Path, data: str | Path | None = None, merge: bool = False, batch_size: int = 16
) -> Path:
    """Write the units of a corpus as a table of tab-separated columns source, index, group, frames_per_unit, units.

    Args:
        run: a run directory of w2v-BERT with a checkpoint. The exported encoder alone has no codebook.
        out: file to write, such as units.tsv. Units are numbers with blanks between them.
        data: file or folder to read; without it, what the run was trained on.
        merge: write a unit that follows itself once only.

    Raises:
        DataError: no run, no checkpoint, or a file that cannot be read.
        ConfigError: a run of another method.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    method = run.load_method()
    if not isinstance(method, W2vBert):
        raise ConfigError(
            f"{run.path} is a run of {run.recipe().method.name}, which has no units. Give a run of w2v-bert."
        )
    section = run.recipe().data
    _, loader = open_loader(section.path if data is None else data, section.loader, **section.options)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["source", "index", "group", "frames_per_unit", "units"])
    for batch in read_batches(loader, batch_size):
        if batch.bad:
            raise DataError(batch.bad[0].path, batch.bad[0].reason)
        for meta, ids in zip(batch.metas, unit_ids(method, batch), strict=True):
            ids = ids.unique_consecutive() if merge else ids
            stride = method.encoder.front.stride
            table.writerow([meta.source, meta.index, meta.group, stride, " ".join(map(str, ids.tolist()))])
    write_text(Path(out), text.getvalue())
    return Path(out)
