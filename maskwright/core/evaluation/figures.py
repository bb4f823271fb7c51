"""Figures of an evaluation, as PNG bytes: label efficiency, confusion, and truth against prediction."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from maskwright.core.evaluation.scores import Score

COLOURS = ("#0b6e8a", "#c77700", "#6b7787", "#9a5ab8", "#3d8f4e", "#b04a4a", "#8a7a1f", "#444444")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_CLASSES = 30
"""Classes up to which a confusion matrix can still be read."""


def to_png(figure: Figure) -> bytes:
    """PNG of a figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def draw_efficiency(rows: Sequence[Score], metric: str) -> bytes | None:
    """Score over the share of labels, a panel a protocol; None where there is one share only."""
    rows = [row for row in rows if row.metric == metric]
    shares = sorted({row.fraction for row in rows})
    if len(shares) < 2:
        return None
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    names = list(dict.fromkeys(row.features for row in rows))
    columns = min(2, len(protocols))
    lines = -(-len(protocols) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines + 0.5), dpi=130)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axis, protocol in zip(axes, protocols, strict=False):
        for number, name in enumerate(names):
            points = sorted((r.fraction, r.mean, r.std) for r in rows if (r.protocol, r.features) == (protocol, name))
            if points:
                x, y, spread = zip(*points, strict=True)
                axis.errorbar(
                    x, y, spread, label=name, color=COLOURS[number % 8], marker=MARKS[number % 8], markersize=4,
                    linewidth=1.2, capsize=2,
                )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
        axis.minorticks_off()
        axis.set_title(protocol, fontsize=9)
        axis.set_xlabel("share of the training labels", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(protocols) :]:
        axis.set_visible(False)
    axes[0].set_ylabel(metric, fontsize=8)
    handles = {}
    for axis in axes:
        handles.update(dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)))
    figure.legend(handles.values(), handles, loc="lower center", ncols=min(3, len(handles)), fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return to_png(figure)


def draw_scores(rows: Sequence[Score], metric: str) -> bytes:
    """Score of each kind of features, a mark a protocol, with the spread over seeds."""
    share = max(row.fraction for row in rows)
    rows = [row for row in rows if row.metric == metric and row.fraction == share]
    names = list(dict.fromkeys(row.features for row in rows))
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    figure = Figure(figsize=(7, 0.45 * len(names) + 1.3), dpi=130)
    axis = figure.subplots()
    for number, protocol in enumerate(protocols):
        mine = [row for row in rows if row.protocol == protocol]
        shift = (number - (len(protocols) - 1) / 2) * 0.12
        axis.errorbar(
            [row.mean for row in mine], [names.index(row.features) + shift for row in mine],
            xerr=[row.std for row in mine], fmt=MARKS[number % 8], color=COLOURS[number % 8], markersize=5,
            linewidth=1, capsize=2, label=protocol,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(metric, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.25), ncols=3)
    figure.tight_layout()
    return to_png(figure)


def draw_confusion(table: np.ndarray, classes: Sequence[str]) -> bytes | None:
    """Confusion matrix, rows (the truth) as shares; None where there are too many classes to read it."""
    if len(classes) > MAX_CLASSES:
        return None
    total = table.sum(1, keepdims=True)
    share = np.divide(table, total, out=np.zeros_like(table, dtype=float), where=total > 0)
    side = max(3.2, 0.42 * len(classes) + 1.6)
    figure = Figure(figsize=(side, side), dpi=130)
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=90, fontsize=7)
    axis.set_yticks(ticks, classes, fontsize=7)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("truth", fontsize=8)
    for row in ticks:
        for column in ticks:
            if share[row, column] >= 0.005:
                ink = "white" if share[row, column] > 0.55 else "black"
                axis.text(column, row, f"{share[row, column]:.2f}"[-3:] if share[row, column] < 1 else "1", ha="center",
                          va="center", fontsize=6, color=ink)  # fmt: skip
    figure.tight_layout()
    return to_png(figure)


def draw_regression(truth: Sequence[float], predicted: Sequence[float], name: str) -> bytes:
    """Prediction against truth, with the line where they are equal."""
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    figure = Figure(figsize=(3.8, 3.8), dpi=130)
    axis = figure.subplots()
    axis.plot(x, y, ".", markersize=3, alpha=0.5, color=COLOURS[0])
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color=COLOURS[2], linewidth=1)
    axis.set_xlabel(f"truth, {name}", fontsize=8)
    axis.set_ylabel("prediction", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return to_png(figure)
