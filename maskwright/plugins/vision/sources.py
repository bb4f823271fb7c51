"""Where images come from: folders and lists. Each source names its samples and hands out the bytes of their files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.sample import BadFile
from maskwright.plugins.vision.images import SUFFIXES

PATH_NAMES = ("path", "file", "filename", "image", "file_name", "filepath", "file_path", "image_path", "img")
LABEL_NAMES = ("label", "class", "target")
GROUP_NAMES = ("group", "patient", "scene", "subject")
"""Names, in lower case, that columns and keys of these meanings go by; the first that is there is taken."""
LIST_SUFFIXES = (".csv", ".tsv")
ROWS_LOOKED_AT = 20


class Source(Protocol):
    """Images by number."""

    root: Path
    bad_files: list[BadFile]

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """What errors and `Meta.source` call it."""
        ...

    def file(self, index: int) -> str:
        """The file on disk that it lies in."""
        ...

    def label(self, index: int) -> str | None: ...
    def group(self, index: int) -> str: ...
    def content(self, index: int, most: int) -> bytes:
        """All bytes of it. DataError where there are more than `most`, or fewer than there were."""
        ...

    def open(self, index: int) -> BinaryIO:
        """It as a file, to look at its header."""
        ...


class FileSource:
    """Files on disk, by path relative to `root`; labels and groups beside them."""

    def __init__(self, root: Path, bad_files: list[BadFile]) -> None:
        self.root, self.bad_files = root, bad_files
        self.paths: list[str] = []
        self.labels: list[str | None] = []
        self.groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    file = name

    def label(self, index: int) -> str | None:
        return self.labels[index]

    def group(self, index: int) -> str:
        return Path(self.paths[index]).as_posix() if self.groups is None else self.groups[index]

    def content(self, index: int, most: int) -> bytes:
        path = self.name(index)
        try:
            with open(path, "rb") as file:
                check_bytes(path, os.fstat(file.fileno()).st_size, most)
                return file.read()
        except OSError as error:
            raise DataError(path, f"cannot be read ({error.strerror})") from error

    def open(self, index: int) -> BinaryIO:
        try:
            return open(self.name(index), "rb")
        except OSError as error:
            raise DataError(self.name(index), f"cannot be read ({error.strerror})") from error


def check_bytes(name: str, size: int, most: int) -> None:
    if size > most:
        raise DataError(
            name, f"holds {size:,} bytes", f"at most {most:,}", "If that is right, raise data.max_pixels, or cut it up"
        )


def open_folder(path: Path) -> FileSource:
    """All images of a folder and its sub-folders in order of name, or a single one. A sub-folder's name is the label."""
    source = FileSource(path if path.is_dir() else path.parent, [])
    found = walk(path, SUFFIXES) if path.is_dir() else [(path.name, path.stat().st_size)]
    names: dict[str, str] = {}
    for name, size in found:
        if size == 0:
            source.bad_files.append(BadFile(os.path.join(source.root, name), "is empty"))
            continue
        folder = os.path.basename(os.path.dirname(name))
        source.paths.append(name)
        source.labels.append(names.setdefault(folder, folder) or None)
    return source


def walk(
    top: Path, suffixes: tuple[str, ...], below: str = "", seen: frozenset = frozenset()
) -> Iterator[tuple[str, int]]:
    """(relative path, bytes) of files with these endings in order of name; hidden ones and loops of links left out."""
    here = os.path.join(top, below)
    status = os.stat(here)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen = seen | {(status.st_dev, status.st_ino)}
    with os.scandir(here) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in ordered:
        name = os.path.join(below, entry.name)
        if entry.is_dir():
            yield from walk(top, suffixes, name, seen)
        elif entry.name.lower().endswith(suffixes) and entry.is_file():
            yield name, entry.stat().st_size


# lists -------------------------------------------------------------------------------------------------------------


def holds_list(path: Path) -> bool:
    """Whether a text table has a column of names of images."""
    try:
        names, rows = _head(path)
    except (OSError, ValueError, csv.Error):
        return False
    return bool(_image_columns(names, rows))


