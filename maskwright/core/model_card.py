"""Model cards: what a run itself can say about its encoder, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from maskwright.core.encoder.base import Encoder
from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.trainer.run import Run

SHOWN_CHANNELS = 16
"""Channels whose scaling the card lists; config.json and the weights hold all."""


@dataclass(frozen=True)
class Facts:
    """What is known of an encoder, gathered from the folder that holds it.

    Args:
        description: encoder.json.
        run: the run it comes from, or None where the folder is none.
        scores: (where, content) of each score table in the run.
    """

    encoder: Encoder
    description: dict[str, Any]
    run: Run | None = None
    scores: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.description.get("method", "") or "")

    @property
    def preset(self) -> str:
        return str(self.description.get("preset", "") or "")

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.method, self.preset) if part) or type(self.encoder).__name__


def gather(encoder: Encoder, folder: Path) -> Facts:
    """Facts of an encoder in a run, or in any folder with encoder.json."""
    described = folder / "encoder.json"
    description = json.loads(described.read_text()) if described.is_file() else {}
    run = Run(folder) if (folder / "recipe.yaml").is_file() else None
    return Facts(encoder, description, run, read_score_tables(folder))


def read_score_tables(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Score tables of a run: `scores.json`, and those of its evaluations, with the folder of each."""
    tables = []
    for path in [folder / "scores.json", *sorted(folder.glob("evaluations/**/scores.json"))]:
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("rows"), list):
            tables.append((str(path.parent.relative_to(folder)), content))
    return tables


def inputs_of(facts: Facts) -> dict[str, dict[str, Any]]:
    """Dimensions, channels, unit and scaling of each input, JSON-able.

    The scaled value is (x - offset) / scale, clipped to 0 ... 1 for `two-sigma`; lists of length C.
    """
    known = facts.description.get("inputs") or {}
    described = {}
    for name, spec in facts.encoder.inputs.items():
        said = known.get(name) or {}
        normalizer = facts.encoder.normalizers[name]
        assert isinstance(normalizer, Normalizer)
        described[name] = {
            "dims": spec.dims,
            "channels": said.get("channels") or spec.channels,
            "unit": said.get("unit") or spec.unit,
            "normalization": {
                "kind": normalizer.kind,
                "offset": normalizer.offset.tolist(),
                "scale": normalizer.scale.tolist(),
            },
        }
    return described


def _channel_rows(described: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, spec in described.items():
        channels, scaling = spec["channels"], spec["normalization"]
        offsets, scales = scaling["offset"], scaling["scale"]
        names = channels if isinstance(channels, list | tuple) else [str(number) for number in range(len(offsets))]
        for channel, offset, scale in list(zip(names, offsets, scales, strict=False))[:SHOWN_CHANNELS]:
            numbers = ["", ""] if scaling["kind"] == "none" else [f"{offset:.6g}", f"{scale:.6g}"]
            rows.append([name, str(channel), spec["unit"] or "not stated", scaling["kind"], *numbers])
        if len(offsets) > SHOWN_CHANNELS:
            rows.append([name, f"and {len(offsets) - SHOWN_CHANNELS} more", "", "", "", ""])
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(columns), line(["---"] * len(columns)), *map(line, rows), ""]


def _training_rows(run: Run) -> list[list[str]]:
    """What recipe, metrics and environment say; the path of the data is cut to its last part."""
    recipe = run.recipe()
    rows = [["data", f"{Path(recipe.data.path).name} (loader {recipe.data.loader})"]]
    if recipe.masking is not None:
        options = ", ".join(f"{key}={value}" for key, value in recipe.masking.options.items() if value is not None)
        rows.append(["masking", f"{recipe.masking.name} ({options})" if options else recipe.masking.name])
    rows += [["note", note] for note in run.notes()]
    rows.append(["seed", str(recipe.seed)])
    metrics = run.metrics()
    losses = [row for row in metrics if "loss" in row]
    if losses:
        last = losses[-1]
        rows.append(["steps", f"{last['step']} (the last that was logged)"])
        rows.append(["loss at that step", f"{last['loss']:.4g}"])
    rows.append(["batch size", f"{recipe.trainer.batch_size} a process"])
    environment = run.environment()
    rows += [[name, str(environment[name])] for name in ("device", "precision", "torch") if name in environment]
    return rows


