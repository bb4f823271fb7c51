"""Made-up shapes and scans in the true file formats, for tests and first steps."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import laspy
import numpy as np

from maskwright.pointcloud.mesh import Mesh, sample_surface
from maskwright.pointcloud.writers import write_points

UTM = (530_000.0, 4_200_000.0, 210.0)
"""Where made-up scans lie: zone 33 north, EPSG:32633."""


def fake_box(size: Sequence[float] = (1.0, 2.0, 3.0), centre: Sequence[float] = (0.0, 0.0, 0.0)) -> Mesh:
    """A box of 8 vertices and 12 triangles."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))])
    return Mesh(corners * np.array(size) / 2 + np.array(centre), faces)


def fake_sphere(radius: float = 1.0, steps: int = 12) -> Mesh:
    """A ball of rings from pole to pole, `steps` of them, each of twice as many vertices."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, steps + 1)[1:-1], np.arange(2 * steps) * np.pi / steps, indexing="ij"
    )
    rings = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    vertices = np.concatenate([[[0, 0, 1]], rings.reshape(-1, 3), [[0, 0, -1]]]) * radius
    wide, last = 2 * steps, len(vertices) - 1
    faces = []
    for at in range(wide):
        after = (at + 1) % wide
        faces += [(0, 1 + at, 1 + after), (last, last - wide + after, last - wide + at)]
        for ring in range(steps - 2):
            a, b = 1 + ring * wide + at, 1 + ring * wide + after
            faces += [(a, a + wide, b + wide), (a, b + wide, b)]
    return Mesh(vertices, np.array(faces))


def write_mesh(path: str | Path, mesh: Mesh, big_endian: bool = False, text: bool = False) -> Path:
    """A mesh as OBJ, OFF, STL or PLY, by the ending; PLY and STL are binary unless `text`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    vertices, faces = mesh.vertices.tolist(), mesh.faces.tolist()
    ending = path.suffix.lower()
    rows = [" ".join(map(repr, vertex)) for vertex in vertices]
    if ending == ".obj":
        lines = ["# made up", *(f"v {row}" for row in rows), *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces)]
    elif ending == ".off":
        lines = ["OFF", f"{len(rows)} {len(faces)} 0", *rows, *(f"3 {a} {b} {c}" for a, b, c in faces)]
    elif ending == ".stl" and text:
        lines = ["solid made"]
        for face in faces:
            lines += ["facet normal 0 0 0", "outer loop", *(f"vertex {rows[at]}" for at in face), "endloop", "endfacet"]
        lines += ["endsolid made"]
    elif ending == ".stl":
        dtype = [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
        triangles = np.zeros(len(faces), dtype)
        triangles["corners"] = mesh.vertices[mesh.faces]
        path.write_bytes(b"made up".ljust(80) + struct.pack("<I", len(faces)) + triangles.tobytes())
        return path
    else:
        form = "ascii" if text else f"binary_{'big' if big_endian else 'little'}_endian"
        head = [
            "ply",
            f"format {form} 1.0",
            f"element vertex {len(rows)}",
            *(f"property double {axis}" for axis in "xyz"),
        ]
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
        if not text:
            order = ">" if big_endian else "<"
            lists = np.zeros(len(faces), [("count", "u1"), ("corners", f"{order}i4", 3)])
            lists["count"], lists["corners"] = 3, mesh.faces
            data = mesh.vertices.astype(f"{order}f8").tobytes() + lists.tobytes()
            path.write_bytes("\n".join([*head, ""]).encode() + data)
            return path
        lines = [*head, *rows, *(f"3 {a} {b} {c}" for a, b, c in faces)]
    path.write_text("\n".join([*lines, ""]))
    return path


def fake_shapes(folder: str | Path, count: int = 4, seed: int = 0) -> Path:
    """A folder of meshes, sub-folders `ball`, `box` and `plate` with `count` OBJ files each of other sizes and turns."""
    folder, generator = Path(folder), np.random.default_rng(seed)
    for number in range(count):
        ball = fake_sphere(1, int(generator.integers(8, 14)))
        ball.vertices *= 1 + 0.2 * generator.random(3)
        box = fake_box((1 + 0.4 * generator.random(3)).tolist())
        plate = fake_box((2 + generator.random(), 2 + generator.random(), 0.1))
        for name, mesh in (("ball", ball), ("box", box), ("plate", plate)):
            turn = generator.random() * 2 * np.pi
            matrix = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
            write_mesh(folder / name / f"{name}_{number:02d}.obj", Mesh(mesh.vertices @ np.array(matrix).T, mesh.faces))
    return folder


def fake_points(path: str | Path, count: int = 2000, seed: int = 0) -> Path:
    """Points of a ball with normals and colours, as any format that `write_points` knows."""
    cloud = sample_surface(fake_sphere(), count, np.random.default_rng(seed))
    cloud.columns = {name: values.astype(np.float32) for name, values in cloud.columns.items()}
    colours = ((cloud.xyz + 1) / 2 * 255).clip(0, 255).round().astype(np.uint8)
    cloud.columns |= {name: colours[:, at].copy() for at, name in enumerate(("red", "green", "blue"))}
    write_points(path, cloud.xyz, cloud.columns)
    return Path(path)


def fake_pcd(path: str | Path, form: str = "binary", count: int = 500, seed: int = 0) -> Path:
    """Points of a ball with intensity and packed colours as PCD; compressed pieces are stored as they are."""
    path, generator = Path(path), np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.zeros(count, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("intensity", "<u2")])
    xyz = sample_surface(fake_sphere(), count, generator).xyz.astype(np.float32)
    rows["x"], rows["y"], rows["z"] = xyz.T
    rows["rgb"], rows["intensity"] = generator.integers(2**24, size=count), generator.integers(2**16, size=count)
    head = ["# .PCD v0.7", "VERSION 0.7", "FIELDS x y z rgb intensity", "SIZE 4 4 4 4 2", "TYPE F F F U U"]
    head += [
        "COUNT 1 1 1 1 1",
        f"WIDTH {count}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {count}",
        f"DATA {form}",
    ]
    if form == "ascii":
        body = "".join(" ".join(map(str, row.tolist())) + "\n" for row in rows).encode()
    elif form == "binary":
        body = rows.tobytes()
    else:
        raw = b"".join(rows[name].tobytes() for name in rows.dtype.names or ())
        pieces = [raw[at : at + 32] for at in range(0, len(raw), 32)]
        packed = b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
        body = struct.pack("<II", len(packed), len(raw)) + packed
    path.write_bytes("\n".join([*head, ""]).encode() + body)
    return path


