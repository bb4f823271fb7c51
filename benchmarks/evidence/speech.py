"""Does masking help on small real sets of speech? TERA, w2v-BERT and MP3 beside what needs no pre-training.

    python -m benchmarks.evidence.speech --data FOLDER [--out FOLDER] [--seeds 3] [--only SET ...] [--quick]
        [--methods NAME ...]

- digits: 600 spoken digits of four speakers, each speaker held out in turn.
- emotions: 83 acted utterances of seven speakers in four emotions, each speaker held out in turn.
- takes: the digits again, but takes 0 to 4 of every speaker are held out: the same voices are on both sides.

FOLDER holds `fsdd` and `emodb`, each with labels.csv. Encoders see the training part of a fold without its labels: never
the speaker who is held out. Frozen features, averaged over time, are judged; one encoder a fold and seed; test groups of all
folds and seeds go into one verdict, by the rules of `maskwright evaluate`. Groups are speakers; of takes, recordings.
Whatever is done in --out is not done again; figures go to benchmarks/results/speech.json, and `--page` puts them into
docs/speech.md. `--methods` runs others than `USUAL`; figures of a set are replaced as a whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import maskwright as mw
from benchmarks.common import put_into_page
from benchmarks.evidence.command import parse, store_figures
from benchmarks.evidence.speech_training import (
    Fold,
    Kept,
    folds_of,
    open_fold,
    read_labels,
    store,
    stored,
    train,
    write_tables,
)
from maskwright.core.build import Built, build
from maskwright.core.encoder.base import Encoder
from maskwright.core.evaluation.conclusion import Conclusion, Evaluation
from maskwright.core.evaluation.judge import BASELINES, OURS, Design, Judge, Key
from maskwright.core.evaluation.protocol import FineTune, Linear, Neighbours
from maskwright.core.recipe import make_recipe

RESULT = Path(__file__).parents[1] / "results" / "speech.json"
PAGE = Path(__file__).parents[2] / "docs" / "speech.md"
START, END = "<!-- figures: python -m benchmarks.evidence.speech --page -->", "<!-- end of figures -->"
PROTOCOLS = ("kNN", "linear probe", "fine-tune")
METRIC = "accuracy"


@dataclass(frozen=True)
class Plan:
    """A set: its folder, the columns of what is predicted and of what is held out; how it is read; steps and samples a step.

    Args:
        tuning: steps of training from scratch with labels; 0 leaves that baseline out.
    """

    folder: str
    label: str
    held_out: str
    data: dict[str, Any]
    steps: int
    batch: int
    tuning: int


@dataclass(frozen=True)
class Variant:
    """A method with options that differ from its preset `tiny`. Variants of one `encoder` share its baselines; `frames` from
    the middle of each utterance are read by those that take one length alone."""

    method: str
    encoder: str
    settings: list[str]
    frames: int | None = None


DIGITS = {"mels": 40, "sample_rate": 8000}
EMOTIONS = {"mels": 40, "hop_ms": 20.0}
SETS: dict[str, Plan] = {
    "digits": Plan("fsdd", "digit", "speaker", DIGITS, 150, 16, 60),
    "emotions": Plan("emodb", "emotion", "speaker", EMOTIONS, 60, 8, 0),
    "takes": Plan("fsdd", "digit", "split", DIGITS, 150, 16, 0),
}
TERA = ["method.embed_dim=96", "method.depth=2"]
VARIANTS: dict[str, Variant] = {
    "TERA": Variant("tera", "TERA", TERA),
    "w2v-BERT": Variant(
        "w2v-bert", "w2v-BERT", ["method.embed_dim=96", "method.depth=2", "method.contrastive_depth=1"]
    ),
    "TERA, time alone": Variant("tera", "TERA", [*TERA, "method.band_share=0", "method.noise_share=0"]),
    "MP3": Variant("mp3", "MP3", ["method.img_size=48", "method.patch_size=4"], 48),
}
USUAL = ("TERA", "w2v-BERT")


def options_of(name: str, variant: Variant) -> dict[str, Any]:
    """Options of the loader."""
    data = SETS[name].data
    if variant.frames is None:
        return data
    return {**data, "seconds": (variant.frames - 0.5) * data.get("hop_ms", 10.0) / 1000}


# one encoder --------------------------------------------------------------------------------------------------------


def built(name: str, variant: Variant, tables: Path, fold: Fold, seed: int) -> Built:
    """Method and training data of a fold, ready to train."""
    plan = SETS[name]
    data = {"loader": "speech", **options_of(name, variant)}
    trainer = {"max_steps": plan.steps, "batch_size": plan.batch, "lr": 1e-3, "precision": "32", "accelerator": "cpu"}
    settings = [f"data.{key}={value}" for key, value in data.items()] + [
        f"trainer.{key}={value}" for key, value in trainer.items()
    ]
    return build(
        make_recipe(variant.method, tables / f"{fold.name}.csv", "tiny", [*settings, f"seed={seed}", *variant.settings])
    )


# judging ------------------------------------------------------------------------------------------------------------


def design_of(name: str, given: int, seeds: int, baselines: tuple[str, ...]) -> Design:
    plan = SETS[name]
    tuning = FineTune(steps=max(1, plan.tuning), batch_size=plan.batch)
    protocols = {"knn": Neighbours(), "linear": Linear()}
    return Design(protocols, [1.0], tuning, seeds=seeds, given=given, baselines=baselines)


def baselines_of(name: str) -> tuple[str, ...]:
    return tuple(one for one in BASELINES if one != "supervised" or SETS[name].tuning)


def judge(
    name: str, encoder: Encoder, whole: Kept, fold: Fold, seeds: int, baselines: tuple[str, ...]
) -> dict[Key, np.ndarray]:
    """Sums (S, G, K) of every seed and test group: of an encoder, or with baselines of those and not of the encoder."""
    loader, targets, given = open_fold(whole, fold)
    one = Judge(encoder, loader, targets, design_of(name, given, seeds, baselines))
    one.judge()
    return {key: sums for key, sums in one.sums.items() if (key.features == OURS) != bool(baselines)}


def judge_method(
    name: str, title: str, whole: Kept, folds: list[Fold], tables: Path, out: Path, seeds: int
) -> tuple[Evaluation, int]:
    """All folds and seeds of a method as one evaluation, and the encoder's parameters."""
    variant, plan = VARIANTS[title], SETS[name]
    place = out / f"{name}-{plan.steps}-{plan.tuning}"
    untrained = built(name, variant, tables, folds[0], 0).method.encoder
    total: dict[Key, np.ndarray] = {}
    for fold in folds:
        found: dict[Key, list[np.ndarray]] = {}
        for seed in range(seeds):
            file = place / title / f"{fold.name}-{seed}.npz"
            sums = stored(file)
            if sums is None:
                encoder = train(built(name, variant, tables, fold, seed), whole.memory)
                sums = judge(name, encoder, whole, fold, 1, ())
                store(file, sums)
            for key, values in sums.items():
                found.setdefault(key, []).append(values)
        file = place / f"{variant.encoder}-baselines" / f"{fold.name}-{seeds}.npz"
        others = stored(file)
        if others is None:
            encoder = built(name, variant, tables, fold, 0).method.encoder
            encoder.fit_normalizers(
                mw.open_data(tables / f"{fold.name}.csv", "speech", **options_of(name, variant)).statistics()
            )
            others = judge(name, encoder.eval(), whole, fold, seeds, baselines_of(name))
            store(file, others)
        for key, values in {**{key: np.concatenate(each) for key, each in found.items()}, **others}.items():
            total[key] = total.get(key, 0) + values  # each group is tested in one fold
        print(name, title, fold.name, flush=True)
    loader, targets, given = open_fold(whole, folds[0])
    everything = Judge(untrained.eval(), loader, targets, design_of(name, given, seeds, baselines_of(name)))
    everything.sums = total
    if len(folds) > 1:
        everything.design = replace(everything.design, given=None, folds=len(folds))
    return Conclusion(everything, METRIC).evaluation(), sum(p.numel() for p in untrained.parameters())


