"""Does masking help on small real clinical sets? SparK and Uni4Eye beside what needs no pre-training.

    python -m benchmarks.evidence.medical --data FOLDER [--out FOLDER] [--seeds 3] [--only NAME ...] [--quick]

- contrast: 79 CT slices of 44 patients, with and without contrast agent, folds by patient.
- pneumonia: chest X-rays of MedMNIST, balanced by its source, its own split.
- adrenal: volumes of adrenal glands of MedMNIST, normal and with a mass, its own split.
- organs: one CT; codes of a segmentation model, slabs of slices in turns.
- eyes: Uni4Eye alone: tiles of a fundus photograph and crops of a small MR volume in turns; what it rebuilds of unseen
  ones, beside what can be said of hidden patches without a network.

FOLDER holds `tcia_lung_ct_contrast`, `pneumoniamnist_balanced`, `adrenalmnist3d`, `ct_volume_nifti` and
`dicom_nifti_readers`; the photograph needs `pip install scikit-image`. Encoders see the training part without its
labels (of organs: other slices of the same scan), and are judged on the test part. One encoder a seed and fold; test groups of
all folds and all seeds go into one verdict, by the same rules as `maskwright evaluate`. Whatever is done already in --out
is not done again; figures go to benchmarks/results/medical.json, and `--page` puts them into docs/medical.md.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskwright as mw
from benchmarks.common import put_into_page
from benchmarks.evidence import medical_eyes as eyes
from benchmarks.evidence.command import parse, store_figures
from benchmarks.evidence.medical_sets import Fold, prepare
from maskwright.core.encoder import patchify
from maskwright.core.encoder.base import Encoder
from maskwright.core.evaluation.conclusion import Conclusion, Evaluation, choose_metrics
from maskwright.core.evaluation.judge import BASELINES, OURS, Design, Judge, Key
from maskwright.core.evaluation.metrics import pixel_statistics, statistics
from maskwright.core.evaluation.protocol import FineTune, Linear, Neighbours
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader
from maskwright.core.trainer.files import write_with

RESULT = Path(__file__).parents[1] / "results" / "medical.json"
PAGE = Path(__file__).parents[2] / "docs" / "medical.md"
START, END = "<!-- figures: python -m benchmarks.evidence.medical --page -->", "<!-- end of figures -->"
LR = 1e-3
METHODS = ("spark", "uni4eye")
PROTOCOLS = ("kNN", "linear probe", "fine-tune")


@dataclass(frozen=True)
class Plan:
    """How much is computed on a set: steps and samples a step of pre-training and of fine-tuning; what decides.

    Args:
        settings: options of each method that differ from its preset `tiny`.
    """

    axes: str
    metric: str
    steps: int
    batch: int
    tuning: int
    settings: dict[str, list[str]] = field(default_factory=dict)
    kind: str = "classification"


FINE = ["method.widths=[32,64]", "method.depths=[2,2]", "method.scales=2"]
"""SparK's plain network with cells of 4 pixels."""
CELL_HISTOGRAM = np.linspace(-200, 300, 21)
"""Edges in HU of the histogram of a cell."""
LIGHT = ["method.widths=[16,32]", "method.depths=[1,1]", "method.scales=2"]
SETS: dict[str, Plan] = {
    "contrast": Plan("H W", "accuracy", 200, 16, 40),
    "pneumonia": Plan("H W", "accuracy", 400, 32, 100, {"spark": FINE, "uni4eye": ["method.patch_size=4"]}),
    "adrenal": Plan("D H W", "AUC", 200, 8, 60, {"spark": ["method.widths=[8,16,32]"]}),
    "organs": Plan(
        "H W", "mean IoU", 200, 4, 60, {"spark": LIGHT, "uni4eye": ["method.patch_size=4"]}, kind="segmentation"
    ),
}


# one encoder --------------------------------------------------------------------------------------------------------


def pretrain(name: str, method: str, data: Path, out: Path, seed: int) -> mw.Run:
    if (out / "encoder.safetensors").is_file():
        return mw.Run.open(out)
    shutil.rmtree(out, ignore_errors=True)  # what an earlier call did not finish
    plan = SETS[name]
    return mw.pretrain(
        method,
        data,
        "tiny",
        out,
        ["data.array=x", f"data.axes={plan.axes}", f"seed={seed}", *plan.settings.get(method, [])],
        max_steps=plan.steps,
        batch_size=plan.batch,
        lr=LR,
        precision="32",
        log_every=25,
    )


# judging ------------------------------------------------------------------------------------------------------------


