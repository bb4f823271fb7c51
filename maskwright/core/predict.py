"""A task model on new data: maps of scenes, or a table of samples. Resumable, shared among processes, bounded memory."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError, MaskwrightError, nearest
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.parts import differences, parse_shard, shard_path
from maskwright.core.recipe import merge, parse_settings
from maskwright.core.sample import BadFile, check_inputs
from maskwright.core.task_folder import TaskFolder, load_task_model
from maskwright.core.trainer.files import remove_leftovers, write_text
from maskwright.core.trainer.lock import held
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.core.trainer.run import check_channels

MANIFEST = "manifest.json"
Progress = Callable[[int, int, str], None]
"""Called with how many samples or images are done, how many there are, and the latest."""


class PredictionStopped(MaskwrightError):
    """Too many files could not be read; what could is predicted and kept."""

    exit_code = 5


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote.

    Args:
        path: the folder.
        outputs: maps, or the one table, this share's only.
        made: samples or images that this start predicted, in `seconds`; the others were there already.
        bad: what could not be used; listed in `bad_list`.
    """

    path: Path
    outputs: list[Path]
    made: int
    seconds: float
    bad: list[BadFile] = field(default_factory=list)
    bad_list: Path | None = None

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Job:
    """What all shares of one prediction have in common.

    Args:
        overlap: share of a window that its neighbour sees too; maps only.
        size: pixels of a window along each axis.
    """

    folder: TaskFolder
    loader: Loader
    out: Path
    number: int
    count: int
    size: tuple[int, ...]
    overlap: float
    probabilities: bool
    batch_size: int
    device: str
    max_bad: float
    plan: dict[str, Any]
    progress: Progress | None

    def own(self, name: str) -> Path:
        """A file of this share alone."""
        path = self.out / name
        return path if self.count == 1 else shard_path(path, self.number, self.count)


def predict(
    model: TaskFolder | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overlap: float = 0.5,
    size: int | Sequence[int] | None = None,
    probabilities: bool = False,
    shard: str | tuple[int, int] = (1, 1),
    batch_size: int = 32,
    device: str = "auto",
    max_bad: float = 0.05,
    settings: dict[str, Any] | Sequence[str] = (),
    trust: bool = False,
    progress: Progress | None = None,
) -> Predicted:
    """Predict on new data and write a folder. The same call goes on where an interrupted one stopped.

    Segmentation gives one map an image, named like it: class codes with the image's georeference, colours of the
    labels, and nodata where any input has none. Windows overlap and are blended. An image smaller than a window is
    mirrored at its edges to fill one. Other tasks give one table, `predictions.parquet`: place, class, probabilities.

    Args:
        model: folder that `finetune` wrote.
        data: file or folder, read as the model's training data were.
        out: folder to write; `manifest.json` in it says which model made it.
        overlap: share of a window that its neighbour sees too, in [0, 1).
        size: pixels of a window; those of training without it.
        probabilities: also write the probability of each class, one float32 band each, as NAME_probabilities.
        shard: "i/n": take the i-th of n shares (from 1), of images or of blocks of samples.
        max_bad: share of the images or samples that may be unreadable; one never counts as too many.
        settings: ["data.bands=[B2, B3]"]: options of the loader, on top of those of training.
        trust: also run code that the model's folder names (an encoder saved from `torch:`).
        progress: called after each image or batch.

    Raises:
        ConfigError: options that do not fit, another model's outputs in `out`, or another process at work on them.
        DataError: a model or data that cannot be read.
        PredictionStopped: more than `max_bad` could not be read; all others are predicted.
    """
    started = time.perf_counter()
    number, count = parse_shard(shard)
    if batch_size < 1 or not 0 <= max_bad <= 1:
        raise ConfigError(f"batch_size={batch_size}, max_bad={max_bad}: at least 1, and a share in [0, 1], are needed.")
    folder = model if isinstance(model, TaskFolder) else load_task_model(model, trust)
    out = Path(out)
    _refuse_inside(Path(data), out)
    dense = folder.model.dense
    if probabilities and not dense:
        raise ConfigError("probabilities: a table holds them anyway; the option is for maps of a segmentation.")
    window = _window(folder, size)
    sections = parse_settings(settings)
    unknown = [name for name in sections if name != "data"]
    if unknown:
        raise ConfigError(f"{unknown[0]}: there is no such section.{nearest(unknown[0], ['data'])}")
    given = sections.get("data", {})
    if size is not None and not dense:
        given = {"size": window[0], **given}
    name, options, loader = _open(folder, data, given, dense)
    check_inputs(loader.spec, folder.model.encoder.inputs, f"the data in {data}", "this model")
    check_channels(folder.path, loader.spec, data)
    plan = {
        "model": folder.fingerprint(),
        "task": folder.facts.get("task"),
        "data": {"path": str(Path(data).resolve()), "loader": name, "options": options},
        "batch_size": batch_size,
        **({"size": list(window), "overlap": overlap, "probabilities": probabilities} if dense else {}),
    }
    job = Job(
        folder, loader, out, number, count, window, overlap, probabilities, batch_size,
        resolve_accelerator(device), max_bad, json.loads(json.dumps(plan)), progress,
    )  # fmt: skip
    _open_folder(job)
    with held(out / f".share-{number}-of-{count}.lock", out):
        if count == 1:
            remove_leftovers(out)
        if dense:
            from maskwright.core.predict_maps import predict_maps

            outputs, made, total, bad = predict_maps(job)
        else:
            from maskwright.core.predict_table import predict_table

            outputs, made, total, bad = predict_table(job)
        return _conclude(job, outputs, made, total, bad, time.perf_counter() - started)


