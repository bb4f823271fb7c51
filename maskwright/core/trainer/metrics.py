"""metrics.csv: one row a log interval."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskwright.core.trainer.files import DiskFullError, atomic


class MetricsFile:
    """Rows appended one by one, each in a single write. After a resume, rows that will be made again are dropped first.

    Args:
        path: the file; need not exist.
        done: optimiser steps that the checkpoint has behind it.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        rows = [row for row in whole_rows(path) if int(row["step"]) <= done]
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        """Training time behind the last row."""
        self._start(list(rows[0]) if rows else [], rows)

    def _start(self, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
        self.columns = columns
        with atomic(self.path) as temporary:
            temporary.write_text("".join(self._line(row) for row in [dict(zip(columns, columns, strict=True)), *rows]))
        self._file = self.path.open("ab", buffering=0)

    def _line(self, row: dict[str, Any]) -> str:
        text = io.StringIO()
        if self.columns:
            csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in self.columns])
        return text.getvalue()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row. A column that is new (a term that a method adds later) is empty in the rows before.

        Raises:
            DiskFullError: the row could not be written.
        """
        fresh = [name for name in row if name not in self.columns]
        if fresh:
            self.close()
            self._start([*self.columns, *fresh], whole_rows(self.path))
        line = self._line(row).encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise self._full(error.strerror or str(error)) from error
        if written != len(line):
            raise self._full("only a part of it fits")

    def _full(self, reason: str) -> DiskFullError:
        return DiskFullError(
            f"{self.path}: a row was not written ({reason}). Free some space, then run `maskwright resume "
            f"{self.path.parent}`."
        )

    def close(self) -> None:
        self._file.close()


def whole_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv. What a kill or a full disk cut short, and what does not follow in order, is left out."""
    if not path.is_file():
        return []
    text = path.read_text(errors="replace")
    rows: list[dict[str, str]] = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        if None in row or None in row.values() or not row.get("step", "").isdigit():
            continue
        if not rows or int(row["step"]) > int(rows[-1]["step"]):
            rows.append(row)
    return rows
