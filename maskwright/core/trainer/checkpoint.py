"""Checkpoints: one safetensors file each, with all other state as JSON in its header. No pickle.

`last.safetensors` is the newest, `previous.safetensors` the one before, `best.safetensors` the one after the interval
of lowest mean training loss. A new file is complete and synced before it takes the name of an old one, so a kill at
any moment leaves a whole checkpoint behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskwright.core.errors import DataError
from maskwright.core.trainer.files import atomic
from maskwright.core.trainer.sharding import like

FORMAT = 1


@dataclass
class Checkpoint:
    """State of a run after `step` optimiser steps.

    Args:
        step: optimiser steps done.
        tensors: "method.NAME", "optimizer.NAME.KEY" and "ema.NAME" tensors.
        state: further JSON-able state.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix.`, without it."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(prefix + ".")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser whose groups carry `names`: {"NAME.exp_avg": tensor}."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = {
                key: like(tensors[f"{name}.{key}"], parameter)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in tensors
            }
            if state:
                optimizer.state[parameter] = state


def save(folder: Path, checkpoint: Checkpoint, best: bool = False) -> Path:
    """Write `last.safetensors`, keeping the one before as `previous.safetensors`; also as `best` if it is.

    Raises:
        DiskFullError: no space; the checkpoints that were there are whole.
    """
    last, previous = folder / "last.safetensors", folder / "previous.safetensors"
    header = {"format": FORMAT, "step": checkpoint.step, "state": checkpoint.state}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    fresh = folder / "next.safetensors"
    with atomic(fresh) as temporary:
        save_file(tensors, str(temporary), metadata={"maskwright": json.dumps(header)})
    if last.exists():
        os.replace(last, previous)  # a kill here leaves `next` and `previous`, both whole
    os.replace(fresh, last)
    if best:
        link = folder / ".best.tmp"
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)  # the same bytes under a second name; `last` is never written in place
        except OSError:  # a file system without hard links
            shutil.copyfile(last, link)
        os.replace(link, folder / "best.safetensors")
    return last


def read(path: Path) -> Checkpoint:
    """Read one file.

    Raises:
        DataError: damaged, or no checkpoint of maskwright.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("maskwright", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(path, f"is damaged or no checkpoint ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else "none"
        raise DataError(path, f"has checkpoint format {found}", f"format {FORMAT}")
    return Checkpoint(header["step"], tensors, header["state"])


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a folder, or None; and a sentence for each damaged one that was passed over.

    Raises:
        DataError: there are checkpoints, but none is whole.
    """
    complaints: list[str] = []
    for name in ("next", "last", "previous"):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            return read(path), complaints
        except DataError as error:
            complaints.append(str(error))
    if complaints:
        raise DataError(folder, "no checkpoint in it is whole: " + " ".join(complaints))
    return None, complaints
