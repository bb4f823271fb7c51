"""Points with their columns, and the names and ranges that columns have whatever file they come from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

NORMALS = ("normal_x", "normal_y", "normal_z")
COLOURS = ("red", "green", "blue")
_ALIASES = {
    "nx": "normal_x", "ny": "normal_y", "nz": "normal_z",
    "normalx": "normal_x", "normaly": "normal_y", "normalz": "normal_z",
    "r": "red", "g": "green", "b": "blue",
    "diffuse_red": "red", "diffuse_green": "green", "diffuse_blue": "blue",
    "i": "intensity", "gps_time": "time", "gpstime": "time", "timestamp": "time", "t": "time",
    "class": "classification", "returnnumber": "return_number", "numberofreturns": "number_of_returns",
}  # fmt: skip


@dataclass
class Cloud:
    """Points.

    Args:
        xyz: (n, 3) float64, in the file's own units.
        columns: (n,) each by name, in the type in which they are stored.
    """

    xyz: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xyz)

    def not_finite(self) -> int:
        """Points with a coordinate or column that is NaN or infinite."""
        values = [column for column in self.columns.values() if column.dtype.kind == "f"]
        if np.isfinite(self.xyz).all() and all(np.isfinite(column).all() for column in values):
            return 0
        fine = np.isfinite(self.xyz).all(1)
        for column in values:
            fine &= np.isfinite(column)
        return int((~fine).sum())

    def take(self, indices: np.ndarray | slice) -> Cloud:
        """Some of the points."""
        return Cloud(self.xyz[indices], {name: column[indices] for name, column in self.columns.items()})


def join(clouds: Sequence[Cloud]) -> Cloud:
    """Clouds of the same columns, one behind the other."""
    if len(clouds) == 1:
        return clouds[0]
    columns = {name: np.concatenate([cloud.columns[name] for cloud in clouds]) for name in clouds[0].columns}
    return Cloud(np.concatenate([cloud.xyz for cloud in clouds]), columns)


def canonical(name: str) -> str:
    """The one name of a column: `nx`, `NX` and `scalar_nx` are all normal_x."""
    plain = name.strip().strip('"').lower().replace(" ", "_").removeprefix("scalar_")
    return _ALIASES.get(plain, plain)


def colour_top(columns: dict[str, np.ndarray]) -> float:
    """The number that stands for full colour: 255 for bytes, else the least of 1, 255 and 65535 that is large enough.

    Many LAS files hold colours of 8 bits in their fields of 16, against the specification, which wants them stretched.
    Integers never stand for colours from 0 to 1.
    """
    there = [columns[name] for name in COLOURS if name in columns]
    if not there:
        return 1.0
    tops = (1.0, 255.0, 65535.0) if any(column.dtype.kind == "f" for column in there) else (255.0, 65535.0)
    highest = max(float(column.max()) for column in there)
    return next((top for top in tops if highest <= top), highest)


def as_features(cloud: Cloud, names: Collection[str], top: float) -> np.ndarray:
    """Columns as a network gets them: (n, F) float32, colours from 0 to 1, all else as it is stored.

    Args:
        top: number of full colour, see `colour_top`.
    """
    chosen = []
    for name in names:
        values = cloud.columns[name].astype(np.float64)
        chosen.append(values / top if name in COLOURS else values)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused by whoever asked
        return np.stack(chosen, 1).astype(np.float32) if chosen else np.empty((len(cloud), 0), np.float32)


def duplicates(xyz: np.ndarray) -> int:
    """Points that lie exactly where another one before them does."""
    order = np.lexsort(xyz.T)
    return int((np.diff(xyz[order], axis=0) == 0).all(1).sum())
