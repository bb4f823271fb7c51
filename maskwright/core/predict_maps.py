"""Maps of whole scenes: overlapping windows, blended, a band of rows at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.task import Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.sample import BadFile, Batch, Sample, collate
from maskwright.core.scene import MapFormat, MapWriter, PointScene, Scene, Window
from maskwright.core.task_folder import TaskFolder
from maskwright.core.tiling import Blend, Tiling

if TYPE_CHECKING:
    from maskwright.core.predict import Job

Piece = tuple[Window, np.ndarray, np.ndarray]
"""A part of a scene, and what is said of it, see `blended`."""


def predict_maps(job: Job) -> tuple[list[Path], int, int, list[BadFile]]:
    """Make the maps of this share that are not there yet: (maps, how many were made now, images, what was left out)."""
    every = job.loader.scenes()
    targets = _targets(job, every)
    mine = list(range(job.number - 1, len(every), job.count))
    model = job.folder.model.to(job.device)
    pixels = any(isinstance(scene, Scene) for scene in every)
    margin = half_token(model, job.folder.fill, job.size) if pixels else ()
    bad = list(job.loader.bad_files) if job.number == 1 else []
    total, made, outputs = len(mine) + len(bad), 0, []
    for done, number in enumerate(mine, start=1):
        scene, paths = every[number], targets[number]
        if not _up_to_date(scene, paths):
            try:
                if isinstance(scene, PointScene):
                    _predict_points(job, model, scene, paths)
                else:
                    _predict_scene(job, model, scene, paths, margin)
            except DataError as error:
                bad.append(BadFile(scene.sources[0], str(error)))
                continue
            made += 1
        outputs += paths
        if job.progress is not None:
            job.progress(done, len(mine), scene.name)
    return outputs, made, total, bad


def _targets(job: Job, scenes: Sequence[Scene | PointScene]) -> list[list[Path]]:
    """Files that each scene gives: the map, and with `probabilities` those before it.

    Raises:
        ConfigError: two scenes would write one file, or one outside of the folder.
    """
    found, owner = [], dict[Path, str]()
    for scene in scenes:
        ends = (["_probabilities"] if job.probabilities else []) + [""]
        paths = [job.out / f"{scene.name}{end}{scene.suffix}" for end in ends]
        for path in paths:
            if path in owner:
                raise ConfigError(f"{owner[path]} and {scene.sources[0]} would both become {path}. Rename one of them.")
            if not path.resolve().is_relative_to(job.out.resolve()):
                raise ConfigError(f'The image "{scene.name}" would become {path}, outside of {job.out}. Rename it.')
            owner[path] = scene.sources[0]
        found.append(paths)
    return found


def _up_to_date(scene: Scene | PointScene, paths: Sequence[Path]) -> bool:
    """Whether all maps are there, which they only are when they are whole, and not older than their sources."""
    try:
        oldest = min(path.stat().st_mtime_ns for path in paths)
        return oldest >= max(Path(source).stat().st_mtime_ns for source in scene.sources)
    except FileNotFoundError:
        return False


def half_token(model: TaskModel, fill: dict[str, list[float]], size: tuple[int, ...]) -> tuple[int, ...]:
    """Half of a token's extent in pixels, along each axis.

    Raises:
        ConfigError: the encoder does not take windows of this size.
    """
    tensors = {
        name: torch.tensor(fill[name]).view(1, -1, *[1] * len(size)).expand(1, -1, *size)
        for name, spec in model.encoder.inputs.items()
        if not spec.optional or len(spec.dims.split()) - 1 == len(size)
    }
    grid = model.encoder.embed(Batch(tensors, [])).grid
    if grid.scattered or grid.ndim != len(size):
        raise ConfigError("This encoder's tokens do not lie on a lattice, so it makes no maps.")
    return tuple(int(pixels / tokens / 2) for pixels, tokens in zip(size, grid.shape, strict=True))


# formats -----------------------------------------------------------------------------------------------------------


def class_format(folder: TaskFolder) -> MapFormat:
    """A map of class codes: the smallest integer type that holds them and a code for nodata."""
    targets = folder.model.targets
    codes = _codes(targets)
    small = [0, 255, *range(1, 255)] if max(codes) <= 255 else []  # stay with one byte where any code is free
    nodata = next(code for code in [*small, 0, 65535, max(codes) + 1] if code not in codes)
    highest = max(*codes, nodata)
    return MapFormat(
        dtype="uint8" if highest <= 255 else "uint16" if highest <= 65535 else "int32",
        bands=("class",),
        nodata=nodata,
        colours={} if targets.colours is None else dict(zip(codes, targets.colours, strict=True)),
        categories=dict(zip(codes, targets.classes, strict=True)),
        tags=_tags(folder),
    )


def probability_format(folder: TaskFolder) -> MapFormat:
    """A float32 band a class, NaN where there is no data."""
    return MapFormat("float32", folder.model.targets.classes, float("nan"), tags=_tags(folder))


def _codes(targets: Targets) -> tuple[int, ...]:
    return targets.codes or tuple(range(len(targets.classes)))


def _tags(folder: TaskFolder) -> dict[str, str]:
    return {"model": folder.fingerprint(), "task": str(folder.facts.get("task", "")), "software": "maskwright"}


# one scene ---------------------------------------------------------------------------------------------------------


def _predict_scene(job: Job, model: TaskModel, scene: Scene, paths: Sequence[Path], margin: tuple[int, ...]) -> None:
    """Write the maps of a scene; they get their names when all of it is predicted, the map of classes last."""
    for path in paths:  # what a killed process of this share left
        for leftover in path.parent.glob(f".{path.name}.*.tmp") if path.parent.is_dir() else ():
            leftover.unlink(missing_ok=True)
    images = [_Slice(scene, number) for number in range(scene.shape[0])] if scene.stacked else [scene]
    tiling = Tiling.of(images[0].shape, job.size, job.overlap, margin)
    form = class_format(job.folder)
    codes, nodata = (np.array(values, dtype=form.dtype) for values in (_codes(model.targets), form.nodata))
    with contextlib.ExitStack() as stack:
        # what is entered first gets its name last: the map of classes, which says that all is done
        classes = stack.enter_context(scene.writer(paths[-1], form))
        shares = None
        if job.probabilities:
            shares = stack.enter_context(scene.writer(paths[0], probability_format(job.folder)))
        for number, image in enumerate(images):
            pieces = blended(model, image, tiling, job.folder.fill, job.batch_size)
            for window, means, valid in _whole(pieces, number, image.shape) if scene.stacked else pieces:
                classes.write(window, np.where(valid, codes[means.argmax(0)], nodata)[None])
                if shares is not None:
                    shares.write(window, np.where(valid, means, np.float32("nan")))


def _predict_points(job: Job, model: TaskModel, scene: PointScene, paths: Sequence[Path]) -> None:
    """Write the classes of a scan's points, and their probabilities; of a point that comes twice the first counts."""
    form = class_format(job.folder)
    codes = np.array(_codes(model.targets), dtype=form.dtype)
    found = np.full(scene.count, form.nodata, dtype=form.dtype)
    known = np.zeros(scene.count, dtype=bool)
    shares = np.full((scene.count, len(codes)), np.nan, dtype=np.float32) if job.probabilities else None
    pieces = scene.pieces()
    while waiting := list(itertools.islice(pieces, job.batch_size)):
        says = model.predict(collate([sample for sample, _ in waiting])).numpy()  # (B, K, N)
        if not np.isfinite(says).all():
            raise DataError(scene.sources[0], "the model's output holds NaN or Inf")
        for values, (_, numbers) in zip(says, waiting, strict=True):
            numbers, first = np.unique(numbers, return_index=True)
            new = ~known[numbers]
            numbers, values = numbers[new], values[:, first[new]]
            known[numbers], found[numbers] = True, codes[values.argmax(0)]
            if shares is not None:
                shares[numbers] = values.T
    if shares is not None:
        names = probability_format(job.folder).bands
        scene.write(paths[0], dict(zip(names, shares.T, strict=True)), probability_format(job.folder))
    scene.write(paths[-1], {"class": found}, form)