def open_fold(name: str, fold: Fold) -> tuple[Loader, Targets]:
    plan = SETS[name]
    loader = mw.open_data(fold.labelled, "arrays", array="x", axes=plan.axes, group="group")
    y = np.load(fold.labelled)["y"]
    classes = tuple(map(str, range(int(y.max()) + 1)))
    if plan.kind == "classification":
        return loader, Targets("classification", classes, y)
    return loader, Targets("segmentation", classes, read=lambda sample: y[sample.meta.index])


def design_of(name: str, fold: Fold, seeds: int, tuned: bool, baselines: tuple[str, ...]) -> Design:
    plan = SETS[name]
    tuning = FineTune(steps=plan.tuning, batch_size=plan.batch)
    protocols = {"knn": Neighbours(), "linear": Linear(), **({"finetune": tuning} if tuned else {})}
    return Design(protocols, [1.0], tuning, seeds=seeds, given=fold.train, baselines=baselines)


def judge(name: str, fold: Fold, encoder: Encoder, seeds: int, baselines: tuple[str, ...], out: Path) -> dict[Key, Any]:
    """Sums (S, G, K) of every seed and test group: of an encoder, or with baselines of those and not of the encoder."""
    if out.is_file():
        return {Key(*key.split("|"), 1.0): sums for key, sums in np.load(out).items()}
    one = Judge(encoder, *open_fold(name, fold), design_of(name, fold, seeds, not baselines, baselines))
    if baselines:
        one.known.simple |= further_features(one, np.load(fold.labelled))
    one.judge()
    found = {key: sums for key, sums in one.sums.items() if (key.features == OURS) != bool(baselines)}

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **{f"{key.features}|{key.protocol}": sums for key, sums in found.items()})

    out.parent.mkdir(parents=True, exist_ok=True)
    write_with(out, save)
    return found


def further_features(one: Judge, stored: Any) -> dict[str, np.ndarray]:
    """What one would try first: the histogram of HU of a slice or cell; the mean HU of a cell and where it lies."""
    if "histogram" in stored:
        return {"HU histogram": stored["histogram"][one.known.indices]}
    if one.known.cells is None:
        return {}
    cells = patchify(torch.from_numpy(stored["x"])[:, None], cell_size(stored["x"], one.known.cells)).numpy()
    steps = np.searchsorted(CELL_HISTOGRAM, cells)
    histogram = np.stack([(steps == step).mean(2) for step in range(len(CELL_HISTOGRAM) + 1)], axis=-1)
    place = np.stack(np.meshgrid(*map(np.arange, one.known.cells), indexing="ij"), -1).reshape(1, -1, 2)
    place = np.concatenate([place, place**2, place[..., :1] * place[..., 1:]], axis=-1).repeat(len(cells), axis=0)
    found = {
        "HU histogram": histogram,
        "mean HU and place": np.concatenate([cells.mean(2, keepdims=True), place], axis=-1),
    }
    parts = list(zip(one.known.indices, one.known.kept, strict=True))
    return {name: np.concatenate([x[at, kept] for at, kept in parts]).astype(np.float32) for name, x in found.items()}


