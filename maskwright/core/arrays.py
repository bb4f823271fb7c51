"""The loader `arrays`: .npy, .npz and text tables of numbers, one sample a row."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.array_files import NUMBERS, TEXTS, Declared, load_npz, map_npy, npy_header, npz_headers
from maskwright.core.array_layout import DIMS, draw, find_axes, pick_columns
from maskwright.core.array_statistics import channel_statistics
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.loader import Loader, Statistics
from maskwright.core.sample import Meta, Sample, TensorSpec
from maskwright.core.tables import holds_numbers, read_numbers, sniff

ENDINGS_BESIDE = frozenset({"", ".md", ".txt", ".rst", ".json", ".yaml", ".yml", ".sha256", ".license"})
"""Endings of files that describe the arrays beside them and are no data themselves."""
INPUT_NAMES = {1: "series", 2: "image", 3: "volume"}
"""Name of the input by its number of axes besides the channels."""


class ArrayLoader(Loader):
    """Arrays and tables: .npy, .npz, or text with commas, semicolons, tabs or white space. One sample a row.

    Args:
        array: which array, where there are several: a name in an .npz, or of a file in a folder of .npy.
        axes: names of the axes of one sample as stored, such as "H W C", "T C" or "C D H W"; without channels, one is
            added. Left out: "T", "H W", "C H W" or "C D H W" by the number of axes.
        shape: shape that one row is brought into first, such as [3, 3, 4].
        columns: which columns of a table are read: a list of names or positions, or a slice such as "0:36".
        channels: names of the channels, in order.
        group: scene, site or patient of each sample, which splits never cut through: a column of the table, a name in
            the .npz, an .npy beside the array or anywhere. Without it each row is a group of its own.
        input_name: name under which methods find the samples; "series", "image" or "volume" by the number of axes.
        header: whether the first line of a text table holds names; left out, decided by how it looks.
    """

    suffixes = (".npy", ".npz", ".csv", ".tsv", ".txt")

    def __init__(
        self,
        path: str | Path,
        array: str = "",
        axes: str = "",
        shape: list[int] | None = None,
        columns: str | int | list[str | int] | None = None,
        channels: list[str] | None = None,
        group: str = "",
        input_name: str = "",
        header: bool | None = None,
    ) -> None:
        self.path, self.bad_files = Path(path), []
        self._values: np.ndarray | None = None
        self._lines: np.ndarray | None = None
        self._statistics: dict[str, Statistics] | None = None
        self._columns: list[int] | None = None
        self._groups: list[str] | None = None
        self._names: tuple[str, ...] = ()
        if self.path.is_dir() or self.path.suffix.lower() in (".npy", ".npz"):
            row_shape = self._open_array(array, columns)
        else:
            row_shape = self._open_table(array, columns, group, header)
        self._shape = self._brought_into(row_shape, shape)
        self._order, self._sizes = find_axes(self._shape, axes, str(self.path))
        dims = DIMS[len(self._sizes) - 1]
        if channels is not None and len(channels) != self._sizes[0]:
            raise ConfigError(
                f"data.channels names {len(channels)} channels, but a sample of {self.path} has {self._sizes[0]} "
                f"(shape {self._sizes} as {dims}). Name them all, or mend data.axes."
            )
        self.input_name = input_name or INPUT_NAMES[len(self._sizes) - 1]
        self.spec = {self.input_name: TensorSpec(dims, tuple(channels) if channels else self._sizes[0], "as stored")}
        if group and self._groups is None:
            self._groups = _group_names(self._group_values(group), self._length, group)

    # what is there -------------------------------------------------------------------------------------------------

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_dir():
            return _holds_one_set(path)
        return path.suffix.lower() in (".npy", ".npz") or (path.is_file() and holds_numbers(path))

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """Rows about each array or table: name, shape, type; or the reason why it cannot be used."""
        path = Path(path)
        if not path.is_dir() and path.suffix.lower() not in (".npy", ".npz"):
            layout = sniff(path)
            names = layout.names or tuple(map(str, range(layout.fields)))
            return [{"file": path.name, "columns": layout.fields, "names": list(names)}]
        rows: list[dict[str, Any]] = []
        for file in _npy_files(path) if path.is_dir() else [path]:
            try:
                headers = npz_headers(file) if file.suffix.lower() == ".npz" else {file.stem: npy_header(file)}
            except DataError as error:
                rows.append({"file": file.name, "problem": str(error)})
                continue
            for name, declared in headers.items():
                of = list(declared.shape[1:])
                row = {"file": file.name, "array": name, "rows": (declared.shape or (1,))[0], "of": of or "one value"}
                rows.append({**row, "type": str(declared.dtype)})
        return rows

    def _open_array(self, array: str, columns: Any) -> tuple[int, ...]:
        """Choose the array and check its header; the shape of one row."""
        if self.path.suffix.lower() == ".npz":
            headers = npz_headers(self.path)
            name = _chosen(headers, array, self.path)
            self._file, self._where = self.path, f"{self.path}:{name}"
            self._load: Callable[[], np.ndarray] = functools.partial(load_npz, self.path, name)
        else:
            files = {file.stem: file for file in _npy_files(self.path)} if self.path.is_dir() else {}
            if self.path.is_dir():
                headers = {stem: npy_header(file) for stem, file in files.items()}
                name = _chosen(headers, array.removesuffix(".npy"), self.path)
                self._file = files[name]
            else:
                if array and array.removesuffix(".npy") != self.path.stem:
                    raise ConfigError(f'data.array="{array}": {self.path} holds one array only. Leave it out.')
                name, self._file = self.path.stem, self.path
                headers = {name: npy_header(self.path)}
            self._where = str(self._file)
            self._load = functools.partial(map_npy, self._file)
        declared = headers[name]
        _check_numbers(declared, self._where)
        self._length, row = declared.shape[0], declared.shape[1:]
        self._size = os.path.getsize(self._file)
        self._declared: tuple[int, ...] = declared.shape
        if columns is not None:
            if len(row) != 1:
                raise ConfigError(f"data.columns needs rows of one axis, but those of {self._where} have shape {row}.")
            self._columns = pick_columns(columns, row[0], (), self._where)
            row = (len(self._columns),)
        return row

    def _open_table(self, array: str, columns: Any, group: str, header: bool | None) -> tuple[int, ...]:
        """Read a table; the shape of one row."""
        if array:
            raise ConfigError(f'data.array="{array}": {self.path} is a text table. Choose data.columns instead.')
        layout = sniff(self.path, header)
        self._names = layout.names
        chosen = pick_columns(columns, layout.fields, layout.names, str(self.path))
        texts: list[int] = []
        if group in layout.names or (group.isdigit() and int(group) < layout.fields):
            texts = pick_columns(
                [group if group in layout.names else int(group)], layout.fields, layout.names, "data.group"
            )
            if columns is None:
                chosen = [column for column in chosen if column not in texts]
        self._file, self._where, self._size = self.path, str(self.path), os.path.getsize(self.path)
        self._load = functools.partial(_table_numbers, self.path, layout, chosen)
        self._values, self._lines, found = read_numbers(self.path, layout, chosen, texts)
        self._length, self._declared = len(self._values), self._values.shape
        if texts:
            self._groups = _group_names(np.array(found[0]), self._length, group)
        return (len(chosen),)

    def _brought_into(self, row: tuple[int, ...], shape: list[int] | None) -> tuple[int, ...]:
        if not shape:
            return row
        if any(size < 1 for size in shape) or np.prod(shape, dtype=object) != np.prod(row, dtype=object):
            raise ConfigError(
                f"data.shape={shape} does not hold the {np.prod(row, dtype=object)} numbers of a row of {self._where} "
                f"(shape {row}). Mend it, or choose other data.columns."
            )
        return tuple(shape)

    def _group_values(self, group: str) -> np.ndarray:
        """The array that says the group of each sample, from inside the data, beside them, or anywhere."""
        if self.path.suffix.lower() == ".npz" and group in npz_headers(self.path):
            return load_npz(self.path, group)
        for place in (Path(group), self._file.parent / group, self._file.parent / f"{group}.npy"):
            if place.suffix.lower() == ".npy" and place.is_file():
                return map_npy(place)
        known = list(npz_headers(self.path)) if self.path.suffix.lower() == ".npz" else list(self._names)
        known += [file.stem for file in _npy_files(self._file.parent)]
        raise ConfigError(
            f'data.group="{group}" is no array or column of {self.path} and no .npy file.{nearest(group, known)}'
        )

    # reading -------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # worker processes open the file themselves: a mapped array would travel with all its numbers
        return {**self.__dict__, "_values": None}

    def _rows(self) -> np.ndarray:
        """All rows as stored, opened when they are first needed."""
        if self._values is None:
            values = self._load()
            if values.shape != self._declared:
                raise DataError(self._where, f"now has the shape {values.shape}", f"{self._declared} as when opened")
            self._values = values
        if os.path.getsize(self._file) != self._size:  # pages that are gone would end the process
            raise DataError(
                self._file, "was changed while it was in use", mend="Start again with the file as it is now"
            )
        return self._values

    def _samples(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Samples (n, C, *size) float32; a copy."""
        values = self._rows()[rows]
        if self._columns is not None:
            values = values[..., self._columns]
        values = np.asarray(values).reshape(-1, *self._shape).transpose(0, *(1 + axis for axis in self._order))
        with np.errstate(over="ignore"):
            return np.array(values.reshape(len(values), *self._sizes), dtype=np.float32, order="C")

    def __len__(self) -> int:
        return self._length

    def group(self, index: int) -> str:
        return f"{self.path.name} row {index}" if self._groups is None else self._groups[index]

    def sources(self, index: int) -> list[str]:
        return [str(self._file)]

    def bytes_per_sample(self) -> int:
        return 4 * int(np.prod(self._sizes))

    def place(self, index: int) -> str:
        """Where sample `index` is found: file and row from 0, or file and line from 1."""
        return f"{self._where}, row {index}" if self._lines is None else f"{self._where}, line {self._lines[index]}"

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"{self._where} has {self._length} rows, not a row {index}")
        values = self._samples(slice(index, index + 1))[0]
        finite = np.isfinite(values)
        if not finite.all():
            raise DataError(
                self.place(index),
                f"{finite.size - finite.sum()} of {finite.size} numbers are missing, NaN or infinite",
                "finite numbers",
                "Fill or remove this row, or choose data.columns without gaps",
            )
        meta = Meta(str(self._file), self.group(index), index, extra={"row": index})
        return Sample({self.input_name: torch.from_numpy(values)}, meta)

    def statistics(self) -> dict[str, Statistics]:
        if self._statistics is None:
            found = channel_statistics(self._samples, self._length, self._sizes, self._where)
            self._statistics = {self.input_name: found}
        return self._statistics

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        return draw(tensor)


