"""A task model on disk: encoder.safetensors, encoder.json, head.safetensors, task.json, metrics.csv."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maskwright.core.encoder.outside import open_encoder
from maskwright.core.errors import DataError
from maskwright.core.evaluation.task import Targets
from maskwright.core.evaluation.task_model import TaskModel
from maskwright.core.recipe import Recipe
from maskwright.core.sample import InputSpec
from maskwright.core.trainer.files import whole_folder, write_text, write_with
from maskwright.core.trainer.run import Run

FILES = ("encoder.safetensors", "encoder.json", "head.safetensors", "task.json")
"""What makes a task model; metrics.csv is for people."""


@dataclass(frozen=True)
class TaskFolder:
    """A task model and where it lies. `facts` is what task.json says: task, labels, data, budget, losses, scores."""

    path: Path
    model: TaskModel
    facts: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels along each axis of the samples that it was trained on."""
        return tuple(self.facts["size"])

    @property
    def fill(self) -> dict[str, list[float]]:
        """What stands for a missing pixel, a channel, of each input: the mean of the training data."""
        return self.facts["fill"]

    def fingerprint(self) -> str:
        """Changes when anything about the model does: 16 hexadecimal digits of SHA-256."""
        digest = hashlib.sha256()
        for name in FILES:
            digest.update(name.encode() + (self.path / name).read_bytes())
        return digest.hexdigest()[:16]


def save_task_model(path: Path, model: TaskModel, inputs: InputSpec, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write a task model. The folder appears at once and whole, or not at all.

    Raises:
        ConfigError: the folder is there already and not empty.
    """
    with whole_folder(path) as folder:
        Run(folder).write_encoder(model.encoder, inputs, recipe)
        head = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if not name.startswith("encoder.")
        }
        write_with(folder / "head.safetensors", lambda temporary: save_file(head, str(temporary)))
        targets = model.targets
        described = {
            "kind": targets.kind,
            "classes": list(targets.classes),
            "codes": list(targets.codes),
            "colours": None if targets.colours is None else [list(colour) for colour in targets.colours],
            **facts,
        }
        write_text(folder / "task.json", json.dumps(described, indent=1))
        rows = [f"{step},{loss!r}" for step, loss in enumerate(model.losses, start=1)]
        write_text(folder / "metrics.csv", "\n".join(["step,loss", *rows]) + "\n")


def load_task_model(path: str | Path, trust: bool = False) -> TaskFolder:
    """Read a task model, in evaluation mode. Every tensor of its files and of the model is accounted for.

    Args:
        trust: also import code that the folder names (an encoder saved from `torch:`).

    Raises:
        DataError: a file is missing, damaged or does not fit.
    """
    path = Path(path)
    absent = [name for name in FILES if not (path / name).is_file()]
    if absent:
        found = f"lacks {', '.join(absent)}" if path.is_dir() else "there is no such folder"
        raise DataError(path, found, "a task model made by `maskwright finetune`")
    facts = _read_facts(path / "task.json")
    colours = facts["colours"]
    targets = Targets(
        facts["kind"],
        tuple(facts["classes"]),
        codes=tuple(facts["codes"]),
        colours=None if colours is None else tuple((int(r), int(g), int(b)) for r, g, b in colours),
    )
    with torch.random.fork_rng(devices=[]):
        model = TaskModel(open_encoder(path, trust=trust), targets)
    try:
        head = load_file(str(path / "head.safetensors"))
    except (SafetensorError, OSError) as error:
        raise DataError(path / "head.safetensors", f"cannot be read ({' '.join(str(error).split())[:200]})") from error
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    problems = [f"lacks {name}" for name in wanted if name not in head]
    problems += [f"holds {name}, which the model does not have" for name in head if name not in wanted]
    problems += [
        f"{name} has shape {tuple(head[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in head and head[name].shape != tensor.shape
    ]
    if problems:
        raise DataError(path / "head.safetensors", "; ".join(problems), "the head of this task")
    model.load_state_dict(head, strict=False)  # all of `wanted`; the encoder has its own file
    return TaskFolder(path, model.requires_grad_(False).eval(), facts)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
        kinds = {"kind": str, "classes": list, "codes": list, "size": list, "fill": dict, "data": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(facts[name], kind)]
        facts["colours"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"describes no task model ({type(error).__name__}: {error})") from error
    if wrong:
        raise DataError(path, f"describes no task model: {', '.join(wrong)} of another type")
    return facts