def fake_scan(
    path: str | Path,
    size: float = 60.0,
    density: float = 4.0,
    seed: int = 0,
    origin: Sequence[float] = UTM,
    crs: str | None = "EPSG:32633",
) -> Path:
    """A LAS or LAZ scan of gentle hills, houses with flat roofs, and trees, classified and coloured.

    Args:
        size: metres along x and y.
        density: points per m2.
        origin: of the south-west corner, and the height of the ground.
        crs: of the header, None for none.
    """
    path, generator = Path(path), np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = round(size * size * density)
    x, y = generator.random((2, count)) * size
    z = 1.5 * np.sin(x / 17) + np.cos(y / 13) + 0.03 * generator.normal(size=count)
    classes = np.full(count, 2, dtype=np.uint8)
    for _ in range(max(1, round(size * size / 900))):
        east, north, wide, deep, high = generator.random(5) * [size * 0.8, size * 0.8, 6, 6, 5] + [0, 0, 6, 6, 4]
        roof = (x > east) & (x < east + wide) & (y > north) & (y < north + deep)
        z[roof], classes[roof] = high + 3 + 0.02 * generator.normal(size=roof.sum()), 6
        east, north = generator.random(2) * size
        crown = ((x - east) ** 2 + (y - north) ** 2 < 9) & (classes == 2)
        z[crown], classes[crown] = z[crown] + 2 + 5 * generator.random(crown.sum()), 5
    header = laspy.LasHeader(version="1.4", point_format=7)
    header.scales, header.offsets = np.full(3, 0.001), np.floor(origin)
    if crs:
        import pyproj

        header.add_crs(pyproj.CRS.from_user_input(crs))
    las = laspy.LasData(header)
    las.x, las.y, las.z = origin[0] + x, origin[1] + y, origin[2] + z
    las.classification = classes
    las.intensity = generator.integers(0, 4000, count).astype(np.uint16)
    las.gps_time = np.sort(generator.random(count)) * 100
    las.return_number, las.number_of_returns = np.ones(count, np.uint8), np.ones(count, np.uint8)
    colours = {2: (120, 100, 70), 5: (40, 130, 50), 6: (170, 80, 70)}
    palette = np.zeros((32, 3))
    for code, colour in colours.items():
        palette[code] = colour
    shade = (palette[classes] * (0.9 + 0.2 * generator.random((count, 1))) * 257).clip(0, 65535).astype(np.uint16)
    las.red, las.green, las.blue = shade.T
    las.write(path)
    return path
