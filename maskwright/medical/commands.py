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
    app.command("small-data-study")(small_data_study)


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


def small_data_study(
    data: Annotated[Path, typer.Argument(help="labelled pictures: folder of DICOM, NIfTI or PNG files, or arrays")],
    labels: Annotated[str, typer.Option(help="folder, label, FILE.csv:COLUMN, FILE.npy or FILE.npz:NAME")] = "folder",
    out: Annotated[Path, typer.Option(help="folder of the results; the same one again goes on")] = Path(
        "small-data-study"
    ),
    loader: Annotated[str, typer.Option(help="name of a loader (`maskwright list loader`)")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE: data.NAME, method.NAME, trainer.NAME or finetune.NAME"),
    ] = None,
    methods: Annotated[str, typer.Option(help="of spark, moco, byol (need lightly), scratch and random")] = (
        "spark,moco,byol,scratch,random"
    ),
    fractions: Annotated[str, typer.Option(help="shares of the training labels")] = "1,0.5,0.25,0.1",
    seeds: Annotated[int, typer.Option(min=1, help="draws, each with a pre-training of its own")] = 3,
    preset: Annotated[str, typer.Option(help="of SparK: tiny, small or base")] = "small",
    backbone: Annotated[str, typer.Option(help="another ConvNet of timm than the preset's, or plain")] = "",
    pretrain_steps: Annotated[int, typer.Option(min=1, help="of each pre-training")] = 2000,
    finetune_steps: Annotated[int, typer.Option(min=1, help="of each fine-tuning")] = 300,
    unlabelled: Annotated[
        Path | None, typer.Option(help="pictures to pre-train on instead of the training part")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: a backbone that was pre-trained elsewhere, to compare with")
    ] = None,
    split: Annotated[str, typer.Option(help="group, or a column with train, validation and test")] = "group",
    test: Annotated[float, typer.Option(help="share of the patients that is tested on")] = 0.2,
    validation: Annotated[float, typer.Option(help="share of the others that the best step is chosen on")] = 0.15,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Compare ways to pre-train on your pictures while labels become fewer, and say whether it helped."""
    from maskwright.core.errors import ConfigError
    from maskwright.medical.study.results import words
    from maskwright.medical.study.run import small_data_study as study

    try:
        shares = [float(text) for text in fractions.split(",")]
    except ValueError:
        raise ConfigError(f"--fractions {fractions}: write numbers with commas between, such as 1,0.5,0.1.") from None
    files = dict(text.partition("=")[::2] for text in weights or [])
    if any(not file for file in files.values()):
        raise ConfigError("--weights: write NAME=FILE, such as swav=swav.safetensors.")
    outcome = study(
        data,
        labels,
        out,
        loader=loader,
        settings=settings or [],
        methods=[text.strip() for text in methods.split(",") if text.strip()],
        fractions=shares,
        seeds=seeds,
        preset=preset,
        backbone=backbone,
        pretrain_steps=pretrain_steps,
        finetune_steps=finetune_steps,
        unlabelled=unlabelled,
        weights=files,
        split=split,
        test=test,
        validation=validation,
        device=device,
        say=lambda line: typer.echo(line, err=True),
    )
    for gap in outcome.gaps:
        typer.echo(words(*gap))
    typer.echo(f"Wrote {out}/report.md.")