class _Slice(Scene):
    """One image of a stack, as a scene of its own."""

    def __init__(self, stack: Scene, number: int) -> None:
        self.stack, self.number = stack, number
        self.name, self.sources, self.suffix, self.shape = stack.name, stack.sources, stack.suffix, stack.shape[1:]

    def read(self, window: Window) -> Sample:
        return self.stack.read((slice(self.number, self.number + 1), *window))

    def writer(self, path: Path, form: MapFormat) -> contextlib.AbstractContextManager[MapWriter]:
        return self.stack.writer(path, form)


def _whole(pieces: Iterator[Piece], number: int, shape: tuple[int, ...]) -> Iterator[Piece]:
    """Pieces of one image of a stack put together: one piece of the stack."""
    kept = [(means, valid.copy()) for _, means, valid in pieces]  # `valid` is overwritten by the rows that follow
    means, valid = zip(*kept, strict=True)
    window = (slice(number, number + 1), *(slice(0, length) for length in shape))
    yield window, np.concatenate(means, axis=1)[:, None], np.concatenate(valid)[None]


def blended(
    model: TaskModel, scene: Scene, tiling: Tiling, fill: dict[str, list[float]], batch_size: int
) -> Iterator[Piece]:
    """Probabilities of a scene from top to bottom: (window, (K, rows, *rest) float32, (rows, *rest) where data are).

    Holds one window's height of rows, in float64. Windows without any data are not computed.

    Raises:
        DataError: the scene cannot be read.
    """
    blend = Blend(model.targets.outputs, tiling)
    rest = tuple(slice(0, length) for length in tiling.shape[1:])
    rows = [*tiling.axis_starts(0)[1:], tiling.shape[0]]
    for (_, places), stop in zip(tiling.bands(), rows, strict=True):
        waiting: list[tuple[tuple[int, ...], dict[str, Tensor], np.ndarray]] = []
        for at in places:
            sample = scene.read(tiling.window(at))
            inputs, valid = fill_gaps(sample, list(model.encoder.inputs), fill)
            if not valid.any():
                blend.add(at, None, valid)
                continue
            waiting.append((at, {name: mirrored(x, tiling.size) for name, x in inputs.items()}, valid))
            if len(waiting) == batch_size:
                _say(model, scene, blend, waiting)
                waiting = []
        if waiting:
            _say(model, scene, blend, waiting)
        for span, means, known in blend.pop(stop):
            yield (span, *rest), means, known


