"""One process at work on its share of an archive: reading, embedding, writing parts, and making one file of them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset

from maskwright.core.embed_layout import Layout, choose_part, decide_layout, image_size, sources_of
from maskwright.core.embed_rows import geo_metadata, make_table, sample_columns
from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, MaskwrightError
from maskwright.core.loader import Loader
from maskwright.core.parts import KEY, Parts, read_notes, room_for
from maskwright.core.sample import BadFile, Batch, Sample
from maskwright.core.trainer.data import SampleReader, collate_or_error, quiet_worker
from maskwright.core.trainer.files import DiskFullError, write_text

PART_SAMPLES = 2048
"""Most samples of a part: what a kill may cost, and a row group of the file."""
PART_BYTES = 32 * 2**20
"""Most bytes of the embeddings of a part."""

Progress = Callable[[int, int, float], None]
"""Called after each batch with samples done, samples in all, and samples a second of this start."""
Bad = list[Any]
"""[position or -1, path, reason]: JSON-able."""


class EmbeddingStopped(MaskwrightError):
    """Too many files could not be read; what was done is kept."""

    exit_code = 5


@dataclass(frozen=True)
class Embedded:
    """What came of embedding an archive.

    Args:
        path: the Parquet file.
        samples: samples in it; `rows` is more for tokens.
        computed: samples that this start went through, in `seconds`; the others were there from an earlier one.
        bad: samples and files that could not be used; they are listed in `bad_list`.
    """

    path: Path
    samples: int
    rows: int
    computed: int
    seconds: float
    bad: int
    bad_list: Path | None

    @property
    def rate(self) -> float:
        """Samples a second, reading included."""
        return self.computed / self.seconds if self.seconds else 0.0


# reading -----------------------------------------------------------------------------------------------------------


class _Reader(Dataset[tuple[int, Sample | BadFile]]):
    """Samples with their positions, so that it is known which of them could not be read."""

    def __init__(self, loader: Loader) -> None:
        self.reader = SampleReader(loader, 0)

    def __getitem__(self, index: int) -> tuple[int, Sample | BadFile]:
        return index, self.reader[(None, index)]


class _Batches:
    """Positions of the batches of some ranges, made while they are asked for."""

    def __init__(self, ranges: Sequence[range], batch_size: int) -> None:
        self.ranges, self.batch_size = ranges, batch_size

    def __len__(self) -> int:
        return sum(-(-len(whole) // self.batch_size) for whole in self.ranges)

    def __iter__(self) -> Iterator[list[int]]:
        for whole in self.ranges:
            for at in range(0, len(whole), self.batch_size):
                yield list(whole[at : at + self.batch_size])


def _collate(read: list[tuple[int, Sample | BadFile]]) -> tuple[list[int], list[Bad], Batch | ConfigError]:
    bad = [[index, item.path, _one_line(item.reason)] for index, item in read if isinstance(item, BadFile)]
    good = [index for index, item in read if isinstance(item, Sample)]
    return good, bad, collate_or_error([item for _, item in read])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(loader: Loader, ranges: Sequence[range], batch_size: int, workers: int) -> Iterator[Any]:
    return iter(
        DataLoader(
            _Reader(loader),
            batch_sampler=_Batches(ranges, batch_size),
            collate_fn=_collate,
            num_workers=workers,
            worker_init_fn=quiet_worker if workers else None,
        )
    )


# working -----------------------------------------------------------------------------------------------------------


def shares(parts: int, number: int, count: int) -> range:
    """The parts of share `number` (from 1) of `count`: neighbours, so that shares in order are the whole in order."""
    return range(parts * (number - 1) // count, parts * number // count)


@dataclass
class Work:
    """One share of an archive.

    Args:
        share: (i, n), from 1.
        part: one of the encoder's parts, or "".
        part_samples: samples between two safe points, or None.
        about: what is kept in the file beside the plan.
    """

    loader: Loader
    encoder: Encoder
    parts: Parts
    share: tuple[int, int]
    part: str
    level: str
    batch_size: int
    workers: int
    half: bool
    max_bad: float
    part_samples: int | None
    about: dict[str, Any]
    progress: Progress | None = None
    bad: list[Bad] = field(default_factory=list)

    def run(self) -> Embedded:
        """Make the file, or what is still missing of it. The caller holds it."""
        if self.parts.finished():
            notes = read_notes(self.parts.out)
            return self._result(notes, 0, 0.0)
        kept = self.parts.kept()
        layout = Layout.from_dict(kept["layout"]) if kept else self._decide_layout()
        ranges = self._ranges(layout)
        done = set(self.parts.done(list(ranges)))
        todo = {number: whole for number, whole in ranges.items() if number not in done}
        self._check_space(layout, sum(map(len, todo.values())))
        self.parts.open({"layout": layout.as_dict()})
        self.bad = [bad for number in sorted(done) for bad in read_notes(self.parts.path(number))["bad"]]
        self._check_bad()
        started = time.perf_counter()
        computed = self._compute(layout, todo)
        return self._merge(layout, list(ranges), computed, time.perf_counter() - started)

    def _decide_layout(self) -> Layout:
        return decide_layout(self.loader, self.encoder, self.part, self.level == "tokens", self.half)

    def _ranges(self, layout: Layout) -> dict[int, range]:
        """Samples of each part of this share. Parts hold whole batches."""
        size = layout.width * layout.tokens * (2 if layout.half else 4)
        wanted = self.part_samples or min(PART_SAMPLES, PART_BYTES // size)
        length = max(1, wanted // self.batch_size) * self.batch_size
        samples, (number, count) = len(self.loader), self.share
        mine = shares(-(-samples // length), number, count)
        ranges = {n: range(n * length, min((n + 1) * length, samples)) for n in mine}
        self.total = sum(map(len, ranges.values()))
        if not ranges:
            raise ConfigError(
                f"{samples} samples make {-(-samples // length)} parts of {length}, too few for {count} shares. Use "
                f"fewer shares, or a smaller --part-samples."
            )
        return ranges

    # rows ----------------------------------------------------------------------------------------------------------

    def _compute(self, layout: Layout, todo: dict[int, range]) -> int:
        """Embed and write the parts that are not there yet; how many samples that were."""
        batches = _read(self.loader, list(todo.values()), self.batch_size, self.workers)
        started, computed, before = time.perf_counter(), 0, self.total - sum(map(len, todo.values()))
        for number, whole in todo.items():
            tables: list[pa.Table] = []
            bad: list[Bad] = []
            bounds: list[list[float]] = []
            for _ in range(0, len(whole), self.batch_size):
                good, unread, batch = next(batches)
                bad += unread
                if isinstance(batch, ConfigError):
                    raise batch
                if good:
                    table, box, broken = self._rows(layout, good, batch)
                    tables.append(table)
                    bad += broken
                    bounds += [box] if box else []
                computed += len(good) + len(unread)
                if self.progress:
                    self.progress(before + computed, self.total, computed / (time.perf_counter() - started))
            joined = pa.concat_tables(tables).combine_chunks() if tables else layout.schema.empty_table()
            notes = {"bad": sorted(bad), "bounds": hull(bounds), "samples": len(whole) - len(bad)}
            self.parts.write(number, joined, notes)
            self.bad += sorted(bad)
            self._check_bad()
        return computed

    def _rows(self, layout: Layout, good: list[int], batch: Batch) -> tuple[pa.Table, list[float] | None, list[Bad]]:
        embedding = choose_part(self.encoder.embed(batch), self.part)
        tensor = embedding.tokens if layout.axes else embedding.pooled
        if tensor.shape[-1] != layout.width:
            raise ConfigError(
                f"The encoder gives vectors of {tensor.shape[-1]} numbers for {batch.metas[0].source}, but of "
                f"{layout.width} for the first sample; a column holds one width only."
            )
        values = tensor.float().cpu().numpy()
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        broken = [
            [good[i], batch.metas[i].source, "the encoder's output for it holds NaN or Inf"]
            for i in np.flatnonzero(~finite)
        ]
        keep = np.flatnonzero(finite).tolist()
        values = self._halved(values[keep]) if self.half else values[keep]
        metas, indices = [batch.metas[i] for i in keep], [good[i] for i in keep]
        sources = [sources_of(self.loader, index, meta) for index, meta in zip(indices, metas, strict=True)]
        positions = embedding.grid.positions
        if positions is not None:
            positions = positions.expand(len(batch), *positions.shape[-2:])[keep].cpu()
        table, box = make_table(
            layout,
            self.loader,
            sample_columns(layout, indices, metas, sources),
            [meta.transform for meta in metas],
            image_size(batch.tensors, 1),
            values,
            tuple(embedding.grid.shape),
            None if positions is None else positions.numpy(),
        )
        return table, box, broken

    def _halved(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
        if not np.isfinite(values).all():
            raise ConfigError("Numbers of the embeddings lie beyond float16 (65504); leave --half out.")
        return values

    # ending --------------------------------------------------------------------------------------------------------

    def _indexed(self) -> list[Bad]:
        return [[-1, bad.path, _one_line(bad.reason)] for bad in self.loader.bad_files]

    def _check_bad(self) -> None:
        """Stop if too many samples cannot be used. Files that indexing left out count in proportion to the share."""
        indexed = self._indexed()
        extra = len(indexed) / self.share[1]
        bad, total = len(self.bad) + extra, self.total + extra
        if bad <= max(self.max_bad * total, 1):
            return
        path = self._write_bad(self.bad, indexed)
        _, file, reason = (self.bad or indexed)[-1]
        raise EmbeddingStopped(
            f"{bad:.0f} of {total:.0f} samples could not be used, more than --max-bad {self.max_bad:g} allows. The last, "
            f"because: {reason if file in reason else f'{file}: {reason}'}".rstrip(".")
            + f". All of them: {path}. What "
            f"was done is kept in {self.parts.folder}; mend the files, or raise --max-bad and run the same command again."
        )

    def _check_space(self, layout: Layout, samples: int) -> None:
        """Refuse to begin what cannot end: the parts and the whole file lie on the disk together.

        Vectors that are still to be computed are counted twice, all other columns not at all.
        """
        need = 2 * samples * layout.tokens * layout.width * (2 if layout.half else 4)
        free = shutil.disk_usage(self.parts.out.parent).free
        if need > free:
            raise DiskFullError(
                f"{self.parts.out}: needs about {need / 1e6:.1f} MB while it is made, and {free / 1e6:.1f} MB of disk are "
                f"free. Free some space, choose another --out, or store float16 with --half. What was done is kept."
            )

    def _merge(self, layout: Layout, numbers: list[int], computed: int, seconds: float) -> Embedded:
        notes = [read_notes(self.parts.path(number)) for number in numbers]
        bad = [bad for note in notes for bad in note["bad"]]
        indexed = self._indexed() if self.share[0] == 1 else []  # named once, not by every share
        own = {
            "plan": self.parts.plan,
            "samples": sum(note["samples"] for note in notes),
            "rows": sum(pq.read_metadata(self.parts.path(number)).num_rows for number in numbers),
            "bad": len(bad) + len(indexed),
            "bounds": hull([box for note in notes for box in note["bounds"]]),
            **self.about,
        }
        if bad or indexed:
            self._write_bad(bad, indexed)
        self.parts.merge(numbers, file_metadata(own, layout.geographic))
        self.parts.remove()
        return self._result(own, computed, seconds)

    def _write_bad(self, bad: list[Bad], indexed: list[Bad]) -> Path:
        path, lines = bad_path(self.parts.out), io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["index", "path", "reason"])
        writer.writerows([index if index >= 0 else "", file, reason] for index, file, reason in [*indexed, *bad])
        with room_for(len(lines.getvalue()), path):
            write_text(path, lines.getvalue())
        return path

    def _result(self, notes: dict[str, Any], computed: int, seconds: float) -> Embedded:
        path = bad_path(self.parts.out) if notes["bad"] else None
        return Embedded(self.parts.out, notes["samples"], notes["rows"], computed, seconds, notes["bad"], path)


def bad_path(out: Path) -> Path:
    """Where the files are listed that could not be used."""
    return out.with_name(f"{out.name}.bad.csv")


def hull(boxes: list[list[float]]) -> list[list[float]]:
    """The one box (west, south, east, north) around several; empty for none."""
    if not boxes:
        return []
    west, south, east, north = np.array(boxes).T
    return [[float(west.min()), float(south.min()), float(east.max()), float(north.max())]]


def file_metadata(notes: dict[str, Any], geographic: bool) -> dict[bytes, bytes]:
    """Metadata of the schema: our notes, and GeoParquet's."""
    found = {KEY: json.dumps(notes).encode()}
    return {**found, b"geo": geo_metadata(notes["bounds"])} if geographic else found
