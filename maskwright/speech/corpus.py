"""What utterances there are: folders of sound files, tables, LibriSpeech's layout, Kaldi's data folders."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.evaluation.labels import KEYS, read_table
from maskwright.core.sample import BadFile
from maskwright.speech.audio import SUFFIXES

FILE_COLUMNS = (*KEYS, "wav", "audio")
"""Columns of a table that are taken to name the sound files, the first one that is there."""
TABLES = (".csv", ".tsv")
LIBRISPEECH = re.compile(r"(\d+)-(\d+)-\d+")
"""Speaker, chapter and number in a file's name; the folders above it are chapter and speaker."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A sound file or a part of it.

    Args:
        start, end: in seconds; end is None for all that follows.
        speaker, label, text, name: empty or None where nothing says them; name is what Kaldi calls it.
    """

    file: Path
    start: float = 0.0
    end: float | None = None
    speaker: str = ""
    label: str | None = None
    text: str = ""
    name: str = ""


@dataclass
class Corpus:
    """Utterances in order of file and start, and what is no utterance."""

    layout: str
    utterances: list[Utterance]
    bad: list[BadFile] = field(default_factory=list)


def holds_speech(path: Path) -> bool:
    """Whether there is anything that `read_corpus` would take for speech. Looks at names, and at the head of a table."""
    if path.is_dir():
        return (path / "wav.scp").is_file() or next(_walk(path, sort=False), None) is not None
    if path.suffix.lower() in SUFFIXES or path.name == "wav.scp":
        return path.is_file()
    return path.suffix.lower() in TABLES and path.is_file() and _names_sound(path)


def read_corpus(path: str | Path, label_column: str = "") -> Corpus:
    """Utterances of a sound file, of a folder, of a table (CSV or TSV) or of a Kaldi data folder.

    Args:
        label_column: column of a table that holds labels; `label` without it.

    Raises:
        DataError: nothing is there, or a list that cannot be used as a whole. ConfigError: no such column.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(path, "there is no such file or folder")
    if path.is_file() and path.suffix.lower() in TABLES:
        corpus = _table(path, label_column)
    elif path.name == "wav.scp" or (path / "wav.scp").is_file():
        corpus = _kaldi(path if path.is_dir() else path.parent)
    else:
        corpus = _folder(path)
    if label_column and corpus.layout != "table":
        raise ConfigError(f'data.label_column="{label_column}" belongs to a table of files, and {path} is none.')
    corpus.utterances.sort(key=lambda one: (str(one.file), one.start, one.name))
    return corpus


def speaker_of(file: Path, root: Path, pattern: str) -> str:
    """The group of a file of which nothing else says who speaks.

    Args:
        pattern: regular expression that finds the speaker in the path below the root; its first group, if it has any.
            Without it, the folder of the speaker in LibriSpeech's layout.

    Raises:
        ConfigError: no regular expression.
    """
    below = below_root(file, root)
    if pattern:
        try:
            match = re.search(pattern, below)
        except re.error as error:
            raise ConfigError(f"data.group_pattern={pattern!r} is no regular expression ({error}).") from error
        return (match[1] or below) if match and match.re.groups else match[0] if match else below
    return _librispeech_speaker(file) or below


def below_root(file: Path, root: Path) -> str:
    """A file's path below the folder that was opened, its name if it lies elsewhere."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


# folders -----------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Corpus:
    root = path if path.is_dir() else path.parent
    texts: dict[Path, dict[str, str]] = {}
    found = Corpus("file" if path.is_file() else "folder", [])
    for file in _walk(path):
        speaker = _librispeech_speaker(file)
        if file.parent not in texts:
            texts[file.parent] = _transcripts(file.parent)
        label = None if speaker or file.parent == root else file.parent.name
        found.utterances.append(
            Utterance(file, speaker=speaker, label=label, text=texts[file.parent].get(file.stem, ""))
        )
    return found


def _walk(path: Path, sort: bool = True) -> Iterator[Path]:
    """Files by their ending, hidden ones left out."""
    if path.is_file():
        yield path
        return
    files = path.rglob("*")
    for file in sorted(files) if sort else files:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file


def _librispeech_speaker(file: Path) -> str:
    match = LIBRISPEECH.fullmatch(file.stem)
    folders = file.resolve().parent
    return match[1] if match and (folders.parent.name, folders.name) == match.groups() else ""


def _transcripts(folder: Path) -> dict[str, str]:
    """Texts by the name of the file, of all lists in LibriSpeech's form (`NAME TEXT`) that lie beside the files."""
    texts: dict[str, str] = {}
    for file in sorted(folder.glob("*.trans.txt")):
        texts |= dict(_pairs(file))
    return texts


# tables ------------------------------------------------------------------------------------------------------------


