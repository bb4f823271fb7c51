"""The small-data study: its splits, weights, fine-tuning, restarts and words, and a whole one on made-up pictures."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from maskwright.core.api import load, open_data
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.task import Classification
from maskwright.core.trainer.keeper import Interrupted
from maskwright.medical.study import run as study_run
from maskwright.medical.study.cells import Cell, load_cell, save_cell
from maskwright.medical.study.finetuning import Finetuning, Samples, fine_tune
from maskwright.medical.study.pretraining import make_encoder, pretrain_part, spark_options, trainer_settings
from maskwright.medical.study.results import report, tabulate
from maskwright.medical.study.run import small_data_study
from maskwright.medical.study.split import split_samples, subset

SMALL = {
    "data.array": "images",
    "data.group": "patient",
    "method.widths": [8, 16],
    "method.depths": [1, 1],
    "method.scales": 2,
    "method.decoder_width": 16,
    "trainer.batch_size": 8,
    "finetune.lr": 0.01,
    "finetune.checks": 2,
}


@pytest.fixture
def pictures(tmp_path):
    """90 pictures of 45 patients in 3 classes: where a bright band lies."""
    generator = np.random.default_rng(0)
    patient = np.arange(90) // 2
    labels = patient % 3
    images = generator.normal(scale=0.5, size=(90, 16, 16)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 5] += 1.5
    path = tmp_path / "pictures.npz"
    np.savez(path, images=images, labels=labels, patient=patient)
    return path


def opened(path):
    loader = open_data(path, "arrays", array="images", group="patient")
    return loader, Classification(f"{path}:labels").targets(loader)


def study(path, out, **options):
    options = {"methods": ["spark", "scratch"], "fractions": [1], "seeds": 1, "settings": SMALL, **options}
    steps = {"pretrain_steps": 2, "finetune_steps": 6}
    return small_data_study(path, f"{path}:labels", out, loader="arrays", preset="tiny", **{**steps, **options})


# splits and shares ------------------------------------------------------------------------------------------------


def test_patients_lie_in_one_part(pictures):
    loader, targets = opened(pictures)
    split = split_samples(loader, targets)
    parts = [{loader.group(i) for i in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 45
    assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(90))
    assert len(split.test) == 18
    assert np.bincount(targets.values[split.test]).tolist() == [6, 6, 6]
    renamed = {f"{i}": f"{(i * 7) % 45}" for i in range(45)}
    group = loader.group
    loader.group = lambda index: renamed[group(index)]
    assert np.array_equal(split_samples(loader, targets).test, split.test)  # whatever the names of the patients
    few = split_samples(loader, targets, test=0.03, validation=0.03)
    assert set(targets.values[few.test]) == set(targets.values[few.validation]) == {0, 1, 2}


def test_subsets_are_seeded_nested_and_stratified(pictures):
    """Check 2."""
    loader, targets = opened(pictures)
    split = split_samples(loader, targets)
    shares = [1.0, 0.5, 0.25, 0.1, 0.001]
    found = [subset(split, targets, share, 3) for share in shares]
    assert all(np.array_equal(a, subset(split, targets, share, 3)) for a, share in zip(found, shares, strict=True))
    assert all(set(small) <= set(large) for large, small in itertools.pairwise(found))
    assert np.array_equal(found[0], split.train)
    counts = np.bincount(targets.values[found[1]])
    assert counts.max() - counts.min() <= 1
    assert len(found[-1]) == 3  # one of each class
    assert not np.array_equal(found[2], subset(split, targets, 0.25, 4))
    again = split_samples(loader, targets)
    assert np.array_equal(split.test, again.test)


def test_a_column_says_the_parts(pictures, tmp_path):
    loader, targets = opened(pictures)
    names = np.array(["train"] * 60 + ["val"] * 12 + ["test"] * 18)
    np.save(tmp_path / "parts.npy", names)
    split = split_samples(loader, targets, str(tmp_path / "parts.npy"))
    assert (len(split.train), len(split.validation), len(split.test)) == (60, 12, 18)
    names[59] = "test"  # the other picture of that patient trains
    np.save(tmp_path / "parts.npy", names)
    with pytest.raises(DataError, match='the group "29" in train and in test'):
        split_samples(loader, targets, str(tmp_path / "parts.npy"))
    names[59] = "tset"
    np.save(tmp_path / "parts.npy", names)
    with pytest.raises(DataError, match='says "tset"'):
        split_samples(loader, targets, str(tmp_path / "parts.npy"))
    with pytest.raises(ConfigError, match=r"test=0\.9"):
        split_samples(loader, targets, test=0.9)


# fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(pictures):
    loader, _ = opened(pictures)
    options = {name.removeprefix("method."): value for name, value in SMALL.items() if name.startswith("method.")}
    found = make_encoder(spark_options(loader.spec, "tiny", options), 0)
    found.fit_normalizers(loader.statistics())
    return found


@pytest.mark.parametrize("mode", ["thaw", "all", "head"])
def test_a_resting_backbone_does_not_move(pictures, encoder, mode):
    """Check 4: parameters and running statistics keep still for the first 10 of 70 parts, then both move."""
    loader, targets = opened(pictures)
    start = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    moved, heads = [], []

    def watch(step, model):
        now = model.encoder.state_dict()
        moved.append({name for name, tensor in start.items() if not torch.equal(now[name], tensor)})
        heads.append(model.head.weight.detach().clone())

    settings = Finetuning(steps=14, batch_size=8, lr=0.01, frozen_share=10 / 70, checks=2)
    fine_tune(encoder, targets, Samples(loader), range(40), range(40, 60), settings, 0, mode=mode, watch=watch)
    resting = {"thaw": 2, "all": 0, "head": 14}[mode]
    assert all(not names for names in moved[:resting])
    assert not torch.equal(heads[0], heads[1])
    for names in moved[resting:]:
        assert any("running_mean" in name for name in names)
        assert any(name.endswith("conv1.weight") for name in names)
    assert all(torch.equal(tensor, start[name]) for name, tensor in encoder.state_dict().items())


def test_the_best_step_is_kept_and_equal_seeds_agree(pictures, encoder):
    loader, targets = opened(pictures)
    settings = Finetuning(steps=20, batch_size=16, lr=0.01, checks=20)
    heads = {}
    train, validation = list(range(60)), list(range(60, 90))
    model, best = fine_tune(
        encoder, targets, Samples(loader), train, validation, settings, 1,
        watch=lambda step, model: heads.update({step: model.head.weight.detach().clone()}),
    )  # fmt: skip
    assert torch.equal(model.head.weight, heads[best])
    again, _ = fine_tune(encoder, targets, Samples(loader), train, validation, settings, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    said = model.predict(Samples(loader).batch(validation)[0]).argmax(1).numpy()
    assert (said == targets.values[validation]).mean() > 0.8
    with pytest.raises(ConfigError, match=r"finetune\.lr=-1"):
        Finetuning(lr=-1)


# results ----------------------------------------------------------------------------------------------------------


def cell(method, wrong, seed=0, fraction=1.0, classes=2):
    generator = np.random.default_rng(seed)
    truth = np.arange(60) % classes
    said = np.eye(classes)[truth] * 2 + generator.normal(scale=0.1, size=(60, classes))
    said[:wrong] = np.roll(said[:wrong], 1, axis=1)
    said = np.exp(said) / np.exp(said).sum(1, keepdims=True)
    return Cell(method, fraction, seed, np.arange(60), truth, said.astype(np.float32), 60, 5)


def test_scores_are_those_of_scikit_learn(tmp_path):
    one = cell("spark", 10, classes=3)
    scores = one.scores()
    assert scores["accuracy"] == scores["micro F1"] == pytest.approx(50 / 60)
    assert scores["AUC"] == pytest.approx(
        roc_auc_score(one.truth, one.said, multi_class="ovr", average="macro"), abs=1e-4
    )
    save_cell(tmp_path, one)
    back = load_cell(tmp_path / "spark-1-seed0.npz")
    assert back.scores() == scores
    assert (back.method, back.fraction, back.samples, back.best_step) == ("spark", 1.0, 60, 5)
    (tmp_path / "spark-1-seed0.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match="Remove it"):
        load_cell(tmp_path / "spark-1-seed0.npz")


def test_the_report_says_when_it_did_not_help():
    groups = [str(index) for index in range(60)]
    cells = [
        cell(name, wrong, seed) for name, wrong in (("spark", 2), ("byol", 30), ("scratch", 14)) for seed in (0, 1)
    ]
    cells += [cell(name, wrong, fraction=0.1) for name, wrong in (("spark", 8), ("byol", 14), ("scratch", 14))]
    outcome = tabulate(cells, groups)
    gaps = {(method, gap.fraction): gap for method, gap in outcome.gaps}
    assert gaps["spark", 1.0].words == "helped"
    assert gaps["spark", 1.0].difference == pytest.approx(12 / 60)
    assert gaps["byol", 1.0].words == "did not help, it did worse"
    assert gaps["byol", 0.1].words == "did not help"  # the very same answers
    text = report(outcome, {}, [], figure=True)
    assert "- byol with 1 of the labels: did not help, it did worse (-0.267" in text
    assert "- spark: 0.100" in text  # what it loses


# a whole study ----------------------------------------------------------------------------------------------------


def test_all_methods_and_a_restart(pictures, tmp_path, monkeypatch):
    pytest.importorskip("lightly")
    out, methods = tmp_path / "out", ["spark", "moco", "byol", "scratch", "random"]
    seen, trained = [], []
    monkeypatch.setattr(study_run, "pretrain_part", lambda *a: seen.append(a[2].indices) or pretrain_part(*a))
    monkeypatch.setattr(study_run, "fine_tune", lambda *a: trained.append(a) or fine_tune(*a))
    outcome = study(pictures, out, methods=methods, fractions=[1, 0.3])
    assert outcome.methods == methods
    assert {gap[0] for gap in outcome.gaps} == {"spark", "moco", "byol"}
    splits = json.loads((out / "splits.json").read_text())
    assert seen == [splits["train"]] * 3
    assert len(trained) == 10
    assert set(splits["subsets"]["seed 0"]["0.3"]) < set(splits["subsets"]["seed 0"]["1"]) == set(splits["train"])
    cells = [load_cell(path) for path in (out / "cells").iterdir()]
    assert len(cells) == 10
    assert all(found.tested.tolist() == splits["test"] for found in cells)
    assert all(
        len(arguments[3]) == len(splits["subsets"]["seed 0"][share])
        for arguments, share in zip(trained, ["1", "0.3"] * 5, strict=True)
    )
    steps = {len(load(out / "pretraining" / f"{name}-seed0").module.state_dict()) for name in ("spark", "moco", "byol")}
    assert len(steps) == 1  # one backbone
    rows = (out / "table.csv").read_text().splitlines()
    assert len(rows) == 11
    table = json.loads((out / "table.json").read_text())
    assert {row["metric"] for row in table["rows"]} == {"accuracy", "micro F1", "AUC"}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "| byol |" in (out / "table.md").read_text()
    assert "## Did pre-training help?" in (out / "report.md").read_text()

    more = study(pictures, out, methods=methods, fractions=[1, 0.5, 0.3])  # only what is new
    assert (len(seen), len(trained)) == (3 + 3, 10 + 5)
    first = [row for row in outcome.rows if row.fraction == 1]
    assert [row.values for row in more.rows if row.fraction == 1] == [row.values for row in first]
    with pytest.raises(ConfigError, match="other fine-tuning"):
        study(pictures, out, methods=methods, finetune_steps=7)


def test_an_interrupted_pre_training_goes_on(pictures, tmp_path):
    from maskwright.core.recipe import DataSection
    from maskwright.core.trainer.pretrain import resume
    from maskwright.medical.study.part import Part

    loader, _ = opened(pictures)
    options = {name.removeprefix("method."): value for name, value in SMALL.items() if name.startswith("method.")}
    options = spark_options(loader.spec, "tiny", options)
    section = DataSection(path=str(pictures), loader="arrays", array="images")

    def go(folder, part, **more):
        trainer = trainer_settings(4, {"batch_size": 8, **more}, "cpu")
        return pretrain_part(folder, "spark", part, section, "tiny", options, trainer, 0)

    part = Part(loader, range(10, 40))
    with pytest.raises(Interrupted, match="Start the study again"):
        go(tmp_path / "a", part, max_time="0s")
    with pytest.raises(ConfigError, match="only_in_a_study"):  # it would train on the test part as well
        resume(tmp_path / "a")
    with pytest.raises(ConfigError, match="begun with 30 samples"):
        go(tmp_path / "a", Part(loader, range(20)))
    ends = [go(tmp_path / name, part).load_encoder().state_dict() for name in ("a", "b")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (tmp_path / "a" / "recipe.yaml").read_text().count("only_in_a_study") == 0
    with pytest.raises(ConfigError, match="--pretrain-steps"):
        trainer_settings(4, {"epochs": 3}, "cpu")


def test_a_part_knows_nothing_of_the_rest(pictures):
    from maskwright.medical.study.part import Part

    loader, _ = opened(pictures)
    part = Part(loader, [5, 3, 80])
    values = np.stack([loader.read(i)["image"].numpy() for i in (5, 3, 80)])
    assert part.statistics()["image"].mean == pytest.approx([values.mean()], abs=1e-6)
    assert part.read(2).meta.index == 2
    assert torch.equal(part.read(1)["image"], loader.read(3)["image"])
    assert [part.group(i) for i in range(3)] == ["2", "1", "40"]


def test_unlabelled_pictures_of_tested_patients_are_left_out(pictures, tmp_path, monkeypatch):
    further = tmp_path / "further.npz"
    np.savez(further, images=np.random.default_rng(1).normal(size=(50, 16, 16)), patient=np.arange(50))
    seen = []
    monkeypatch.setattr(study_run, "pretrain_part", lambda *a: seen.append(a[2]) or pretrain_part(*a))
    study(pictures, tmp_path / "out", unlabelled=further)
    loader, _ = opened(pictures)
    splits = json.loads((tmp_path / "out" / "splits.json").read_text())
    tested = {loader.group(i) for i in splits["test"] + splits["validation"]}
    groups = {seen[0].group(i) for i in range(len(seen[0]))}
    assert groups == {str(number) for number in range(50)} - tested


def test_dicom_is_split_by_patient(tmp_path):
    from maskwright.medical.fake import fake_series

    for number in range(10):
        folder = tmp_path / "scans" / ("ill" if number % 2 else "well") / f"scan{number}"
        fake_series(folder, (16, 16, 3), seed=number)
    out = tmp_path / "out"
    settings = {name: value for name, value in SMALL.items() if not name.startswith("data.")}
    outcome = small_data_study(
        tmp_path / "scans", "label", out, loader="slices", preset="tiny", methods=["spark", "scratch"], fractions=[1],
        seeds=1, pretrain_steps=2, finetune_steps=2, settings={**settings, "data.scale": "min-max", "data.padding": -2000},
    )  # fmt: skip
    loader = open_data(tmp_path / "scans", "slices")
    splits = json.loads((out / "splits.json").read_text())
    groups = [{loader.group(i) for i in splits[name]} for name in ("train", "validation", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    assert len(splits["test"]) == 6  # two patients of three slices
    assert [gap[0] for gap in outcome.gaps] == ["spark"]
    assert "FAKE0001" not in "".join(
        path.read_text() for path in out.glob("*.*") if path.suffix in (".json", ".md", ".csv")
    )


def test_weights_from_elsewhere_join(pictures, tmp_path, encoder):
    from safetensors.torch import save_file

    weights = {f"model.{name}": tensor.contiguous() for name, tensor in encoder.module.state_dict().items()}
    save_file(weights, tmp_path / "swav.safetensors")
    outcome = study(pictures, tmp_path / "out", methods=["scratch"], weights={"swav": tmp_path / "swav.safetensors"})
    assert [gap[0] for gap in outcome.gaps] == ["swav"]
    save_file({**weights, "model.queue": torch.zeros(30)}, tmp_path / "swav.safetensors")
    with pytest.raises(ConfigError, match="other weights of swav"):  # its cells are of the other file
        study(pictures, tmp_path / "out", methods=["scratch"], weights={"swav": tmp_path / "swav.safetensors"})
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "wrong.safetensors")
    with pytest.raises(DataError, match="no tensor of this network"):
        study(pictures, tmp_path / "second", methods=["scratch"], weights={"swav": tmp_path / "wrong.safetensors"})


def test_without_lightly_the_rest_runs(pictures, tmp_path, monkeypatch):
    find = study_run.choose_methods.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "lightly" else find(name, *a))
    outcome = study(pictures, tmp_path / "out", methods=["spark", "moco", "byol", "scratch"])
    assert outcome.methods == ["spark", "scratch"]
    assert "moco and byol did not run: they need the package lightly. Run: pip install lightly" in (
        tmp_path / "out" / "report.md"
    ).read_text().replace("byol and moco", "moco and byol")
    with pytest.raises(ConfigError, match="pip install lightly"):
        study(pictures, tmp_path / "none", methods=["byol", "scratch"])


def test_what_is_refused_before_anything_is_trained(pictures, tmp_path):
    with pytest.raises(ConfigError, match='Did you mean "spark"'):
        study(pictures, tmp_path / "out", methods=["sparks"])
    with pytest.raises(ConfigError, match="fractions=0"):
        study(pictures, tmp_path / "out", fractions=[1, 0])
    with pytest.raises(ConfigError, match=r"finetune\.learning_rate"):
        study(pictures, tmp_path / "out", settings={**SMALL, "finetune.learning_rate": 1})
    with pytest.raises(ConfigError, match=r"multiple|divide|patch"):
        study(pictures, tmp_path / "out", settings={**SMALL, "method.stem_stride": 3})
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no study"):
        study(pictures, tmp_path / "full")


def test_the_command(pictures, tmp_path, capsys):
    from maskwright.cli.main import run

    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    words = ["medical", "small-data-study", str(pictures), "--labels", f"{pictures}:labels", "--loader", "arrays"]
    words += [
        *settings,
        "--preset",
        "tiny",
        "--seeds",
        "1",
        "--methods",
        "spark,scratch",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*words, "--fractions", "1,x"]) == 2
    assert run([*words, "--fractions", "1", "--pretrain-steps", "2", "--finetune-steps", "4"]) == 0
    said = capsys.readouterr().out
    assert "spark with 1 of the labels: " in said
    assert "report.md" in said
    assert (tmp_path / "out" / "table.md").is_file()