def _score_lines(facts: Facts) -> list[str]:
    if not facts.scores:
        return ["No evaluation is stored with this run.", ""]
    lines = []
    for where, content in facts.scores:
        heading = str(content.get("title") or "Scores")
        lines += [f"### {heading}" + ("" if where == "." else f" ({where})"), ""]
        rows = [row for row in content["rows"] if isinstance(row, dict)]
        shared = any(row.get("fraction", 1.0) != 1.0 for row in rows)
        columns = [
            "features",
            "protocol",
            "metric",
            *(["share of labels"] if shared else []),
            "mean",
            "spread",
            "values",
        ]
        cells = []
        for row in rows:
            fraction = [f"{row.get('fraction', 1.0):.3g}"] if shared else []
            values = row.get("values", [])
            spread = f"{row['std']:.3f}" if len(values) > 1 and "std" in row else ""
            mean = f"{row['mean']:.3f}" if isinstance(row.get("mean"), int | float) else ""
            cells.append(
                [
                    *(str(row.get(key, "")) for key in ("features", "protocol", "metric")),
                    *fraction,
                    mean,
                    spread,
                    str(len(values)),
                ]
            )
        lines += _table(columns, cells)
        lines += [f"- {_verdict(verdict)}" for verdict in content.get("verdicts", []) if isinstance(verdict, dict)]
        lines += [f"- {note}" for note in content.get("notes", [])]
        lines.append("")
    return lines


def _verdict(verdict: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{name} {verdict[key]:+.3f}"
        for name, key in (("difference", "difference"), ("95 % interval from", "low"), ("to", "high"))
        if isinstance(verdict.get(key), int | float)
    )
    where = ", ".join(str(verdict[key]) for key in ("protocol", "metric") if key in verdict)
    share = verdict.get("fraction", 1.0)
    labels = f", {share:.3g} of the labels" if share != 1.0 else ""
    return f"Against {verdict.get('baseline', 'a baseline')} ({where}{labels}): {verdict.get('words', '')} ({numbers})."


def _front_matter(facts: Facts) -> str:
    tags = ["maskwright", *(["masked-pretraining", facts.method] if facts.method else [])]
    return "---\n" + yaml.safe_dump({"library_name": "maskwright", "tags": tags}, sort_keys=False) + "---\n\n"


def write_card(facts: Facts, files: dict[str, str], how_to_load: str, notes: Sequence[str] = ()) -> str:
    """The text of README.md.

    Args:
        files: what each file beside the card is.
        how_to_load: Markdown.
        notes: further sentences, such as the result of a numerical check.
    """
    encoder = facts.encoder
    described = inputs_of(facts)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    model_rows = [["encoder", type(encoder).__name__]]
    model_rows += [["method", facts.method]] if facts.method else []
    model_rows += [["preset", facts.preset]] if facts.preset else []
    model_rows += [["parameters", f"{count:,}"], ["width of an embedding", str(encoder.embed_dim)]]
    lines = [f"# {facts.name}", ""]
    lines += [
        "An encoder pre-trained by masking with maskwright." if facts.run else "An encoder, exported by maskwright."
    ]
    lines += ["", "## Model", "", *_table(["", ""], model_rows), "## Inputs", ""]
    lines += [
        "Inputs are physical units as given here. The encoder itself scales them: (x - offset) / scale, clipped to"
    ]
    lines += ["0 ... 1 where the scaling is two-sigma.", ""]
    lines += [f"- `{name}`: (batch, {', '.join(spec['dims'].split())})" for name, spec in described.items()]
    lines += ["", *_table(["input", "channel", "unit", "scaling", "offset", "scale"], _channel_rows(described))]
    if facts.run is not None:
        lines += ["## Training", "", *_table(["", ""], _training_rows(facts.run))]
        lines += ["## Evaluation", "", *_score_lines(facts)]
    elif facts.scores:
        lines += ["## Evaluation", "", *_score_lines(facts)]
    lines += ["## Files", "", *_table(["file", ""], [[f"`{name}`", what] for name, what in files.items()])]
    lines += ["## How to load it", "", how_to_load, ""]
    lines += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    lines += ["## Licence", "", "Not stated. Whoever publishes this encoder chooses one that the data allow.", ""]
    return _front_matter(facts) + "\n".join(lines)
