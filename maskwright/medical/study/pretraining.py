"""Pre-training of one method in the study: our trainer and run directory, on the samples of the training part alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskwright.core.build import Built
from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.errors import ConfigError, nearest
from maskwright.core.recipe import Component, DataSection, MethodSection, Recipe, merge, validated
from maskwright.core.sample import InputSpec
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import PREPARE, generator_for
from maskwright.core.trainer.keeper import Interrupted
from maskwright.core.trainer.method import Method
from maskwright.core.trainer.pretrain import train_built
from maskwright.core.trainer.run import Run
from maskwright.medical.methods.spark import SparK
from maskwright.medical.study.part import Part

TRAINERS: dict[str, dict[str, Any]] = {
    "spark": {"base_lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05},
    "moco": {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4},
    "byol": {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1.5e-6},
}
"""AdamW of each method: SparK's of its short presets, BYOL's rate and decay of Wolf et al., MoCo's decay of them."""
SHARED = {"batch_size": 64, "warmup": 0.1, "precision": "32"}
PEERS = ("moco", "byol")
UNFINISHED = "only_in_a_study"
"""Option that no loader has: `maskwright resume`, which knows nothing of parts, refuses an unfinished run."""


def spark_options(given: InputSpec, preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options of SparK on this data, and so of the backbone that all methods share. The later wins: preset, data, given.

    Raises:
        ConfigError: unknown preset, or data that hold no image.
    """
    if preset not in SparK.presets:
        raise ConfigError(f'There is no preset "{preset}".{nearest(preset, SparK.presets)}')
    return merge(merge(SparK.presets[preset]["method"], SparK.options_for(given)), options)


def make_encoder(options: dict[str, Any], seed: int) -> SparseConvNet:
    """The backbone with the random weights that every method starts from under this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SparK(**options).encoder


def make_method(name: str, options: dict[str, Any], samples: int, seed: int) -> Method:
    """A method around the backbone of this seed.

    Args:
        name: spark, moco or byol.
        options: of SparK, see `spark_options`.
        samples: pictures to pre-train on; MoCo's queue holds no more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spark = SparK(**options)
        if name == "spark":
            return spark
        from maskwright.medical.study.peers import BYOL, MoCo

        return MoCo(spark.encoder, queue=min(4096, samples)) if name == "moco" else BYOL(spark.encoder)


def pretrain_part(
    folder: Path,
    name: str,
    part: Part,
    data: DataSection,
    preset: str,
    options: dict[str, Any],
    trainer: dict[str, Any],
    seed: int,
) -> Run:
    """Pre-train on a part of the data, or go on where an earlier call was stopped, or return the finished run.

    Args:
        folder: of the run.
        data: what the part was taken from, for the recipe.
        trainer: settings that hold for all methods, `max_steps` among them.

    Raises:
        ConfigError: the run there was begun on other samples.
        Interrupted: a signal stopped it; the next call goes on.
    """
    if (folder / "encoder.safetensors").is_file():
        return _finished(Run.open(folder))
    content = Recipe(
        method=MethodSection(name=name, preset=preset, **options),
        masking=Component(**SparK.default_masking) if name == "spark" else None,
        data=DataSection(**{**data.model_dump(), UNFINISHED: True}),
        seed=seed,
    ).model_dump()
    content["trainer"] = {**SHARED, **TRAINERS[name], **trainer}
    recipe: Recipe = validated(content)
    run = Run.open(folder) if (folder / "recipe.yaml").is_file() else Run.create(folder)
    newest, _ = checkpoints.load_newest(run.checkpoints)
    if newest is not None and newest.state.get("samples", len(part)) != len(part):
        raise ConfigError(f"{folder} was begun with {newest.state['samples']} samples and not {len(part)}. Remove it.")
    method = make_method(name, options, len(part), seed)
    if newest is None:
        method.prepare(part, generator_for(seed, PREPARE))
    try:
        return _finished(train_built(run, Built(part, method, recipe), newest))
    except Interrupted as stop:
        raise Interrupted(
            f"Stopped while {name} was pre-trained, with a checkpoint. Start the study again on the same folder: it "
            f"goes on from there.",
            stop.exit_code,
        ) from stop


def _finished(run: Run) -> Run:
    """A finished run, open to all commands: nothing trains it any more."""
    recipe = run.recipe()
    content = recipe.data.model_dump()
    if content.pop(UNFINISHED, None):
        run.write_recipe(recipe.model_copy(update={"data": DataSection(**content)}))
    return run


def trainer_settings(steps: int, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Settings that hold for all methods, checked.

    Raises:
        ConfigError: all problems at once, or a number of steps set in two places.
    """
    own = sorted({"max_steps", "epochs"} & set(settings))
    if own:
        raise ConfigError(f"trainer.{own[0]}: give --pretrain-steps, which holds for all methods.")
    chosen = {"accelerator": device, **settings, "max_steps": steps}
    validated({"method": {"name": "spark"}, "data": {"path": "."}, "trainer": chosen})
    return chosen
