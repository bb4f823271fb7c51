"""`maskwright remote-sensing ...`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_commands(app: typer.Typer) -> None:
    """Add this domain's commands to its group."""
    app.command("import-croma")(import_croma)
    app.command("fake")(fake)


def import_croma(
    checkpoint: Annotated[Path, typer.Argument(help="CROMA_base.pt or CROMA_large.pt, as published")],
    data: Annotated[Path, typer.Option(help="your tiles: the statistics that scale the network's input")],
    out: Annotated[Path, typer.Option(help="folder to write encoder.safetensors and encoder.json into")],
) -> None:
    """Turn published CROMA weights into an encoder that `maskwright` commands and `mw.load` take."""
    from maskwright.core.recipe import make_recipe
    from maskwright.core.trainer.run import Run
    from maskwright.remote_sensing.loaders import PairLoader
    from maskwright.remote_sensing.methods.croma_published import load_published

    encoder = load_published(checkpoint)
    loader = PairLoader(data)
    encoder.fit_normalizers(loader.statistics())
    run = Run.create(out)
    recipe = make_recipe("croma", data)
    run.write_recipe(recipe)
    run.write_encoder(encoder, loader.spec, recipe)
    typer.echo(f"Wrote {out}/encoder.safetensors, width {encoder.embed_dim}. Use it with mw.load({str(out)!r}).")


def fake(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    tiles: Annotated[int, typer.Option(help="number of tiles")] = 3,
    size: Annotated[int, typer.Option(help="side of a tile in pixels")] = 128,
    seed: Annotated[int, typer.Option(help="seed of the made-up landscape")] = 0,
) -> None:
    """Write made-up Sentinel-1/2 tiles in the true format, to try commands on."""
    from maskwright.remote_sensing.fake import fake_s1s2

    fake_s1s2(out, tiles, size, seed)
    typer.echo(f"Wrote {tiles} made-up pairs of {size} x {size} pixels to {out}.")
