"""A large Parquet file made in parts, so that a kill or a full disk costs at most the part at hand.

While `FILE.parquet` is being made, `FILE.parquet.parts/` holds `plan.json`, which says what it is made of, and one whole
Parquet file for each finished part. At the end the parts are streamed into `FILE.parquet`, which appears at once, and
the folder is removed. Whatever is killed, the next start finds either the finished file or all finished parts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.files import DiskFullError, atomic, remove_leftovers, write_text
from maskwright.core.trainer.lock import held

KEY = b"maskwright"
"""Under which a Parquet file of ours keeps its notes, as JSON, in its schema."""
PLAIN = frozenset({"embedding", "geometry"})
"""Columns of ever new values, which a dictionary would only make larger."""


class Parts:
    """The parts of one file.

    Args:
        out: the file to make.
        plan: what it is made of, JSON-able; parts of another plan are refused.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self.out, self.plan = out, json.loads(json.dumps(plan))
        self.folder = out.with_name(f"{out.name}.parts")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file for this process, and remove what a killed one left half-written.

        Raises:
            ConfigError: a living process makes the same file.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with held(self.out.with_name(f"{self.out.name}.lock"), self.out):
            for path in self.out.parent.glob(f".{self.out.name}.*.tmp"):
                path.unlink(missing_ok=True)
            if self.folder.is_dir():
                remove_leftovers(self.folder)
            yield

    def finished(self) -> bool:
        """Whether the whole file is there, made by the same plan; then the parts are of no more use and removed.

        Raises:
            ConfigError: another file is in its place.
        """
        if not self.out.exists():
            return False
        there = read_notes(self.out).get("plan")
        if there is None:
            raise ConfigError(
                f"{self.out} exists and was not made by this command. Choose another --out, or remove it."
            )
        self._refuse_other(there, f"{self.out} exists", "Choose another --out, or remove it")
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def open(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Make the folder, or go on in it. Returns `extra`, or what was given when the folder was made.

        Raises:
            ConfigError: it holds parts of another plan.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "plan.json"
        if path.is_file():
            try:
                there = json.loads(path.read_text())
                plan, kept = there["plan"], there["extra"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(path, "is damaged", mend=f"Remove {self.folder} to begin anew") from error
            self._refuse_other(plan, f"{self.folder} holds parts", "Repeat the former command, or remove that folder")
            return kept
        with room_for(1e4, path):
            write_text(path, json.dumps({"plan": self.plan, "extra": extra}, indent=1))
        return extra

    def kept(self) -> dict[str, Any] | None:
        """`extra` of an earlier start with the same plan, or None. Raises as `open` does."""
        return self.open({}) if (self.folder / "plan.json").is_file() else None

    def _refuse_other(self, there: dict[str, Any], what: str, mend: str) -> None:
        changed = differences(there, self.plan)
        if changed:
            raise ConfigError(f"{what}, made with {'; '.join(changed)}. {mend}.")

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def done(self, numbers: Sequence[int]) -> list[int]:
        """Which of these parts are there. A part has its name only once it is whole."""
        return [number for number in numbers if self.path(number).is_file()]

    def write(self, number: int, table: pa.Table, notes: dict[str, Any]) -> None:
        """Write a part.

        Args:
            notes: kept in its schema, for `read_notes`.

        Raises:
            DiskFullError: no space; says how much is needed. All earlier parts are whole.
        """
        table = table.replace_schema_metadata({KEY: json.dumps(notes)})
        with room_for(table.nbytes, self.path(number)), atomic(self.path(number)) as temporary:
            pq.write_table(table, temporary, **_writing(table.schema))

    def merge(self, numbers: Sequence[int], metadata: dict[bytes, bytes]) -> None:
        """Stream the parts into the file, one row group each. They stay until `remove`.

        Raises:
            DiskFullError: no space; says how much is needed. The parts are whole.
        """
        stream_together(self.out, [self.path(number) for number in numbers], metadata)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def stream_together(out: Path, files: Sequence[Path], metadata: dict[bytes, bytes]) -> None:
    """Write the rows of Parquet files of one schema into `out`, atomically, holding one row group at a time.

    Raises:
        DiskFullError: no space. DataError: a file is damaged, or of another schema.
    """
    schema = pq.read_schema(files[0]).with_metadata(metadata)
    need = sum(path.stat().st_size for path in files)
    with (
        room_for(need, out),
        atomic(out) as temporary,
        pq.ParquetWriter(temporary, schema, **_writing(schema)) as writer,
    ):
        for path in files:
            for table in _row_groups(path):
                writer.write_table(table.cast(schema), row_group_size=len(table))


def _row_groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file that hold anything, one after the other.

    Raises:
        DataError: it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                if len(table):
                    yield table
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(path, f"is damaged ({text})", mend="Remove it and run the same command again") from error


def _writing(schema: pa.Schema) -> dict[str, Any]:
    texts = [field.name for field in schema if field.name not in PLAIN]
    return {"compression": "zstd", "use_dictionary": texts, "write_statistics": texts}


def read_notes(path: Path) -> dict[str, Any]:
    """The notes in the schema of a Parquet file; empty where there are none.

    Raises:
        DataError: it is no Parquet file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        text = " ".join(str(error).split())[:150]
        raise DataError(path, f"is no whole Parquet file ({text})", mend="Remove it to make it anew") from error
    try:
        return json.loads(metadata.get(KEY, b"{}"))
    except ValueError:
        return {}


@contextmanager
def room_for(needed: float, path: Path) -> Iterator[None]:
    """Let the error of a full disk say how many bytes were needed and how to go on."""
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(
            f"{error} This step needs about {needed / 1e6:.1f} MB in {path.parent}. Then run the same command again: it "
            f"goes on where it stopped."
        ) from error


def differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested dicts: `half: false there, true now`."""
    found = []
    for key in dict.fromkeys([*there, *now]):
        old, new = there.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"other {prefix}{key} ({json.dumps(old)[:80]} there, {json.dumps(new)[:80]} now)")
    return found


def parse_shard(shard: str | tuple[int, int]) -> tuple[int, int]:
    """(i, n) of "i/n", 1 <= i <= n."""
    if isinstance(shard, str):
        first, slash, last = shard.partition("/")
        if not (slash and first.isdigit() and last.isdigit()):
            raise ConfigError(f'shard="{shard}": write I/N, such as 1/4 for the first of four shares.')
        shard = int(first), int(last)
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"shard={shard[0]}/{shard[1]}: the number of a share lies between 1 and how many there are.")
    return shard


def shard_path(out: Path, number: int, count: int) -> Path:
    return out.with_name(f"{out.stem}-{number}-of-{count}{out.suffix}")