def run_set(name: str, data: Path, out: Path, seeds: int, titles: tuple[str, ...] = USUAL) -> dict[str, Any]:
    plan = SETS[name]
    rows = read_labels(data / plan.folder)
    folds = folds_of(rows, plan.held_out)
    table = write_tables(rows, plan.label, folds, out / "tables" / name)
    labels = [row[plan.label] for row in rows]
    found: dict[str, Any] = {
        "about": {
            "utterances": len(rows),
            "speakers": len({row["speaker"] for row in rows}),
            "folds": len(folds),
            "chance": max(labels.count(one) for one in set(labels)) / len(labels),
        },
        "plan": {"steps": plan.steps, "batch": plan.batch, "steps from scratch": plan.tuning, "data": plan.data},
        "methods": {},
    }
    memories: dict[str, dict[str, Any]] = {}
    for title in titles:
        options = options_of(name, VARIANTS[title])
        whole = Kept(mw.open_data(table, "speech", **options), memories.setdefault(repr(options), {}))
        evaluation, parameters = judge_method(name, title, whole, folds, table.parent, out, seeds)
        found["methods"][title] = {
            "encoder": VARIANTS[title].encoder,
            "parameters": parameters,
            "headline": evaluation.headline,
            "title": evaluation.table.title,
            "verdicts": verdicts_of(evaluation),
            "rows": [
                {**asdict(row), "mean": row.mean, "std": row.std}
                for row in evaluation.table.rows
                if row.metric == METRIC
            ],
            "notes": [note.partition(", the first is")[0] for note in evaluation.table.notes],
        }
        print(name, title, evaluation.headline, flush=True)
    return found


