"""Pre-training from a recipe to a finished run, and resuming one."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskwright.core.build import Built, build
from maskwright.core.encoder.teacher import EMATeacher
from maskwright.core.errors import ConfigError, DataError, TrainingStopped
from maskwright.core.host import get_host
from maskwright.core.recipe import Recipe, TrainerSection, make_recipe, validated
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import PREPARE, Plan, generator_for
from maskwright.core.trainer.files import write_text
from maskwright.core.trainer.guard import bad_file_problem
from maskwright.core.trainer.lock import locked
from maskwright.core.trainer.precision import LIGHTNING_NAME, resolve_accelerator, resolve_precision
from maskwright.core.trainer.run import Run

RUN_VARIABLE = "MASKWRIGHT_RUN"
"""Environment variable by which the first process tells those that it launches which run they belong to."""


def pretrain(
    method: str | Path | Recipe,
    data: str | Path | None = None,
    preset: str = "",
    run: str | Path | None = None,
    settings: dict[str, Any] | Sequence[str] = (),
    **trainer: Any,
) -> Run:
    """Pre-train an encoder and write a run directory.

    Args:
        method: name of a method, path of a recipe file, or a recipe.
        data: file or folder to read.
        preset: size of the method, such as "tiny".
        run: directory to write; `runs/METHOD-TIME` without it. Must not hold a run yet.
        settings: ["masking.ratio=0.6", "data.size=120"], or a dict of such keys.
        trainer: settings of the trainer, such as `epochs=5, batch_size=32`.

    Returns:
        The finished run; `maskwright.load(run)` gives its encoder.

    Raises:
        ConfigError: a recipe that cannot be used, all problems at once.
        DataError: data that cannot be read.
        TrainingStopped: non-finite numbers, or too many bad files.
        Interrupted: a signal or `max_time` stopped it; a checkpoint was written.
    """
    recipe = method if isinstance(method, Recipe) else make_recipe(method, data, preset, settings)
    if trainer:
        recipe = _with_trainer_settings(recipe, trainer)
    built = build(recipe)
    check_bad_files(built)
    launched = _rank() > 0
    if launched and run is None:
        run = os.environ.get(RUN_VARIABLE)
        if run is None:
            raise ConfigError("With several processes, name the run directory: --run DIR.")
    path = Path(run) if run is not None else Path("runs") / f"{recipe.method.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    target = Run(path) if launched else Run.create(path)
    built.method.prepare(built.loader, generator_for(built.recipe.seed, PREPARE))
    return train_built(target, built, None)


def resume(run: str | Path | Run) -> Run:
    """Continue an interrupted run from its newest whole checkpoint, to the weights it would have had without a stop.

    Raises:
        DataError: no run, or no checkpoint in it that is whole.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    newest, complaints = checkpoints.load_newest(run.checkpoints)
    for complaint in complaints:
        _say(f"Warning: {complaint} The checkpoint before it is used.")
    built = build(run.recipe())
    if newest is None:
        _say("There is no checkpoint yet; training starts again from the beginning.")
        built.method.prepare(built.loader, generator_for(built.recipe.seed, PREPARE))
    elif newest.state.get("samples", len(built.loader)) != len(built.loader):
        _say(
            f"Warning: the data held {newest.state['samples']} samples when training stopped and hold "
            f"{len(built.loader)} now. Training goes on, but not to the weights of an uninterrupted run."
        )
    return train_built(run, built, newest)


def check_bad_files(built: Built) -> None:
    """Refuse data of which too much was unusable already when it was indexed.

    Raises:
        TrainingStopped: more than `trainer.max_bad_fraction`, or any with `trainer.on_bad_file=raise`.
    """
    bad = built.loader.bad_files
    if not bad:
        return
    samples = len(built.loader) + len(bad)
    problem = bad_file_problem({file.path for file in bad}, bad[-1], samples, built.recipe.trainer)
    if problem is not None:
        raise TrainingStopped(problem)


def _with_trainer_settings(recipe: Recipe, trainer: dict[str, Any]) -> Recipe:
    content = recipe.model_dump()
    content["trainer"] |= trainer
    return validated(content)


def _rank() -> int:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", None) or 0


def _say(text: str) -> None:
    if _rank() == 0:
        print(text, file=sys.stderr, flush=True)


def resolve_trainer(settings: TrainerSection, samples: int) -> TrainerSection:
    """Settings with every `auto` decided, and a batch that the data can fill."""
    accelerator = resolve_accelerator(settings.accelerator)
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=cuda, but torch sees no GPU here. Use auto or cpu (`maskwright doctor`)."
        )
    if settings.strategy == "fsdp" and settings.ema_decay is not None:
        raise ConfigError("trainer.ema_decay does not work with trainer.strategy=fsdp yet. Use ddp, or leave it out.")
    devices = settings.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "cuda" else 1
    batch = settings.batch_size
    fits = samples // (devices * settings.nodes)
    if fits == 0:
        raise ConfigError(
            f"{samples} samples cannot be shared among {devices * settings.nodes} processes. Lower trainer.devices or "
            f"trainer.nodes."
        )
    if batch > fits:
        _say(f"Note: trainer.batch_size={batch} is more than the {samples} samples fill; {fits} is used.")
        batch = fits
    return settings.model_copy(
        update={
            "accelerator": accelerator,
            "precision": resolve_precision(settings.precision, accelerator),
            "devices": devices,
            "batch_size": batch,
        }
    )


