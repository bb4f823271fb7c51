"""What to do when a number stops being one."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from maskwright.core.errors import TrainingStopped
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import BadFile, Batch
from maskwright.core.trainer.files import write_text, write_with


def tensor_summary(tensor: Tensor) -> dict[str, float | int | list[int]]:
    """Shape, extremes and number of non-finite values."""
    finite = tensor[tensor.isfinite()].float()
    return {
        "shape": list(tensor.shape),
        "not_finite": int((~tensor.isfinite()).sum()),
        "minimum": finite.min().item() if len(finite) else float("nan"),
        "maximum": finite.max().item() if len(finite) else float("nan"),
    }


def write_diagnosis(
    folder: Path, step: int, stage: str, batches: list[Batch], terms: dict[str, float], process: int = 0
) -> Path:
    """Write what led to a non-finite number at optimiser step `step`: JSON with sources and statistics, and the tensors.

    Args:
        folder: `diagnosis` folder of the run.
        stage: "loss" or "gradient".
        batches: the forward passes of the step.
        terms: last terms of the loss.
        process: which of several processes; each writes a file of its own, for each has other samples.
    """
    folder.mkdir(exist_ok=True)
    path = folder / (f"step_{step:06d}_process_{process}.json" if process else f"step_{step:06d}.json")
    report = {
        "step": step,
        "stage": stage,
        "terms": {name: repr(value) for name, value in terms.items()},
        "sources": [meta.source for batch in batches for meta in batch.metas],
        "windows": [meta.window for batch in batches for meta in batch.metas],
        "inputs": [{name: tensor_summary(tensor) for name, tensor in batch.tensors.items()} for batch in batches],
    }
    write_text(path, json.dumps(report, indent=1))
    tensors = {
        f"{i}.{name}": tensor.detach().cpu().contiguous()
        for i, batch in enumerate(batches)
        for name, tensor in batch.tensors.items()
    }
    write_with(path.with_suffix(".safetensors"), lambda temporary: save_file(tensors, str(temporary)))
    return path


def stop_for(stage: str, step: int, diagnosis: Path, batches: list[Batch], run_path: Path) -> TrainingStopped:
    """The error that ends a run after too many non-finite steps."""
    sources = sorted({meta.source for batch in batches for meta in batch.metas})
    shown = ", ".join(sources[:5]) + (f" and {len(sources) - 5} more" if len(sources) > 5 else "")
    return TrainingStopped(
        f"The {stage} became NaN or Inf at step {step}; the weights were not changed by it. Files of that step: {shown}. "
        f"Details and the tensors: {diagnosis}. Lower trainer.lr, set trainer.clip_grad=1.0, or look at these files with "
        f"`maskwright inspect`; trainer.max_bad_steps=N leaves out up to N such steps in a row. The last good checkpoint "
        f"is kept: `maskwright resume {run_path}`."
    )


def bad_file_problem(
    bad: Collection[str], last: BadFile, samples: int, settings: TrainerSection, table: Path | None = None
) -> str | None:
    """Why training should stop for its unreadable files, or None.

    Args:
        bad: distinct paths of all of them so far.
        last: the latest, with its reason.
        samples: samples of the data, unreadable ones included.
        table: where all are listed.
    """
    reason = (last.reason if last.path in last.reason else f"{last.path}: {last.reason}").rstrip(".")
    if settings.on_bad_file == "raise":
        return f"{reason}. Training stops because trainer.on_bad_file=raise; with skip it goes on without such files."
    if len(bad) <= max(settings.max_bad_fraction * samples, 1):
        return None
    shown = ", ".join(sorted(bad)[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    return (
        f"{len(bad)} files of {samples} samples could not be used, more than "
        f"trainer.max_bad_fraction={settings.max_bad_fraction} allows (raise it to go on without them): {shown}. The last, because: "
        f"{reason}." + (f" All of them: {table}" if table else " See them with `maskwright inspect`.")
    )


def effective_rank(pooled: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred features (B, D) (Roy, Vetterli 2007).

    Near 1 the encoder says the same of everything: it has collapsed. NaN where features are not finite.
    """
    if not pooled.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals((pooled - pooled.mean(0)).float())
    share = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum()).item()


def uniformity(features: Tensor, limit: int = 2000) -> float:
    """Log of the mean Gaussian kernel of pairs of normalised features (N, D): 0 for a collapse, about -4 for none.

    Source: Wang and Isola, 2020, section 4.1.2, with t = 2.
    """
    x = F.normalize(features[:limit].float(), dim=1)
    squared = (2 - 2 * x @ x.T).clamp_min(0)
    pairs = squared[~torch.eye(len(x), dtype=torch.bool, device=x.device)]
    return float((-2 * pairs).exp().mean().log()) if len(pairs) else 0.0