def open_list(path: Path, path_column: str, label_column: str, group_column: str) -> FileSource:
    """Images named in a text table. Paths are relative to it; without a line of names columns are called 0, 1, 2 ...

    Raises:
        ConfigError: there is no such column, or it cannot be told which one names the images.
        DataError: no readable table.
    """
    try:
        names, rows = _head(path)
        where = _path_column(path, names, rows, path_column)
        label = _column(path, names, label_column, LABEL_NAMES, "label_column")
        group = _column(path, names, group_column, GROUP_NAMES, "group_column")
        source = FileSource(path.parent, [])
        grouped: list[str] = []
        known: dict[str, str] = {}
        for line, row in _rows(path, skip_first=bool(rows) and names != [str(i) for i in range(len(names))]):
            if len(row) != len(names):
                source.bad_files.append(BadFile(f"{path}, line {line}", f"has {len(row)} fields, not {len(names)}"))
                continue
            reason = _unusable(path.parent, row[where])
            if reason:
                source.bad_files.append(BadFile(str(path.parent / row[where]), f"{reason} ({path.name}, line {line})"))
                continue
            source.paths.append(row[where])
            text = "" if label is None else row[label].strip()
            source.labels.append(known.setdefault(text, text) or None)
            own = "" if group is None else row[group].strip()
            grouped.append(known.setdefault(own, own) or Path(row[where]).as_posix())
        source.groups = None if group is None else grouped
    except (ValueError, csv.Error, OSError) as error:
        raise DataError(path, f"cannot be read as a table ({error})", "UTF-8 text, one image a line") from error
    return source


def _unusable(root: Path, name: str) -> str:
    if not name.strip():
        return "is named nowhere"
    try:
        status = os.stat(os.path.join(root, name))
    except (OSError, ValueError):
        return "there is no such file"
    if os.path.isdir(os.path.join(root, name)):
        return "is a folder"
    return "" if status.st_size else "is empty"


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline(2**16)
    return max(",;\t", key=first.count)


def _rows(path: Path, skip_first: bool) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each line that is not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_delimiter(path))
        for row in reader:
            if any(field.strip() for field in row):
                if not skip_first:
                    yield reader.line_num, row
                skip_first = False


def _head(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the columns and some rows."""
    rows = [row for _, row in zip(range(ROWS_LOOKED_AT + 1), (row for _, row in _rows(path, False)), strict=False)]
    if not rows:
        raise ValueError("it is empty")
    if any(_is_image(field) for field in rows[0]):
        return [str(number) for number in range(len(rows[0]))], rows
    return [name.strip() for name in rows[0]], rows[1:]


def _is_image(text: str) -> bool:
    return text.strip().lower().endswith(SUFFIXES)


def _image_columns(names: Sequence[str], rows: list[list[str]]) -> list[int]:
    """Columns in which more than half of the rows looked at name an image."""
    counts = [sum(len(row) > column and _is_image(row[column]) for row in rows) for column in range(len(names))]
    return [column for column, count in enumerate(counts) if rows and 2 * count > len(rows)]


def _path_column(path: Path, names: list[str], rows: list[list[str]], wanted: str) -> int:
    if wanted:
        return _named(path, names, wanted, "path_column")
    columns = _image_columns(names, rows)
    for name in PATH_NAMES:
        for column in columns:
            if names[column].lower() == name:
                return column
    if len(columns) == 1:
        return columns[0]
    found = f"the columns {', '.join(names[column] for column in columns)} all do" if columns else "no column does"
    raise ConfigError(
        f"{path}: one column must name images, but {found}. Choose one with data.path_column=NAME (columns: "
        f"{', '.join(names)})."
    )


def _column(path: Path, names: list[str], wanted: str, usual: tuple[str, ...], option: str) -> int | None:
    if wanted:
        return _named(path, names, wanted, option)
    lowered = [name.lower() for name in names]
    return next((lowered.index(name) for name in usual if name in lowered), None)


def _named(path: Path, names: list[str], wanted: str, option: str) -> int:
    if wanted not in names:
        raise ConfigError(f'data.{option}="{wanted}": {path} has no such column.{nearest(wanted, names)}')
    return names.index(wanted)
