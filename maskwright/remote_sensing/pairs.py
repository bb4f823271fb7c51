"""Finding pairs of Sentinel-1 and Sentinel-2 images: by name, in BigEarthNet's layout, or in a CSV."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.remote_sensing.raster import read_header
from maskwright.remote_sensing.sources import holds_rasters, is_band_folder, raster_files

Pair = tuple[str, Path, Path]
"""(name, optical, radar); each a file or a folder of band files."""

COLUMNS = {"s2": ("s2", "optical"), "s1": ("s1", "sar", "radar")}
"""How the headings of a CSV of pairs begin."""


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
    table = Path(pairs) if pairs else _table_in(path)
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


def may_hold_pairs(path: Path) -> bool:
    """Whether a path looks like pairs: a CSV with a column a sensor, or a folder with a sub-folder a sensor."""
    table = _table_in(path)
    if table.is_file():
        try:
            return len(_sensor_columns(_read_table(table, limit=0)[0])) == 2
        except DataError:
            return False
    return path.is_dir() and all(any(map(holds_rasters, _sensor_folders(path, sensor))) for sensor in ("s1", "s2"))


def _table_in(path: Path) -> Path:
    return path if path.suffix.lower() == ".csv" else path / "pairs.csv"


def _sensor_folders(path: Path, sensor: str) -> list[Path]:
    """Sub-folders with the sensor in their name as a word of its own: `S2L2A` and `my_s2`, but not `results2`."""
    word = re.compile(rf"(?<![a-z]){sensor}(?![0-9])", re.IGNORECASE)
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and word.search(folder.name))


def _sensor_folder(path: Path, sensor: str, chosen: str) -> Path:
    if not path.is_dir():
        raise DataError(path, "is no folder", "a folder with one sub-folder a sensor, or a CSV of pairs")
    if chosen != "auto":
        folder = path / chosen
        if not folder.is_dir():
            raise DataError(folder, "there is no such folder", mend=f"Mend data.{sensor}")
        return folder
    folders = _sensor_folders(path, sensor)
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
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return matches


def _read_table(table: Path, limit: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Headings and (the first `limit`) rows."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return [column for column in reader.fieldnames or [] if column], list(itertools.islice(reader, limit))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(table, f"cannot be read as a table ({error})", "a CSV in UTF-8") from error


def _sensor_columns(columns: list[str]) -> dict[str, str]:
    """The first column of each sensor."""
    found = {}
    for sensor, starts in COLUMNS.items():
        match = [column for column in columns if column.strip().lower().startswith(starts)]
        if match:
            found[sensor] = match[0]
    return found


def _pairs_of_table(table: Path, root: Path) -> tuple[list[Pair], list[BadFile]]:
    columns, rows = _read_table(table)
    found = _sensor_columns(columns)
    if len(found) < 2:
        absent = next(starts for sensor, starts in COLUMNS.items() if sensor not in found)
        raise DataError(
            table,
            f"has the columns {', '.join(columns) or 'none'}",
            f"one that begins with {' or '.join(absent)}",
            "Name the columns s2 and s1",
        )
    good: list[Pair] = []
    bad: list[BadFile] = []
    for number, row in enumerate(rows, start=2):
        places = {sensor: _place(row[column], sensor, root, table.parent) for sensor, column in found.items()}
        if places["s1"] is not None and places["s2"] is not None:
            good.append((places["s2"].stem, places["s2"], places["s1"]))
        bad += [
            BadFile(f"{table}:{number}", f'{table}, line {number}: "{row[found[sensor]]}" is nowhere under {root}.')
            for sensor, place in places.items()
            if place is None
        ]
    if not good:
        raise DataError(table, f"none of its {len(rows)} pairs is there", mend=bad[0].reason if bad else "")
    return good, bad


def _place(text: str | None, sensor: str, root: Path, beside: Path) -> Path | None:
    """Where the file or folder that a cell names lies: under the root, the sensor's folder, or beside the table."""
    text = (text or "").strip()
    try:
        return next(
            (p for p in (root / text, root / sensor.upper() / text, beside / text) if text and p.exists()), None
        )
    except OSError:  # no file name, such as one of thousands of letters
        return None
