"""Points as one page of HTML that turns under the mouse and needs no network: `maskwright pointcloud view`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.files import write_text
from maskwright.pointcloud.cloud import COLOURS, Cloud, as_features, canonical, colour_top, join
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.formats.base import MAX_POINTS
from maskwright.pointcloud.mesh import sample_surface

MOST_POINTS, MOST_CLOUDS = 50_000, 4
SCAN_POINTS = 2**40
HEIGHT, OWN = "height", "own"
SHARED = 1.5
"""Clouds get one frame if it is at most so many times as large as the largest of them."""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<style>body {{ margin: 0; font: 15px/1.4 system-ui, sans-serif; background: #fff; color: #222 }}
#points {{ min-height: 320px }} ul {{ margin: .5rem 1rem; padding: 0 0 0 1rem }}
li {{ overflow-wrap: anywhere }}</style></head>
<body>{figure}
<ul>{notes}</ul></body></html>
"""
# all clouds turn together, as plotly would not by itself
TOGETHER = """
const plot = document.getElementById('{plot_id}');
const scenes = Object.keys(plot.layout).filter(name => /^scene[0-9]*$/.test(name));
plot.on('plotly_relayout', change => {
  const moved = scenes.filter(name => change[name + '.camera']);
  if (moved.length !== 1) return;
  const others = scenes.filter(name => name !== moved[0]);
  if (!others.length) return;
  Plotly.relayout(plot, Object.fromEntries(others.map(name => [name + '.camera', change[moved[0] + '.camera']])));
});
"""


@dataclass(frozen=True)
class Shown:
    """A cloud on the page.

    Args:
        points: points that are drawn.
        there: points of the file; None of a mesh, from whose surface they are drawn.
        colour: "own" for red, green and blue, "height", or the column that colours them.
    """

    path: Path
    points: int
    there: int | None
    colour: str

    @property
    def note(self) -> str:
        """One sentence for people."""
        if self.there is None:
            said = f"{self.points} points of its surface"
        elif self.points < self.there:
            said = f"{self.points} of its {self.there} points, drawn at random"
        else:
            said = f"{self.points} points"
        coloured = {OWN: "in their own colours", HEIGHT: "coloured by height"}.get(
            self.colour, f"coloured by {self.colour}"
        )
        return f"{self.path.name}: {said}, {coloured}."


