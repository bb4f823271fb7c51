"""Figures on clinical sets: the data are cut without leaks, the verdicts are those of `evaluate`, the page is fresh."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

import maskwright as mw
from benchmarks.evidence import medical, medical_eyes, medical_sets
from maskwright.core.evaluation.judge import Key
from maskwright.core.masking import Grid, mask_from_scores

# the stored figures -------------------------------------------------------------------------------------------------


def test_page_holds_the_stored_figures():
    shown = medical.PAGE.read_text().split(medical.START)[1].split(medical.END)[0].strip()
    assert shown == medical.tables().strip(), "run python -m benchmarks.evidence.medical --page"


def test_every_set_has_seeds_baselines_and_no_place_of_one_machine():
    text = medical.RESULT.read_text()
    stored = json.loads(text)
    assert set(stored) == {*medical.SETS, "eyes", "environment"}
    assert not any(place in text for place in ("/tmp", "/home", "/work", "/root"))
    for name in medical.SETS:
        for method in medical.METHODS:
            rows = stored[name]["methods"][method]["rows"]
            assert {len(row["values"]) for row in rows} == {3}
            assert {"pre-trained", "random init", "raw values", "supervised from scratch"} <= {
                row["features"] for row in rows
            }
    assert all(len(row["values"]) == 3 for row in stored["eyes"]["rows"] if "decoder" in row["predictor"])


# the sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clinic(tmp_path):
    """Made-up files of the true layouts."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "clinic"
    for name in ("tcia_lung_ct_contrast", "pneumoniamnist_balanced", "ct_volume_nifti", "dicom_nifti_readers"):
        (folder / name).mkdir(parents=True)
    count = 24
    np.savez(
        folder / "tcia_lung_ct_contrast" / "slices.npz",
        pixels=generator.integers(-2000, 2000, (count, 512, 512)).astype(np.int16),
        rescale_slope=np.full(count, 2.0),
        rescale_intercept=np.full(count, -24.0),
        contrast=np.arange(count) % 2,
        patient=np.arange(count) // 2,
    )
    images = {
        f"{part}_images": generator.integers(0, 255, (size, 28, 28)).astype(np.uint8)
        for part, size in (("train", 24), ("val", 4), ("test", 12))
    }
    labels = {name.replace("images", "labels"): (np.arange(len(x)) % 2)[:, None] for name, x in images.items()}
    for name, x in images.items():  # the second class is brighter
        x[labels[name.replace("images", "labels")][:, 0] == 1, ::2] |= 128
    np.savez(folder / "pneumoniamnist_balanced" / "pneumoniamnist.npz", **images, **labels)
    scan = generator.integers(-1000, 1000, (122, 101, 40)).astype(np.int32)
    codes = generator.integers(0, 20, (122, 101, 30)).astype(np.uint8)
    for name, values in (("example_ct", scan), ("example_ct_sm", scan[..., 10:]), ("example_seg", codes)):
        place = folder / "ct_volume_nifti" / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), place)
    return folder


