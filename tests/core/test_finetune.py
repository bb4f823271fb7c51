"""From an encoder and labels to a folder that holds a task model."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.heads import predict_samples
from maskwright.core.finetune import finetune, load_task_model, split_groups
from maskwright.core.task_folder import FILES
from maskwright.core.trainer.run import load_encoder
from tests.conftest import write_images


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny run on toy images, and labels: whether an image is bright, and how bright it is."""
    root = tmp_path_factory.mktemp("finetune")
    data = write_images(root / "images", count=40)
    lines = ["file,bright,value"]
    for number, file in enumerate(sorted(data.glob("*.npy"))):
        image = np.load(file) + (2 if number % 3 == 0 else 0)
        np.save(file, image)
        lines.append(f"{file.name},{'yes' if number % 3 == 0 else 'no'},{1000 + 100 * image.mean():.3f}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    run = mw.pretrain("toy-mae", data, run=root / "run", max_steps=2, batch_size=4)
    return run, data, root / "labels.csv"


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    run, _, labels = world
    out = tmp_path_factory.mktemp("models") / "bright"
    return finetune(run, labels=f"{labels}:bright", out=out, settings={"budget.steps": 60}, batch_size=8, lr=2e-3)


def test_the_folder_says_what_was_done_and_holds_every_tensor(world, tuned):
    run, data, labels = world
    assert {path.name for path in tuned.path.iterdir()} == {*FILES, "metrics.csv"}
    facts = json.loads((tuned.path / "task.json").read_text())
    assert (facts["kind"], facts["classes"]) == ("classification", ["no", "yes"])
    assert facts["data"] == {"path": str(data), "loader": "npy", "options": {"crop": 0}}
    assert facts["task_options"]["labels"] == f"{labels}:bright"
    assert facts["budget"]["steps"] == len(facts["losses"]) == 60
    assert facts["size"] == [16, 16]
    assert facts["samples"] + facts["held_out"] == 40
    assert 8 <= facts["held_out"] <= 9
    assert facts["holdout_score"]["balanced accuracy"] > 0.9  # what was learned holds for groups never trained on
    assert "maskwright evaluate" in facts["holdout_note"]
    with (tuned.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    assert float(rows[-1]["loss"]) == pytest.approx(facts["losses"][-1], abs=1e-6)
    own = load_encoder(tuned.path).state_dict()  # a folder like that of a run
    assert all(torch.equal(tensor, tuned.model.encoder.state_dict()[name]) for name, tensor in own.items())
    before = run.load_encoder().state_dict()
    assert any(not torch.equal(own[name], before[name]) for name in own)


def test_a_loaded_model_says_what_the_trained_one_said(world, tuned):
    loader = mw.open_data(world[1], "npy")
    again = load_task_model(tuned.path)
    first, second = (list(predict_samples(m.model, loader, range(10))) for m in (tuned, again))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert again.fingerprint() == tuned.fingerprint()


def test_one_seed_gives_one_model(world, tuned, tmp_path):
    run, _, labels = world
    again = finetune(run, labels=f"{labels}:bright", out=tmp_path / "again", steps=60, batch_size=8, lr=2e-3)
    for name in ("encoder.safetensors", "head.safetensors"):
        assert (again.path / name).read_bytes() == (tuned.path / name).read_bytes()


def test_frozen_keeps_the_encoder_and_numbers_come_back_in_their_units(world, tmp_path):
    run, data, labels = world
    out = tmp_path / "value"
    made = finetune(
        run, data, "regression", labels=f"{labels}:value", out=out, frozen=True, holdout=0, steps=150, lr=0.02
    )
    before = run.load_encoder().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.encoder.state_dict().items())
    truth = np.loadtxt(labels, delimiter=",", skiprows=1, usecols=2)
    says = np.array([value[0] for _, value in predict_samples(made.model, mw.open_data(data, "npy"), range(40))])
    assert np.abs(says - truth).mean() < 0.5 * np.abs(truth - truth.mean()).mean()
    assert made.facts["holdout_score"] is None
    assert made.facts["samples"] == 40


def test_without_out_it_goes_into_the_run_and_never_over_another(world):
    run, _, labels = world
    made = [finetune(run.path, labels=f"{labels}:bright", steps=1, holdout=0).path for _ in range(2)]
    assert [path.relative_to(run.path).as_posix() for path in made] == [
        "tasks/classification",
        "tasks/classification-2",
    ]


def test_an_encoder_folder_instead_of_a_run(world, tuned, tmp_path):
    run, data, labels = world
    made = finetune(data=data, encoder=tuned.path, labels=f"{labels}:bright", out=tmp_path / "m", steps=1, holdout=0)
    assert made.facts["encoder"] == str(tuned.path)
    with pytest.raises(ConfigError, match="and not both"):
        finetune(run, data, encoder=tuned.path, labels=f"{labels}:bright")


def test_held_out_groups_are_whole(world):
    from maskwright.core.evaluation.task import Targets

    class Loader:
        def __len__(self):
            return 30

        def group(self, index):
            return f"scene {index // 5}"

    targets = Targets("classification", ("a", "b"), np.array([0, 1] * 15))
    train, held, notes = split_groups(targets, Loader(), 0.2, seed=0)
    assert {i // 5 for i in train}.isdisjoint({i // 5 for i in held})
    assert sorted(train + held) == list(range(30))
    assert len(held) == 10  # two groups of five: the first that reach a fifth
    assert notes == []
    lonely = Targets("classification", ("a", "b"), np.array([0] * 25 + [1] * 5))
    texts = [split_groups(lonely, Loader(), 0.2, seed)[2] for seed in range(20)]
    assert any("Only held-out groups have the class b" in text for notes in texts for text in notes)
    one = Targets("classification", ("a", "b"), np.array([0, 1, 0] + [-1] * 27))
    assert "of one group" in split_groups(one, Loader(), 0.2, seed=0)[2][0]


def test_what_does_not_fit_is_said_before_anything_is_trained(world, tmp_path):
    run, _, labels = world
    spec = f"{labels}:bright"
    with pytest.raises(ConfigError, match=r'budget\.stps: there is no such option\. Did you mean "steps"'):
        finetune(run, labels=spec, settings=["budget.stps=3"])
    with pytest.raises(ConfigError, match=r'budjet: there is no such section\. Did you mean "budget"'):
        finetune(run, labels=spec, settings=["budjet.steps=3"])
    with pytest.raises(ConfigError, match=r"task\.lables: there is no such option"):
        finetune(run, labels=spec, settings=["task.lables=x"])
    with pytest.raises(ConfigError, match=r"holdout=1\.5"):
        finetune(run, labels=spec, holdout=1.5)
    with pytest.raises(ConfigError, match="needs labels"):
        finetune(run, task="segmentation")
    with pytest.raises(ConfigError, match="Retrieval needs no head"):
        finetune(run, task="retrieval", labels=spec, out=tmp_path / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        finetune(run, labels=spec, out=tmp_path / "full")
    assert not list(tmp_path.glob(".*"))


def test_damaged_folders_are_refused_with_what_is_wrong(tuned, tmp_path):
    import shutil

    def copy(name):
        return shutil.copytree(tuned.path, tmp_path / name)

    folder = copy("lacks")
    (folder / "head.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks head\.safetensors"):
        load_task_model(folder)
    folder = copy("surplus")
    head = load_file(folder / "head.safetensors")
    save_file({**head, "head.extra": torch.zeros(1)}, folder / "head.safetensors")
    with pytest.raises(DataError, match=r"holds head\.extra, which the model does not have"):
        load_task_model(folder)
    save_file({k: v for k, v in head.items() if k != "head.linear.bias"}, folder / "head.safetensors")
    with pytest.raises(DataError, match=r"lacks head\.linear\.bias"):
        load_task_model(folder)
    save_file({**head, "head.linear.bias": torch.zeros(3)}, folder / "head.safetensors")
    with pytest.raises(DataError, match=r"head\.linear\.bias has shape \(3,\) instead of \(2,\)"):
        load_task_model(folder)
    folder = copy("json")
    (folder / "task.json").write_text('{"kind": "classification"}')
    with pytest.raises(DataError, match="describes no task model"):
        load_task_model(folder)


def test_a_failure_while_writing_leaves_no_folder(world, tmp_path, monkeypatch):
    from maskwright.core import task_folder

    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(task_folder, "write_text", fail)
    run, _, labels = world
    with pytest.raises(OSError, match="the disk is gone"):
        finetune(run, labels=f"{labels}:bright", out=tmp_path / "m", steps=1, holdout=0)
    assert list(tmp_path.iterdir()) == []
