"""From an encoder and labels to a task model that predicts on new data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright.core.encoder.outside import open_encoder
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.evaluation.heads import Budget, TaskModel, predict_samples, train_model
from maskwright.core.evaluation.metrics import metrics_of, pixel_statistics, statistics
from maskwright.core.evaluation.open import open_run_data, open_task
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import DataSection, MethodSection, Recipe, merge, parse_settings
from maskwright.core.sample import check_inputs
from maskwright.core.task_folder import TaskFolder, load_task_model, save_task_model
from maskwright.core.trainer.data import generator_for
from maskwright.core.trainer.files import free_folder, refuse_full
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.core.trainer.run import Run

__all__ = ["TaskFolder", "finetune", "load_task_model"]

SECTIONS = ("task", "data", "budget")
HOLDOUT = 17
"""Keeps the stream that draws held-out groups apart from others."""
NOT_A_VERDICT = (
    "A plain score on the held-out groups, of one split and one seed. Whether pre-training helped is what "
    "`maskwright evaluate` judges, beside baselines and with intervals."
)


def finetune(
    run: Run | str | Path | None = None,
    data: str | Path | None = None,
    task: str = "classification",
    *,
    labels: str | None = None,
    encoder: str | Path | None = None,
    out: str | Path | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    frozen: bool = False,
    settings: dict[str, Any] | Sequence[str] = (),
    device: str = "auto",
    progress: Callable[[int, float], None] | None = None,
    **budget: Any,
) -> TaskFolder:
    """Train an encoder further on labels and write a task model, which `predict` takes.

    Args:
        run: a run directory; or leave it out and give `encoder`, such as "timm:vit_small_patch16_224".
        data: labelled files; the run's own data without it.
        task: name of a task (`maskwright list task`).
        labels: where the labels are, see `maskwright info TASK`.
        out: folder to write; RUN/tasks/TASK without it.
        holdout: share of the samples, in whole groups, that is not trained on but scored; 0 trains on everything.
        seed: decides everything random.
        frozen: train the head alone, and leave the encoder as it is.
        settings: ["task.ignore=[0]", "data.size=64", "budget.steps=400"], or a dict of such keys.
        device: auto, cpu or cuda.
        progress: called with (steps done, loss) after each step.
        budget: `steps`, `batch_size`, `lr`, `weight_decay`, `layer_decay`, `warmup`, `label_smoothing`; see `Budget`.

    Raises:
        ConfigError, DataError: what does not fit, before anything is trained.
        TrainingStopped: the loss is no longer finite.
    """
    if (run is None) == (encoder is None):
        raise ConfigError("Give a run directory, or an encoder (--encoder timm:NAME), and not both.")
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout={holdout} is outside [0, 1): it is a share of the samples.")
    sections = parse_settings(settings)
    spent = _budget(sections, budget)
    opened = Run.open(run) if isinstance(run, (str, Path)) else run
    loader_name, data_options, loader = open_run_data(opened, data, sections.get("data", {}))
    task_name, task_options, made = open_task(task, labels, sections.get("task", {}))
    folder = _folder(opened, encoder, task_name, out)
    targets = made.targets(loader)
    if targets.kind == "retrieval":
        raise ConfigError("Retrieval needs no head: use the embeddings (`maskwright embed`), or --task classification.")
    network = open_encoder(encoder if encoder is not None else opened, loader)  # type: ignore[arg-type]
    where = str(data if data is not None else opened.recipe().data.path if opened else "")
    check_inputs(loader.spec, network.inputs, f"the data in {where}", "this encoder")

    train, held, notes = split_groups(targets, loader, holdout, seed)
    kind = resolve_accelerator(device)
    started = time.perf_counter()
    model = train_model(network, targets, loader, train, spent, seed, kind, frozen, progress=progress)
    score = score_on(model, targets, loader, held, kind) if held else None
    model = model.cpu()
    facts = {
        "task": task_name,
        "task_options": task_options,
        "data": {"path": str(Path(where).resolve()), "loader": loader_name, "options": data_options},
        "encoder": str(encoder) if encoder is not None else str(opened.path if opened else ""),
        "frozen": frozen,
        "budget": asdict(spent),
        "seed": seed,
        "samples": len(train),
        "held_out": len(held),
        "holdout_score": score,
        "holdout_note": NOT_A_VERDICT if score is not None else "",
        "notes": notes,
        "size": list(_size(loader, train, model)),
        "fill": {name: list(s.mean) for name, s in loader.statistics().items() if name in network.inputs},
        "seconds": round(time.perf_counter() - started, 1),
        "losses": [round(loss, 6) for loss in model.losses],
        "maskwright": metadata.version("maskwright"),
    }
    save_task_model(folder, model, loader.spec, _recipe(opened, encoder, where, loader_name), facts)
    return load_task_model(folder, trust=True)  # what was just written at the user's own word


def _budget(sections: dict[str, Any], given: dict[str, Any]) -> Budget:
    problems = [
        f"{name}: there is no such section.{nearest(name, SECTIONS)}" for name in sections if name not in SECTIONS
    ]
    options = check_options("budget", Budget, merge(sections.get("budget", {}), given), problems)
    fail_if_any(problems)
    return Budget(**options)


def _folder(run: Run | None, encoder: str | Path | None, task: str, out: str | Path | None) -> Path:
    """The folder asked for, or RUN/tasks/TASK, numbered where it is taken."""
    if out is not None:
        refuse_full(Path(out))
        return Path(out)
    name = str(encoder).rstrip("/").replace("/", "-").replace(":", "-").split(",")[0]
    base = run.path / "tasks" / task if run is not None else Path("tasks") / f"{name}-{task}"
    return free_folder(base)


def _recipe(run: Run | None, encoder: Any, data: str, loader: str) -> Recipe:
    """Where the encoder comes from, for encoder.json: the run's recipe, or the text that named an outside encoder."""
    if run is not None:
        return run.recipe()
    return Recipe(method=MethodSection(name=str(encoder), preset=""), data=DataSection(path=data, loader=loader))