def test_no_patient_is_trained_and_tested(clinic, tmp_path):
    folds, about = medical_sets.prepare("contrast", clinic, tmp_path / "out")
    assert about == {"slices": 24, "patients": 12, "with contrast agent": 12}
    assert len(folds) == 5
    tested = []
    for fold in folds:
        stored, unlabelled = np.load(fold.labelled), np.load(fold.unlabelled)["x"]
        train, test = stored["group"][: fold.train], stored["group"][fold.train :]
        assert not set(train) & set(test)
        assert np.array_equal(unlabelled, stored["x"][: fold.train])
        tested += test.tolist()
    assert sorted(tested) == sorted(np.arange(24) // 2)
    pixels = np.load(clinic / "tcia_lung_ct_contrast" / "slices.npz")["pixels"]
    first = (pixels[:, :8, :8] * 2.0 - 24).clip(-1024).mean((1, 2))
    stored = np.load(folds[0].labelled)["x"][:, 0, 0]
    np.testing.assert_allclose(np.sort(stored), np.sort(first), rtol=1e-4)


def test_organs_are_tested_away_from_what_was_trained_on(clinic, tmp_path):
    folds, about = medical_sets.prepare("organs", clinic, tmp_path / "out")
    assert len(about["codes"]) == medical_sets.CODES + 1
    assert about["unlabelled slices"] == 8
    scan = np.asarray(nibabel.load(clinic / "ct_volume_nifti" / "example_ct.nii.gz").dataobj).transpose(2, 1, 0)
    scan = scan[:, medical_sets.ROWS, medical_sets.COLUMNS]
    place = {one.tobytes(): at for at, one in enumerate(scan.astype(np.float32))}
    sides = []
    for fold in folds:
        stored = np.load(fold.labelled)
        at = np.array([place[one.tobytes()] for one in stored["x"]])
        unlabelled = np.array([place[one.tobytes()] for one in np.load(fold.unlabelled)["x"]])
        train, test = at[: fold.train], at[fold.train :]
        assert abs(train[:, None] - test).min() > medical_sets.GAP
        assert unlabelled.max() < at.min() - medical_sets.LEVELS
        sides.append((set(train), set(test)))
    assert sides[0] == sides[1][::-1]


# judging ------------------------------------------------------------------------------------------------------------


def test_scores_and_verdict_are_those_of_evaluate(clinic, tmp_path, monkeypatch):
    plan = replace(medical.SETS["pneumonia"], steps=2, tuning=2, batch=8)
    monkeypatch.setitem(medical.SETS, "pneumonia", plan)
    out = tmp_path / "out"
    found = medical.run_set("pneumonia", clinic, out, 2, ("uni4eye",))
    mine = found["methods"]["uni4eye"]
    assert str(tmp_path) not in json.dumps(found)
    weights = out / "pneumonia" / "uni4eye" / "fold0-seed0" / "encoder.safetensors"
    written = weights.stat().st_mtime_ns
    assert medical.run_set("pneumonia", clinic, out, 2, ("uni4eye",)) == found
    assert weights.stat().st_mtime_ns == written, "what is done is not done again"

    stored = np.load(out / "data" / "pneumonia" / "fold0" / "labelled.npz")
    for part, rows in (("train", slice(0, 24)), ("test", slice(24, 36))):
        np.savez(tmp_path / f"{part}.npz", **{name: stored[name][rows] for name in ("x", "y")})
    theirs = mw.evaluate(
        weights.parent,
        tmp_path / "train.npz",
        labels=f"{tmp_path / 'train.npz'}:y",
        test=tmp_path / "test.npz",
        test_labels=f"{tmp_path / 'test.npz'}:y",
        protocols=["knn", "linear", "finetune"],
        seeds=2,
        metric="accuracy",
        settings=["finetune.steps=2", "finetune.batch_size=8"],
        out=tmp_path / "evaluation",
    )
    expected = {(row.features, row.protocol, row.metric): row.values for row in theirs.table.rows}
    given = {(row["features"], row["protocol"], row["metric"]): row["values"] for row in mine["rows"]}
    assert set(given) == set(expected)
    for key, values in expected.items():
        if key[0] == "pre-trained":  # of one encoder there, of one a seed here
            assert given[key][0] == pytest.approx(values[0])
        else:
            assert given[key] == pytest.approx(values)


def test_each_group_counts_once_over_all_folds(clinic, tmp_path, monkeypatch):
    """A judge that says the truth of every second fold gets that share of the patients right."""
    folds, _ = medical_sets.prepare("contrast", clinic, tmp_path / "out")

    def judged(name, fold, encoder, seeds, baselines, out):
        stored = np.load(fold.labelled)
        number = folds.index(fold)
        groups = np.unique(stored["group"].astype(str))
        y = stored["y"][fold.train :]
        sums = np.zeros((seeds, len(groups), 4 + 256))
        where = np.searchsorted(groups, stored["group"][fold.train :].astype(str))
        right = y if number % 2 == 0 else 1 - y
        np.add.at(sums, (slice(None), where, y * 2 + right), 1)
        return {Key("raw values" if baselines else "pre-trained", "kNN", 1.0): sums}

    monkeypatch.setattr(medical, "judge", judged)
    monkeypatch.setitem(medical.SETS, "contrast", replace(medical.SETS["contrast"], steps=1))
    evaluation = medical.judge_method("contrast", "uni4eye", folds, tmp_path / "out", 1)
    rows = {(row.features, row.metric): row.values[0] for row in evaluation.table.rows}
    tested = [len(np.load(fold.labelled)["y"]) - fold.train for fold in folds]
    assert rows["pre-trained", "accuracy"] == pytest.approx(sum(tested[::2]) / 24)
    assert "12 groups, 5 folds, groups kept together, 1 seed" in evaluation.table.title


# what needs no network ----------------------------------------------------------------------------------------------


def test_guesses_know_visible_patches_only():
    grid, patch = Grid((4, 4)), (2, 2)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 8, 8, generator=generator)
    mask = mask_from_scores(torch.rand(3, 16, generator=generator), 12)
    made = medical_eyes.guesses(image, mask, grid, patch)
    hidden = mask.hidden.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = medical_eyes.guesses(torch.where(hidden, 99.0, image), mask, grid, patch)
    for name in ("visible mean", "near visible patches"):
        there = hidden.expand_as(image)
        torch.testing.assert_close(made[name][there], other[name][there])
    mean = (image * ~hidden).sum((2, 3)) / (~hidden).sum((2, 3))
    torch.testing.assert_close(made["visible mean"][:, :, 0, 0], mean)
    flat = medical_eyes.guesses(torch.full((3, 2, 8, 8), 0.5), mask, grid, patch)
    torch.testing.assert_close(flat["near visible patches"], torch.full((3, 2, 8, 8), 0.5))


def test_near_patches_weigh_more():
    """Visible patches one and two away weigh 1 and 1/4."""
    image = torch.tensor([[[[1.0, 0.0, 0.0, 3.0]]]])
    mask = mask_from_scores(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 2)
    made = medical_eyes.guesses(image, mask, Grid((1, 4)), (1, 1))["near visible patches"][0, 0, 0]
    assert made[1].item() == pytest.approx((1 * 1 + 3 / 4) / (1 + 1 / 4))
    assert made[2].item() == pytest.approx((1 / 4 + 3) / (1 + 1 / 4))
