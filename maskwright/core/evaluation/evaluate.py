"""Did pre-training help? An encoder judged beside its baselines on splits that do not leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright.core.build import open_loader
from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, DataError, TrainingStopped, nearest
from maskwright.core.evaluation.features import JoinedLoader, Survey, encode, labels_of_items, merge_targets, survey
from maskwright.core.evaluation.leaks import Leak, find_leaks, shared_groups
from maskwright.core.evaluation.metrics import (
    METRICS,
    Metric,
    by_group,
    paired_interval,
    retrieval_statistics,
    statistics,
)
from maskwright.core.evaluation.protocol import FeatureProtocol, FineTune, Problem, Protocol, Training
from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict
from maskwright.core.evaluation.splits import (
    Fold,
    check_fractions,
    groups_of,
    join,
    keep_away,
    make_folds,
    take_fraction,
)
from maskwright.core.evaluation.task import Targets, Task
from maskwright.core.host import get_host
from maskwright.core.loader import Loader
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import merge, parse_settings
from maskwright.core.sample import check_inputs
from maskwright.core.trainer.guard import effective_rank, uniformity
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.core.trainer.run import Run

OURS, RANDOM, SCRATCH = "pre-trained", "random init", "supervised from scratch"
BASELINES = ("random-init", "simple", "supervised")
RETRIEVAL = "retrieval by cosine"
FEW_GROUPS = 10
MAX_BAD = 0.05


@dataclass(frozen=True)
class Key:
    """What a score is of: whose features, judged by which protocol, with which share of the labels."""

    features: str
    protocol: str
    fraction: float


@dataclass
class Evaluation:
    """What came out: scores, verdicts, and all that a reader needs to believe them. `path` is its folder, once written."""

    table: ScoreTable
    headline: str
    facts: dict[str, Any]
    confusion: np.ndarray | None = None
    leaks: list[dict[str, str]] = field(default_factory=list)
    predictions: dict[str, list[Any]] = field(default_factory=dict)
    bad: list[dict[str, str]] = field(default_factory=list)
    path: Path | None = None

    def __str__(self) -> str:
        return self.headline


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
    from maskwright.core.encoder.outside import open_encoder
    from maskwright.core.evaluation.write import choose_folder, write_evaluation

    if (run is None) == (encoder is None):
        raise ConfigError("Give a run directory, or an encoder (--encoder timm:NAME), and not both.")
    if seeds < 1 or folds < 2:
        raise ConfigError(f"seeds={seeds}, folds={folds}: at least one seed and two folds are needed.")
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ConfigError(f'baselines: there is no "{unknown[0]}".{nearest(unknown[0], BASELINES)}')
    opened = Run.open(run) if isinstance(run, (str, Path)) else run
    sections = parse_settings(settings)
    chosen, task_object = _parts(task, labels, protocols, sections)
    folder = choose_folder(opened, encoder, task if isinstance(task, str) else type(task).__name__, out)
    loader = _open_data(opened, data, sections.get("data", {}))
    targets = task_object.targets(loader)
    given = None
    if test is not None:
        test_loader = _open_data(opened, test, sections.get("data", {}))
        sizes = (len(loader), len(test_loader))
        test_task, _ = (
            (task_object, None) if test_labels is None else _task(task, test_labels, sections.get("task", {}))
        )
        targets = merge_targets(targets, test_task.targets(test_loader), sizes)
        loader, given = JoinedLoader(loader, test_loader), sizes[0]
    network = open_encoder(encoder if encoder is not None else opened, loader)
    check_inputs(loader.spec, network.inputs, f"the data in {data or 'the run'}", "this encoder")
    unsuited = [name for name, protocol in chosen.items() if targets.kind not in protocol.kinds]
    if unsuited and targets.kind != "retrieval":
        raise ConfigError(f"The protocol {unsuited[0]} does not suit {targets.kind}; leave it out of --protocol.")
    judge = _Judge(
        network, loader, targets, chosen, check_fractions(fractions), seeds, folds, split, buffer, given,
        tuple(baselines), join_duplicates, batch_size, workers, resolve_accelerator(device), metric,
    )  # fmt: skip
    result = judge.judge()
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


def _task(task: str | Task, labels: str | None, options: dict[str, Any]) -> tuple[Task, str]:
    if isinstance(task, Task):
        return task, type(task).__name__
    component = get_host().component("task", task)
    problems: list[str] = []
    given = {**({"labels": labels} if labels is not None else {}), **options}
    checked = check_options("task", component.load(), given, problems)
    if any(line.startswith("task.labels: is required") for line in problems):
        raise ConfigError(
            f"The task {component.name} needs labels: --labels PLACE, see `maskwright info {component.name}`."
        )
    fail_if_any(problems)
    return component.load()(**checked), component.name


def _parts(
    task: str | Task, labels: str | None, protocols: Sequence[str], sections: dict[str, Any]
) -> tuple[dict[str, Protocol], Task]:
    """The protocols by name, and the task, with their options checked."""
    host = get_host()
    problems: list[str] = []
    chosen = {}
    for name in protocols:
        component = host.component("protocol", name)
        options = check_options(component.name, component.load(), sections.get(component.name, {}), problems)
        if not problems:
            chosen[component.name] = component.load()(**options)
    known = {"data", "task", *chosen}
    problems += [f"{s}: there is no such section.{nearest(s, known)}" for s in sections if s not in known and chosen]
    fail_if_any(problems)
    return chosen, _task(task, labels, sections.get("task", {}))[0]


def _open_data(run: Run | None, data: str | Path | None, options: dict[str, Any]) -> Loader:
    """The loader of the run, on other data where they are given; its options unless they are overridden."""
    options = dict(options)
    if run is None:
        if data is None:
            raise ConfigError("Give the labelled data with --data PATH.")
        return open_loader(data, options.pop("loader", "auto"), **options)[1]
    section = run.recipe().data
    name = options.pop("loader", section.loader)
    same = get_host().component("loader", name).name == section.loader if name != "auto" else False
    kept = section.options if same else {}
    return open_loader(data if data is not None else section.path, name, **merge(kept, options))[1]


def _seen_in_pretraining(run: Run, loader: Loader) -> list[str]:
    seen = Path(run.recipe().data.path).resolve()
    inside = sum(
        Path(source).resolve().is_relative_to(seen) for i in range(len(loader)) for source in loader.sources(i)[:1]
    )
    if not inside:
        return []
    return [
        f"The encoder saw {inside} of the {len(loader)} samples during pre-training, without their labels. Scores on "
        "places it never saw may be lower."
    ]


class _Judge:
    """One evaluation. Sums are kept of each key, seed and test group; all scores and intervals come from them."""

    def __init__(
        self,
        encoder: Encoder,
        loader: Loader,
        targets: Targets,
        protocols: dict[str, Protocol],
        fractions: list[float],
        seeds: int,
        folds: int,
        split: str,
        buffer: float,
        given: int | None,
        baselines: tuple[str, ...],
        join_duplicates: bool,
        batch_size: int,
        workers: int,
        device: str,
        metric: str | None,
    ) -> None:
        self.encoder, self.loader, self.targets, self.protocols = encoder, loader, targets, protocols
        self.fractions, self.seeds, self.fold_count, self.split, self.buffer = fractions, seeds, folds, split, buffer
        self.given, self.baselines, self.join_duplicates = given, baselines, join_duplicates
        self.batch_size, self.workers, self.device = batch_size, workers, device
        self.problem = Problem(targets.kind, targets.outputs)
        names = [known.name for known in METRICS[targets.kind]]
        if metric is not None and metric not in names:
            raise ConfigError(f'metric="{metric}": a {targets.kind} has {", ".join(names)}.')
        self.metrics = sorted(METRICS[targets.kind], key=lambda known: known.name != (metric or names[0]))
        self.sums: dict[Key, np.ndarray] = {}
        self.predictions: dict[str, list[Any]] = {}
        self.tuned = next((p for p in protocols.values() if isinstance(p, FineTune)), None)
        self.feature_protocols = [p for p in protocols.values() if isinstance(p, FeatureProtocol)]

    # data ----------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        labelled = self.targets.labelled(len(self.loader))
        self.known: Survey = survey(
            self.loader, self.targets, labelled, self.encoder.to(self.device), 0, self.batch_size, self.workers,
            "simple" in self.baselines,
        )  # fmt: skip
        bad = len(self.known.bad)
        if bad > MAX_BAD * len(labelled):
            first = self.known.bad[0]
            raise TrainingStopped(
                f"{bad} of {len(labelled)} samples cannot be used, more than {MAX_BAD:.0%}; the first is {first.path}: "
                f"{first.reason} See `maskwright inspect`."
            )
        known = self.known
        groups = groups_of(self.split, self.loader, known.metas)
        self.is_test = np.array([self.given is not None and index >= self.given for index in known.indices])
        if self.given is not None and (self.is_test.all() or not self.is_test.any()):
            raise DataError("test", "training or test data hold no labelled sample")
        sides = ["test" if side else "train" for side in self.is_test] if self.given is not None else groups
        leaks = find_leaks(known.prints, known.metas, sides)
        self.joined = 0
        if self.join_duplicates and self.given is None and self.split != "random":
            pairs = [(leak.first, leak.second) for leak in leaks if leak.kind != "near duplicate"]
            before = len(set(groups))
            groups = join(groups, pairs)
            self.joined = before - len(set(groups))
        self.leaks = leaks
        self.shared = []
        if self.given is not None:
            train = [meta for meta, side in zip(known.metas, self.is_test, strict=True) if not side]
            self.shared = shared_groups(train, [m for m, side in zip(known.metas, self.is_test, strict=True) if side])
        self.group_names, self.group_of = np.unique(np.asarray(groups), return_inverse=True)
        self.y = labels_of_items(self.targets, known)
        self.owner = known.item_sample if known.item_sample is not None else np.arange(len(known.metas))
        self.item_group = self.group_of[self.owner]

    def _sample_classes(self) -> np.ndarray | None:
        """Class of each sample, for even folds and subsets; None where it has none."""
        return self.y if self.targets.kind in ("classification", "retrieval") else None

    def _folds(self, seed: int) -> list[Fold]:
        known = self.known
        if self.given is not None:
            return [Fold(np.flatnonzero(~self.is_test), np.flatnonzero(self.is_test))]
        names = self.group_names[self.group_of].tolist()
        folds = make_folds(names, self._sample_classes(), self.fold_count, seed)
        kept = [keep_away(fold, known.metas, self.buffer) for fold in folds]
        if any(not len(fold.train) for fold in kept):
            raise ConfigError(f"buffer={self.buffer:g} leaves no training sample in a fold. Lower --buffer.")
        return kept

    # judging -------------------------------------------------------------------------------------------------------

    def judge(self) -> Evaluation:
        """Run everything."""
        from maskwright.core.encoder.outside import fresh

        self._prepare()
        tokens = any(protocol.needs == "tokens" for protocol in self.feature_protocols)
        options = {"batch_size": self.batch_size, "workers": self.workers, "device": self.device}
        ours = encode(self.encoder, self.loader, self.known, tokens, **options)  # type: ignore[arg-type]
        self.collapse = {OURS: self._collapse(ours[0])}
        simple = {name: (x, None) for name, x in self.known.simple.items()}
        for seed in range(self.seeds):
            features: dict[str, tuple[np.ndarray, np.ndarray | None]] = {OURS: ours}
            if "random-init" in self.baselines:
                random = fresh(self.encoder, seed)
                features[RANDOM] = encode(random, self.loader, self.known, tokens, **options)  # type: ignore[arg-type]
                if seed == 0:
                    self.collapse[RANDOM] = self._collapse(features[RANDOM][0])
            features |= simple
            for fold in self._folds(seed):
                for fraction in self.fractions:
                    train = take_fraction(fold.train, self._sample_classes(), fraction, seed)
                    for name, (x, all_tokens) in features.items():
                        self._judge_features(name, x, all_tokens, train, fold.test, fraction, seed)
                    self._judge_training(train, fold.test, fraction, seed)
        return self._conclude()

    @staticmethod
    def _collapse(x: np.ndarray) -> dict[str, float]:
        some = torch.from_numpy(x[:: max(1, len(x) // 2000)].copy()).float()
        return {"effective rank": effective_rank(some), "uniformity": uniformity(some)}

    def _add(self, key: Key, seed: int, stats: np.ndarray, groups: np.ndarray) -> None:
        shape = (self.seeds, len(self.group_names), stats.shape[1])
        sums = self.sums.setdefault(key, np.zeros(shape))
        sums[seed] += by_group(stats, groups, shape[1])

    def _judge_features(
        self,
        name: str,
        x: np.ndarray,
        tokens: np.ndarray | None,
        train: np.ndarray,
        test: np.ndarray,
        fraction: float,
        seed: int,
    ) -> None:
        train_items, test_items = (np.flatnonzero(np.isin(self.owner, part)) for part in (train, test))
        if self.targets.kind == "retrieval":
            stats = retrieval_statistics(x[test_items], self.y[test_items], x[train_items], self.y[train_items])
            self._add(Key(name, RETRIEVAL, fraction), seed, stats, self.item_group[test_items])
            return
        for protocol in self.feature_protocols:
            if protocol.needs == "tokens" and tokens is None:
                continue
            source = tokens if protocol.needs == "tokens" and tokens is not None else x
            training = Training(source[train_items], self.y[train_items], self.item_group[train_items])
            says = protocol.predict(training, source[test_items], self.problem, seed)
            self._count(Key(name, protocol.title, fraction), seed, says, test_items)

    def _count(self, key: Key, seed: int, says: np.ndarray, items: np.ndarray) -> None:
        """Add what scores (m, K), or (R, m, K) of repetitions, mean for the metrics."""
        truth = self.known.pixels[items] if self.known.pixels is not None else self.y[items]
        repetitions = says if says.ndim == 3 else says[None]
        for one in repetitions:
            predicted = one.argmax(1) if self.targets.kind in ("classification", "segmentation") else one
            stats = statistics(self.targets.kind, truth, predicted, self.targets.outputs)
            self._add(key, seed, stats / len(repetitions), self.item_group[items])
        if key.features == OURS and seed == 0 and key.fraction == self.fractions[-1] and self.known.pixels is None:
            column = self.predictions.setdefault(key.protocol, [None] * len(self.known.metas))
            for item, row in zip(items, repetitions[0], strict=True):
                column[item] = self._shown(row)

    def _shown(self, row: np.ndarray) -> Any:
        if self.targets.kind == "classification":
            return self.targets.classes[int(row.argmax())]
        if self.targets.kind == "multilabel":
            return ";".join(name for name, value in zip(self.targets.classes, row, strict=True) if value > 0.5)
        return float(row[0]) if len(row) == 1 else [float(value) for value in row]

    def _judge_training(self, train: np.ndarray, test: np.ndarray, fraction: float, seed: int) -> None:
        """Fine-tuning, and training from scratch with the same budget."""
        from maskwright.core.encoder.outside import fresh

        if self.targets.kind == "retrieval":
            return
        budget = self.tuned or FineTune()
        if self.tuned is not None:
            self._train(
                Key(OURS, FineTune.title, fraction), self.encoder, budget, train, test, seed, budget.layer_decay
            )
        if "supervised" in self.baselines:
            key = Key(SCRATCH, FineTune.title, fraction)
            self._train(key, fresh(self.encoder, seed), budget, train, test, seed, None)

    def _train(
        self,
        key: Key,
        encoder: Encoder,
        budget: FineTune,
        train: np.ndarray,
        test: np.ndarray,
        seed: int,
        layer_decay: float | None,
    ) -> None:
        from maskwright.core.evaluation.heads import Budget, predict_samples, train_model

        known = self.known
        spent = Budget(budget.steps, budget.batch_size, budget.lr, budget.weight_decay, layer_decay)
        model = train_model(encoder, self.targets, self.loader, known.indices[train].tolist(), spent, seed, self.device)
        where = {int(index): at for at, index in enumerate(known.indices)}
        for index, says in predict_samples(
            model, self.loader, known.indices[test].tolist(), self.batch_size, self.device
        ):
            sample = where[index]
            if self.targets.read is None:
                self._count(key, seed, says[None], np.array([sample]))
                continue
            truth = self.targets.read(self.loader.read(index))
            predicted, classes = says.argmax(0), self.targets.outputs
            flat = np.bincount(truth[truth >= 0] * classes + predicted[truth >= 0], minlength=classes * classes).astype(
                np.float64
            )
            self._add(key, seed, flat[None], self.group_of[[sample]])

    # conclusions ---------------------------------------------------------------------------------------------------

    def _value(self, key: Key, metric: Metric) -> list[float]:
        return [float(metric.value(sums.sum(0, keepdims=True))[0]) for sums in self.sums[key]]

    def _tested(self, *keys: Key) -> list[np.ndarray]:
        """Sums of the groups that were tested, for each key."""
        used = np.any([self.sums[key].any((0, 2)) for key in keys], axis=0)
        return [self.sums[key][:, used] for key in keys]

    def _compare(self, ours: Key, baseline: Key) -> Verdict:
        metric = self.metrics[0]
        mine, theirs = self._tested(ours, baseline)
        difference, low, high = paired_interval(metric, mine, theirs)
        same = ours.protocol == baseline.protocol
        name = baseline.features if same else f"{baseline.features}, {baseline.protocol}"
        return Verdict(name, ours.protocol, metric.name, difference, low, high, ours.fraction, metric.worth)

    def _conclude(self) -> Evaluation:
        metric, most = self.metrics[0], self.fractions[-1]
        table = ScoreTable(self._title(), notes=self._notes())
        for key in self.sums:
            for known in self.metrics:
                table.rows.append(Score(key.features, key.protocol, known.name, self._value(key, known), key.fraction))
        for key in self.sums:
            if key.features != OURS:
                continue
            for other in self.sums:
                comparable = other.protocol == key.protocol or other.features == SCRATCH
                if other.features != OURS and other.fraction == key.fraction and comparable:
                    table.verdicts.append(self._compare(key, other))
        mine = max(
            (key for key in self.sums if key.features == OURS and key.fraction == most), key=self._rank_by(metric)
        )
        headline, deciding = self._headline(mine)
        facts: dict[str, Any] = {
            "kind": self.targets.kind,
            "classes": list(self.targets.classes),
            "metric": metric.name,
            "best protocol": mine.protocol,
            "deciding verdicts": [str(verdict) for verdict in deciding],
            "samples": len(self.known.metas),
            "items": len(self.owner),
            "groups": len(self.group_names),
            "split": "given test data" if self.given is not None else self.split,
            "folds": 1 if self.given is not None else min(self.fold_count, len(self.group_names)),
            "buffer": self.buffer,
            "seeds": self.seeds,
            "fractions": self.fractions,
            "protocols": list(self.protocols),
            "baselines": list(self.baselines),
            "collapse": self.collapse,
        }
        whole = self.sums[mine].sum((0, 1))
        confusion = None
        if self.targets.kind in ("classification", "segmentation"):
            confusion = whole.reshape(self.targets.outputs, -1) / self.seeds
        return Evaluation(
            table, headline, facts, confusion, self._leak_rows(), self._prediction_columns(), self._bad_rows()
        )

    def _rank_by(self, metric: Metric) -> Any:
        return lambda key: metric.better * float(np.mean(self._value(key, metric)))

    def _headline(self, mine: Key) -> tuple[str, list[Verdict]]:
        """One sentence, from the best protocol of the encoder against the best protocol of each baseline."""
        metric = self.metrics[0]
        rivals: dict[str, Key] = {}
        for key in self.sums:
            if key.features != OURS and key.fraction == mine.fraction:
                best = rivals.get(key.features)
                if best is None or self._rank_by(metric)(key) > self._rank_by(metric)(best):
                    rivals[key.features] = key
        verdicts = {name: self._compare(mine, key) for name, key in rivals.items()}
        score = f"{np.mean(self._value(mine, metric)):.3f}"
        if not verdicts:
            return f"{metric.name} {score} ({mine.protocol}); no baseline was asked for, so nothing can be said.", []

        def named(test: Any) -> str:
            return ", ".join(
                f"{name} ({np.mean(self._value(rivals[name], metric)):.3f})" for name, v in verdicts.items() if test(v)
            )

        helped = named(lambda v: v.words == "helped")
        lost = named(lambda v: v.words.startswith("did not"))
        open_ = named(lambda v: v.words.startswith("cannot"))
        if not lost and not open_:
            start = "Pre-training helped"
        elif lost:
            start = "Pre-training did not help here"
        else:
            start = "Whether pre-training helped cannot be told with this much data"
        parts = [
            f"better than {helped}" if helped else "",
            f"no better than {lost}" if lost else "",
            f"not to be told apart from {open_}" if open_ else "",
        ]
        text = f"{start}: {metric.name} {score} ({mine.protocol}), " + "; ".join(part for part in parts if part) + "."
        return text, list(verdicts.values())

    def _title(self) -> str:
        many = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        if self.given is not None:
            return f"{self.targets.kind.capitalize()} of given test data, {many}."
        how = {"group": "groups kept together", "random": "RANDOM split"}.get(self.split, f"split by {self.split}")
        return (
            f"{self.targets.kind.capitalize()}, {len(self.known.metas)} samples in {len(self.group_names)} groups, "
            f"{min(self.fold_count, len(self.group_names))} folds, {how}, {many}."
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.split == "random" and self.given is None:
            notes.append(
                "RANDOM SPLIT, as asked for: samples of one scene, patient or speaker are on both sides, so the scores say "
                "less about new ones than they seem to."
            )
        tested = len(self.group_names) if self.given is None else len(np.unique(self.group_of[self.is_test]))
        if tested < FEW_GROUPS:
            notes.append(
                f"Only {tested} test groups: intervals drawn from so few are rough and say little about other places."
            )
        kinds = {
            kind: sum(leak.kind == kind for leak in self.leaks) for kind in ("identical", "overlap", "near duplicate")
        }
        if any(kinds.values()):
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            first = self._leak_rows()[0]
            joined = (
                f" {self.joined} groups were joined to keep identical and overlapping ones together."
                if self.joined
                else ""
            )
            notes.append(
                f"Leak check: {counts} pairs lie in different groups, the first is {first['first']} and {first['second']} "
                f"({first['kind']}).{joined} All are in leaks.csv."
            )
        if self.shared:
            some = ", ".join(self.shared[:5])
            notes.append(f"Leak check: {len(self.shared)} groups are in training and test data both: {some}.")
        missing = [name for name in BASELINES if name not in self.baselines]
        if missing:
            notes.append(f"Left out, as asked for: the baseline{'s' if len(missing) > 1 else ''} {', '.join(missing)}.")
        if "supervised" in self.baselines and self.targets.kind != "retrieval":
            budget = self.tuned or FineTune()
            notes.append(
                f"From scratch{' and fine-tuned' if self.tuned else ''}: {budget.steps} steps of {budget.batch_size} "
                "samples each, the same encoder and head."
            )
        if self.targets.dense:
            share = "" if len(self.owner) < MAX_SHOWN else f" {len(self.owner)} tokens were drawn of all."
            notes.append(f"Probes predict one class a token; scores count pixels.{share}")
        if self.known.bad:
            notes.append(f"{len(self.known.bad)} samples could not be used, see bad_files.csv.")
        return notes

    def _leak_rows(self) -> list[dict[str, str]]:
        def place(at: int) -> str:
            meta = self.known.metas[at]
            return meta.source if meta.window is None else f"{meta.source} {list(meta.window)}"

        def row(leak: Leak) -> dict[str, str]:
            return {"kind": leak.kind, "first": place(leak.first), "second": place(leak.second), "detail": leak.detail}

        return [row(leak) for leak in self.leaks]

    def _bad_rows(self) -> list[dict[str, str]]:
        return [{"path": file.path, "reason": " ".join(file.reason.split())} for file in self.known.bad]

    def _prediction_columns(self) -> dict[str, list[Any]]:
        if self.known.pixels is not None or self.targets.kind == "retrieval":
            return {}
        metas = self.known.metas
        truth = [self._shown(self._truth_row(at)) for at in range(len(metas))]
        base = {
            "index": [meta.index for meta in metas],
            "source": [meta.source for meta in metas],
            "group": self.group_names[self.group_of].tolist(),
            "truth": truth,
        }
        return {**base, **self.predictions}

    def _truth_row(self, at: int) -> np.ndarray:
        if self.targets.kind == "classification":
            return np.eye(self.targets.outputs)[self.y[at]]
        return self.y[at]


MAX_SHOWN = 200_000