def _npy_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".npy" and file.is_file())


def _holds_one_set(folder: Path) -> bool:
    """Whether a folder holds arrays of one data set: as many rows in each, of more than one shape, no other data.

    Files of one shape are samples, one a file, and not for this loader.
    """
    try:
        others = [item for item in folder.iterdir() if item.suffix.lower() != ".npy"]
        if any(item.is_dir() or item.suffix.lower() not in ENDINGS_BESIDE for item in others):
            return False
        shapes = [npy_header(file).shape for file in _npy_files(folder)]
    except (DataError, OSError):
        return False
    return len(set(shapes)) > 1 and all(shapes) and len({shape[0] for shape in shapes}) == 1


def _chosen(headers: dict[str, Declared], array: str, path: Path) -> str:
    """The array to read: the named one, or the only one that could be meant."""
    if array:
        if array not in headers:
            raise ConfigError(f'data.array="{array}": {path} holds no such array.{nearest(array, headers)}')
        return array
    likely = [name for name, d in headers.items() if len(d.shape) >= 2 and d.dtype.kind in NUMBERS]
    if len(likely) == 1:
        return likely[0]
    if not headers:
        raise DataError(path, "holds no .npy file", "arrays, one sample a row")
    shown = ", ".join(f"{name} {d.shape} {d.dtype}" for name, d in list(headers.items())[:12])
    raise ConfigError(f"{path} holds several arrays: {shown}. Choose one with data.array=NAME.")


