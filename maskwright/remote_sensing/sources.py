"""Finding images in folders: GeoTIFFs, folders of one file a band, and pairs of Sentinel-1 and Sentinel-2."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.remote_sensing import bands
from maskwright.remote_sensing.raster import SUFFIXES, Header, Source, read_header


def raster_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Files in a folder that look like rasters, sorted."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def source_of_file(path: Path) -> Source:
    """One multi-band file."""
    header = read_header(path)
    names = bands.names_for(header.descriptions, header.count)
    if names is None:
        names = tuple(text or f"band {i}" for i, text in enumerate(header.descriptions, start=1))
        if len(set(names)) < len(names):
            names = tuple(f"band {i}" for i in range(1, header.count + 1))
    listed = tuple((name, str(path), number) for number, name in enumerate(names, start=1))
    return Source(path.stem, header, listed, {str(path): (header.height, header.width)})


def is_band_folder(folder: Path) -> bool:
    """Whether a folder holds one image as one file a band (BigEarthNet's layout)."""
    named = [bands.canonical(path.stem) for path in raster_files(folder)]
    return len(named) >= 2 and all(named) and len(set(named)) == len(named)


def source_of_folder(folder: Path) -> Source:
    """One file a band; the finest gives the grid.

    Raises:
        DataError: files do not show the same place, or hold several bands each.
    """
    headers: dict[str, Header] = {}
    for path in raster_files(folder):
        name = bands.canonical(path.stem)
        if name is not None:
            headers[name] = read_header(path)
    if not headers:
        raise DataError(folder, "holds no band files", "names ending in _B02 ... _B12 or _VV, _VH")
    finest = max(headers.values(), key=lambda header: header.width * header.height)
    for name, header in headers.items():
        if header.count != 1:
            raise DataError(header.path, f"holds {header.count} bands", "one band a file in this layout")
        if header.crs != finest.crs or not _same_extent(header, finest):
            raise DataError(
                header.path,
                f"band {name} does not cover the same place as {Path(finest.path).name} ({header.crs}, "
                f"{header.height} x {header.width})",
                f"the extent of {finest.crs}, {finest.height} x {finest.width}",
                "Take this folder out, or fetch it again",
            )
    known = [*bands.S2_L1C, *bands.S1, "HH", "HV"]
    ordered = sorted(headers, key=known.index)
    listed = tuple((name, headers[name].path, 1) for name in ordered)
    shapes = {header.path: (header.height, header.width) for header in headers.values()}
    return Source(folder.name, finest, listed, shapes)


def _same_extent(a: Header, b: Header) -> bool:
    tolerance = 0.51 * max(abs(a.affine.a), abs(a.affine.b), abs(b.affine.a), abs(b.affine.b))
    for corner in ((0, 0), (1, 1)):
        ax, ay = a.affine * (corner[0] * a.width, corner[1] * a.height)
        bx, by = b.affine * (corner[0] * b.width, corner[1] * b.height)
        if abs(ax - bx) > tolerance or abs(ay - by) > tolerance:
            return False
    return True


def source_of(path: Path) -> Source:
    return source_of_folder(path) if path.is_dir() else source_of_file(path)


def find_sources(path: Path, recursive: bool = True) -> tuple[list[Source], list[BadFile]]:
    """All images of a file or folder, and what could not be used."""
    if path.is_file():
        return [source_of_file(path)], []
    good: list[Source] = []
    bad: list[BadFile] = []
    folders = {file.parent for file in raster_files(path, recursive)}
    for folder in sorted(folders):
        items: Iterable[Path] = [folder] if is_band_folder(folder) else raster_files(folder)
        for item in items:
            try:
                good.append(source_of(item))
            except DataError as error:
                bad.append(BadFile(error.path, str(error)))
    return good, bad


# pairs -------------------------------------------------------------------------------------------------------------

Pair = tuple[str, Path, Path]
"""(name, optical, radar); each a file or a folder of band files."""


def find_pairs(
    path: Path, s1: str = "auto", s2: str = "auto", pairs: str | None = None
) -> tuple[list[Pair], list[BadFile]]:
    """Pairs of optical and radar images, and images without a partner.

    Args:
        path: folder with two sub-folders whose names hold S1 and S2 (or a CSV of pairs).
        s1, s2: names of those sub-folders, where several would do.
        pairs: CSV with one column a sensor, whose headings begin with s1 and s2 (or radar, sar and optical).

    Raises:
        DataError: no pairs. ConfigError: several folders would do.
    """
    table = Path(pairs) if pairs else path if path.suffix.lower() == ".csv" else path / "pairs.csv"
    if pairs and not table.is_file():
        raise DataError(table, "there is no such file", "a CSV of pairs", "Mend data.pairs")
    if table.is_file():
        return _pairs_of_table(table, path.parent if path.is_file() else path)
    optical, radar = _sensor_folder(path, "s2", s2), _sensor_folder(path, "s1", s1)
    optical_items, radar_items = _items(optical), _items(radar)
    matches = {name: name for name in radar_items} | _bigearthnet_matches(radar_items)
    by_optical = {target: name for name, target in matches.items()}
    good = [(name, item, radar_items[by_optical[name]]) for name, item in optical_items.items() if name in by_optical]
    matched = {str(item) for _, *items in good for item in items}
    bad = [
        BadFile(str(item), f"{item}: has no partner of the same name in {other.name}.")
        for items, other in ((optical_items, radar), (radar_items, optical))
        for item in items.values()
        if str(item) not in matched
    ]
    if not good:
        raise DataError(
            path,
            f"no name in {optical.name} ({', '.join(list(optical_items)[:2]) or 'empty'}) has a partner in {radar.name} "
            f"({', '.join(list(radar_items)[:2]) or 'empty'})",
            "equal file names in both folders",
            "Rename them, or name the pairs in a CSV with data.pairs=FILE",
        )
    return good, bad


def _sensor_folder(path: Path, sensor: str, chosen: str) -> Path:
    if not path.is_dir():
        raise DataError(path, "is no folder", "a folder with one sub-folder a sensor, or a CSV of pairs")
    if chosen != "auto":
        folder = path / chosen
        if not folder.is_dir():
            raise DataError(folder, "there is no such folder", mend=f"Mend data.{sensor}")
        return folder
    folders = sorted(f for f in path.iterdir() if f.is_dir() and sensor in f.name.lower())
    exact = [f for f in folders if f.name.lower() == sensor]
    usable = exact or [f for f in folders if _holds(f, (12, 13) if sensor == "s2" else (2,))] or folders
    if not usable:
        raise DataError(
            path,
            f"holds no folder for Sentinel-{sensor[1]}",
            f"a sub-folder with {sensor.upper()} in its name",
            f"Name it with data.{sensor}=FOLDER",
        )
    if len(usable) > 1:
        raise ConfigError(
            f"{path}: several folders could be Sentinel-{sensor[1]}: {', '.join(f.name for f in usable)}. Choose one with "
            f"data.{sensor}={usable[-1].name}."
        )
    return usable[0]


def _holds(folder: Path, counts: tuple[int, ...]) -> bool:
    for file in raster_files(folder)[:1]:
        try:
            return read_header(file).count in counts
        except DataError:
            return True
    return any(is_band_folder(sub) for sub in list(folder.iterdir())[:1] if sub.is_dir())


def _items(folder: Path) -> dict[str, Path]:
    items = {file.stem: file for file in raster_files(folder)}
    return items | {sub.name: sub for sub in sorted(folder.iterdir()) if sub.is_dir() and is_band_folder(sub)}


def _bigearthnet_matches(radar_items: dict[str, Path]) -> dict[str, str]:
    """Optical patch that each radar patch names in its metadata."""
    matches = {}
    for name, item in radar_items.items():
        metadata = item / f"{name}_labels_metadata.json"
        if item.is_dir() and metadata.is_file():
            try:
                matches[name] = str(json.loads(metadata.read_text())["corresponding_s2_patch"])
            except (ValueError, KeyError):
                continue
    return matches


def _pairs_of_table(table: Path, root: Path) -> tuple[list[Pair], list[BadFile]]:
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = [c for c in reader.fieldnames or [] if c]
        rows = list(reader)
    found = {}
    for sensor, starts in (("s2", ("s2", "optical")), ("s1", ("s1", "sar", "radar"))):
        match = [c for c in columns if c.lower().startswith(starts)]
        if not match:
            raise DataError(
                table,
                f"has the columns {', '.join(columns) or 'none'}",
                f"one that begins with {' or '.join(starts)}",
                "Name the columns s2 and s1",
            )
        found[sensor] = match[0]
    good: list[Pair] = []
    bad: list[BadFile] = []
    for number, row in enumerate(rows, start=2):
        places = {}
        for sensor, column in found.items():
            text = (row[column] or "").strip()
            places[sensor] = next(
                (p for p in (root / text, root / sensor.upper() / text, table.parent / text) if text and p.exists()),
                None,
            )
            if places[sensor] is None:
                bad.append(BadFile(f"{table}:{number}", f'{table}, line {number}: "{text}" is nowhere under {root}.'))
        if places["s1"] is not None and places["s2"] is not None:
            good.append((places["s2"].stem, places["s2"], places["s1"]))
    if not good:
        raise DataError(table, f"none of its {len(rows)} pairs is there", mend=bad[0].reason if bad else "")
    return good, bad
