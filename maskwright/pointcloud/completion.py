"""Whole clouds from partial ones, with a method that P2C pre-training made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.core.trainer.run import Run
from maskwright.pointcloud.loaders import PointLoader
from maskwright.pointcloud.methods.p2c import P2c
from maskwright.pointcloud.writers import write_points


def load_completion(run: Run | str | Path) -> P2c:
    """The method of a run with the weights of its newest checkpoint, in evaluation mode.

    Raises:
        ConfigError: a run of another method. DataError: no checkpoint that can be read.
    """
    run = Run.open(run) if isinstance(run, (str, Path)) else run
    method = run.load_method()
    if not isinstance(method, P2c):
        raise ConfigError(
            f"{run.path} is a run of {run.recipe().method.name}, which completes no clouds. Give a run of p2c."
        )
    return method


def complete_files(run: Run | str | Path, path: str | Path, out: str | Path) -> tuple[list[Path], list[BadFile]]:
    """Write the completed cloud of every file of points as PLY, where the file lies.

    Args:
        run: a run of P2C, trained on objects of the same kind.
        path: a file or folder; points are drawn as in training.
        out: folder to write, or a file ending in .ply where `path` is one file.

    Returns:
        Files written, and files that were left out with the reason.
    """
    run = Run.open(run) if isinstance(run, (str, Path)) else run
    method, options = load_completion(run), dict(run.recipe().data.options)
    loader = PointLoader(
        path, **{key: value for key, value in options.items() if key in ("points", "scale", "surface")}
    )
    out, written, bad = Path(out), [], list(loader.bad_files)
    single = out.suffix.lower() == ".ply"
    if single and len(loader) != 1:
        raise ConfigError(f"{path} holds {len(loader)} clouds, but {out} is one file. Give a folder to write.")
    for index in range(len(loader)):
        try:
            sample = loader.read(index)
        except DataError as error:
            bad.append(BadFile(error.path, str(error)))
            continue
        made = method.complete(sample["points"][None])[0].double().numpy()
        extra = sample.meta.extra
        target = out if single else (out / Path(loader.files[index]).relative_to(loader.root)).with_suffix(".ply")
        write_points(target, made * extra["scale"] + np.array(extra["centre"]), crs=sample.meta.crs)
        written.append(target)
    return written, bad