def _check_numbers(declared: Declared, where: str) -> None:
    if declared.dtype.kind not in NUMBERS:
        raise DataError(where, f"holds {declared.dtype}", "real numbers", "Convert it, or choose another data.array")
    if len(declared.shape) < 2:
        raise DataError(
            where,
            f"has the shape {declared.shape}: one number a sample",
            "samples along the first axis, and at least one axis more",
            "If it is one long series or one image, cut it into samples first",
        )
    if 0 in declared.shape:
        raise DataError(where, f"is empty, its shape is {declared.shape}", "at least one sample")


def _group_names(values: np.ndarray, length: int, group: str) -> list[str]:
    """One name a sample of an array of texts or numbers."""
    if values.shape != (length,) or values.dtype.kind not in NUMBERS + TEXTS:
        raise DataError(
            f"data.group={group}",
            f"has the shape {values.shape} of {values.dtype}",
            f"one text or number for each of {length} samples",
        )
    if values.dtype.kind == "S":
        values = np.char.decode(np.asarray(values), "utf-8", "replace")
    names = [f"{value:g}" if values.dtype.kind == "f" else str(value).strip() for value in values.tolist()]
    empty = next((row for row, name in enumerate(names) if name in ("", "nan")), None)
    if empty is not None:
        raise DataError(f"data.group={group}", f"names no group for sample {empty}", "one for each sample")
    return names


def _table_numbers(path: Path, layout: Any, columns: Sequence[int]) -> np.ndarray:
    return read_numbers(path, layout, columns)[0]