def view(
    files: Sequence[str | Path],
    out: str | Path,
    colour: str | None = None,
    up: Literal["x", "y", "z"] = "z",
    most: int = MOST_POINTS,
) -> list[Shown]:
    """Write up to four clouds side by side as a page that holds all it needs, about 5 MB.

    Scans are read block by block; of more than `most` points some are drawn at random, the same ones in each call. From
    meshes, points are drawn from the surface. Clouds of one place share a frame, and all turn together. Coordinates on
    the page are in the files' units, about the corner that the axes name.

    Args:
        files: PLY, PCD, XYZ, PTS, TXT, CSV, NPZ, NPY, LAS, LAZ, OBJ, OFF, STL.
        out: page to write, .html.
        colour: own (red, green and blue), height, or a column such as intensity; without it their own where they have
            colours, else height.
        up: axis that points up; y for most OBJ files.
        most: points drawn of each cloud.

    Raises:
        ConfigError: an option out of its range, or plotly is missing. DataError: a file that cannot be used.
    """
    out = Path(out)
    if not 1 <= len(files) <= MOST_CLOUDS:
        raise ConfigError(f"{len(files)} clouds were given; 1 to {MOST_CLOUDS} fit on a page.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out} must end in .html.")
    if up not in ("x", "y", "z") or most < 1:
        raise ConfigError(f"up={up} must be x, y or z, and most={most} 1 or more.")
    go, offline = _plotly()
    clouds, shown = [], []
    for name in files:
        path = Path(name)
        cloud, there, top = _drawn(path, colour, most)
        how = _colouring(cloud, colour, path)
        clouds.append((cloud, how, top))
        shown.append(Shown(path, len(cloud), there, how))
    page = PAGE.format(
        title=html.escape(", ".join(one.path.name for one in shown)),
        figure=_figure(go, clouds, shown, up, offline),
        notes="".join(f"<li>{html.escape(one.note)}</li>" for one in shown),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return shown


def _plotly() -> tuple[Any, Any]:
    try:
        import plotly.graph_objects as go
        import plotly.io as offline
    except ImportError as error:
        raise ConfigError(
            'Pages of points are drawn by plotly, which is not installed: pip install "plotly>=5.20"'
        ) from error
    return go, offline


# points -------------------------------------------------------------------------------------------------------------


def _drawn(path: Path, colour: str | None, most: int) -> tuple[Cloud, int | None, float]:
    """Points that are shown with the columns that can colour them, how many there are, and the number of full colour."""
    file = open_points(path, SCAN_POINTS if path.suffix.lower() in (".las", ".laz") else MAX_POINTS)
    generator = np.random.default_rng(0)
    mesh = file.mesh()
    if mesh is not None and len(mesh.faces):
        return sample_surface(mesh, most, generator, path), None, colour_top(mesh.columns)
    wanted = {HEIGHT: (), None: COLOURS, OWN: COLOURS}.get(colour, (canonical(colour or ""),))
    if file.columns is None:
        cloud = file.read(())
        columns = tuple(name for name in wanted if name in (cloud.columns or ()))
    else:
        columns = tuple(name for name in wanted if name in file.columns)
    if file.count is None:
        cloud = file.read(columns)
        chosen = np.sort(generator.choice(len(cloud), min(most, len(cloud)), replace=False))
        return cloud.take(chosen), len(cloud), colour_top(cloud.columns)
    chosen = np.sort(generator.choice(file.count, min(most, file.count), replace=False))
    parts, start, tops = [], 0, [1.0]
    for block in file.blocks(columns):
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        parts.append(block.take(chosen[first:last] - start))
        tops.append(colour_top(block.columns))
        start += len(block)
    return join(parts), file.count, max(tops)


def _colouring(cloud: Cloud, colour: str | None, path: Path) -> str:
    """What colours a cloud: "own", "height" or the name of a column."""
    coloured = set(COLOURS) <= set(cloud.columns)
    if colour is None:
        return OWN if coloured else HEIGHT
    if colour == HEIGHT:
        return HEIGHT
    wanted = COLOURS if colour == OWN else (canonical(colour),)
    missing = [name for name in wanted if name not in cloud.columns]
    if missing:
        raise DataError(path, f"has no column {', '.join(missing)}", mend="Choose height or another column")
    return OWN if colour == OWN else wanted[0]


# the page -----------------------------------------------------------------------------------------------------------


def _figure(go: Any, clouds: list[tuple[Cloud, str, float]], shown: list[Shown], up: str, offline: Any) -> str:
    """The plot and plotly itself as HTML."""
    boxes = [np.stack([cloud.xyz.min(0), cloud.xyz.max(0)]) for cloud, _, _ in clouds]
    union = np.stack([np.min([box[0] for box in boxes], 0), np.max([box[1] for box in boxes], 0)])
    shared = np.ptp(union, axis=0).max() <= SHARED * max(np.ptp(box, axis=0).max() for box in boxes)
    figure = go.Figure()
    layout: dict[str, Any] = {}
    titles = []
    for number, (cloud, how, top) in enumerate(clouds):
        box = union if shared else boxes[number]
        corner = np.where(np.abs(box).max(0) > 1000, np.floor(box[0]), 0)  # float32 would cut digits off
        name = f"scene{number + 1 if number else ''}"
        x, y, z = (cloud.xyz - corner).astype(np.float32).T
        figure.add_trace(
            go.Scatter3d(
                x=x, y=y, z=z, mode="markers", scene=name, showlegend=False,
                hoverinfo="x+y+z", marker=_marker(cloud, how, top, up),
            )
        )  # fmt: skip
        share = [number / len(clouds), (number + 1) / len(clouds)]
        layout[name] = {
            "domain": {"x": share, "y": [0, 0.94]},
            "aspectmode": "data",
            "camera": {"up": {axis: float(axis == up) for axis in "xyz"}, "eye": _eye(up, len(clouds))},
            **{f"{axis}axis": _axis(axis, corner[at], box[:, at] - corner[at]) for at, axis in enumerate("xyz")},
        }
        label = html.escape(shown[number].path.name)
        titles.append({
            "text": label, "x": sum(share) / 2, "y": 1.0, "xref": "paper", "yref": "paper", "showarrow": False,
        })  # fmt: skip
    figure.update_layout(margin={"l": 0, "r": 0, "t": 28, "b": 0}, annotations=titles, **layout)
    return offline.to_html(
        figure,
        include_plotlyjs=True,
        full_html=False,
        div_id="points",
        default_height="80vh",
        post_script=TOGETHER,
        config={"displaylogo": False, "responsive": True},
    )


def _marker(cloud: Cloud, how: str, top: float, up: str) -> dict[str, Any]:
    size = 1.5 if len(cloud) > 5000 else 2.5
    if how == OWN:
        own = as_features(cloud, COLOURS, top)
        levels = (np.clip(own / max(float(own.max()), 1e-6), 0, 1) * 255).round().astype(int)
        return {"size": size, "color": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in levels.tolist()]}
    if how == HEIGHT:
        return {"size": size, "color": cloud.xyz[:, "xyz".index(up)].astype(np.float32), "colorscale": "Viridis"}
    values = cloud.columns[how].astype(np.float32)
    return {"size": size, "color": values, "colorscale": "Viridis", "cmin": values.min(), "cmax": values.max()}


def _axis(name: str, corner: float, ends: np.ndarray) -> dict[str, Any]:
    """Ends of an axis with a little room, and the number that was taken off where it is large."""
    room = max(float(np.ptp(ends)) * 0.03, 1e-6)
    return {
        "title": {"text": f"{name} − {corner:.0f}" if corner else name},
        "range": [float(ends[0]) - room, float(ends[1]) + room],
    }


def _eye(up: str, clouds: int) -> dict[str, float]:
    """From the front and a little above; from farther away where panes are narrow."""
    at = {"x": (0.8, 1.2, 1.2), "y": (0.9, 0.8, 1.6), "z": (0.9, -1.6, 0.8)}[up]
    return {axis: value * (0.9 + 0.2 * clouds) for axis, value in zip("xyz", at, strict=True)}