def _window(folder: TaskFolder, size: int | Sequence[int] | None) -> tuple[int, ...]:
    if size is None:
        return folder.size
    window = (size,) * len(folder.size) if isinstance(size, int) else tuple(size)
    if len(window) != len(folder.size) or any(pixels < 1 for pixels in window):
        raise ConfigError(f"size={size}: a number of pixels above 0, for each of {len(folder.size)} axes, is needed.")
    return window


def _open(
    folder: TaskFolder, data: str | Path, given: dict[str, Any], dense: bool
) -> tuple[str, dict[str, Any], Loader]:
    """The loader of the training data on new data, with its options."""
    trained = folder.facts["data"]
    options = dict(given)
    wanted = options.pop("loader", trained["loader"])
    component = get_host().component("loader", wanted)
    if component.name == trained["loader"]:
        options = merge(trained["options"], options)
    if dense:
        options = component.load().scene_options(options)
    name, loader = open_loader(data, component.name, **options)
    return name, options, loader


def _refuse_inside(data: Path, out: Path) -> None:
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"{out} lies inside of the data in {data}, where maps would be taken for images. Choose another."
        )


def _open_folder(job: Job) -> None:
    """Make the folder and its manifest, or refuse one that another model, other data or other options made."""
    path = job.out / MANIFEST
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(
                path, f"is no JSON ({error})", mend="Choose another --out, or remove this folder"
            ) from error
        changed = differences(there, job.plan)
        if changed:
            raise ConfigError(
                f"{job.out} holds predictions made with {'; '.join(changed)}. Choose another --out, or remove that folder."
            )
        return
    if job.out.is_file() or (job.out.is_dir() and any(not p.name.startswith(".") for p in job.out.iterdir())):
        raise ConfigError(f"{job.out} is not empty and holds no {MANIFEST}. Choose another folder with --out.")
    job.out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(job.plan, indent=1))


def _conclude(job: Job, outputs: list[Path], made: int, total: int, bad: list[BadFile], seconds: float) -> Predicted:
    """List what could not be used, and say so if it was too much.

    Args:
        total: samples or images of this share, those that could not be used included.
    """
    path = job.own("bad_files.csv")
    if not bad:
        path.unlink(missing_ok=True)
        return Predicted(job.out, outputs, made, seconds)
    write_bad_files(path, bad)
    if len(bad) > max(job.max_bad * total, 1):
        last = bad[-1]
        where = "" if last.path in last.reason else f"{last.path}: "
        raise PredictionStopped(
            f"{len(bad)} of {total} could not be used, more than --max-bad {job.max_bad:g} allows. The last, because: "
            f"{where}{last.reason.rstrip('.')}. All of them: {path}. All others are predicted; mend the files and run the "
            f"same command again."
        )
    return Predicted(job.out, outputs, made, seconds, bad, path)


def write_bad_files(path: Path, bad: Sequence[BadFile]) -> None:
    """A CSV of path and reason, atomically."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows([file.path, " ".join(file.reason.split())] for file in bad)
    write_text(path, lines.getvalue())
