"""Lists of a corpus and files of features, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.core.trainer.files import refuse_full, whole_folder, write_text, write_with
from maskwright.speech.corpus import below_root, read_corpus, speaker_of
from maskwright.speech.inspection import describe
from maskwright.speech.loaders import SpeechLoader

COLUMNS = (
    "file", "label", "speaker", "text", "start", "end", "seconds", "rate", "channels", "format", "peak", "clipped",
    "offset", "silence", "remark", "problem",
)  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """What a list holds: utterances, their hours, how many cannot be used, how many have a remark, and known speakers."""

    utterances: int
    hours: float
    problems: int
    remarks: int
    speakers: int


def write_manifest(
    path: Path, out: Path, group_pattern: str = "", progress: Callable[[int, int], None] | None = None
) -> Listed:
    """Write a table of all utterances, each file read to its end; the loader `speech` takes it as its path.

    Files below the table's folder are named relative to it, others by their whole path. Files that cannot be used are in
    it too, with the reason in the column `problem`.

    Raises:
        ConfigError: `out` is no CSV file, or no regular expression. DataError: there is no speech in the folder.
    """
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"{out}: a list is written as .csv.")
    corpus = read_corpus(path)
    if not corpus.utterances and not corpus.bad:
        raise DataError(path, "holds no sound file", "WAV, FLAC, OGG or MP3")
    root = path if path.is_dir() else path.parent
    files = list(dict.fromkeys(one.file for one in corpus.utterances))
    known: dict[Path, dict[str, Any]] = {}
    for number, file in enumerate(files):
        known[file] = describe(file)
        if progress is not None:
            progress(number + 1, len(files))
    rows, speakers = [], set()
    for one in corpus.utterances:
        row = known[one.file] | {"file": _named(one.file, out), "label": one.label, "text": one.text}
        speaker = one.speaker or speaker_of(one.file, root, group_pattern)
        if speaker != below_root(one.file, root):  # the file itself, where nothing says who speaks
            row["speaker"] = speaker
            speakers.add(speaker)
        if one.start or one.end is not None:
            row |= {"start": one.start, "end": one.end}
            end = row.get("seconds", 0.0) if one.end is None else one.end
            row["seconds"] = round(end - one.start, 3)
        rows.append(row)
    rows += [{"file": _named(Path(bad.path), out), "problem": bad.reason} for bad in corpus.bad]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text.getvalue())
    usable = [row for row in rows if "problem" not in row]
    hours = sum(row["seconds"] for row in usable) / 3600
    return Listed(len(rows), hours, len(rows) - len(usable), sum("remark" in row for row in usable), len(speakers))


def _named(file: Path, out: Path) -> str:
    file, folder = file.resolve(), out.resolve().parent
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def write_features(path: Path, out: Path, options: dict[str, Any]) -> tuple[int, list[BadFile]]:
    """Write what the loader reads, an .npz file an utterance or window, and what was left out.

    Each holds `frames` (C, T) float32, and sample_rate, start, seconds, source, group, label and text. Of one file that is
    one utterance `out` may be an .npz file; else it is a folder, in which files lie as in the source.

    Raises:
        ConfigError: an option that does not fit, or a folder that is not empty. DataError: nothing can be used.
    """
    loader = SpeechLoader(path, **options)
    if out.suffix.lower() == ".npz":
        if len(loader) != 1:
            raise ConfigError(f"{out}: {path} holds {len(loader)} utterances, each a file of its own. Give a folder.")
        refuse_full(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_with(out, lambda place: _save(place, _arrays(loader, 0)))
        return 1, loader.bad_files
    root, names, bad, written = path if path.is_dir() else path.parent, set(), list(loader.bad_files), 0
    with whole_folder(out) as folder:
        for index, piece in enumerate(loader.pieces):
            below = Path(below_root(piece.utterance.file, root))
            name = below.with_name(piece.utterance.name or below.stem).as_posix()
            number, free = 1, name
            while free in names:
                number += 1
                free = f"{name}-{number}"
            names.add(free)
            try:
                arrays = _arrays(loader, index)
            except DataError as error:
                bad.append(BadFile(error.path, str(error).removeprefix(f"{error.path}: ")))
                continue
            (folder / free).parent.mkdir(parents=True, exist_ok=True)
            _save(folder / f"{free}.npz", arrays)
            written += 1
        if not written:
            raise DataError(path, f"none of {len(loader)} utterances can be read; the first: {bad[-1].reason}")
    return written, bad


def _arrays(loader: SpeechLoader, index: int) -> dict[str, Any]:
    sample = loader.read(index)
    meta, extra = sample.meta, sample.meta.extra
    arrays = {"frames": sample["frames"].numpy(), "source": meta.source, "group": meta.group}
    arrays |= {name: extra[name] for name in ("sample_rate", "start", "seconds")}
    return arrays | {"label": meta.label or "", "text": extra.get("text", "")}


def _save(place: Path, arrays: dict[str, Any]) -> None:
    with place.open("wb") as file:  # of a name without .npz, savez would make another
        np.savez(file, **arrays)
