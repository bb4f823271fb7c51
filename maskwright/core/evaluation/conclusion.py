"""What sums over test groups say: scores, verdicts, a headline, and the notes without which they mislead."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.judge import BASELINES, OURS, SCRATCH, Judge, Key
from maskwright.core.evaluation.leaks import Leak
from maskwright.core.evaluation.metrics import Metric, metrics_of, paired_interval
from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict

FEW_GROUPS = 10
"""Test groups below which an interval is called rough."""


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


def choose_metrics(kind: Any, classes: int, metric: str | None) -> list[Metric]:
    """Metrics of a kind of task with so many classes or columns, the one that decides first."""
    known = metrics_of(kind, classes)
    names = [one.name for one in known]
    if metric is not None and metric not in names:
        raise ConfigError(f'metric="{metric}": this {kind} has {", ".join(names)}.')
    return sorted(known, key=lambda one: one.name != (metric or names[0]))


class Conclusion:
    """Scores and verdicts of a judge that is done.

    Args:
        metric: decides the verdict; the first of the task's kind without it.

    Raises:
        ConfigError: no such metric.
    """

    def __init__(self, judge: Judge, metric: str | None = None) -> None:
        self.judge, self.targets, self.design, self.sums = judge, judge.targets, judge.design, judge.sums
        self.metrics = choose_metrics(judge.targets.kind, judge.targets.outputs, metric)

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

    def evaluation(self) -> Evaluation:
        """Everything, ready to be written."""
        metric, most = self.metrics[0], self.design.fractions[-1]
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
            "samples": len(self.judge.known.metas),
            "items": len(self.judge.owner),
            "groups": len(self.judge.group_names),
            "split": "given test data" if self.design.given is not None else self.design.split,
            "folds": 1 if self.design.given is not None else min(self.design.folds, len(self.judge.group_names)),
            "buffer": self.design.buffer,
            "seeds": self.design.seeds,
            "fractions": self.design.fractions,
            "protocols": list(self.design.protocols),
            "baselines": list(self.design.baselines),
            "collapse": self.judge.collapse,
        }
        whole = self.sums[mine].sum((0, 1))
        confusion = None
        if self.targets.kind in ("classification", "segmentation"):
            confusion = whole.reshape(self.targets.outputs, -1) / self.design.seeds
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
        many = f"{self.design.seeds} seed{'s' if self.design.seeds > 1 else ''}"
        if self.design.given is not None:
            return f"{self.targets.kind.capitalize()} of given test data, {many}."
        how = {"group": "groups kept together", "random": "RANDOM split"}.get(
            self.design.split, f"split by {self.design.split}"
        )
        return (
            f"{self.targets.kind.capitalize()}, {len(self.judge.known.metas)} samples in {len(self.judge.group_names)} groups, "
            f"{min(self.design.folds, len(self.judge.group_names))} folds, {how}, {many}."
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.design.split == "random" and self.design.given is None:
            notes.append(
                "RANDOM SPLIT, as asked for: samples of one scene, patient or speaker are on both sides, so the scores say "
                "less about new ones than they seem to."
            )
        tested = (
            len(self.judge.group_names)
            if self.design.given is None
            else len(np.unique(self.judge.group_of[self.judge.is_test]))
        )
        if tested < FEW_GROUPS:
            notes.append(
                f"Only {tested} test groups: intervals drawn from so few are rough and say little about other places."
            )
        kinds = {
            kind: sum(leak.kind == kind for leak in self.judge.leaks)
            for kind in ("identical", "overlap", "near duplicate")
        }
        if any(kinds.values()):
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            first = self._leak_rows()[0]
            joined = (
                f" {self.judge.joined} groups were joined to keep identical and overlapping ones together."
                if self.judge.joined
                else ""
            )
            notes.append(
                f"Leak check: {counts} pairs lie in different groups, the first is {first['first']} and {first['second']} "
                f"({first['kind']}).{joined} All are in leaks.csv."
            )
        if self.judge.shared:
            some = ", ".join(self.judge.shared[:5])
            notes.append(f"Leak check: {len(self.judge.shared)} groups are in training and test data both: {some}.")
        missing = [name for name in BASELINES if name not in self.design.baselines]
        if missing:
            notes.append(f"Left out, as asked for: the baseline{'s' if len(missing) > 1 else ''} {', '.join(missing)}.")
        if "supervised" in self.design.baselines and self.targets.kind != "retrieval":
            budget = self.design.budget
            notes.append(
                f"From scratch{' and fine-tuned' if self.judge.tuned else ''}: {budget.steps} steps of {budget.batch_size} "
                "samples each, the same encoder and head."
            )
        if self.targets.dense:
            drawn = sum(map(len, self.judge.known.kept)) if self.judge.known.thinned else 0
            share = f" {drawn} tokens were drawn at random, the same number of each sample." if drawn else ""
            notes.append(f"Probes predict one class a token; scores count pixels.{share}")
        if self.judge.known.bad:
            notes.append(f"{len(self.judge.known.bad)} samples could not be used, see bad_files.csv.")
        return notes

    def _leak_rows(self) -> list[dict[str, str]]:
        def place(at: int) -> str:
            meta = self.judge.known.metas[at]
            return meta.source if meta.window is None else f"{meta.source} {list(meta.window)}"

        def row(leak: Leak) -> dict[str, str]:
            return {"kind": leak.kind, "first": place(leak.first), "second": place(leak.second), "detail": leak.detail}

        return [row(leak) for leak in self.judge.leaks]

    def _bad_rows(self) -> list[dict[str, str]]:
        return [{"path": file.path, "reason": " ".join(file.reason.split())} for file in self.judge.known.bad]

    def _prediction_columns(self) -> dict[str, list[Any]]:
        if self.judge.known.pixels is not None or self.targets.kind == "retrieval":
            return {}
        metas = self.judge.known.metas
        truth = [self.judge.shown(self._truth_row(at)) for at in range(len(metas))]
        base = {
            "index": [meta.index for meta in metas],
            "source": [meta.source for meta in metas],
            "group": self.judge.group_names[self.judge.group_of].tolist(),
            "truth": truth,
        }
        return {**base, **self.judge.predictions}

    def _truth_row(self, at: int) -> np.ndarray:
        if self.targets.kind == "classification":
            return np.eye(self.targets.outputs)[self.judge.y[at]]
        return self.judge.y[at]
