"""Columns of an embedding table.

Columns, in order: `index` (position in the data), `source`, `sources` (where a sample is read from several files),
`group`, `window_row`, `window_column`, `window_height`, `window_width` (pixels of the source), `x`, `y` (centre in units
of `crs`; pixels of the source where there is no CRS), `crs`, `label`, identifiers that the loader keeps, `extra` (JSON of
what found no column of its own), for tokens `token` (raster order) and its place on the grid, `embedding`, and `geometry`
where the data are georeferenced. A value that does not exist is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from maskwright.core.encoder.base import Embedding, Encoder
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.loader import Loader
from maskwright.core.sample import BadFile, Meta, Sample
from maskwright.core.statistics import spread
from maskwright.core.trainer.data import SampleReader

PROBES = 16
"""Samples, spread evenly, that decide which columns there are."""
TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}
PLACES = ("token_x", "token_y", "token_z")
"""Columns of the coordinates of scattered tokens."""
AXES = {1: ("token_position",), 2: ("token_row", "token_column"), 3: ("token_depth", "token_row", "token_column")}


@dataclass(frozen=True)
class Layout:
    """The columns of a table. Decided once, from the first samples, and kept with the parts.

    Args:
        width: length D of an embedding.
        half: store float16.
        label: type of the column `label`, or "" without one.
        extras: type of each identifier that has a column.
        several: samples are read from several files.
        geographic: there is a column `geometry`.
        axes: columns of a token's place; empty for pooled embeddings.
        scattered: places are coordinates, not positions on a lattice.
        tokens: tokens of the first sample, 1 for pooled embeddings.
    """

    width: int
    half: bool
    label: str
    extras: dict[str, str]
    several: bool
    geographic: bool
    axes: tuple[str, ...] = ()
    scattered: bool = False
    tokens: int = 1

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "axes": list(self.axes)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Layout:
        return cls(**{**content, "axes": tuple(content["axes"])})

    @property
    def schema(self) -> pa.Schema:
        fields = [("index", pa.int64()), ("source", pa.string())]
        fields += [("sources", pa.list_(pa.string()))] if self.several else []
        fields += [("group", pa.string())]
        fields += [(f"window_{side}", pa.int64()) for side in ("row", "column", "height", "width")]
        fields += [("x", pa.float64()), ("y", pa.float64()), ("crs", pa.string())]
        fields += [("label", TYPES[self.label])] if self.label else []
        fields += [(name, TYPES[kind]) for name, kind in self.extras.items()]
        fields += [("extra", pa.string())]
        if self.axes:
            fields += [("token", pa.int32())]
            fields += [(name, pa.float32() if self.scattered else pa.int32()) for name in self.axes]
        number = pa.float16() if self.half else pa.float32()
        fields += [("embedding", pa.list_(number, self.width))]
        fields += [("geometry", pa.binary())] if self.geographic else []
        return pa.schema(fields)


RESERVED = frozenset(
    name
    for axes in [*AXES.values(), PLACES]
    for name in Layout(1, False, "text", {}, several=True, geographic=True, axes=axes).schema.names
)
"""Names of our own columns, which no identifier of a loader may take."""


def kind_of(value: Any) -> str:
    """Name of the column type that a value fits, or "" if none."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int"
    if isinstance(value, (float, np.floating)):
        return "float"
    return "text" if isinstance(value, str) else ""


def common_kind(values: Sequence[Any]) -> str:
    """The type that all values fit which are not None; "" if there is none."""
    kinds = {kind_of(value) for value in values if value is not None}
    if kinds == {"int", "float"}:
        return "float"
    return kinds.pop() if len(kinds) == 1 else ""


def columns_of(metas: Sequence[Meta], sources: Sequence[list[str]]) -> dict[str, Any]:
    """The part of a `Layout` that follows from what is known of some samples."""
    names = dict.fromkeys(name for meta in metas for name in meta.extra if name not in RESERVED)
    kinds = {name: common_kind([meta.extra.get(name) for meta in metas]) for name in names}
    return {
        "label": common_kind([meta.label for meta in metas]),
        "extras": {name: kind for name, kind in kinds.items() if kind},
        "several": any(len(files) > 1 for files in sources),
    }


