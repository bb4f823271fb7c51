"""Damage files of points and meshes at random and read them: nothing but a DataError may come of it.

python -m tests.faults.fuzz_points --count 10000
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskwright.pointcloud.fake import fake_pcd, fake_points, fake_scan, fake_sphere, write_mesh
from tests.faults.fuzzing import Read, Reader, Wrong, main

EXTREMES = (0, 1, 2**15 - 1, 2**15, 2**16 - 1, 10**8, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 0x7F800000, 0xFFC00000)
COUNTS = (b"0", b"1", b"-1", b"99999999", b"4000000000", b"18446744073709551616", b"nan", b"1e9", b"0x10", b"3.5")
FORMATS = (
    "scan.las", "scan.laz", "little.ply", "big.ply", "lines.ply", "faces.ply", "bigfaces.ply", "facelines.ply",
    "mesh.obj", "mesh.off", "mesh.stl", "lines.stl", "lines.pcd", "rows.pcd", "packed.pcd", "points.xyz", "points.pts",
    "points.csv", "points.npz",
)  # fmt: skip
CHECKSUM = ("points.npz",)
"""Formats that notice every change."""
WANTED = 300


def write_originals(folder: Path, seed: int) -> None:
    """One intact file of each kind."""
    for ending in ("las", "laz"):
        fake_scan(folder / f"scan.{ending}", 24, 2, seed)
    for name in ("little.ply", "points.csv", "points.xyz", "points.npz"):
        fake_points(folder / name, 300, seed)
    rows = [line.split() for line in (folder / "points.xyz").read_text().splitlines()[1:]]
    (folder / "points.pts").write_text(
        "\n".join([str(len(rows)), *(" ".join([*row[:3], "7", *row[6:]]) for row in rows), ""])
    )
    head = ["ply", "format ascii 1.0", "comment made up", f"element vertex {len(rows)}"]
    head += [*(f"property float {axis}" for axis in "xyz"), "property uchar red", "end_header"]
    (folder / "lines.ply").write_text("\n".join([*head, *(" ".join([*row[:3], row[6]]) for row in rows), ""]))
    values = np.array([[float(field) for field in row[:3]] for row in rows])
    head[1:2] = ["format binary_big_endian 1.0"]
    data = np.empty(len(rows), [("xyz", ">f4", 3), ("red", "u1")])
    data["xyz"], data["red"] = values, [int(row[6]) for row in rows]
    (folder / "big.ply").write_bytes("\n".join([*head, ""]).encode() + data.tobytes())
    ball = fake_sphere(2.0, 8)
    for name in ("faces.ply", "mesh.obj", "mesh.off", "mesh.stl"):
        write_mesh(folder / name, ball)
    write_mesh(folder / "bigfaces.ply", ball, big_endian=True)
    for name in ("facelines.ply", "lines.stl"):
        write_mesh(folder / name, ball, text=True)
    for name, form in (("lines", "ascii"), ("rows", "binary"), ("packed", "binary_compressed")):
        fake_pcd(folder / f"{name}.pcd", form, 300, seed)


def damage(data: bytes, generator: np.random.Generator) -> bytes:
    """Cut a file short, append to it, or change bytes near its start, anywhere, four at a time, a number in words, or a digit."""
    kind = generator.integers(9)
    if kind == 0:
        return data[: int(generator.integers(len(data)))]
    if kind == 6:
        return data + bytes(generator.integers(256, size=int(generator.integers(1, 200)), dtype=np.uint8))
    if kind == 7:
        return _other_number(data, generator)
    if kind == 8:
        digits = [at for at, byte in enumerate(data) if byte in b"0123456789"]
        place = int(generator.choice(digits))
        return data[:place] + bytes([int(generator.choice(list(b"0123456789")))]) + data[place + 1 :]
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        place = int(generator.integers(min(len(data), 600)))
        if kind == 1:
            changed[place] = int(generator.integers(256))
        elif kind == 2:
            changed[int(generator.integers(len(data)))] = int(generator.integers(256))
        elif kind == 3:
            place = min(place, len(data) - 4)
            value = int(generator.choice(EXTREMES))
            changed[place : place + 4] = value.to_bytes(4, str(generator.choice(["little", "big"])))
        elif kind == 4:
            place = min(int(generator.integers(len(data))), len(data) - 4)
            changed[place : place + 4] = int(generator.choice(EXTREMES)).to_bytes(4, "little")
        else:
            changed[place : place + 2] = changed[place // 2 : place // 2 + 2]
    return bytes(changed)


def _other_number(data: bytes, generator: np.random.Generator) -> bytes:
    """Another number in place of one of the words, among the first more often than not."""
    head = data[: 500 if generator.integers(2) else len(data)]
    words = [at for at in range(1, len(head)) if head[at : at + 1].isdigit() and head[at - 1 : at].isspace()]
    if not words:
        return data[:-1]
    start = int(generator.choice(words))
    end = start
    while end < len(data) and not data[end : end + 1].isspace():
        end += 1
    return data[:start] + bytes(generator.choice(np.array(COUNTS))) + data[end:]


# reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> None:
    """Read a damaged file as its user would: by blocks, as a sample drawn, as a sample of all, as tiles of a scan."""
    from maskwright.core.errors import DataError
    from maskwright.pointcloud.formats import open_points
    from maskwright.pointcloud.loaders import PointLoader, ScanLoader

    PointLoader.accepts(path)
    ScanLoader.accepts(path)
    refused = None
    try:
        file = open_points(path)
        there = sum(map(len, file.blocks(file.columns or ())))
        if there < 1 or (file.count is not None and there != file.count):
            raise Wrong("other count")
    except DataError as error:
        refused = error
    colours = ["red"] if path.name.startswith(("scan", "little", "big.", "lines.ply")) else []
    for kind, options in (
        (PointLoader, {"points": WANTED, "features": colours}),
        (PointLoader, {"points": "all", "surface": False, "scale": 2.0}),
        (ScanLoader, {"points": WANTED, "tile": 10.0, "min_points": 5, "features": colours}),
    ):
        try:
            loader = kind(path, **options)
            for index in {0, len(loader) // 2, len(loader) - 1}:
                sample = loader.read(index)
                points = sample["points"]
                if points.shape[1] != loader.spec["points"].channel_count or len(points) < 1:
                    raise Wrong("other shape")
                if options["points"] == WANTED and len(points) != WANTED:
                    raise Wrong("other count")
                if not points.isfinite().all() or not np.isfinite(sample.meta.extra["centre"]).all():
                    raise Wrong("not finite")
                if loader.picture("points", points).shape[2] != 3:
                    raise Wrong("other shape")
        except DataError as error:
            refused = error
    if refused is not None:
        raise refused


def reader(folder: Path) -> Reader:
    """Writes a damaged file of a kind, and gives what reads it."""
    originals = {name: (folder / name).read_bytes() for name in FORMATS}

    def damaged(kind: str, generator: np.random.Generator) -> Read:
        path = folder / "damaged" / kind
        path.write_bytes(damage(originals[kind], generator))
        return lambda: read(path)

    return damaged


if __name__ == "__main__":
    main("tests.faults.fuzz_points", (__doc__ or "").split("\n")[0])
