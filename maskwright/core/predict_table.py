"""One table of what a model says of each sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.splits import centre
from maskwright.core.evaluation.task import Targets
from maskwright.core.parts import KEY, Parts, read_notes
from maskwright.core.sample import BadFile, Meta
from maskwright.core.trainer.data import read_batches

if TYPE_CHECKING:
    from maskwright.core.predict import Job

PART_SAMPLES = 1024
"""Samples between two safe points; a multiple of the batch, so that batches do not depend on where work began."""
TABLE = "predictions.parquet"


def table_schema(targets: Targets) -> pa.Schema:
    """Columns: where the sample lies, what is predicted, and how sure.

    `x` and `y` are the centre of the window in units of `crs`, or in pixels of the file where there is none.
    Classification: `predicted`, `p_CLASS`. Multi-label: `predicted` holds the names above 0.5, joined by `;`.
    Regression: `predicted_NAME`.
    """
    place = [("source", pa.string()), ("group", pa.string()), ("index", pa.int64())]
    place += [(f"window_{name}", pa.int32()) for name in ("row", "column", "height", "width")]
    place += [("x", pa.float64()), ("y", pa.float64()), ("crs", pa.string())]
    if targets.kind == "regression":
        said = [(f"predicted_{name}", pa.float32()) for name in targets.classes]
    else:
        said = [("predicted", pa.string()), *((f"p_{name}", pa.float32()) for name in targets.classes)]
    return pa.schema(place + said)


def rows_of(targets: Targets, metas: Sequence[Meta], says: np.ndarray) -> pa.Table:
    """A table of samples; `says` (n, K) are probabilities or numbers."""
    schema = table_schema(targets)
    columns: dict[str, Any] = {
        "source": [meta.source for meta in metas],
        "group": [meta.group for meta in metas],
        "index": [meta.index for meta in metas],
        "crs": [meta.crs for meta in metas],
    }
    for at, name in enumerate(("row", "column", "height", "width")):
        columns[f"window_{name}"] = [None if meta.window is None else meta.window[at] for meta in metas]
    centres = [centre(meta) for meta in metas]
    columns["x"], columns["y"] = ([None if c is None else c[axis] for c in centres] for axis in (0, 1))
    names = targets.classes
    if targets.kind == "multilabel":
        columns["predicted"] = [";".join(n for n, p in zip(names, row, strict=True) if p > 0.5) for row in says]
    elif targets.kind != "regression":
        columns["predicted"] = [names[at] for at in says.argmax(1)]
    prefix = "predicted_" if targets.kind == "regression" else "p_"
    columns |= {f"{prefix}{name}": says[:, at] for at, name in enumerate(names)}
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def predict_table(job: Job) -> tuple[list[Path], int, int, list[BadFile]]:
    """Predict the parts of this share that are not there yet, and join them.

    Returns:
        (the table, samples predicted now, samples in all, what could not be used).
    """
    length = max(1, PART_SAMPLES // job.batch_size) * job.batch_size
    spans = [range(at, min(at + length, len(job.loader))) for at in range(0, len(job.loader), length)]
    mine = list(range(job.number - 1, len(spans), job.count))
    if not mine:
        raise ConfigError(f"{len(job.loader)} samples make {len(spans)} parts, too few for {job.count} shares.")
    indexed = list(job.loader.bad_files) if job.number == 1 else []
    total = sum(len(spans[number]) for number in mine) + len(indexed)
    parts = Parts(job.own(TABLE), {**job.plan, "shard": f"{job.number}/{job.count}"})
    with parts.held():
        if parts.finished():
            return [parts.out], 0, total, indexed + [BadFile(*row) for row in read_notes(parts.out)["bad"]]
        parts.open({})
        there = set(parts.done(mine))
        done, made = sum(len(spans[number]) for number in there), 0
        for number in mine:
            if number in there:
                continue
            table, bad = _predict_part(job, spans[number])
            parts.write(number, table, {"bad": [[file.path, " ".join(file.reason.split())] for file in bad]})
            made += len(table)
            done += len(spans[number])
            if job.progress is not None:
                job.progress(done, total - len(indexed), job.loader.group(spans[number][-1]))
        unread = [row for number in mine for row in read_notes(parts.path(number))["bad"]]
        parts.merge(mine, {KEY: _notes(parts.plan, unread)})
        parts.remove()
    return [parts.out], made, total, indexed + [BadFile(*row) for row in unread]


def _notes(plan: dict[str, Any], bad: list[list[str]]) -> bytes:
    return json.dumps({"plan": plan, "bad": bad}).encode()


def _predict_part(job: Job, span: range) -> tuple[pa.Table, list[BadFile]]:
    model = job.folder.model.to(job.device)
    tables, bad = [], list[BadFile]()
    for batch in read_batches(job.loader, job.batch_size, span):
        bad += batch.bad
        if not batch.metas:
            continue
        says = model.predict(batch).numpy()
        finite = np.isfinite(says).all(1)
        bad += [
            BadFile(meta.source, "the model's output for it holds NaN or Inf")
            for meta, good in zip(batch.metas, finite, strict=True)
            if not good
        ]
        metas = [meta for meta, good in zip(batch.metas, finite, strict=True) if good]
        tables.append(rows_of(model.targets, metas, says[finite]))
    return (pa.concat_tables(tables) if tables else table_schema(model.targets).empty_table()), bad