def decide_layout(loader: Loader, encoder: Encoder, part: str, tokens: bool, half: bool) -> Layout:
    """Decide the columns from some samples that can be read.

    Raises:
        DataError: none can be read. ConfigError: the encoder has no such part.
    """
    samples = _some_samples(loader)
    embedding = choose_part(encoder.embed(samples[0][1]), part)
    positions = embedding.grid.positions
    dimensions = embedding.grid.ndim if positions is None else positions.shape[-1]
    if positions is not None:
        axes = PLACES[:dimensions]
    else:
        axes = AXES.get(dimensions, tuple(f"token_axis_{axis}" for axis in range(dimensions)))
    centres = {}
    for _, sample in samples:
        size, meta = image_size(sample.tensors, 0), sample.meta
        if size is not None and meta.transform is not None and meta.crs:
            centres[meta.crs] = place(meta.transform, size[0] / 2, size[1] / 2)
    x, y = (np.array([centre[axis] for centre in centres.values()]) for axis in (0, 1))
    return Layout(
        width=embedding.pooled.shape[-1],
        half=half,
        geographic=bool(np.isfinite(lonlat(loader, list(centres), x, y)[0]).any()),
        axes=axes if tokens else (),
        scattered=tokens and positions is not None,
        tokens=embedding.tokens.shape[1] if tokens else 1,
        **columns_of(
            [sample.meta for _, sample in samples],
            [sources_of(loader, index, sample.meta) for index, sample in samples],
        ),
    )


def _some_samples(loader: Loader) -> list[tuple[int, Sample]]:
    """(position, sample) of those of `PROBES` that can be read; if none can, the first that can."""
    if not len(loader):
        raise DataError(loader.bad_files[0].path if loader.bad_files else "data", "there is no usable sample")
    reader = SampleReader(loader, 0)
    found: list[tuple[int, Sample]] = []
    probes = spread(len(loader), PROBES)
    for indices in (probes, range(len(loader))):
        for index in indices:
            item = reader[(None, index)]
            if isinstance(item, Sample):
                found.append((index, item))
                if indices is not probes:
                    break
        if found:
            break
    if not found:
        assert isinstance(item, BadFile)
        raise DataError(item.path, f"cannot be used, like all other samples: {item.reason}")
    return found


def choose_part(embedding: Embedding, part: str) -> Embedding:
    """The embedding, or that of the part that was asked for.

    Raises:
        ConfigError: there is no such part.
    """
    if not part:
        return embedding
    if part not in embedding.parts:
        raise ConfigError(f'This encoder has no part "{part}".{nearest(part, embedding.parts) or " It has none."}')
    return embedding.parts[part]


def sources_of(loader: Loader, index: int, meta: Meta) -> list[str]:
    """All files of a sample, where the loader knows them without reading it."""
    return [meta.source] if type(loader).sources is Loader.sources else loader.sources(index)


def image_size(tensors: dict[str, Tensor], batch_axes: int) -> tuple[int, int] | None:
    """(height, width) in pixels of the first image (C, H, W) of a sample or batch."""
    for tensor in tensors.values():
        if tensor.ndim - batch_axes == 3:
            return int(tensor.shape[-2]), int(tensor.shape[-1])
    return None


def place(transform: Sequence[float], row: Any, column: Any) -> tuple[Any, Any]:
    """(x, y) of a pixel position; numbers or arrays."""
    a, b, c, d, e, f = transform
    return a * column + b * row + c, d * column + e * row + f


def lonlat(loader: Loader, crs: Sequence[str | None], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude in degrees of places in several reference systems; NaN where they are unknown."""
    longitude, latitude = np.full(len(x), np.nan), np.full(len(x), np.nan)
    systems = np.array([name or "" for name in crs], dtype=object)
    for name in dict.fromkeys(systems):
        here = (systems == name) & np.isfinite(x) & np.isfinite(y)
        if name and here.any():
            longitude[here], latitude[here] = loader.to_lonlat(str(name), x[here], y[here])
    unknown = ~(np.isfinite(longitude) & np.isfinite(latitude))
    longitude[unknown] = latitude[unknown] = np.nan
    return longitude, latitude
