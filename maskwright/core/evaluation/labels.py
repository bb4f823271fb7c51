"""Labels and groups of samples: from folders, the loader, tables and arrays."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.loader import Loader

KEYS = ("path", "file", "filename", "file_name", "filepath", "source", "image", "name", "id")
"""Columns that are taken to name the files, in this order."""
MISSING = {"", "nan", "na", "n/a", "none", "null", "?"}
"""Texts that mean that there is no label."""
MAX_ARRAY_BYTES = 2**31
ARRAYS = (".npy", ".npz")


def is_missing(label: Any) -> bool:
    """Whether a label says that there is none."""
    if label is None:
        return True
    if isinstance(label, float):
        return math.isnan(label)
    return isinstance(label, str) and label.strip().lower() in MISSING


def labels_of(spec: str, loader: Loader, key: str = "") -> list[Any]:
    """One label a sample of the loader, None where there is none.

    Args:
        spec: `folder`, `label`, FILE.npy, FILE.npz:NAME, FILE.csv:COLUMN or FILE.parquet:COLUMN. Rows of a table belong
            to files by a column that names them, else by order, if there are as many as samples.
        key: column that names the files.

    Raises:
        ConfigError: no such kind of labels, or no such column. DataError: a file that is missing, broken or of another
            length.
    """
    if spec == "folder":
        return [source_of(loader, index).parent.name for index in range(len(loader))]
    if spec == "label":
        return [loader.label(index) for index in range(len(loader))]
    path, column = split_spec(spec)
    if not path.is_file():
        raise DataError(
            path, "there is no such file", "labels", "Labels are folder, label, FILE.csv:COLUMN or FILE.npy"
        )
    if path.suffix.lower() in ARRAYS:
        return in_order(read_array(path, column), loader, path)
    table = read_table(path)
    if not column:
        raise ConfigError(f"{path} has the columns {', '.join(table)}: say which holds the labels, {path}:COLUMN.")
    for wanted in (column, key):
        if wanted and wanted not in table:
            raise ConfigError(f'{path} has no column "{wanted}".{nearest(wanted, table)}')
    found = key or next((name for known in KEYS for name in table if name.strip().lower() == known), "")
    if not found or found == column:
        return in_order(table[column], loader, path)
    return _by_file(dict(zip(map(str, table[found]), table[column], strict=True)), loader, path, found)


def source_of(loader: Loader, index: int) -> Path:
    """The (first) file of a sample, also of one that cannot be read."""
    try:
        return Path(loader.sources(index)[0])
    except DataError as error:
        return Path(error.path)


def split_spec(spec: str) -> tuple[Path, str]:
    """`FILE:COLUMN` as path and column; a colon that belongs to the file's name stays there."""
    if Path(spec).exists():
        return Path(spec), ""
    place, _, column = spec.rpartition(":")
    return (Path(place), column) if place else (Path(spec), "")


def in_order(values: Any, loader: Loader, path: Path) -> list[Any]:
    if len(values) != len(loader):
        raise DataError(
            path,
            f"holds {len(values)} labels",
            f"{len(loader)}, one a sample in their order, as no column of it names the files",
            f"Name the column that does, or give it one of the names {', '.join(KEYS)}",
        )
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _by_file(by_name: dict[str, Any], loader: Loader, path: Path, key: str) -> list[Any]:
    """Labels by the name of a sample's file: as written, relative to the table, its name, its stem, or its group.

    Of a sample that several files of one folder make up, such as a DICOM series, also by that folder.
    """
    folder = path.resolve().parent
    stems = {Path(name).stem: label for name, label in by_name.items()}
    found = []
    for index in range(len(loader)):
        source = source_of(loader, index)
        resolved = source.resolve()
        names = [str(source), str(resolved), source.name, source.stem, loader.group(index)]
        if resolved.is_relative_to(folder):
            names.insert(0, str(resolved.relative_to(folder)))
        names += _folder_names(loader, index, folder)
        label = next((by_name[name] for name in names if name in by_name), None)
        found.append(stems.get(source.stem) if label is None else label)
    if all(label is None for label in found):
        raise DataError(
            path,
            f'its column "{key}" names none of the files, the first name is "{next(iter(by_name), "")}"',
            f"names such as {source_of(loader, 0).name}",
        )
    return found


def _folder_names(loader: Loader, index: int, beside: Path) -> list[str]:
    """Names of the folder that holds all files of a sample of several files."""
    try:
        sources = loader.sources(index)
    except DataError:
        return []
    places = {Path(source).resolve().parent for source in sources}
    if len(sources) < 2 or len(places) > 1:
        return []
    (place,) = places
    below = [str(place.relative_to(beside))] if place.is_relative_to(beside) else []
    return [*below, str(place), place.name]


def read_array(path: Path, member: str = "") -> np.ndarray:
    """An .npy array, or a named one of an .npz.

    Raises:
        DataError: damaged, of Python objects, or too large.
    """
    try:
        if path.suffix.lower() == ".npy":
            array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                if member not in archive.files:
                    raise ConfigError(f"{path} holds {', '.join(archive.files)}: say which, {path}:NAME.")
                array = archive[member]
        if array.nbytes > MAX_ARRAY_BYTES:
            raise DataError(
                path, f"{array.nbytes / 2**30:.0f} GB", f"at most {MAX_ARRAY_BYTES / 2**30:.0f} GB of labels"
            )
        return np.array(array)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(path, f"cannot be read as an array ({error})", "numbers or text") from error


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV, TSV, whitespace-separated or Parquet table by name. Values of text tables stay text.

    Raises:
        DataError: damaged, empty, or rows of different length.
    """
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise DataError(path, f"cannot be read as Parquet ({' '.join(str(error).split())[:150]})") from error
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            mark = next((mark for mark in ",;\t" if mark in head), None)
            rows = list(csv.reader(file, delimiter=mark)) if mark else [line.split() for line in file]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(path, f"cannot be read as a table ({error})", "text in UTF-8") from error
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise DataError(path, f"holds {len(rows)} lines", "a line of column names, and rows")
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(path, f"has {len(row)} fields in line {number}", f"{len(header)} as in the first line")
    return {name: [row[at].strip() for row in rows[1:]] for at, name in enumerate(header)}