def verdicts_of(evaluation: Evaluation) -> list[str]:
    """Those of the headline, and beside the untrained encoder with each protocol: what pre-training alone changed."""
    beside = [str(verdict) for verdict in evaluation.table.verdicts if verdict.baseline == "random init"]
    return list(dict.fromkeys([*evaluation.facts["deciding verdicts"], *beside]))


# the page -----------------------------------------------------------------------------------------------------------


def set_table(name: str, found: dict[str, Any]) -> list[str]:
    """Scores of a set, encoders first, then what they are compared with; then what may be said of each method."""
    cells: dict[str, dict[str, str]] = {}
    for title, method in found["methods"].items():
        for row in method["rows"]:
            own = row["features"] in ("random init", "supervised from scratch")
            label = f"{method['encoder']}'s encoder, {row['features']}" if own else row["features"]
            label = f"**{title}**, pre-trained" if row["features"] == OURS else label
            cells.setdefault(label, {})[row["protocol"]] = f"{row['mean']:.3f} ± {row['std']:.3f}"
    order = sorted(cells, key=lambda label: ("**" not in label, "encoder," not in label))
    columns = [one for one in PROTOCOLS if any(one in row for row in cells.values())]
    plan, about = found["plan"], found["about"]
    lines = [
        f"### {name}",
        "",
        f"{HELD_OUT[name]} {plan['steps']} steps of {plan['batch']} utterances; chance is {about['chance']:.2f}.",
        "",
        f"| features | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {label} | {' | '.join(cells[label].get(one, '') for one in columns)} |" for label in order]
    for title, method in found["methods"].items():
        lines += ["", f"**{title}.** {method['headline']}", ""]
        lines += [f"- {verdict}" for verdict in method["verdicts"]]
    notes = [note.rstrip(".") for note in next(iter(found["methods"].values()))["notes"]]
    return [*lines, "", f"{'. '.join(notes)}." if notes else "", ""]


HELD_OUT = {
    "digits": "Ten digits of four speakers, each speaker held out in turn.",
    "emotions": "Four emotions of seven speakers, each speaker held out in turn.",
    "takes": "Ten digits, the first five of fifteen takes of every speaker held out.",
}


def tables() -> str:
    """The stored figures as Markdown."""
    whole = json.loads(RESULT.read_text())
    return "\n".join(line for name in SETS if name in whole for line in set_table(name, whole[name]))


def write_page() -> None:
    """Put the stored figures into the page."""
    put_into_page(PAGE, START, END, tables())


def main() -> None:
    arguments = parse(__doc__, "speech", SETS, write_page, VARIANTS)
    if arguments is None:
        return
    for name, plan in SETS.items():
        tuning = max(2, round(plan.tuning * arguments.share)) if plan.tuning else 0
        SETS[name] = replace(plan, steps=max(2, round(plan.steps * arguments.share)), tuning=tuning)
    for name in arguments.only:
        found = run_set(name, arguments.data, arguments.out, arguments.seeds, tuple(arguments.methods or USUAL))
        if not arguments.quick:
            store_figures(RESULT, name, found)


if __name__ == "__main__":
    main()
