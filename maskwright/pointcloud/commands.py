"""`maskwright pointcloud ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.pointcloud.nerf.commands import nerf_grid


def add_commands(app: typer.Typer) -> None:
    """Add this domain's commands to its group."""
    app.command("convert")(convert)
    app.command("tiles")(tiles)
    app.command("complete")(complete)
    app.command("view")(view)
    app.command("nerf-grid")(nerf_grid)


def convert(
    file: Annotated[Path, typer.Argument(help="file of points: LAS, LAZ, PLY, PCD, XYZ, PTS, CSV, NPZ, OBJ, OFF, STL")],
    out: Annotated[Path, typer.Argument(help="file to write: .las, .laz, .ply, .xyz, .txt, .csv or .npz")],
) -> None:
    """Write points in another format, with all columns that it can hold; what it cannot hold is said."""
    from maskwright.pointcloud import convert as work

    done = work.convert(file, out)
    typer.echo(f"Wrote {done.path}: {done.points} points.")
    for one in done.lost:
        typer.echo(f"Left out or changed: {one}", err=True)


def tiles(
    scan: Annotated[Path, typer.Argument(help="a scan: LAS, LAZ, or another file of points")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    tile: Annotated[float, typer.Option(help="side of a tile in metres")] = 20.0,
) -> None:
    """Cut a scan into square tiles, a file each, and a table tiles.csv of where they lie."""
    from maskwright.pointcloud.convert import write_tiles

    written = write_tiles(scan, out, tile)
    points = sum(one.points for one in written)
    typer.echo(f"Wrote {len(written)} tiles with {points} points and tiles.csv to {out}.")
    for one in dict.fromkeys(lost for done in written for lost in done.lost):
        typer.echo(f"Left out or changed: {one}", err=True)


def complete(
    run: Annotated[Path, typer.Argument(help="run directory of p2c")],
    path: Annotated[Path, typer.Argument(help="partial cloud, or a folder of them")],
    out: Annotated[Path, typer.Argument(help="folder to write, or one .ply file")],
) -> None:
    """Complete partial clouds of the kind that a run of p2c was trained on, and write them as PLY."""
    from maskwright.pointcloud.completion import complete_files

    written, bad = complete_files(run, path, out)
    typer.echo(f"Wrote {len(written)} completed clouds to {out}.")
    for one in bad:
        typer.echo(f"Left out {one.path}: {one.reason}", err=True)


def view(
    files: Annotated[list[Path], typer.Argument(help="one to four files of points or meshes, and the .html to write")],
    colour: Annotated[str | None, typer.Option(help="own, height, or a column such as intensity")] = None,
    up: Annotated[str, typer.Option(help="axis that points up: x, y or z; y for most OBJ files")] = "z",
    points: Annotated[int, typer.Option(help="points drawn of each file at most")] = 50_000,
) -> None:
    """Write clouds side by side as a page to turn with the mouse: FILE... OUT.html. It needs no network."""
    from maskwright.pointcloud import view as work

    *clouds, out = files
    for one in work.view(clouds, out, colour, up, points):  # type: ignore[arg-type]  # checked there
        typer.echo(one.note)
    typer.echo(f"Wrote {out}.")
