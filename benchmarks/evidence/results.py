"""Results of experiments as JSON with their environment, and the page that is made of them.

python -m benchmarks.evidence.results    # writes docs/results.md from benchmarks/evidence/results/*.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskwright.core.evaluation.scores import ScoreTable

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def write_result(name: str, table: ScoreTable) -> Path:
    """Store a method's score table with the environment it was measured in."""
    from maskwright.core.trainer.run import describe_environment

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**table.as_dict(), "environment": describe_environment()}, indent=1) + "\n")
    return path


def _section(name: str, result: dict[str, Any]) -> list[str]:
    lines = [f"## {name}", "", f"Made by `python -m benchmarks.evidence.{name}`.", "", result["title"], ""]
    lines += ["| features | protocol | mean | deviation over seeds | seeds |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        count = len(row["values"])
        spread = f"{row['std']:.3f}" if count > 1 else "no seed plays a part"
        lines.append(
            f"| {row['features']} | {row['protocol']}, {row['metric']} | {row['mean']:.3f} | {spread} | {count} |"
        )
    lines.append("")
    for verdict in result["verdicts"]:
        lines.append(
            f"- against {verdict['baseline']}: **{verdict['words']}** ({verdict['difference']:+.3f}, 95 % interval "
            f"{verdict['low']:+.3f} to {verdict['high']:+.3f})"
        )
    lines.append("")
    lines += [f"{note}\n" for note in result["notes"]]
    environment = result["environment"]
    shown = {key: environment[key] for key in ("maskwright", "torch", "python", "cpu", "device") if key in environment}
    lines += ["Measured with " + ", ".join(f"{key} {value}" for key, value in shown.items()) + ".", ""]
    return lines


def render() -> str:
    """The text of docs/results.md."""
    lines = [
        "# Reproduced results",
        "",
        "Made of `benchmarks/evidence/results/*.json` by `python -m benchmarks.evidence.results`; a test",
        "fails when it is stale. Every figure comes from the command named with it.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        lines += _section(path.stem, json.loads(path.read_text()))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
    print("wrote", PAGE)
