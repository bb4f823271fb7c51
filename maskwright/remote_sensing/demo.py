"""The demo: CROMA pre-trained on real Sentinel-1/2 tiles that ship with maskwright, judged on a tile it never saw."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from maskwright.core.evaluation.protocol import FeatureProtocol, Linear, Neighbours, Problem, Training
from maskwright.core.evaluation.report import score_rows, write_report
from maskwright.core.evaluation.scores import Score, ScoreTable, Verdict, paired_difference
from maskwright.core.sample import Batch, Sample, collate
from maskwright.core.trainer.pretrain import pretrain
from maskwright.remote_sensing.loaders import PairLoader
from maskwright.remote_sensing.methods.croma import CromaEncoder
from maskwright.remote_sensing.raster import read_classes
from maskwright.remote_sensing.tasks import LAND_COVER, block_folds, token_labels
from maskwright.remote_sensing.writers import write_geotiff

if TYPE_CHECKING:
    from rich.console import Console

    from maskwright.core.trainer.run import Run

HELD_OUT = "433D_629L_3_1"
"""The tile with the most land cover classes; pre-training never sees it."""
SETTINGS = [
    "data.size=64",
    "trainer.batch_size=32",
    "trainer.max_steps=300",
    "trainer.lr=0.001",
    "trainer.warmup=0.1",
    "trainer.clip_grad=1.0",
    "trainer.log_every=5",
]
PATCH = 8

NOTES = [
    "What this demo does not show: a model of use. It trains a CROMA of 2 million weights for less than a minute on "
    "three tiles; the published one has 199 million and saw a million image pairs.",
    "Scores are of one held-out tile: its four quadrants take turns as the test area, with a moat of one token around "
    "it. They say nothing about other places, and the interval covers seeds and quadrants of this tile alone.",
    "Crop size and learning rate were picked among a handful of settings while looking at this tile's scores, so they are "
    "a little optimistic.",
    "The land cover raster is a product with errors of its own, not a field survey.",
]

Folds = list[tuple[np.ndarray, np.ndarray]]


def prepare_data(out: Path) -> tuple[Path, Path]:
    """Lay the shipped samples out as a user would: a folder of training pairs and one with the held-out tile.

    Returns:
        (training folder, held-out folder).
    """
    train, held_out = out / "data" / "train", out / "data" / "held_out"
    shutil.rmtree(out / "data", ignore_errors=True)
    with resources.as_file(resources.files("maskwright.remote_sensing").joinpath("samples")) as samples:
        for sensor in ("S1", "S2", "LULC"):
            for tile in sorted((samples / "terramesh" / sensor).glob("*.tif")):
                folder = (held_out if tile.stem == HELD_OUT else train) / sensor
                if tile.stem == HELD_OUT or sensor != "LULC":
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(tile, folder / tile.name)
    return train, held_out


PROTOCOLS: tuple[FeatureProtocol, ...] = (Neighbours(k=20), Linear(c=0.1))


def predict(protocol: FeatureProtocol, features: np.ndarray, labels: np.ndarray, fold: tuple) -> np.ndarray:
    """Class codes of the test tokens of a fold."""
    train, test = fold
    codes, numbers = np.unique(labels[train], return_inverse=True)
    training = Training(features[train], numbers, np.arange(len(numbers)))
    scores = protocol.predict(training, features[test], Problem("classification", len(codes)), seed=0)
    return codes[scores.argmax(1)]


def judge(features: np.ndarray, labels: np.ndarray, folds: Folds) -> dict[tuple[str, str], list[float]]:
    """Scores of token features by (protocol, metric), one value a fold: (rows, columns, D) and (rows, columns)."""
    scores: dict[tuple[str, str], list[float]] = {}
    for protocol in PROTOCOLS:
        for fold in folds:
            truth, predicted = labels[fold[1]], predict(protocol, features, labels, fold)
            with warnings.catch_warnings():  # a class that is predicted but absent from a fold is no error
                warnings.simplefilter("ignore", UserWarning)
                balanced = float(balanced_accuracy_score(truth, predicted))
            scores.setdefault((protocol.title, "accuracy"), []).append(float((truth == predicted).mean()))
            scores.setdefault((protocol.title, "balanced accuracy"), []).append(balanced)
    return scores


def encoder_features(encoder: CromaEncoder, tile: Sample) -> dict[str, np.ndarray]:
    """Token features (rows, columns, D) of a tile: joint, and of each sensor alone."""
    embedding = encoder.embed(tile)
    views = {"joint": embedding, "optical only": embedding.parts["optical"], "radar only": embedding.parts["sar"]}
    return {name: view.tokens[0].unflatten(0, view.grid.shape).cpu().numpy() for name, view in views.items()}


def raw_features(encoder: CromaEncoder, batch: Batch) -> dict[str, np.ndarray]:
    """Features without any network: all pixels of a patch, and the mean and deviation of each band in it."""
    tokens = encoder.tokenize(batch)
    grid = tokens["optical"].grid
    pixels, simple = [], []
    for name, x in tokens.items():
        values = x.values[0].unflatten(-1, (batch[name].shape[1], -1))
        pixels.append(values.flatten(1))
        simple += [values.mean(-1), values.std(-1)]
    features = {"raw pixels of both sensors": torch.cat(pixels, -1), "band means and deviations": torch.cat(simple, -1)}
    return {name: value.unflatten(0, grid.shape).numpy() for name, value in features.items()}


def write_map(path: Path, features: np.ndarray, labels: np.ndarray, folds: Folds, tile: Sample) -> float:
    """Write the land cover map that linear probes make of the tile, each quadrant by a probe that never saw it.

    One pixel a token. Returns its accuracy.
    """
    land_cover = np.zeros_like(labels)
    for fold in folds:
        land_cover[fold[1]] = predict(PROTOCOLS[-1], features, labels, fold)
    a, b, c, d, e, f = tile.meta.transform or (1, 0, 0, 0, 1, 0)
    write_geotiff(
        path,
        land_cover.astype(np.uint8),
        crs=tile.meta.crs,
        transform=(a * PATCH, b * PATCH, c, d * PATCH, e * PATCH, f),
        nodata=0,
        colormap={code: colour for code, (_, colour) in LAND_COVER.items()},
        band_names=["land_cover"],
    )
    return float((land_cover == labels).mean())


def run(out: Path, seeds: int = 3, console: Console | None = None) -> Path:
    """Run the demo into the folder `out`. Returns the path of its report.

    Args:
        out: folder to write; what an earlier demo wrote there is replaced.
        seeds: number of pre-training runs, each with its own seed.
        console: rich console for messages; a new one without it.
    """
    if console is None:
        from rich.console import Console

        console = Console()
    train, held_out = prepare_data(out)
    tile = PairLoader(held_out, size=None).read(0)
    labels = token_labels(read_classes(held_out / "LULC" / f"{HELD_OUT}.tif"), PATCH)
    folds = block_folds(labels.shape)
    by_seed: dict[str, list[dict[tuple[str, str], list[float]]]] = {}
    runs: list[Run] = []
    for seed in range(seeds):
        console.print(f"Pre-training CROMA (tiny) on three tiles, seed {seed} ({seed + 1} of {seeds})")
        folder = out / f"run-seed{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        done = pretrain("croma", data=train, preset="tiny", run=folder, settings=[*SETTINGS, f"seed={seed}"])
        runs.append(done)
        encoder = done.load_encoder()
        torch.manual_seed(seed)
        untrained = type(encoder)(**encoder.options).eval()
        untrained.normalizers.load_state_dict(encoder.normalizers.state_dict())
        for name, features in encoder_features(encoder, tile).items():
            by_seed.setdefault(f"CROMA, {name}", []).append(judge(features, labels, folds))
        for name, features in encoder_features(untrained, tile).items():
            by_seed.setdefault(f"random init, {name}", []).append(judge(features, labels, folds))
        if seed == 0:
            for name, features in raw_features(encoder, collate([tile])).items():
                by_seed.setdefault(name, []).append(judge(features, labels, folds))
    scores = make_table(by_seed)
    encoder = runs[0].load_encoder()
    map_path = out / "land_cover.tif"
    accuracy = write_map(map_path, encoder_features(encoder, tile)["joint"], labels, folds, tile)
    picture = draw_map(out / "land_cover.png", map_path, labels, tile)
    caption = (
        f"Left the reference at 80 m, right the map in land_cover.tif (accuracy {accuracy:.2f}, seed 0, joint "
        "features): each quadrant is predicted by a linear probe trained on the others."
    )
    report = write_report(runs[0], scores, [("Land cover of the held-out tile", caption, picture)])
    shutil.copyfile(report, out / "report.html")
    print_table(console, scores)
    console.print(f"\nReport: {out / 'report.html'}\nLand cover map: {map_path}\nRuns: {out}/run-seed*")
    return out / "report.html"


def make_table(by_seed: dict[str, list[dict[tuple[str, str], list[float]]]]) -> ScoreTable:
    """Score table of {features: [seed]{(protocol, metric): [fold]}} with verdicts for the joint features."""
    table = ScoreTable("Land cover of tokens (80 m) of a tile that pre-training never saw.", notes=NOTES)
    for features, seeds in by_seed.items():
        for protocol, metric in seeds[0]:
            values = [float(np.mean(scores[protocol, metric])) for scores in seeds]
            table.rows.append(Score(features, protocol, metric, values))
    ours = by_seed["CROMA, joint"]
    for baseline in ("random init, joint", "raw pixels of both sensors"):
        theirs = by_seed[baseline]
        key = ("linear probe", "accuracy")
        paired = [theirs[seed if len(theirs) > 1 else 0][key] for seed in range(len(ours))]
        table.verdicts.append(Verdict(baseline, *key, *paired_difference([seed[key] for seed in ours], paired)))
    return table


def print_table(console: Console, scores: ScoreTable) -> None:
    from rich.table import Table

    columns, rows = score_rows(scores)
    table = Table("features", *columns, title=scores.title)
    for name, cells in rows:
        table.add_row(name, *cells)
    console.print(table)
    for verdict in scores.verdicts:
        console.print(str(verdict), highlight=False)


def draw_map(out: Path, map_path: Path, labels: np.ndarray, tile: Sample) -> Path:
    """Draw reference and map side by side with a legend, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    predicted = read_classes(map_path)
    figure = Figure(figsize=(8, 4.2), dpi=120)
    for position, (title, classes) in enumerate((("reference", labels), ("map", predicted)), start=1):
        axis = figure.add_subplot(1, 2, position)
        axis.imshow(_colours(classes), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    present: Sequence[int] = np.union1d(labels, predicted).tolist()
    handles = [Patch(color=np.array(LAND_COVER[code][1]) / 255, label=LAND_COVER[code][0]) for code in present]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    FigureCanvasAgg(figure).print_png(str(out))
    return out


def _colours(classes: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), dtype=np.uint8)
    for code, (_, colour) in LAND_COVER.items():
        table[code] = colour
    return table[classes]