def _say(
    model: TaskModel,
    scene: Scene,
    blend: Blend,
    waiting: list[tuple[tuple[int, ...], dict[str, Tensor], np.ndarray]],
) -> None:
    tensors = {name: torch.stack([inputs[name] for _, inputs, _ in waiting]) for name in waiting[0][1]}
    says = model.predict(Batch(tensors, [])).numpy()
    if not np.isfinite(says).all():
        raise DataError(scene.sources[0], f"the model's output holds NaN or Inf near {list(waiting[0][0])}")
    for (at, _, valid), values in zip(waiting, says, strict=True):
        blend.add(at, values[(slice(None), *(slice(0, length) for length in valid.shape))], valid)


def fill_gaps(
    sample: Sample, names: Sequence[str], fill: dict[str, list[float]]
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Inputs with the training data's mean where there are no data, and where all of them had data."""
    inputs, valid = {}, None
    for name in names:
        if name not in sample.tensors:  # of an encoder that takes one of several
            continue
        x = sample[name].float()
        known = x.isfinite()
        here = known.all(0)
        valid = here if valid is None else valid & here
        mean = torch.tensor(fill[name]).view(-1, *[1] * (x.ndim - 1))
        inputs[name] = torch.where(known, x, mean)
    assert valid is not None
    return inputs, valid.numpy()


def mirrored(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(C, *shape) as (C, *size): what is missing at the end of an axis is mirrored, as often as it takes."""
    shape = x.shape[1:]
    if tuple(shape) == size:
        return x
    pads = [(0, 0), *((0, wanted - length) for wanted, length in zip(size, shape, strict=True))]
    return torch.from_numpy(np.pad(x.numpy(), pads, mode="symmetric"))
