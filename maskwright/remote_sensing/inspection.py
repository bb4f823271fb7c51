"""What is in raster files, for `maskwright inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.statistics import compute, spread
from maskwright.remote_sensing.alignment import check_overlap
from maskwright.remote_sensing.image import Source
from maskwright.remote_sensing.pairs import find_pairs
from maskwright.remote_sensing.raster import Header, read_header
from maskwright.remote_sensing.sources import find_images, source_of
from maskwright.remote_sensing.windows import Windows

WITH_STATISTICS = 8
"""Images whose pixels are looked at; the headers of all others are shown."""
WINDOW, WINDOWS = 256, 16
"""Side in pixels, and number, of the windows that statistics of an image are taken from."""

Row = dict[str, Any]


def inspect_images(path: Path) -> list[Row]:
    """Rows about each file of a file or folder."""
    return _rows(find_images(path) if path.is_dir() else [path])


def inspect_pairs(path: Path) -> list[Row]:
    """Rows about each file of the pairs in a folder or CSV, and about pairs that do not fit.

    Where several folders could be meant, all images are shown.
    """
    try:
        pairs, bad = find_pairs(path)
    except ConfigError:
        return inspect_images(path)
    rows = _rows([item for _, optical, sar in pairs for item in (optical, sar)])
    broken = {row["file"] for row in rows if "problem" in row}
    for _, optical, sar in pairs:
        try:
            check_overlap(source_of(optical).header, source_of(sar).header)
        except DataError as error:
            if error.path not in broken:
                rows.append({"file": error.path, "problem": str(error)})
    return rows + [{"file": item.path, "problem": item.reason} for item in bad]


def _rows(images: list[Path]) -> list[Row]:
    rows: list[Row] = []
    looked_at = 0
    for image in images:
        try:
            source = source_of(image)
            statistics = _statistics(source) if looked_at < WITH_STATISTICS else []
        except DataError as error:
            rows.append({"file": error.path, "problem": str(error)})
            continue
        looked_at += 1
        headers = [source.header if file == source.header.path else read_header(file) for file in source.files]
        rows += [_row(header, source) for header in headers]
        if statistics:
            rows[-len(headers)]["statistics"] = statistics
    return rows


def _row(header: Header, source: Source) -> Row:
    names = [name for name, file, _ in source.bands if file == header.path]
    pixel = np.hypot(header.transform[0], header.transform[3]), np.hypot(header.transform[1], header.transform[4])
    return {
        "file": header.path,
        "format": header.driver,
        "bands": ", ".join(names),
        "height": header.height,
        "width": header.width,
        "type": header.dtype,
        "CRS": _crs_name(header.crs),
        "pixel": " x ".join(f"{side:g}" for side in pixel) if header.crs else None,
        "nodata": header.nodata,
        "stored in": _layout(header),
        "remark": _remark(header),
    }


def _layout(header: Header) -> str:
    rows, columns = header.block
    if rows >= header.height and columns >= header.width:
        return "one piece"
    return f"{rows} x {columns} " + ("tiles" if header.tiled else "strips")


def _crs_name(crs: str | None) -> str | None:
    """`EPSG:n`, or the name in quotes at the start of the WKT."""
    return crs.split('"')[1] if crs and '"' in crs else crs


def _remark(header: Header) -> str | None:
    remarks = []
    if header.striped:
        remarks.append("full-width strips read slowly: rio convert IN.tif OUT.tif --co TILED=YES --co COMPRESS=DEFLATE")
    if header.crs is None:
        remarks.append("no CRS")
    return "; ".join(remarks) or None


def _statistics(source: Source) -> list[Row]:
    """A row for each band, from up to `WINDOWS` windows; values without data are left out and counted."""
    windows = Windows(min(WINDOW, source.header.height, source.header.width))
    windows.add(source.header)
    chosen = spread(len(windows), WINDOWS)
    missing: list[np.ndarray] = []

    def read(place: int) -> dict[str, np.ndarray]:
        values = source.read(windows[chosen[place]][1])
        missing.append(np.isnan(values).mean((1, 2)))
        return {"image": values}

    found = compute(len(chosen), read, source.header.path)["image"]
    lists = found.minimum, found.mean, found.maximum, found.std, np.mean(missing, axis=0).tolist()
    keys = ("band", "minimum", "mean", "maximum", "std", "share without data")
    return [dict(zip(keys, values, strict=True)) for values in zip(source.names, *lists, strict=True)]
