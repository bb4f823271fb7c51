"""Text tables of numbers: comma, semicolon, tab or white space between the fields, with or without a line of names."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskwright.core.errors import DataError

HEAD_BYTES = 2**17
"""How much of a file is looked at to find out its layout."""
MAX_TABLE_BYTES = 2**30
"""Longest text table; it is read into memory as a whole."""
MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "?"})
"""Texts, in lower case, that stand for a missing number."""
BLOCK = 4096
LONG_COUNT = 8
"""Columns from which a line that counts them cannot be taken for data."""


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Args:
        delimiter: comma, semicolon or tab; empty for white space.
        fields: number of columns.
        skip_first: whether the first line holds names or numbers of columns.
        names: names of the columns; empty if there are none, or if they only count the columns.
    """

    delimiter: str
    fields: int
    skip_first: bool
    names: tuple[str, ...] = ()


def number(text: str) -> float | None:
    """The number that a field holds, NaN where it is missing, or None if it is no number."""
    text = text.strip()
    if text.lower() in MISSING:
        return float("nan")
    try:
        return None if "_" in text else float(text)  # Python takes 1_000 for a number, tables mean a name
    except ValueError:
        return None


def sniff(path: Path, header: bool | None = None) -> Layout:
    """Find out how a table is written from its head.

    Args:
        header: whether the first line holds names; without it, decided by what the lines look like.

    Raises:
        DataError: no text, or no table.
    """
    lines = _head_lines(path)
    candidates: list[tuple[float, int, str, list[list[str]], int]] = []
    for delimiter in (",", ";", "\t", ""):
        try:
            rows = [fields for _, fields in itertools.islice(_rows(lines, delimiter), 200)]
        except csv.Error:
            continue
        width, votes = Counter(map(len, rows[:20])).most_common(1)[0] if rows else (0, 0)
        if len(rows) >= 2 and width >= 2 and votes > 0.6 * len(rows[:20]):  # a stray line is named when it is read
            good = sum(number(field) is not None for row in rows[1:] for field in row)
            candidates.append((good / sum(map(len, rows[1:])), -len(candidates), delimiter, rows, width))
    if not candidates:
        shown = lines[0].strip()[:60] if lines else ""
        raise DataError(
            path,
            f'is no table: its lines do not have equally many fields (the first reads "{shown}")',
            "two lines or more of numbers between commas, semicolons, tabs or white space",
        )
    _, _, delimiter, rows, width = max(candidates)
    first, rest = [field.strip() for field in rows[0]], rows[1:]
    fits = len(first) == width
    counts = fits and _counts_columns(first, rest)
    skip = fits and (counts or _names_columns(first, rest)) if header is None else header
    return Layout(delimiter, width, skip, tuple(first) if skip and fits and not counts else ())


def holds_numbers(path: Path) -> bool:
    """Whether a file looks like a table of nothing but numbers. Reads its head only."""
    try:
        layout = sniff(path)
        rows = [fields for _, fields in itertools.islice(_rows(_head_lines(path), layout.delimiter), 50)]
    except (DataError, csv.Error):
        return False
    data = rows[layout.skip_first :]
    return bool(data) and all(len(row) == layout.fields and None not in map(number, row) for row in data)


