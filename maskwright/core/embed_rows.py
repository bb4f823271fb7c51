"""Rows of an embedding table: what is written beside each vector, and where it lies on Earth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from maskwright.core.embed_layout import Layout, common_kind, lonlat, place
from maskwright.core.loader import Loader
from maskwright.core.sample import Meta

POINT = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])
"""A point in well-known binary: 21 bytes, little-endian, type 1."""


def sample_columns(
    layout: Layout, indices: Sequence[int], metas: Sequence[Meta], sources: Sequence[list[str]]
) -> dict[str, list[Any]]:
    """What is said of each sample, by column; without its place, tokens and embedding."""
    columns: dict[str, list[Any]] = {name: [] for name in layout.schema.names}
    for index, meta, files in zip(indices, metas, sources, strict=True):
        left = {}
        row: dict[str, Any] = {"index": index, "source": meta.source, "group": meta.group, "crs": meta.crs}
        if layout.several:
            row["sources"] = files
        if meta.window is not None:
            row |= dict(zip([f"window_{s}" for s in ("row", "column", "height", "width")], meta.window, strict=True))
        known = {**layout.extras, "label": layout.label}
        for name, value in {**meta.extra, **({} if meta.label is None else {"label": meta.label})}.items():
            kind = known.get(name, "")
            if kind and common_kind([value, *([0.5] if kind == "float" else [])]) == kind:
                row[name] = value.item() if isinstance(value, np.generic) else value
            elif value is not None:
                left[name] = value
        row["extra"] = json.dumps(left, default=_plain) if left else None
        for name, values in columns.items():
            values.append(row.get(name))
    return columns


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def make_table(
    layout: Layout,
    loader: Loader,
    columns: dict[str, list[Any]],
    transforms: Sequence[tuple[float, ...] | None],
    size: tuple[int, int] | None,
    values: np.ndarray,
    grid: tuple[int, ...] = (),
    positions: np.ndarray | None = None,
) -> tuple[pa.Table, list[float] | None]:
    """The rows of a batch.

    Args:
        columns: of `sample_columns`.
        transforms: of each sample, from its pixels to units of its CRS.
        size: (height, width) in pixels of the samples, or None if they are no images.
        values: (B, D) pooled, or (B, N, D) of tokens on `grid`.
        positions: (B, N, d) coordinates of scattered tokens.

    Returns:
        The table, and its bounds (west, south, east, north) in degrees, or None.
    """
    schema, samples = layout.schema, len(values)
    count = values.shape[1] if layout.axes else 1
    repeat = np.repeat(np.arange(samples), count)
    rows, columns_at = np.full(count, 0.5), np.full(count, 0.5)  # centres, as shares of height and width
    if layout.axes and not layout.scattered and len(grid) == 2:
        places = np.indices(grid).reshape(2, -1)
        rows, columns_at = ((places[axis] + 0.5) / grid[axis] for axis in (0, 1))
    centres = np.full((2, samples, count), np.nan)
    for number, transform in enumerate(transforms):
        if transform is not None and size is not None:
            centres[:, number] = place(transform, rows * size[0], columns_at * size[1])
    x, y = centres.reshape(2, -1)
    arrays: dict[str, pa.Array] = {}
    for name in schema.names:
        if name not in ("x", "y", "token", *layout.axes, "embedding", "geometry"):
            arrays[name] = pa.array(columns[name], schema.field(name).type).take(pa.array(repeat))
    arrays["x"], arrays["y"] = (pa.array(axis, pa.float64(), from_pandas=True) for axis in (x, y))
    if layout.axes:
        arrays["token"] = pa.array(np.tile(np.arange(count, dtype=np.int32), samples))
        if layout.scattered and positions is not None:
            at = positions.reshape(samples * count, -1).astype(np.float32)
        else:
            at = np.tile(np.indices(grid).reshape(len(grid), -1).T.astype(np.int32), (samples, 1))
        arrays |= {name: pa.array(at[:, axis]) for axis, name in enumerate(layout.axes)}
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), schema.field("embedding").type.value_type)
    arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, layout.width)
    bounds = None
    if layout.geographic:
        longitude, latitude = lonlat(loader, [columns["crs"][i] for i in repeat], x, y)
        arrays["geometry"] = points(longitude, latitude)
        if np.isfinite(longitude).any():
            bounds = [float(f(v)) for f in (np.nanmin, np.nanmax) for v in (longitude, latitude)]
    return pa.table([arrays[name] for name in schema.names], schema=schema), bounds


def points(x: np.ndarray, y: np.ndarray) -> pa.Array:
    """Points as well-known binary; null where a coordinate is NaN."""
    records = np.zeros(len(x), POINT)
    records["order"], records["type"], records["x"], records["y"] = 1, 1, x, y
    raw, size = records.tobytes(), POINT.itemsize
    return pa.array(
        [raw[at * size : (at + 1) * size] if finite else None for at, finite in enumerate(np.isfinite(x))], pa.binary()
    )


def geo_metadata(bounds: Sequence[Sequence[float]]) -> bytes:
    """GeoParquet 1.1 metadata of a column `geometry` in longitude and latitude.

    Without a `crs` the specification takes OGC:CRS84: WGS 84, longitude first.
    """
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"], "edges": "planar"}
    if bounds:
        west, south, east, north = np.array(bounds).T
        column["bbox"] = [float(west.min()), float(south.min()), float(east.max()), float(north.max())]
    content = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return json.dumps(content).encode()
