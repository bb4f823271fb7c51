"""`export`: an encoder out of its run, in files that others read."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskwright.core.build import open_loader
from maskwright.core.encoder.base import Encoder
from maskwright.core.encoder.outside import open_encoder
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.huggingface import CONFIG, PREPROCESSOR, WEIGHTS, write_huggingface
from maskwright.core.model_card import Facts, gather, write_card
from maskwright.core.onnx_export import export_onnx, random_inputs, require_onnx
from maskwright.core.sample import collate
from maskwright.core.trainer.files import refuse_full, whole_folder, write_text, write_with
from maskwright.core.trainer.run import Run

FORMATS = ("safetensors", "onnx", "huggingface")
CHECKED = 4
"""Samples on which an ONNX file is checked."""


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, its files, and the numerical check of the ONNX file if there is one."""

    folder: Path
    files: list[Path]
    check: dict[str, Any] = field(default_factory=dict)


def export(
    run: str | Path | Run,
    out: str | Path,
    formats: Sequence[str] | str = ("safetensors",),
    size: int | tuple[int, ...] | None = None,
    trust: bool = False,
) -> Exported:
    """Write the encoder of a run into a new folder, with a model card. The folder appears whole or not at all.

    Args:
        run: a run, or a folder with encoder.json and encoder.safetensors.
        out: folder to write; must not exist, or be empty.
        formats: "safetensors" (for `maskwright.load`), "onnx" (for onnxruntime and others; checked against torch),
            "huggingface" (the hub's layout; nothing is uploaded).
        size: pixels along each axis of the ONNX file's input; that of the run's data without it.
        trust: also run code that the folder names (`torch:` encoders).

    Raises:
        ConfigError: an unknown format, a folder that holds something, or a size that the encoder does not take.
        DataError: no finished encoder.
        OnnxMismatch: the ONNX file computes something else than torch.
        PluginError: a library of a format is missing.
    """
    wanted = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise ConfigError(f'There is no format "{name}".{nearest(name, FORMATS)}')
    if not wanted:
        raise ConfigError(f"No format is named. Known: {', '.join(FORMATS)}.")
    if size is not None and "onnx" not in wanted:
        raise ConfigError("size is the size of an ONNX file's input; the other formats take any. Leave it out.")
    if "onnx" in wanted:
        require_onnx()
    source = run.path if isinstance(run, Run) else Path(run)
    target = Path(out)
    refuse_full(target)
    encoder = open_encoder(source, trust=trust)
    facts = gather(encoder, source)
    with whole_folder(target) as folder:
        check = _write(facts, source, folder, wanted, size)
    return Exported(target, sorted(target.iterdir()), check)


def _write(facts: Facts, source: Path, folder: Path, formats: Sequence[str], size: Any) -> dict[str, Any]:
    files: dict[str, str] = {}
    loading, notes = [], []
    check: dict[str, Any] = {}
    if "safetensors" in formats:
        for name in ("encoder.safetensors", "encoder.json"):
            origin = source / name
            if not origin.is_file():
                raise DataError(origin, "there is no such file", "a run", "Export from the run itself")
            write_with(folder / name, functools.partial(shutil.copyfile, origin))
        files["encoder.safetensors"] = "weights and scaling of the inputs"
        files["encoder.json"] = "class, options and inputs of the encoder"
    if "huggingface" in formats:
        write_huggingface(facts, folder)
        files |= {WEIGHTS: "weights", CONFIG: "class, options and inputs of the encoder"}
        files[PREPROCESSOR] = "inputs and their scaling, for information"
    if "safetensors" in formats or "huggingface" in formats:
        loading.append(_PYTHON)
    if "onnx" in formats:
        inputs, where = _check_inputs(facts, _as_size(size))
        check = export_onnx(facts.encoder, inputs, folder, where)
        files |= {"encoder.onnx": "the encoder as ONNX", "encoder.onnx.json": "its comparison with torch"}
        loading.append(_onnx_example(check))
        far = ", ".join(f"{name} {value:.1e}" for name, value in check["max_difference_relative_to_std"].items())
        notes.append(
            f"Largest difference of the ONNX file from torch, in standard deviations: {far} ({check['checked_on']})."
        )
    write_text(folder / "README.md", write_card(facts, files, "\n\n".join(loading), notes))
    return check


_PYTHON = """```python
import maskwright as mw

encoder = mw.load(".")  # this folder
```

`encoder.embed(sample).pooled` is one vector a sample, `.tokens` one a token."""


def _onnx_example(check: dict[str, Any]) -> str:
    shapes = "; ".join(f"`{name}` ({', '.join(map(str, shape))})" for name, shape in check["inputs"].items())
    arrays = ", ".join(f'"{name}": {name}' for name in check["inputs"])
    return f"""```python
import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")
pooled, tokens = session.run(["pooled", "tokens"], {{{arrays}}})
```

Inputs are float32 arrays in physical units: {shapes}."""


# a batch for the check ----------------------------------------------------------------------------------------------


def _as_size(size: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    return (size,) if isinstance(size, int) else tuple(size)


def _check_inputs(facts: Facts, size: tuple[int, ...] | None) -> tuple[dict[str, Tensor], str]:
    """Inputs for the ONNX check and where they are from: the run's data if they can be read, else made up."""
    encoder = facts.encoder
    real = _real_inputs(facts.run, encoder) if facts.run is not None else {}
    sizes = {tuple(tensor.shape[2:]) for tensor in real.values()}
    if real and (size is None or all(_same(size, found) for found in sizes)):
        return real, "the run's data"
    wanted = size or next(iter(sizes), None) or _own_size(encoder)
    if wanted is None:
        raise ConfigError("The run's data cannot be read, so the size of the input is not known. Give it: --size 120.")
    if real:
        cut = {name: _cut(tensor, wanted) for name, tensor in real.items()}
        if all(_same(wanted, tuple(tensor.shape[2:])) for tensor in cut.values()):
            return cut, "the run's data, cut to size"
    return random_inputs(encoder, wanted, CHECKED), "random values in the range of the statistics"


def _real_inputs(run: Run, encoder: Encoder) -> dict[str, Tensor]:
    """The first samples of a run's data; nothing where they are gone, unreadable or of several sizes."""
    data = run.recipe().data
    try:
        _, loader = open_loader(data.path, data.loader, **data.options)
        samples = [loader.read(index) for index in range(min(CHECKED, len(loader)))]
        batch = collate(samples)
    except (DataError, ConfigError):
        return {}
    needed = {name for name, spec in encoder.inputs.items() if not spec.optional}
    inputs = {name: batch[name].float() for name in encoder.inputs if name in batch.tensors}
    if not inputs or not needed <= set(inputs):
        return {}
    if not all(bool(tensor.isfinite().all()) for tensor in inputs.values()):
        return {}
    repeats = -(-CHECKED // len(samples))  # the check runs on another batch size than the export
    return {name: torch.cat([tensor] * repeats)[:CHECKED] for name, tensor in inputs.items()}


def _same(size: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return found == (size * len(found) if len(size) == 1 else size)


def _cut(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """The first pixels along each axis, as many as `size` says or as there are."""
    axes = tensor.ndim - 2
    lengths = size * axes if len(size) == 1 else size
    for axis, length in enumerate(lengths):
        tensor = tensor.narrow(axis + 2, 0, min(length, tensor.shape[axis + 2]))
    return tensor.contiguous()


def _own_size(encoder: Encoder) -> tuple[int, ...] | None:
    """The size that an encoder's options name, or None."""
    found = encoder.options.get("img_size") or encoder.options.get("size")
    return _as_size(found) if found else None
