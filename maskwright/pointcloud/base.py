"""What the loaders `points` and `scans` share: drawing points, centring and scaling them, pictures, simple features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import Sample, TensorSpec
from maskwright.pointcloud.cloud import COLOURS, Cloud, as_features, canonical
from maskwright.pointcloud.crs import in_units, unit_of

Count = int | Literal["all"]
Scale = float | Literal["unit"]


def check_reading(points: Count, scale: Scale | None, features: Sequence[str]) -> tuple[str, ...]:
    """Columns that are read, by their one name.

    Raises:
        ConfigError: options that do not fit.
    """
    if points != "all" and points < 2:
        raise ConfigError(f"data.points={points}: at least 2 are needed, or all.")
    if isinstance(scale, (int, float)) and not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"data.scale={scale}: metres above 0 are needed, or unit.")
    names = tuple(canonical(name) for name in features)
    if len(set(names)) < len(names) or set(names) & set("xyz"):
        raise ConfigError(
            f"data.features={list(features)}: each column once, and not x, y or z, which are always there."
        )
    return names


def points_spec(features: Sequence[str], scale: str) -> dict[str, TensorSpec]:
    return {"points": TensorSpec("N C", ("x", "y", "z", *features), f"coordinates less their centre, in {scale}")}


def draw_seed(generator: torch.Generator | None) -> int:
    """A number that says which points are drawn; always the same one without a generator."""
    return 0 if generator is None else int(torch.randint(2**53, (1,), generator=generator).item())


def chosen(there: int, wanted: Count, seed: int) -> np.ndarray:
    """Which of the points of a file are drawn, (n,) in ascending order.

    Without replacement if there are enough; else all of them as often as they go into the number, and some once more.
    """
    if wanted == "all" or wanted == there:
        return np.arange(there)
    generator = np.random.default_rng(seed)
    rest = generator.choice(there, wanted % there if wanted > there else wanted, replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(there), wanted // there), rest]) if wanted > there else rest)


def placed(xyz: np.ndarray, scale: Scale, crs: str | None, path: object) -> tuple[np.ndarray, list[float], float]:
    """Points about their centroid, divided by a scale: (n, 3) float32, the centroid, and the scale in the file's units.

    Args:
        scale: unit makes the largest distance from the centroid 1; a number is in metres.

    Raises:
        DataError: all points are at one place, or too far apart for numbers; the file is in degrees and the scale not.
    """
    if (xyz == xyz[0]).all():
        raise DataError(path, f"has all of {len(xyz)} points at one place", "points that are apart")
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
        centre = xyz[0] + (xyz - xyz[0]).mean(0)
        offset = xyz - centre
        size = float(np.sqrt((offset**2).sum(1).max())) if scale == "unit" else in_units(scale, crs, path, "data.scale")
        points = (offset / size).astype(np.float32) if size > 0 and math.isfinite(size) else None
    if points is None or not np.isfinite(points).all():
        raise DataError(
            path,
            f"has coordinates up to {np.abs(xyz).max():.3g}, beyond what can be computed with",
            "sensible coordinates",
        )
    return points, centre.tolist(), size


def as_sample(
    cloud: Cloud, features: Sequence[str], top: float, scale: Scale, crs: str | None, path: object
) -> tuple[Tensor, dict[str, Any]]:
    """Points of a sample, (N, 3 + F) float32, and what brings them back to the world."""
    points, centre, size = placed(cloud.xyz, scale, crs, path)
    more = as_features(cloud, features, top)
    bad = (~np.isfinite(more)).any(1).sum()
    if bad:
        raise DataError(path, f"{bad} of its points have columns beyond the range of float32", "smaller numbers")
    unit = unit_of(crs)
    return torch.from_numpy(np.concatenate([points, more], 1)), {"centre": centre, "scale": size, "unit": unit.name}


def world(sample: Sample) -> np.ndarray:
    """Coordinates of a sample's points in the units of its file: (N, 3) float64.

    They are as exact as float32 times the scale: to 0.1 mm of the file's for scales up to a kilometre.
    """
    extra = sample.meta.extra
    return sample["points"][:, :3].double().numpy() * extra["scale"] + np.array(extra["centre"])


def common_system(systems: Sequence[tuple[Path, str | None]]) -> None:
    """Raise DataError if files of one folder are in several reference systems or units."""
    from maskwright.pointcloud.crs import same_system

    for path, crs in systems[1:]:
        first_path, first = systems[0]
        if not same_system(first, crs):
            raise DataError(
                path,
                f"is in {system_name(crs)}, but {first_path} in {system_name(first)}",
                "one reference system and unit in a folder",
                "Reproject them into one, or keep them in folders of their own",
            )


def system_name(crs: str | None) -> str:
    """A reference system for people, with its unit."""
    from maskwright.pointcloud.crs import parsed

    if not crs:
        return "no reference system that it says"
    system = parsed(crs)
    name = system.name if system is not None else f"{crs[:40]} (not understood)"
    return f"{name} ({unit_of(crs).name})"


def channel_places(spec: dict[str, TensorSpec], names: Sequence[str]) -> list[int] | None:
    """Where channels lie in a tensor of points, None if one is missing."""
    channels = spec["points"].channels
    assert isinstance(channels, tuple)
    return [channels.index(name) for name in names] if set(names) <= set(channels) else None


def colours_of(spec: dict[str, TensorSpec], points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Colour of each point, (n, 3) uint8: its own, stretched to the brightest, or else by a number such as its height."""
    places = channel_places(spec, COLOURS)
    if places is not None:
        own = points[:, places]
        return (np.clip(own / max(float(own.max()), 1e-6), 0, 1) * 255).round().astype(np.uint8)
    from matplotlib import colormaps

    low, high = float(depth.min()), float(depth.max())
    return (colormaps["viridis"]((depth - low) / max(high - low, 1e-12))[:, :3] * 255).round().astype(np.uint8)
