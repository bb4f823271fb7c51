"""Did pre-training help? An encoder judged beside its baselines on splits that do not leak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.core.encoder.base import Encoder
from maskwright.core.encoder.outside import open_encoder
from maskwright.core.errors import ConfigError, nearest
from maskwright.core.evaluation.conclusion import Conclusion, Evaluation, choose_metrics
from maskwright.core.evaluation.features import merge_targets
from maskwright.core.evaluation.judge import BASELINES, Design, Judge
from maskwright.core.evaluation.labels import source_of
from maskwright.core.evaluation.open import open_run_data, open_task
from maskwright.core.evaluation.protocol import FineTune, Protocol
from maskwright.core.evaluation.splits import check_fractions
from maskwright.core.evaluation.task import Task
from maskwright.core.evaluation.write import choose_folder, write_evaluation
from maskwright.core.host import get_host
from maskwright.core.joined import JoinedLoader
from maskwright.core.loader import Loader
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import parse_settings
from maskwright.core.sample import check_inputs
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.core.trainer.run import Run


def evaluate(
    run: Run | str | Path | None = None,
    data: str | Path | None = None,
    task: str | Task = "classification",
    *,
    labels: str | None = None,
    encoder: Encoder | str | None = None,
    protocols: Sequence[str] = ("knn", "linear"),
    fractions: Sequence[float] = (1.0,),
    seeds: int = 5,
    split: str = "group",
    folds: int = 5,
    buffer: float = 0.0,
    test: str | Path | None = None,
    test_labels: str | None = None,
    baselines: Sequence[str] = BASELINES,
    metric: str | None = None,
    join_duplicates: bool = True,
    settings: dict[str, Any] | Sequence[str] = (),
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
) -> Evaluation:
    """Judge an encoder on a labelled task, always beside its baselines, and write a report.

    Args:
        run: a run directory; or leave it out and give `encoder`, such as "timm:vit_small_patch16_224".
        data: labelled files; the run's own data without it.
        task: name of a task (`maskwright list task`), or a task.
        labels: where the labels are, see `maskwright info classification`.
        protocols: names of protocols (`maskwright list protocol`).
        fractions: shares of the training labels, for the label-efficiency curve.
        seeds: repetitions: new folds, new label subsets, new random encoders.
        split: `group`, `block:SIZE`, FILE.csv:COLUMN, or `random`, which is marked in the report.
        folds: parts of a cross-validation over groups.
        buffer: training samples nearer than this to a test sample are left out; units of the CRS, or pixels.
        test: separate test data, instead of folds; `test_labels` as `labels`.
        baselines: of random-init, simple, supervised; what is left out is named in the report.
        metric: decides the verdict; the first of the task's kind without it.
        join_duplicates: keep identical and overlapping samples on one side of every split.
        settings: ["data.size=64", "task.ignore=[0]", "knn.k=5", "finetune.steps=400"].
        out: folder to write; RUN/evaluations/TASK without it.

    Raises:
        ConfigError, DataError: what does not fit, before anything is computed.
        TrainingStopped: more than 5 % of the samples cannot be read.
    """
    if (run is None) == (encoder is None):
        raise ConfigError("Give a run directory, or an encoder (--encoder timm:NAME), and not both.")
    if seeds < 1 or folds < 2:
        raise ConfigError(f"seeds={seeds}, folds={folds}: at least one seed and two folds are needed.")
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ConfigError(f'baselines: there is no "{unknown[0]}".{nearest(unknown[0], BASELINES)}')
    opened = Run.open(run) if isinstance(run, (str, Path)) else run
    sections = parse_settings(settings)
    chosen, budget = _open_protocols(protocols, sections, "supervised" in baselines)
    task_object = task if isinstance(task, Task) else open_task(task, labels, sections.get("task", {}))[2]
    folder = choose_folder(opened, encoder, task if isinstance(task, str) else type(task).__name__, out)
    loader = open_run_data(opened, data, sections.get("data", {}))[2]
    targets = task_object.targets(loader)
    given = None
    if test is not None:
        test_loader = open_run_data(opened, test, sections.get("data", {}))[2]
        sizes = (len(loader), len(test_loader))
        test_task = task_object
        if test_labels is not None and isinstance(task, str):
            test_task = open_task(task, test_labels, sections.get("task", {}))[2]
        targets = merge_targets(targets, test_task.targets(test_loader), sizes)
        loader, given = JoinedLoader([loader, test_loader]), sizes[0]
    what = encoder if encoder is not None else opened
    assert what is not None
    network = open_encoder(what, loader)
    check_inputs(loader.spec, network.inputs, f"the data in {data or 'the run'}", "this encoder")
    unsuited = [name for name, protocol in chosen.items() if targets.kind not in protocol.kinds]
    if unsuited and targets.kind != "retrieval":
        raise ConfigError(f"The protocol {unsuited[0]} does not suit {targets.kind}; leave it out of --protocol.")
    choose_metrics(targets.kind, targets.outputs, metric)
    design = Design(
        chosen,
        check_fractions(fractions),
        budget,
        seeds,
        folds,
        split,
        buffer,
        given,
        tuple(baselines),
        join_duplicates,
        batch_size,
        workers,
        resolve_accelerator(device),
    )
    judge = Judge(network, loader, targets, design)
    judge.judge()
    result = Conclusion(judge, metric).evaluation()
    result.facts |= {
        "encoder": str(encoder) if encoder is not None else str(opened.path if opened else ""),
        "data": str(data or (opened.recipe().data.path if opened else "")),
        "test": str(test or ""),
        "task": task if isinstance(task, str) else type(task).__name__,
        "labels": str(labels or ""),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "settings": sections,
    }
    if opened is not None:
        result.table.notes += _seen_in_pretraining(opened, loader)
    write_evaluation(result, folder, opened)
    return result


def _open_protocols(
    protocols: Sequence[str], sections: dict[str, Any], supervised: bool
) -> tuple[dict[str, Protocol], FineTune]:
    """The protocols by name, with their options checked, and the budget of training from scratch.

    Raises:
        ConfigError: an unknown protocol or option, or a section of settings that nothing asks for.
    """
    host = get_host()
    problems: list[str] = []
    opened = {}
    for name in dict.fromkeys([*protocols, *(["finetune"] if supervised else [])]):
        component = host.component("protocol", name)
        options = check_options(component.name, component.load(), sections.get(component.name, {}), problems)
        if not problems:
            opened[component.name] = component.load()(**options)
    if not problems:
        known = {"data", "task", *opened}
        problems += [f"{s}: there is no such section.{nearest(s, known)}" for s in sections if s not in known]
    fail_if_any(problems)
    wanted = {host.component("protocol", name).name for name in protocols}
    budget = opened.get("finetune", FineTune())
    return {name: protocol for name, protocol in opened.items() if name in wanted}, budget


def _seen_in_pretraining(run: Run, loader: Loader) -> list[str]:
    seen = Path(run.recipe().data.path).resolve()
    inside = sum(source_of(loader, index).resolve().is_relative_to(seen) for index in range(len(loader)))
    if not inside:
        return []
    return [
        f"The encoder saw {inside} of the {len(loader)} samples during pre-training, without their labels. Scores on "
        "places it never saw may be lower."
    ]
