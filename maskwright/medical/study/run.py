"""The small-data study: which way to pre-train a ConvNet loses least when labels are few (Wolf et al. 2023).

Departs from the paper where its comparison was not even: all methods make the same number of steps with the same batch on
the same pictures; patients, not slices, are split; shares of the labels are seeded, stratified, nested and written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskwright.core.encoder.convnet import SparseConvNet
from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.splits import check_fractions
from maskwright.core.recipe import parse_settings
from maskwright.core.trainer.files import remove_leftovers, write_text
from maskwright.core.trainer.lock import held
from maskwright.medical.study.cells import Cell, cell_name, load_cell, save_cell
from maskwright.medical.study.finetuning import Mode, Samples, fine_tune, probabilities
from maskwright.medical.study.opening import LOCK, METHODS, Study, check_sizes, choose_methods, claim, open_study
from maskwright.medical.study.pretraining import make_encoder, pretrain_part
from maskwright.medical.study.results import RANDOM, SCRATCH, Outcome, tabulate, write_results
from maskwright.medical.study.split import PARTS, subset
from maskwright.medical.study.transfer import load_backbone

MODES: dict[str, Mode] = {SCRATCH: "all", RANDOM: "head"}


def small_data_study(
    data: str | Path,
    labels: str = "folder",
    out: str | Path = "small-data-study",
    *,
    loader: str = "auto",
    settings: dict[str, Any] | Sequence[str] = (),
    methods: Sequence[str] = METHODS,
    fractions: Sequence[float] = (1.0, 0.5, 0.25, 0.1),
    seeds: int = 3,
    preset: str = "small",
    backbone: str = "",
    pretrain_steps: int = 2000,
    finetune_steps: int = 300,
    unlabelled: str | Path | None = None,
    weights: Mapping[str, str | Path] | None = None,
    split: str = "group",
    test: float = 0.2,
    validation: float = 0.15,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Compare ways to pre-train one backbone while the labelled training part shrinks, and write what held.

    Each seed has a pre-training of its own on the training part, first weights, and draw of each share of the labels.
    What is finished is not computed again, and a pre-training that was interrupted goes on, when the study is started
    again on the same folder; more methods, shares and seeds may be asked for then.

    Args:
        data: labelled pictures: a folder of DICOM, NIfTI or PNG files, or arrays.
        labels: folder, label, FILE.csv:COLUMN, FILE.npy or FILE.npz:NAME.
        out: folder of the results.
        loader: name of a loader.
        settings: `data.NAME`, `method.NAME` (of the backbone), `trainer.NAME` (of all pre-trainings) and `finetune.NAME`
            (see `Finetuning`).
        methods: spark; moco and byol, which need the package lightly; scratch; random, a frozen random backbone.
        fractions: shares of the training part, in (0, 1].
        seeds: draws.
        preset: of SparK: tiny, small, base.
        backbone: another ConvNet of timm than the preset's, or plain.
        pretrain_steps, finetune_steps: optimiser steps.
        unlabelled: further data of the same loader to pre-train on instead; groups that are tested are left out.
        weights: methods by name with the files of backbones that were pre-trained elsewhere, see `load_backbone`.
        split: group, or a column that says train, validation or test of each sample.
        test, validation: shares of the patients, where the split is by group.
        device: auto, cpu or cuda.
        say: is told lines of progress.

    Returns:
        Scores and gaps; the folder holds them as table.csv, table.json, table.md, figure.png and report.md.

    Raises:
        ConfigError: options that do not fit, or a folder with another study. DataError: data that cannot be used.
        Interrupted: a signal stopped it; start it again to go on.
    """
    chosen, notes = choose_methods(methods, weights or {})
    shares = check_fractions(fractions)[::-1]
    if seeds < 1 or not shares:
        raise ConfigError(f"seeds={seeds} with {len(shares)} shares of the labels: one or more of each are needed.")
    sections = parse_settings(settings)
    if backbone:
        sections.setdefault("method", {})["backbone"] = backbone
    study = open_study(
        Path(data), labels, Path(out), loader, sections, preset, pretrain_steps, finetune_steps, unlabelled,
        weights or {}, split, test, validation, device,
    )  # fmt: skip
    notes += _notes(study)
    check_sizes(study, chosen)
    study.path.mkdir(parents=True, exist_ok=True)
    with held(study.path / LOCK, study.path):
        remove_leftovers(study.path)
        claim(study, data, labels)
        cells = [
            cell for seed in range(seeds) for method in chosen for cell in _cells(study, method, shares, seed, say)
        ]
        cells.sort(key=lambda cell: (chosen.index(cell.method), -cell.fraction, cell.seed))
        _write_splits(study, shares, seeds)
        outcome = tabulate(cells, [study.loader.group(index) for index in range(len(study.loader))])
        write_results(study.path, outcome, _facts(study, data, labels, seeds), notes, cells)
    return outcome


