"""`maskwright pointcloud nerf-grid`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def nerf_grid(
    transforms: Annotated[Path, typer.Argument(help="transforms.json of instant-ngp or nerfstudio, or its folder")],
    out: Annotated[Path, typer.Option(help="file to write, .npz; a .json and a .png go beside it")] = Path("grid.npz"),
    resolution: Annotated[int, typer.Option(help="voxels of the longest side; published grids have 160")] = 64,
    aabb: Annotated[str, typer.Option(help="box of the scene: x,y,z,x,y,z, lowest and highest corner")] = "",
    box: Annotated[
        Literal["auto", "file", "cube", "cameras"],
        typer.Option(help="the file's aabb, instant-ngp's cube, what the cameras see, or the first or third"),
    ] = "auto",
    steps: Annotated[int, typer.Option(help="of the optimiser")] = 1500,
    seconds: Annotated[float | None, typer.Option(help="end the fit after this time")] = None,
    downscale: Annotated[int | None, typer.Option(help="reduce photographs by this; else to 240 pixels")] = None,
    hold_every: Annotated[int, typer.Option(help="compare with every so manieth photograph; 0 for none")] = 8,
    hold_out: Annotated[list[str] | None, typer.Option(help="name of a photograph to compare with instead")] = None,
    seed: Annotated[int, typer.Option(help="of all that is random")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Fit a radiance field to posed photographs and write it as a grid of colour and density for NeRF-MAE."""
    from maskwright.core.errors import ConfigError
    from maskwright.pointcloud.nerf import fit_grid

    try:
        corners = [float(text) for text in aabb.split(",")] if aabb else None
    except ValueError:
        raise ConfigError(
            f"--aabb {aabb}: write six numbers with commas between, such as --aabb=-1,-1,0,1,1,2."
        ) from None
    done = fit_grid(
        transforms,
        out,
        resolution=resolution,
        box=box,
        aabb=corners,
        steps=steps,
        seconds=seconds,
        downscale=downscale,
        hold_every=hold_every,
        hold_out=hold_out or (),
        seed=seed,
        device=device,
        say=lambda line: typer.echo(line, err=True),
    )
    for name, value in done.psnr.items():
        typer.echo(f"{name}: PSNR {value:.2f} dB, held out")
    if done.psnr:
        typer.echo(f"mean {done.mean_psnr:.2f} dB; a picture of one colour has {done.plain_psnr:.2f} dB")
    typer.echo(
        f"Wrote {done.path}: {' x '.join(map(str, done.shape))} voxels, {done.opaque:.1%} of them opaque, "
        f"{done.steps} steps in {done.seconds:.0f} s."
    )