def _file_column(names: list[str]) -> str:
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[known] for known in FILE_COLUMNS if known in lower), "")


def _names_sound(path: Path) -> bool:
    """Whether the first row of a table names a sound file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head, row = file.readline(10_000), file.readline(100_000)
    except (OSError, UnicodeDecodeError):
        return False
    mark = next((mark for mark in ",;\t" if mark in head), ",")
    column = _file_column([name.strip(' "\r\n') for name in head.split(mark)])
    return bool(column) and any(field.strip(' "\r\n').lower().endswith(SUFFIXES) for field in row.split(mark))


def _table(path: Path, label_column: str) -> Corpus:
    columns = read_table(path)
    names = list(columns)
    files = _file_column(names)
    if not files:
        raise DataError(path, f"has the columns {', '.join(names)}", "one called file, or path, that names sound files")
    if label_column and label_column not in columns:
        raise ConfigError(f'data.label_column: {path} has no column "{label_column}".{nearest(label_column, names)}')
    lower = {name.lower(): name for name in reversed(names)}
    count = len(columns[files])

    def column(name: str) -> list[str]:
        return columns[lower[name]] if name in lower else [""] * count

    labels = columns[label_column] if label_column else column("label")
    rows = zip(columns[files], column("start"), column("end"), column("speaker"), labels, column("text"), strict=True)
    found = Corpus("table", [])
    for line, (file, start, end, speaker, label, text) in enumerate(rows, start=2):
        place = path.parent / file
        if not file or not place.is_file():
            found.bad.append(BadFile(str(place if file else path), f"is not there, but named in line {line} of {path}"))
            continue
        try:
            times = _times(start, end)
        except ValueError as error:
            found.bad.append(BadFile(str(place), f"{error} in line {line} of {path}"))
            continue
        found.utterances.append(Utterance(place, *times, speaker, label or None, text))
    return found


def _times(start: str, end: str) -> tuple[float, float | None]:
    """Seconds from text; an empty end, or -1 as Kaldi writes it, is the end of the file.

    Raises:
        ValueError: no numbers, or an end that is not behind its start.
    """
    try:
        first, last = float(start or 0), float(end) if end not in ("", "-1") else None
    except ValueError:
        raise ValueError(f'has the times "{start}" and "{end}", which are no numbers,') from None
    if not (math.isfinite(first) and first >= 0) or (last is not None and not (math.isfinite(last) and last > first)):
        raise ValueError(f"has the times {start or 0} and {end or 'none'} s, which are no part of a file,")
    return first, last


# Kaldi -------------------------------------------------------------------------------------------------------------


def _pairs(path: Path) -> list[tuple[str, str]]:
    """`KEY REST` of each line.

    Raises:
        DataError: not to be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})", "text in UTF-8") from error
    return [(parts[0], parts[1].strip() if len(parts) > 1 else "") for line in lines if (parts := line.split(None, 1))]


def _kaldi(folder: Path) -> Corpus:
    """`wav.scp` with plain paths, and `segments`, `utt2spk` and `text` where they are there.

    Paths are absolute, or below the folder or the current one.

    Raises:
        DataError: `wav.scp` runs commands, which is refused: a list of data must not start programs.
    """
    recordings: dict[str, Path] = {}
    for name, place in _pairs(folder / "wav.scp"):
        if place.endswith("|") or place.startswith("|"):
            raise DataError(
                folder / "wav.scp",
                f'runs a command for "{name}" ({place[:60]})',
                "paths of sound files",
                "Commands are not run. Write their results into files first (sox, flac -d) and name those",
            )
        recordings[name] = folder / place if (folder / place).exists() else Path(place)
    speakers, texts = (dict(_pairs(folder / name)) if (folder / name).is_file() else {} for name in ("utt2spk", "text"))
    found = Corpus("Kaldi", [])
    parts = [(name, name, "", "") for name in recordings]
    if (folder / "segments").is_file():
        parts = []
        for name, rest in _pairs(folder / "segments"):
            fields = rest.split()
            if len(fields) != 3:
                raise DataError(
                    folder / "segments", f'has {len(fields)} fields behind "{name}"', "recording, start, end"
                )
            parts.append((name, *fields))
    for name, recording, start, end in parts:
        file = recordings.get(recording)
        if file is None or not file.is_file():
            where = folder / "wav.scp" if file is None else file
            what = (
                f'does not name "{recording}" of segment "{name}"' if file is None else "is not there, but in wav.scp"
            )
            found.bad.append(BadFile(str(where), what))
            continue
        try:
            times = _times(start, end)
        except ValueError as error:
            found.bad.append(BadFile(str(file), f'{error} as segment "{name}"'))
            continue
        found.utterances.append(Utterance(file, *times, speakers.get(name, ""), None, texts.get(name, ""), name))
    return found