def make_plan(settings: TrainerSection, samples: int, bucket_of: np.ndarray | None = None) -> Plan:
    """Sizes of a run with resolved settings.

    Args:
        bucket_of: (N,) bucket of each sample, see `Loader.buckets`.
    """
    world = int(settings.devices) * settings.nodes
    buckets = () if bucket_of is None else tuple(np.bincount(bucket_of).tolist())
    plan = Plan(samples, settings.batch_size, world, settings.accumulate, 1, buckets)
    steps = settings.max_steps or max(1, settings.epochs * plan.micro_per_epoch // settings.accumulate)
    return replace(plan, steps=steps)


def peak_lr(settings: TrainerSection, plan: Plan) -> float:
    """The learning rate asked for, or `base_lr` scaled linearly with the global batch."""
    return settings.lr if settings.lr is not None else settings.base_lr * plan.global_batch / 256


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on hardware, workers and tips: what matters is said by us."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|isinstance\(treespec|pin_memory).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def train_built(run: Run, built: Built, start: checkpoints.Checkpoint | None) -> Run:
    """Train and finish a run that no other process works on."""
    run.path.mkdir(parents=True, exist_ok=True)
    with locked(run) if _rank() == 0 else nullcontext():
        return _train_locked(run, built, start)


def _train_locked(run: Run, built: Built, start: checkpoints.Checkpoint | None) -> Run:
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from maskwright.core.trainer.keeper import Keeper
    from maskwright.core.trainer.module import PretrainModule

    settings = resolve_trainer(built.recipe.trainer, len(built.loader))
    if settings.strategy == "fsdp" and any(isinstance(part, EMATeacher) for part in built.method.modules()):
        raise ConfigError(
            f"{built.recipe.method.name} follows a moving average of itself, which does not work with "
            f"trainer.strategy=fsdp yet. Use ddp."
        )
    recipe = built.recipe.model_copy(update={"trainer": settings})
    if settings.threads:
        torch.set_num_threads(settings.threads)
    plan = make_plan(settings, len(built.loader), built.loader.buckets())
    if plan.world > 1 and _rank() == 0:
        os.environ[RUN_VARIABLE] = str(run.path.resolve())
    first = _rank() == 0
    if first:
        run.write_recipe(recipe)
        run.write_environment(str(settings.accelerator), settings.precision)
        run.add_bad_files(built.loader.bad_files, 0)
    module = PretrainModule(built.method, built.loader, run, settings, plan, peak_lr(settings, plan), recipe.seed)
    if start is not None:
        module.restore(start)
    if settings.compile:
        module.method.compile()
    extra = get_host().call("configure_trainer", recipe=recipe)
    keeper = Keeper(_say, bar=sys.stderr.isatty() and first)
    callbacks = [keeper, *(c for _, parts in extra for c in (parts or {}).get("callbacks", []))]
    loggers = [
        TensorBoardLogger(str(run.path), name="tensorboard", version=""),
        *(logger for _, parts in extra for logger in (parts or {}).get("loggers", [])),
    ]
    if module.step < plan.steps:
        with quiet_lightning():
            trainer = L.Trainer(
                accelerator=str(settings.accelerator),
                devices=settings.devices,
                num_nodes=settings.nodes,
                strategy=_strategy(settings),
                precision=LIGHTNING_NAME[settings.precision],  # type: ignore[arg-type]
                max_epochs=1,
                logger=loggers,
                callbacks=callbacks,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(module)
        if keeper.stopped is not None:
            raise keeper.stopped
    if first:
        _finish(run, module, recipe, built)
    get_host().call("run_finished", run=run)
    return run


def _strategy(settings: TrainerSection) -> Any:
    if settings.strategy != "fsdp":
        return settings.strategy
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=int(settings.devices) * settings.nodes, tensor_parallel_size=1)


def _finish(run: Run, module: Any, recipe: Recipe, built: Built) -> None:
    """Write the encoder, pictures and the report."""
    from maskwright.core.evaluation.pictures import save_previews
    from maskwright.core.evaluation.report import write_report

    if recipe.trainer.strategy == "fsdp":  # the method in hand is sharded; the checkpoint is whole
        newest, _ = checkpoints.load_newest(run.checkpoints)
        assert newest is not None
        method = build(recipe).method
        method.load_state_dict(newest.part("method"))
    else:
        method = module.to("cpu").method
    encoder = module.ema.module if module.ema is not None else method.encoder
    run.write_encoder(encoder, built.loader.spec, recipe, method.notes)
    try:
        save_previews(run, method, built.loader)
    except (ConfigError, DataError) as error:  # a picture is no reason to lose a finished run
        write_text(run.path / "previews.txt", f"No pictures: {error}\n")
    write_report(run)
