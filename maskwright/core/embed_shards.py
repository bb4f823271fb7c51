"""Shares of an archive among processes: which parts each takes, and joining what they wrote."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq

from maskwright.core.embed_work import Embedded, bad_path, file_metadata, hull
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.parts import Parts, differences, read_notes, shard_path, stream_together
from maskwright.core.trainer.files import write_text


def checked_out(out: str | Path) -> Path:
    """The path of a Parquet file that could be written."""
    path = Path(out)
    if path.suffix != ".parquet" or path.is_dir():
        raise ConfigError(f"{path}: embeddings are written to one file; give --out a name that ends in .parquet.")
    return path


def merge_shards(out: str | Path, count: int) -> Embedded:
    """Join FILE-1-of-n.parquet ... FILE-n-of-n.parquet into FILE.parquet, with their lists of bad files. They are kept.

    Raises:
        DataError: a share is missing or damaged. ConfigError: shares that were made differently, or FILE exists.
    """
    out = checked_out(out)
    files = [shard_path(out, number, count) for number in range(1, count + 1)]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(missing[0], f"is not there yet, like {len(missing)} of {count} shares in all")
    notes = [read_notes(path) for path in files]
    for path, note in zip(files, notes, strict=True):
        if "plan" not in note:
            raise DataError(path, "was not made by `maskwright embed`")
        changed = differences({**notes[0]["plan"], "shard": ""}, {**note["plan"], "shard": ""})
        if changed:
            raise ConfigError(f"{files[0]} and {path} do not belong together: {'; '.join(changed)}.")
    own = {
        **notes[0], "plan": {**notes[0]["plan"], "shard": "1/1"}, "shard": f"all {count} merged",
        **{name: sum(note[name] for note in notes) for name in ("samples", "rows", "bad")},
        "bounds": hull([box for note in notes for box in note["bounds"]]),
    }  # fmt: skip
    parts = Parts(out, own["plan"])
    started = time.perf_counter()
    with parts.held():
        if not parts.finished():
            lists = [bad_path(path) for path in files if bad_path(path).is_file()]
            if lists:
                texts = [path.read_text().partition("\n") for path in lists]
                write_text(bad_path(out), texts[0][0] + "\n" + "".join(text[2] for text in texts))
            geographic = "geometry" in pq.read_schema(files[0]).names
            stream_together(out, files, file_metadata(own, geographic))
    seconds = time.perf_counter() - started
    return Embedded(out, own["samples"], own["rows"], 0, seconds, own["bad"], bad_path(out) if own["bad"] else None)
