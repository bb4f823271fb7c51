"""Opening a study: what it is made of, checked before anything is trained, and written down beside its results."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.evaluation.open import open_task
from maskwright.core.evaluation.task import Targets
from maskwright.core.loader import Loader
from maskwright.core.masking import sample_keys
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import DataSection
from maskwright.core.trainer.data import generator_for
from maskwright.core.trainer.files import write_text
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.medical.methods.spark import SparK
from maskwright.medical.study.finetuning import Finetuning, Samples
from maskwright.medical.study.part import Part
from maskwright.medical.study.pretraining import PEERS, make_encoder, spark_options, trainer_settings
from maskwright.medical.study.results import RANDOM, SCRATCH
from maskwright.medical.study.split import PARTS, Split, split_samples
from maskwright.medical.study.transfer import load_backbone

METHODS = ("spark", *PEERS, SCRATCH, RANDOM)
SECTIONS = ("data", "method", "trainer", "finetune")
LOCK = "study.lock"


@dataclass(frozen=True)
class Study:
    """What a study is made of, opened and checked.

    Args:
        path: folder of the results.
        options: of SparK, and so of the backbone.
        pictures: what is pre-trained on, and where it comes from.
        weights: files of backbones that were pre-trained elsewhere, by the name of the method.
    """

    path: Path
    loader: Loader
    targets: Targets
    split: Split
    preset: str
    options: dict[str, Any]
    pictures: tuple[Part, DataSection]
    trainer: dict[str, Any]
    finetuning: Finetuning
    weights: dict[str, Path]
    device: str


def choose_methods(methods: Sequence[str], weights: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Methods that can run here, each once, and what should be said of the others.

    Raises:
        ConfigError: an unknown method, or nothing pre-trained is left.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f'There is no method "{method}" in this study.{nearest(method, METHODS)}')
    taken = sorted(set(weights) & set(METHODS))
    if taken or any(not name or not name.replace("-", "").replace("_", "").isalnum() for name in weights):
        raise ConfigError(
            f"weights={', '.join(weights)}: give names of letters and digits other than {', '.join(METHODS)}."
        )
    chosen, notes = list(dict.fromkeys([*methods, *weights])), []
    absent = [method for method in chosen if method in PEERS]
    if absent and importlib.util.find_spec("lightly") is None:
        notes.append(f"{' and '.join(absent)} did not run: they need the package lightly. Run: pip install lightly")
        chosen = [method for method in chosen if method not in absent]
    if not set(chosen) - {SCRATCH, RANDOM}:
        raise ConfigError(" ".join(["No method that pre-trains is left to be compared.", *notes]))
    return chosen, notes


def open_study(
    data: Path,
    labels: str,
    out: Path,
    loader_name: str,
    sections: dict[str, Any],
    preset: str,
    pretrain_steps: int,
    finetune_steps: int,
    unlabelled: str | Path | None,
    weights: Mapping[str, str | Path],
    split: str,
    test: float,
    validation: float,
    device: str,
) -> Study:
    """Read options, data, labels and parts; see `small_data_study` for what each is.

    Raises:
        ConfigError: options that do not fit, all of them at once. DataError: data that cannot be used.
    """
    problems = [
        f"{name}: there is no such section.{nearest(name, SECTIONS)}" for name in sections if name not in SECTIONS
    ]
    check_options("method", SparK, sections.get("method", {}), problems)
    finetuning = check_options(
        "finetune", Finetuning, {"steps": finetune_steps, **sections.get("finetune", {})}, problems
    )
    fail_if_any(problems)
    kind = resolve_accelerator(device)
    trainer = trainer_settings(pretrain_steps, sections.get("trainer", {}), kind)
    data_options = sections.get("data", {})
    name, loader = open_loader(data, loader_name, **data_options)
    targets = open_task("classification", labels, {})[2].targets(loader)
    parts = split_samples(loader, targets, split, test, validation)
    options = spark_options(loader.spec, preset, sections.get("method", {}))
    if unlabelled is None:
        pictures = Part(loader, parts.train)
        section = DataSection(path=str(data.resolve()), loader=name, **data_options)
    else:
        pictures = _without_tested(open_loader(unlabelled, name, **data_options)[1], loader, parts)
        section = DataSection(path=str(Path(unlabelled).resolve()), loader=name, **data_options)
    files = {method: Path(file) for method, file in weights.items()}
    return Study(
        out,
        loader,
        targets,
        parts,
        preset,
        options,
        (pictures, section),
        trainer,
        Finetuning(**finetuning),
        files,
        kind,
    )


def _without_tested(further: Loader, loader: Loader, split: Split) -> Part:
    """Further data without the patients and files of the validation and test parts."""
    kept_out = [int(index) for part in (split.validation, split.test) for index in part]
    groups = {loader.group(index) for index in kept_out}
    files = {str(Path(source).resolve()) for index in kept_out for source in loader.sources(index)}
    one_file = len({source for index in range(len(loader)) for source in loader.sources(index)}) == 1

    def seen(index: int) -> bool:
        if further.group(index) in groups:
            return True
        return not one_file and any(str(Path(source).resolve()) in files for source in further.sources(index))

    return Part(further, [index for index in range(len(further)) if not seen(index)])


def check_sizes(study: Study, chosen: Sequence[str]) -> None:
    """Fail before hour 0: the first picture is hidden and viewed, and given weights are loaded, once.

    Raises:
        ConfigError: sizes or channels that a method cannot take. DataError: weights of another backbone.
    """
    batch, found = Samples(study.loader).batch([int(index) for index in study.split.train[:8]])
    if not found:
        raise DataError(study.loader.sources(int(study.split.train[0]))[0], "none of the first samples can be read")
    keys = sample_keys(generator_for(0), len(batch))
    if "spark" in chosen:
        spark = SparK(**study.options)
        spark.mask(spark.encoder.tokenize(batch).grid, keys)
    if set(chosen) & set(PEERS):
        from maskwright.medical.study.peers import two_views

        two_views(batch[study.options["input_name"]][:1], keys[:1])
    for file in study.weights.values():
        load_backbone(make_encoder(study.options, 0).module, file)


def claim(study: Study, data: str | Path, labels: str) -> None:
    """Write down what this folder's results rest on, or refuse another study than the one that is there.

    Raises:
        ConfigError: names what differs.
    """
    mine = {
        "data": str(Path(data).resolve()),
        "labels": labels,
        "data options": study.pictures[1].options,
        "pre-trained on": study.pictures[1].path,
        "preset": study.preset,
        "backbone": study.options,
        "trainer": study.trainer,
        "fine-tuning": asdict(study.finetuning),
        "parts": {name: [int(index) for index in getattr(study.split, name)] for name in PARTS},
    }
    files = {name: [str(file.resolve()), file.stat().st_size] for name, file in study.weights.items()}
    mine = json.loads(json.dumps({**mine, "weights": files}))  # tuples become lists, as they come back
    path = study.path / "settings.json"
    if path.is_file():
        theirs = json.loads(path.read_text())
        other = [name for name in mine if name != "weights" and mine[name] != theirs.get(name)]
        before = theirs.get("weights", {})
        other += [f"weights of {name}" for name in files if before.get(name, files[name]) != files[name]]
        if other:
            raise ConfigError(
                f"{study.path} holds a study with other {', '.join(other)}. Give what it was begun with "
                f"({path}), or another folder with --out."
            )
        write_text(path, json.dumps({**mine, "weights": {**before, **files}}, indent=1))
        return
    if any(item.name not in (LOCK,) for item in study.path.iterdir()):
        raise ConfigError(f"{study.path} is not empty and holds no study. Choose another folder with --out.")
    write_text(path, json.dumps(mine, indent=1))
