"""`maskwright medical ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_commands(app: typer.Typer) -> None:
    """Add this domain's commands to its group."""
    app.command("convert")(convert)
    app.command("window")(window)
    app.command("slices")(slices)


def convert(
    folder: Annotated[Path, typer.Argument(help="folder of a DICOM series, or of several, or a multi-frame file")],
    out: Annotated[Path, typer.Argument(help="file to write, .nii.gz or .nii; of several series OUT-1, OUT-2 ...")],
) -> None:
    """Turn DICOM series into NIfTI: numbers in HU or the scanner's unit, slices in order, places as in the scanner.

    Nothing of the patient goes along: neither names nor numbers nor dates.
    """
    from maskwright.medical.convert import convert_series

    written, bad = convert_series(folder, out)
    for file, volume in written:
        shape, spacing = " x ".join(map(str, volume.shape)), " x ".join(f"{mm:.3g}" for mm in volume.spacing)
        typer.echo(f"Wrote {file}: {shape} voxels of {spacing} mm, from {len(volume.files)} files.")
    for one in bad:
        typer.echo(f"Left out {one.path}: {one.reason}", err=True)


def window(
    file: Annotated[Path, typer.Argument(help="NIfTI file or folder of a DICOM series")],
    out: Annotated[Path, typer.Argument(help=".nii.gz or .nii of all voxels, or .png of one slice")],
    preset: Annotated[str, typer.Option(help="lung, brain, bone or soft-tissue")] = "",
    centre: Annotated[float | None, typer.Option(help="middle of the window in HU")] = None,
    width: Annotated[float | None, typer.Option(help="width of the window in HU")] = None,
    volume: Annotated[int, typer.Option(help="which volume of a 4-D file, from 0")] = 0,
) -> None:
    """Show a window of values: below it all is black, above it all is white."""
    from maskwright.medical.convert import write_window

    write_window(file, out, preset, centre, width, volume)
    typer.echo(f"Wrote {out}.")


def slices(
    file: Annotated[Path, typer.Argument(help="NIfTI file or folder of a DICOM series")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    axis: Annotated[str, typer.Option(help="axial, coronal or sagittal")] = "axial",
    preset: Annotated[str, typer.Option(help="window: lung, brain, bone or soft-tissue; else all values")] = "",
    bits: Annotated[int, typer.Option(help="of a pixel, 8 or 16")] = 8,
    count: Annotated[int | None, typer.Option(help="slices to write, evenly spread; else all")] = None,
    volume: Annotated[int, typer.Option(help="which volume of a 4-D file, from 0")] = 0,
) -> None:
    """Write slices as PNG, upright, with a table slices.csv of where each lies."""
    from maskwright.medical.convert import write_slices

    written = write_slices(file, out, axis, preset, bits, count, volume)
    typer.echo(f"Wrote {written} slices and slices.csv to {out}.")
