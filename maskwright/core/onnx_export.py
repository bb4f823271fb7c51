"""An encoder as ONNX, and the check that it computes what torch computes."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Encoder
from maskwright.core.encoder.normalize import Normalizer
from maskwright.core.errors import ConfigError, MaskwrightError, PluginError
from maskwright.core.sample import Batch
from maskwright.core.trainer.data import generator_for
from maskwright.core.trainer.files import write_text

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Largest difference from torch, relative to the standard deviation of the output."""
OUTPUTS = ("pooled", "tokens")
LARGE = 1_500_000_000
"""Bytes of weights beyond which they go into a file of their own: one ONNX file holds less than 2 GB."""


class OnnxMismatch(MaskwrightError):
    """The ONNX file computes something else than torch, or nothing."""


class _Tensors(nn.Module):
    """An encoder as a function of tensors: inputs in the order of `encoder.inputs`, outputs pooled and tokens."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = list(encoder.inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.encoder.embed_batch(Batch(dict(zip(self.names, inputs, strict=True)), []))
        return embedding.pooled, embedding.tokens


def _distance(a: Tensor, b: Tensor, p: float, compute_mode: int | None = None) -> Tensor:
    """Euclidean distances of (..., Q, d) and (..., K, d): ONNX has no operator for torch.cdist."""
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).abs().pow(p).sum(-1).pow(1 / p)


def require_onnx() -> None:
    """Raise PluginError if a library is missing."""
    absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        raise PluginError(f'ONNX needs {", ".join(absent)}, not installed here. Run: pip install "maskwright[onnx]"')


def random_inputs(encoder: Encoder, size: tuple[int, ...], count: int) -> dict[str, Tensor]:
    """Made-up inputs (count, C, *size) in the range of the statistics that each input's scaling was fitted to.

    Of an encoder that takes one of several inputs, the first alone.
    """
    made: dict[str, Tensor] = {}
    for number, (name, spec) in enumerate(encoder.inputs.items()):
        if spec.optional and made:
            continue
        normalizer = encoder.normalizers[name]
        assert isinstance(normalizer, Normalizer)
        axes = len(spec.dims.split()) - 1
        shape = (count, spec.channel_count or 1, *(size * axes if len(size) == 1 else size))
        generator = generator_for(0, number)
        # two-sigma scales mean +- 2 deviations to 0 ... 1
        uniform = normalizer.kind == "two-sigma"
        draw = torch.rand(shape, generator=generator) if uniform else torch.randn(shape, generator=generator)
        made[name] = normalizer.invert(draw)
    return made


def export_onnx(encoder: Encoder, inputs: dict[str, Tensor], folder: Path, source: str) -> dict[str, Any]:
    """Write encoder.onnx and encoder.onnx.json (the check) into a folder.

    The batch is dynamic; channels and sizes are those of `inputs`.

    Args:
        inputs: (B, C, *size) for each input, B at least 3, in physical units: the check runs on them.
        source: where they are from, for the record.

    Returns:
        The record: shapes, and for each output the largest difference from torch relative to its standard deviation.

    Raises:
        OnnxMismatch: more than `TOLERANCE`, or onnxruntime cannot run the file; it is removed.
        ConfigError: the encoder cannot be exported.
        PluginError: a library is missing.
    """
    require_onnx()
    path = folder / "encoder.onnx"
    wrapped = _Tensors(encoder).eval()
    given = {name: inputs[name].float() for name in wrapped.names}
    try:
        encoder.embed(Batch(dict(given), []))  # a size that does not suit is told by the encoder itself
    except RuntimeError as error:
        sizes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ConfigError(f"The encoder does not take {sizes}: {' '.join(str(error).split())[:200]}") from error
    try:
        program = _convert(wrapped, tuple(tensor[:2] for tensor in given.values()))
    except Exception as error:  # the exporter raises whatever its stages raise
        raise ConfigError(
            f"{type(encoder).__name__} cannot be exported as ONNX ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Use --format safetensors."
        ) from error
    weights = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    program.save(str(path), external_data=weights > LARGE)
    try:
        differences = compare(wrapped, given, path)
    except Exception as error:  # onnxruntime's errors have no common base
        _remove(folder)
        raise OnnxMismatch(
            f"onnxruntime cannot run the ONNX file of {type(encoder).__name__} ({' '.join(str(error).split())[:300]}). "
            f"It was removed. Use --format safetensors."
        ) from error
    record = {
        "inputs": {name: ["batch", *tensor.shape[1:]] for name, tensor in given.items()},
        "outputs": list(OUTPUTS),
        "checked_on": f"{len(next(iter(given.values())))} samples: {source}",
        "max_difference_relative_to_std": differences,
        "tolerance": TOLERANCE,
    }
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= TOLERANCE:  # NaN included
        _remove(folder)
        raise OnnxMismatch(
            f'The ONNX file gave other numbers than torch: "{worst}" differs by {differences[worst]:.2e} of its standard '
            f"deviation, {TOLERANCE:g} is allowed. It was removed. Use --format safetensors."
        )
    write_text(folder / "encoder.onnx.json", json.dumps(record, indent=1))
    return record


def _remove(folder: Path) -> None:
    for leftover in folder.glob("encoder.onnx*"):
        leftover.unlink()


def _convert(wrapped: _Tensors, example: tuple[Tensor, ...]) -> Any:
    names = wrapped.names
    with _quiet(), torch.no_grad():
        batch = torch.export.Dim("batch")
        # strict tracing follows Python's len() of a tensor too; otherwise the batch would be fixed there
        exported = torch.export.export(
            wrapped, example, dynamic_shapes=(tuple({0: batch} for _ in names),), strict=True
        )
        table = torch.export.default_decompositions()
        table[torch.ops.aten._cdist_forward.default] = _distance
        return torch.onnx.export(
            exported.run_decompositions(table),
            dynamo=True,
            input_names=names,
            output_names=list(OUTPUTS),
            dynamic_shapes=(tuple({0: "batch"} for _ in names),),
            verbose=False,
        )


def compare(wrapped: nn.Module, inputs: dict[str, Tensor], path: Path) -> dict[str, float]:
    """Largest absolute difference of each output between torch and the file, relative to the output's deviation."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        ours = wrapped(*inputs.values())
    theirs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    differences = {}
    for name, a, b in zip(OUTPUTS, ours, theirs, strict=True):
        far = (a.double() - torch.from_numpy(b).double()).abs().max()
        differences[name] = float(far / a.double().std().clamp_min(torch.finfo(torch.float32).tiny))
    return differences


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress notes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
