"""Triangle meshes, and points drawn uniformly from their surface."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maskwright.core.errors import DataError
from maskwright.pointcloud.cloud import NORMALS, Cloud


@dataclass
class Mesh:
    """Vertices and triangles.

    Args:
        vertices: (v, 3) float64.
        faces: (f, 3) int64, positions of vertices.
        columns: (v,) each, such as the colour of each vertex.
    """

    vertices: np.ndarray
    faces: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def check(self, path: Path) -> None:
        """Raise DataError if faces name vertices that are not there, or a vertex is no place."""
        if len(self.faces) and (self.faces.min() < 0 or self.faces.max() >= len(self.vertices)):
            raise DataError(
                path,
                f"has faces between vertices {self.faces.min()} and {self.faces.max()}",
                f"0 to {len(self.vertices) - 1}, as it has {len(self.vertices)}",
                "Get the file again",
            )
        bad = Cloud(self.vertices, self.columns).not_finite()
        if bad:
            raise DataError(path, f"{bad} of its vertices are NaN or infinite", "finite numbers", "Remove them")


def fan(polygons: list[list[int]]) -> np.ndarray:
    """Triangles (f, 3) of polygons: each from its first corner to all its other edges."""
    triangles = [
        (polygon[0], polygon[at], polygon[at + 1]) for polygon in polygons for at in range(1, len(polygon) - 1)
    ]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)


def sample_surface(mesh: Mesh, count: int, generator: np.random.Generator, path: Path | str = "") -> Cloud:
    """Points drawn uniformly by area, each with the normal of its triangle and the columns of its corners, blended.

    Turk, "Generating random points in triangles", Graphics Gems, 1990: with u and v uniform in 0..1, the point
    (1 - sqrt(u)) a + sqrt(u) (1 - v) b + sqrt(u) v c is uniform in the triangle a, b, c.

    Raises:
        DataError: the surface has no area.
    """
    corners = mesh.vertices[mesh.faces]
    shift = corners.reshape(-1, 3).mean(0)  # so that a small thing far from the origin keeps its digits
    a, b, c = (corners[:, at] - shift for at in range(3))
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    upto = np.cumsum(lengths)
    if not (np.isfinite(upto[-1]) and upto[-1] > 0):
        raise DataError(path, "its faces have no area that could be measured", "a mesh with a surface")
    draws = generator.random((3, count))
    chosen = np.searchsorted(upto, draws[0] * upto[-1], side="right")
    chosen = np.minimum(chosen, np.flatnonzero(lengths)[-1])  # a draw that rounds up to the whole
    root = np.sqrt(draws[1])
    weights = np.stack([1 - root, root * (1 - draws[2]), root * draws[2]], 1)
    xyz = weights[:, :1] * a[chosen] + weights[:, 1:2] * b[chosen] + weights[:, 2:] * c[chosen] + shift
    columns = {
        name: (column[mesh.faces[chosen]] * weights).sum(1)
        for name, column in mesh.columns.items()
        if name not in NORMALS
    }
    unit = normals[chosen] / lengths[chosen, None]
    return Cloud(xyz, columns | {name: unit[:, axis] for axis, name in enumerate(NORMALS)})