def _size(loader: Loader, indices: Sequence[int], model: TaskModel) -> tuple[int, ...]:
    """Pixels along each axis of the first training sample that can be read."""
    name = next(iter(model.encoder.inputs))
    for index in indices:
        try:
            return tuple(loader.read(index)[name].shape[1:])
        except DataError:
            continue
    raise DataError("data", "no training sample can be read")


def split_groups(targets: Targets, loader: Loader, holdout: float, seed: int) -> tuple[list[int], list[int], list[str]]:
    """Labelled samples to train on, samples held out, and what should be said of it. No group is on both sides."""
    labelled = targets.labelled(len(loader)).tolist()
    if not holdout:
        return labelled, [], []
    groups: dict[str, list[int]] = {}
    for index in labelled:
        groups.setdefault(loader.group(index), []).append(index)
    if len(groups) < 2:
        return labelled, [], [f"All {len(labelled)} samples are of one group, so none was held out."]
    names = sorted(groups)
    held: list[int] = []
    for at in generator_permutation(len(names) - 1, len(names), seed):
        if len(held) >= holdout * len(labelled):
            break
        held += groups[names[at]]
    kept = sorted(set(labelled) - set(held))
    notes = []
    if targets.values is not None and targets.kind == "classification":
        lost = sorted(
            {targets.classes[c] for c in targets.values[held]} - {targets.classes[c] for c in targets.values[kept]}
        )
        if lost:
            notes.append(f"Only held-out groups have the class {', '.join(lost)}, so it was not trained: --holdout 0.")
    return kept, sorted(held), notes


def generator_permutation(most: int, count: int, seed: int) -> list[int]:
    """At most `most` of `count` positions, in random order."""
    return torch.randperm(count, generator=generator_for(seed, HOLDOUT))[:most].tolist()


def score_on(
    model: TaskModel, targets: Targets, loader: Loader, indices: Sequence[int], device: str
) -> dict[str, float] | None:
    """Metrics of the task's kind on some samples, by name; None where none of them can be read."""
    parts: list[np.ndarray] = []
    known: list[int] = []
    rows: list[np.ndarray] = []
    for index, says in predict_samples(model, loader, indices, device=device):
        if targets.read is None:
            known.append(index)
            rows.append(says)
            continue
        with contextlib.suppress(DataError):
            parts.append(pixel_statistics(targets.read(loader.read(index)), says.argmax(0), targets.outputs))
    if rows:
        assert targets.values is not None
        scores, classified = np.stack(rows), targets.kind == "classification"
        predicted = scores.argmax(1) if classified else scores
        truth = targets.values[known]
        parts += list(statistics(targets.kind, truth, predicted, targets.outputs, scores if classified else None))
    if not parts:
        return None
    sums = np.sum(parts, axis=0, keepdims=True)
    found = {one.name: float(one.value(sums)[0]) for one in metrics_of(targets.kind, targets.outputs)}
    return {name: value for name, value in found.items() if np.isfinite(value)}
