"""Embeddings of a whole archive as one Parquet file: streamed, resumable, shared among processes.

The archive is cut into parts of a fixed number of samples, and parts into batches of a fixed size, both from position 0
on. A process works on whole parts, so that a batch holds the same samples whoever computes it: the embeddings of all
shards are bit-equal to those of one process on the same kind of machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata as versions
from pathlib import Path
from typing import Any, Literal

import torch

from maskwright.core.embed_shards import checked_out
from maskwright.core.embed_work import Embedded, Progress, Work
from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, nearest
from maskwright.core.evaluation.open import open_run_data
from maskwright.core.loader import Loader
from maskwright.core.parts import Parts, parse_shard, shard_path
from maskwright.core.recipe import parse_settings
from maskwright.core.sample import check_inputs
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.core.trainer.run import Run, describe_environment


def embed(run: Run | str | Path | Encoder, data: str | Path | None, out: str | Path, **options: Any) -> Path:
    """Embed an archive and write a Parquet file; GeoParquet 1.1 where the data are georeferenced.

    Interrupted at any moment, the same call goes on where it stopped. Options are those of `embed_archive`.

    Args:
        run: a run, anything else that `open_encoder` takes (`timm:NAME`), or an encoder.
        data: file or folder to read; the run's own without it.
        out: file to write, `FILE.parquet`.

    Returns:
        Path of the file.

    Raises:
        As `embed_archive`.
    """
    return embed_archive(run, data, out, **options).path


def embed_archive(
    run: Run | str | Path | Encoder,
    data: str | Path | None,
    out: str | Path,
    *,
    level: Literal["pooled", "tokens"] = "pooled",
    part: str = "",
    shard: str | tuple[int, int] = (1, 1),
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    half: bool = False,
    max_bad: float = 0.05,
    settings: dict[str, Any] | Sequence[str] = (),
    part_samples: int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed an archive and say what came of it. See `embed`, and `embed_rows` for the columns.

    Args:
        level: one row a sample ("pooled") or one a token ("tokens").
        part: embedding of one of the encoder's parts, such as "optical" of CROMA.
        shard: "i/n": work on the i-th of n shares (from 1) and write FILE-i-of-n.parquet; `merge_shards` joins them.
        half: store float16; computed is in float32.
        max_bad: share of samples that may be unreadable; a single one never ends the work.
        settings: ["data.size=120"]; the run's own settings of the data without them.
        part_samples: samples between two safe points; up to 2048 or 32 MB without it.
        progress: called after each batch.

    Raises:
        ConfigError: options that do not fit, another process at work on the file, or a file or parts made otherwise.
        DataError: data or a run that cannot be read.
        DiskFullError: says how much is needed; what was done is whole, and the same call goes on.
        EmbeddingStopped: more than `max_bad` of the samples cannot be read; what was done is kept.
    """
    number, count = parse_shard(shard)
    if batch_size < 1 or workers < 0 or not 0 <= max_bad <= 1 or (part_samples is not None and part_samples < 1):
        raise ConfigError(
            f"batch_size={batch_size}, workers={workers}, max_bad={max_bad}, part_samples={part_samples}: at least one "
            f"sample, no negative number, and a share in [0, 1] are needed."
        )
    if level not in ("pooled", "tokens"):
        raise ConfigError(f'level="{level}" is neither pooled nor tokens.')
    out = checked_out(out)
    place, loader_name, loader = open_data(run, data, settings)
    encoder = open_model(run, loader)
    kind = resolve_accelerator(device)
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no GPU here. Use auto or cpu (`maskwright doctor`).")
    encoder.to(kind)
    plan = {
        "encoder": hash_of_encoder(encoder),
        "data": {
            "path": str(data) if data is not None else "the run's own",
            "loader": loader_name,
            "settings": parse_settings(settings),
            "samples": len(loader),
            "content": hash_of_data(loader, Path(place)),
        },
        "level": level,
        "part": part,
        "half": half,
        "batch_size": batch_size,
        "part_samples": part_samples,
        "device": kind,
        "shard": f"{number}/{count}",
    }
    target = out if count == 1 else shard_path(out, number, count)
    about = {
        "run": describe(run),
        "method": _method(run),
        "environment": {**describe_environment(kind), "pyarrow": versions.version("pyarrow")},
    }
    work = Work(
        loader, encoder, Parts(target, plan), (number, count), part, level, batch_size, workers, half, max_bad,
        part_samples, about, progress,
    )  # fmt: skip
    with work.parts.held():
        return work.run()


# what is asked for ---------------------------------------------------------------------------------------------------


def _run_of(run: Run | str | Path | Encoder) -> Run | None:
    if isinstance(run, Run):
        return run
    if isinstance(run, (str, Path)) and (Path(run) / "recipe.yaml").is_file():
        return Run.open(run)
    return None


def describe(run: Run | str | Path | Encoder) -> str:
    return type(run).__name__ if isinstance(run, Encoder) else str(run.path if isinstance(run, Run) else run)


def _method(run: Run | str | Path | Encoder) -> str:
    opened = _run_of(run)
    return opened.recipe().method.name or "" if opened else ""


def open_data(
    run: Run | str | Path | Encoder, data: str | Path | None, settings: dict[str, Any] | Sequence[str]
) -> tuple[str, str, Loader]:
    """Path, name of the loader, and loader for `data`, with the run's settings of its own data where they fit."""
    sections = parse_settings(settings)
    unknown = [name for name in sections if name != "data"]
    if unknown:
        raise ConfigError(f"{unknown[0]}: only data.OPTION can be set here.{nearest(unknown[0], ['data'])}")
    opened = _run_of(run)
    name, _, loader = open_run_data(opened, data, sections.get("data", {}))
    return str(data) if data is not None or opened is None else opened.recipe().data.path, name, loader


def open_model(run: Run | str | Path | Encoder, loader: Loader) -> Encoder:
    """The encoder, checked against what the loader gives."""
    from maskwright.core.encoder.outside import open_encoder

    encoder = open_encoder(run, loader)
    check_inputs(loader.spec, encoder.inputs, "the data", "this encoder")
    return encoder.eval()


# what identifies the work ------------------------------------------------------------------------------------------


def hash_of_encoder(encoder: Encoder) -> str:
    """SHA-256, shortened, of class, options and every weight."""
    digest = hashlib.sha256(f"{type(encoder).__module__}:{type(encoder).__name__}".encode())
    digest.update(json.dumps(getattr(encoder, "options", {}), sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def hash_of_data(loader: Loader, path: Path) -> str:
    """SHA-256, shortened, of names, sizes and times of all files that samples are read from, in their order."""
    digest = hashlib.sha256()
    if type(loader).sources is Loader.sources:  # which would read every sample
        found = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in loader.suffixes]
        _add_files(digest, found or [str(path)])
    else:
        last: list[str] = []
        for index in range(len(loader)):
            files = loader.sources(index)
            if files != last:
                _add_files(digest, files)
                last = files
    for bad in loader.bad_files:
        digest.update(f"bad {bad.path}\n".encode())
    return digest.hexdigest()[:16]


def _add_files(digest: Any, files: Sequence[str]) -> None:
    for file in files:
        try:
            status = Path(file).stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{file} is gone\n".encode())
