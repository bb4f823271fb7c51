"""The command line that the evidence scripts share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import environment
from maskwright.core.trainer.files import write_text


def parse(
    description: str | None,
    domain: str,
    sets: Iterable[str],
    write_page: Callable[[], None],
    methods: Iterable[str] = (),
) -> argparse.Namespace | None:
    """Options of a script, with `seeds` and the `share` of the steps as `--quick` has them; None where `--page` was all.

    Args:
        domain: names the page, docs/DOMAIN.md, and the folder of results, runs/DOMAIN-evidence.
        sets: what `--only` chooses from.
        methods: what `--methods` chooses from; without any there is no such option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds the sets")
    parser.add_argument("--out", type=Path, default=Path(f"runs/{domain}-evidence"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(sets), default=list(sets))
    if methods:
        parser.add_argument("--methods", nargs="+", choices=list(methods))
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the steps, one seed; nothing is written")
    parser.add_argument("--page", action="store_true", help=f"only put the stored figures into docs/{domain}.md")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return None
    if arguments.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(1)
    arguments.share = 0.02 if arguments.quick else 1.0
    arguments.seeds = 1 if arguments.quick else arguments.seeds
    return arguments


def store_figures(result: Path, name: str, found: dict[str, Any]) -> None:
    """Put what was found of one set into the file of results; figures of other sets stay."""
    whole = json.loads(result.read_text()) if result.is_file() else {}
    whole = {key: value for key, value in {**whole, name: found}.items() if key != "environment"}
    whole["environment"] = environment(0)
    write_text(result, json.dumps(whole, indent=1) + "\n")