def read_numbers(
    path: Path, layout: Layout, columns: Sequence[int], texts: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """Chosen columns of a table.

    Args:
        columns: positions of the columns to read as numbers.
        texts: positions of those to read as text.

    Returns:
        numbers (rows, columns) float32, NaN where one is missing; the line (from 1) of each row, (rows,); and the texts
        of each column in `texts`.

    Raises:
        DataError: a line of another number of fields, or a field that is no number; names the line.
    """
    blocks, lines, found = [], [], [[] for _ in texts]  # type: ignore[var-annotated]
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise DataError(
                path,
                f"{size / 1e9:.1f} GB of text",
                f"at most {MAX_TABLE_BYTES / 1e9:.1f} GB, as a table is read whole",
                "Save it as .npy, of which only the rows in use are read",
            )
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = itertools.islice(_rows(file, layout.delimiter), int(layout.skip_first), None)
            while block := list(itertools.islice(rows, BLOCK)):
                for line, fields in block:
                    if len(fields) != layout.fields:
                        raise DataError(
                            f"{path}, line {line}",
                            f"has {len(fields)} fields",
                            f"{layout.fields} as in the lines before",
                            "Mend or remove this line",
                        )
                    for place, column in enumerate(texts):
                        found[place].append(fields[column].strip())
                blocks.append(_as_numbers(block, columns, path, layout))
                lines += [line for line, _ in block]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"cannot be read as a table ({error})", "text in UTF-8") from error
    if not blocks:
        raise DataError(path, "holds no rows")
    return np.concatenate(blocks), np.asarray(lines), found


def _as_numbers(block: list[tuple[int, list[str]]], columns: Sequence[int], path: Path, layout: Layout) -> np.ndarray:
    values = [[number(fields[column]) for column in columns] for _, fields in block]
    for (line, fields), row in zip(block, values, strict=True):
        if None in row:
            column = columns[row.index(None)]
            name = f'"{layout.names[column]}"' if layout.names else f"{column} (counted from 0)"
            raise DataError(
                f"{path}, line {line}",
                f'column {name} holds "{fields[column].strip()[:40]}"',
                "a number",
                "Leave such columns out with data.columns, or mend the line",
            )
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused when the row is read
        return np.array(values, dtype=np.float64).astype(np.float32)


def _head_lines(path: Path) -> list[str]:
    """Whole lines at the beginning of a text file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            more = bool(file.read(1))
    except OSError as error:
        raise DataError(path, f"cannot be opened ({error.strerror})", "a text table") from error
    if not head.strip():
        raise DataError(path, "is empty", "a text table")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=not more)
    except UnicodeDecodeError as error:
        raise DataError(path, f"is no text ({error.reason} at byte {error.start})", "a table in UTF-8") from error
    if "\0" in text:
        raise DataError(path, "is no text, it holds zero bytes", "a table in UTF-8")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [f"{line}\n" for line in (lines[:-1] if more and len(lines) > 1 else lines)]


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line from 1, fields) of all lines that are not blank and no comment (`#`)."""
    if delimiter:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        numbered: Iterator[tuple[int, list[str]]] = ((reader.line_num, fields) for fields in reader)
    else:
        numbered = ((number, line.split()) for number, line in enumerate(lines, start=1))
    for line, fields in numbered:
        if any(field.strip() for field in fields) and not fields[0].startswith("#"):
            yield line, fields


def _names_columns(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether a line holds names: text over a column of numbers."""
    if not rest:
        return False
    return any(
        number(name) is None and all(number(row[at]) is not None for row in rest[:20] if len(row) > at)
        for at, name in enumerate(first)
    )


def _counts_columns(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether a line counts the columns from 0 or 1, a slip here and there forgiven, as some archives write it.

    A short line such as `1 2 3` may well be data; it counts columns only if the lines below hold decimals.
    """
    counted = [field for field in first if field]  # a table written with its index begins with an empty field
    matches = max(_counted(counted, start) for start in (0, 1))
    if rest:
        below = [field.strip() for field in rest[0]]
        start = number(below[0])
        if start is not None and start.is_integer() and _counted(below, int(start)) >= 0.9 * len(below):
            return False  # a ramp goes on in the next line: these are data
    if len(counted) >= LONG_COUNT:
        return len(first) - len(counted) <= 1 and matches >= 0.9 * len(counted)
    decimals = sum("." in field for row in rest for field in row) > 0.5 * sum(map(len, rest))
    return len(counted) >= 3 and matches == len(counted) and decimals


def _counted(fields: Sequence[str], start: int) -> int:
    """How many fields stand where they would if they counted up from `start`."""
    return sum(field == str(at + start) for at, field in enumerate(fields))