def cell_size(x: np.ndarray, cells: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels of a cell of images (n, H, W)."""
    return tuple(size // count for size, count in zip(x.shape[1:], cells, strict=True))


def judge_method(name: str, method: str, folds: list[Fold], out: Path, seeds: int) -> Evaluation:
    """All seeds and folds of a method as one evaluation."""
    whole: dict[Key, Any] = {}
    for number, fold in enumerate(folds):
        of_fold: dict[Key, list[Any]] = {}
        encoder = None
        for seed in range(seeds):
            place = out / name / method / f"{fold.unlabelled.parent.name}-seed{seed}"
            encoder = mw.load(pretrain(name, method, fold.unlabelled, place, seed))
            judged = judge(name, fold, encoder, 1, (), out / name / method / f"fold{number}-seed{seed}.npz")
            for key, sums in judged.items():
                of_fold.setdefault(key, []).append(sums)
        found = {key: np.concatenate(sums) for key, sums in of_fold.items()}
        assert encoder is not None
        found |= judge(name, fold, encoder, seeds, BASELINES, out / name / method / f"fold{number}-baselines.npz")
        for key, sums in found.items():
            whole[key] = whole.get(key, 0) + sums  # each group is tested in one fold
    everything = Judge(encoder, *open_fold(name, fold), design_of(name, fold, seeds, True, BASELINES))
    everything.sums = whole
    if len(folds) > 1:
        everything.design = replace(everything.design, given=None, folds=len(folds))
    return Conclusion(everything, SETS[name].metric).evaluation()


def majority(name: str, folds: list[Fold]) -> float:
    """The deciding metric of saying the most frequent class of the training part of everything."""
    plan, sums = SETS[name], np.zeros(1)
    for fold in folds:
        targets = open_fold(name, fold)[1]
        y = np.load(fold.labelled)["y"]
        test = y[fold.train :]
        said = np.full(test.shape, np.bincount(y[: fold.train][y[: fold.train] >= 0]).argmax())
        if plan.kind == "segmentation":
            sums = sums + pixel_statistics(test, said, targets.outputs)
        else:
            sums = sums + statistics(targets.kind, test, said, targets.outputs).sum(0)
    metric = choose_metrics(targets.kind, targets.outputs, plan.metric)[0]
    return float(metric.value(sums[None])[0])


def run_set(name: str, data: Path, out: Path, seeds: int, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    folds, about = prepare(name, data, out)
    plan = SETS[name]
    found: dict[str, Any] = {
        "about": about,
        "plan": {"steps": plan.steps, "batch": plan.batch, "fine-tuning steps": plan.tuning, "metric": plan.metric},
        "most frequent class": majority(name, folds),
        "methods": {},
    }
    for method in methods:
        evaluation = judge_method(name, method, folds, out, seeds)
        parameters = sum(p.numel() for p in mw.load(out / name / method / "fold0-seed0").parameters())
        found["methods"][method] = {
            "headline": evaluation.headline,
            "deciding verdicts": evaluation.facts["deciding verdicts"],
            "title": evaluation.table.title,
            "parameters": parameters,
            "rows": [{**asdict(row), "mean": row.mean, "std": row.std} for row in evaluation.table.rows],
            "notes": [note.partition(", the first is")[0] for note in evaluation.table.notes],
        }
        print(name, method, evaluation.headline, flush=True)
    return found


# the page -----------------------------------------------------------------------------------------------------------


def set_table(name: str, stored: dict[str, Any]) -> list[str]:
    """Scores of a set, methods and their baselines first, then what both are compared with."""
    plan = stored["plan"]
    cells: dict[str, dict[str, str]] = {}
    for method, found in stored["methods"].items():
        for row in found["rows"]:
            if row["metric"] != plan["metric"]:
                continue
            own = row["features"] in (OURS, "random init", "supervised from scratch")
            label = f"{TITLES[method]}, {row['features']}" if own else row["features"]
            cells.setdefault(label, {})[row["protocol"]] = f"{row['mean']:.3f} ± {row['std']:.3f}"
    order = sorted(cells, key=lambda label: "," not in label)
    lines = [
        f"### {name}",
        "",
        f"{plan['metric'].capitalize() if plan['metric'].islower() else plan['metric']}; saying the most frequent class of everything: "
        f"{stored['most frequent class']:.3f}.",
        "",
    ]
    lines += [f"| features | {' | '.join(PROTOCOLS)} |", "|---" * 4 + "|"]
    lines += [f"| {label} | {' | '.join(cells[label].get(p, '') for p in PROTOCOLS)} |" for label in order]
    for method, found in stored["methods"].items():
        lines += ["", f"**{TITLES[method]}.** {found['headline']}", ""]
        lines += [f"- {verdict}" for verdict in found["deciding verdicts"]]
    notes = [note.rstrip(".") for note in next(iter(stored["methods"].values()))["notes"]]
    return [*lines, "", f"{'. '.join(notes)}.", ""]


TITLES = {"spark": "SparK", "uni4eye": "Uni4Eye"}


def tables() -> str:
    """The stored figures as Markdown."""
    stored = json.loads(RESULT.read_text())
    parts: list[str] = []
    for name in SETS:
        if name in stored:
            parts += set_table(name, stored[name])
    if "eyes" in stored:
        parts += eyes.table(stored["eyes"])
    return "\n".join(parts)


def write_page() -> None:
    """Put the stored figures into the page."""
    put_into_page(PAGE, START, END, tables())


def main() -> None:
    arguments = parse(__doc__, "medical", [*SETS, "eyes"], write_page)
    if arguments is None:
        return
    share = arguments.share
    for name, plan in SETS.items():
        SETS[name] = replace(plan, steps=max(2, round(plan.steps * share)), tuning=max(2, round(plan.tuning * share)))
    for name in arguments.only:
        if name == "eyes":
            found = eyes.run(arguments.data, arguments.out, arguments.seeds, share)
        else:
            found = run_set(name, arguments.data, arguments.out, arguments.seeds)
        if not arguments.quick:
            store_figures(RESULT, name, found)


if __name__ == "__main__":
    main()