def _cells(study: Study, method: str, shares: Sequence[float], seed: int, say: Callable[[str], None]) -> list[Cell]:
    """All shares of one method and seed; those that are there are read."""
    folder = study.path / "cells"
    files = {share: folder / f"{cell_name(method, share, seed)}.npz" for share in shares}
    missing = [share for share in shares if not files[share].is_file()]
    if missing:
        encoder = _encoder(study, method, seed, say)
        samples = Samples(study.loader)
        for share in missing:
            cell = _cell(study, encoder, samples, method, share, seed)
            save_cell(folder, cell)
            say(
                f"{method}, seed {seed}, {share:g} of the labels ({cell.samples}): accuracy {cell.scores()['accuracy']:.3f}"
            )
    return [load_cell(file) for file in files.values()]


def _encoder(study: Study, method: str, seed: int, say: Callable[[str], None]) -> SparseConvNet:
    """The backbone that fine-tuning starts from, scaled by the statistics of the pictures that may be seen."""
    encoder = make_encoder(study.options, seed)
    pictures, section = study.pictures
    if method in study.weights:
        load_backbone(encoder.module, study.weights[method])
    elif method not in MODES:
        say(f"{method}, seed {seed}: pre-training on {len(pictures)} pictures, {study.trainer['max_steps']} steps")
        folder = study.path / "pretraining" / f"{method}-seed{seed}"
        run = pretrain_part(folder, method, pictures, section, study.preset, study.options, study.trainer, seed)
        load_backbone(encoder.module, run.load_encoder().module.state_dict())
    encoder.fit_normalizers(pictures.statistics())
    return encoder


def _cell(study: Study, encoder: SparseConvNet, samples: Samples, method: str, share: float, seed: int) -> Cell:
    train = subset(study.split, study.targets, share, seed)
    model, best = fine_tune(
        encoder, study.targets, samples, train.tolist(), study.split.validation.tolist(), study.finetuning, seed,
        study.device, MODES.get(method, "thaw"),
    )  # fmt: skip
    said, tested = probabilities(model, samples, study.split.test.tolist())
    assert study.targets.values is not None
    places = study.split.test[[study.split.test.tolist().index(index) for index in tested]]
    return Cell(method, share, seed, places, study.targets.values[places], said, len(train), best)


def _write_splits(study: Study, shares: Sequence[float], seeds: int) -> None:
    """splits.json: positions in the loader of each part, and of each share of each seed."""
    parts: dict[str, Any] = {name: [int(index) for index in getattr(study.split, name)] for name in PARTS}
    parts["subsets"] = {
        f"seed {seed}": {f"{share:g}": subset(study.split, study.targets, share, seed).tolist() for share in shares}
        for seed in range(seeds)
    }
    write_text(study.path / "splits.json", json.dumps(parts))


def _facts(study: Study, data: str | Path, labels: str, seeds: int) -> dict[str, Any]:
    sizes = ", ".join(f"{len(getattr(study.split, name))} {name}" for name in PARTS)
    return {
        "data": str(data),
        "labels": f"{labels}, {len(study.targets.classes)} classes: {', '.join(study.targets.classes[:20])}",
        "samples": sizes,
        "backbone": study.options.get("backbone", "resnet50"),
        "pre-training": f"{study.trainer['max_steps']} steps on {len(study.pictures[0])} pictures, each method alike",
        "fine-tuning": f"{study.finetuning.steps} steps at every share",
        "seeds": seeds,
    }


def _notes(study: Study) -> list[str]:
    """What a reader must know of this study."""
    split, values = study.split, study.targets.values
    assert values is not None
    notes = [
        "Every method made equally many steps with equal batches on the same pictures; views of moco and byol cost twice "
        "the passes through the backbone.",
        "scratch trains the whole backbone from the first step on; pre-trained backbones rest for the first "
        f"{study.finetuning.frozen_share:.0%} of the steps, batch norms included.",
        "The validation part keeps all its labels at every share, so the step that is kept is chosen on more labels than a "
        "share of the training part says.",
    ]
    groups = {study.loader.group(int(index)) for index in split.test}
    if len(groups) == len(split.test):
        notes.append(
            "Each test sample is a group of its own: if patients have several pictures, tell the loader (data.group or "
            "data.group_pattern), or scores are too good."
        )
    lost = sorted({study.targets.classes[c] for c in set(values[split.test]) - set(values[split.train])})
    if lost:
        notes.append(f"The training part has no sample of {', '.join(lost)}, which the test part has.")
    if study.loader.bad_files:
        notes.append(f"{len(study.loader.bad_files)} files were left out, the first: {study.loader.bad_files[0].path}.")
    return notes
