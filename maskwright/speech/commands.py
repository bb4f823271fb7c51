"""`maskwright speech ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_commands(app: typer.Typer) -> None:
    """Add this domain's commands to its group."""
    app.command("manifest")(manifest)
    app.command("features")(features)
    app.command("units")(units)


def manifest(
    folder: Annotated[Path, typer.Argument(help="folder of sound files, LibriSpeech's or Kaldi's layout, or a table")],
    out: Annotated[Path, typer.Argument(help="table to write, .csv")],
    group_pattern: Annotated[str, typer.Option(help="regular expression that finds the speaker in a file's path")] = "",
) -> None:
    """List a corpus: seconds, rate, channels, speaker, and what is wrong with each file; all are read to their end."""
    from maskwright.speech.export import write_manifest

    done = write_manifest(folder, out, group_pattern)
    typer.echo(
        f"Wrote {out}: {done.utterances} utterances, {done.hours:.2f} h, {done.speakers or 'no'} known speakers."
    )
    if done.problems:
        typer.echo(f"{done.problems} of them cannot be used; the column problem says why.", err=True)
    if done.remarks:
        typer.echo(f"{done.remarks} have a remark (clipped, silent, off the middle, misnamed).", err=True)


def features(
    path: Annotated[Path, typer.Argument(help="sound file, folder or table")],
    out: Annotated[Path, typer.Argument(help="folder to write; of a single file also FILE.npz")],
    kind: Annotated[str, typer.Option(help="log-mel, kaldi-fbank, mfcc or waveform")] = "log-mel",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="data.NAME=VALUE: any option of the loader speech")
    ] = None,
) -> None:
    """Write spectral features as .npz files: `frames` (channels, time), sample rate, place, speaker, label, text."""
    from maskwright.core.errors import ConfigError
    from maskwright.core.options import check_options, fail_if_any
    from maskwright.core.recipe import parse_settings
    from maskwright.speech.export import write_features
    from maskwright.speech.loaders import SpeechLoader

    problems: list[str] = []
    given = parse_settings(settings or [])
    if set(given) - {"data"}:
        raise ConfigError(
            f"--set {next(iter(set(given) - {'data'}))}...: only options of the loader, data.NAME, are taken."
        )
    options = check_options("data", SpeechLoader, {"features": kind, **given.get("data", {})}, problems)
    fail_if_any(problems)
    written, bad = write_features(path, out, options)
    typer.echo(f"Wrote {written} {'file' if written == 1 else 'files'} to {out}.")
    for one in bad:
        typer.echo(f"Left out {one.path}: {one.reason}", err=True)


def units(
    run: Annotated[Path, typer.Argument(help="run directory of w2v-bert")],
    out: Annotated[Path, typer.Argument(help="table to write, such as units.tsv")],
    data: Annotated[Path | None, typer.Option(help="file or folder to read; the run's own data without it")] = None,
    merge: Annotated[bool, typer.Option(help="write a unit that follows itself once only")] = False,
) -> None:
    """Write the discrete units of a corpus: the codes of a w2v-BERT run's quantiser, step by step."""
    from maskwright.speech.units import units as work

    typer.echo(f"Wrote {work(run, out, data, merge)}.")
