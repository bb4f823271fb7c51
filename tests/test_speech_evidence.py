"""Figures on sets of speech: no held-out speaker is seen, encoders and scores are those of the product, the page is fresh."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import maskwright as mw
from benchmarks.evidence import speech, speech_training
from maskwright.core.evaluation.judge import BASELINES, OURS, Key
from maskwright.core.trainer.data import generator_for
from maskwright.speech.fake import fake_word

# the stored figures -------------------------------------------------------------------------------------------------


def test_page_holds_the_stored_figures():
    shown = speech.PAGE.read_text().split(speech.START)[1].split(speech.END)[0].strip()
    assert shown == speech.tables().strip(), "run python -m benchmarks.evidence.speech --page"


def test_every_set_has_seeds_baselines_and_no_place_of_one_machine():
    text = speech.RESULT.read_text()
    stored = json.loads(text)
    assert set(stored) == {*speech.SETS, "environment"}
    assert not any(place in text for place in ("/tmp", "/home", "/work", "/root"))
    for name, plan in speech.SETS.items():
        assert stored[name]["plan"]["steps"] == plan.steps
        assert set(speech.USUAL) <= set(stored[name]["methods"])
        for method in stored[name]["methods"].values():
            assert {len(row["values"]) for row in method["rows"]} == {3}
            features = {row["features"] for row in method["rows"]}
            assert {OURS, "random init", "channel statistics", "statistics with deltas"} <= features
            assert ("supervised from scratch" in features) == bool(plan.tuning)


# the sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path):
    """Two made-up words of three speakers, four takes each, in the digits' layout."""
    folder = tmp_path / "sets" / "fsdd"
    folder.mkdir(parents=True)
    rows = []
    for digit, word in enumerate(("sa", "kimu")):
        for speaker in range(3):
            for take in range(4):
                file = f"{digit}_{'abc'[speaker]}_{take}.wav"
                soundfile.write(folder / file, fake_word(word, speaker, 8000, seed=take), 8000)
                split = "test" if take == 0 else "train"
                rows.append({"file": file, "digit": digit, "speaker": "abc"[speaker], "take": take, "split": split})
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder.parent


@pytest.fixture
def few_steps(monkeypatch):
    for name, plan in speech.SETS.items():
        monkeypatch.setitem(speech.SETS, name, replace(plan, steps=3, tuning=min(plan.tuning, 2), batch=4))


def test_no_encoder_sees_what_its_fold_tests(recordings, tmp_path):
    rows = speech_training.read_labels(recordings / "fsdd")
    for column, count in (("speaker", 3), ("split", 1)):
        folds = speech_training.folds_of(rows, column)
        assert len(folds) == count
        speech_training.write_tables(rows, "digit", folds, tmp_path / column)
        tested = []
        for fold in folds:
            with (tmp_path / column / f"{fold.name}.csv").open(newline="") as file:
                seen = {row["file"] for row in csv.DictReader(file)}
            assert seen == fold.train
            assert not seen & fold.test
            held = {row[column] for row in rows if row["file"] in fold.test}
            assert not held & {row[column] for row in rows if row["file"] in seen}
            tested += fold.test
        assert len(tested) == len(set(tested)) == (24 if column == "speaker" else 6)


@pytest.mark.usefixtures("few_steps")
def test_samples_come_in_the_order_of_the_fold_and_are_read_once(recordings, tmp_path, monkeypatch):
    rows = speech_training.read_labels(recordings / "fsdd")
    folds = speech_training.folds_of(rows, "speaker")
    table = speech_training.write_tables(rows, "digit", folds, tmp_path)
    whole = speech_training.Kept(mw.open_data(table, "speech", **speech.DIGITS), {})
    loader, targets, given = speech.open_fold(whole, folds[1])
    truth = {row["file"]: (row["digit"], row["speaker"]) for row in rows}
    samples = [loader.read(index, generator_for(index)) for index in range(24)]
    assert [sample.meta.index for sample in samples] == list(range(24))
    for sample, number in zip(samples, targets.values, strict=True):
        assert (targets.classes[number], sample.meta.group) == truth[sample.meta.source]
    assert {sample.meta.group for sample in samples[:given]} == {"a", "c"}
    assert {sample.meta.group for sample in samples[given:]} == {"b"}
    monkeypatch.setattr(whole.loader, "read", None)  # a second reading would fail
    other = speech.open_fold(whole, folds[0])[0]
    assert all(torch.equal(a["frames"], whole.memory[a.meta.source]["frames"]) for a in map(other.read, range(24)))


# training and judging -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("title", ["TERA", "w2v-BERT"])
def test_encoders_and_scores_are_those_of_pretrain_and_evaluate(title, recordings, tmp_path):
    found = speech.run_set("takes", recordings, tmp_path / "out", 1, (title,))
    assert str(tmp_path) not in json.dumps(found)
    plan, variant = speech.SETS["takes"], speech.VARIANTS[title]
    tables = tmp_path / "out" / "tables" / "takes"
    settings = [f"data.{key}={value}" for key, value in plan.data.items()] + variant.settings
    run = mw.pretrain(
        variant.method, tables / "split.csv", "tiny", tmp_path / "run", [*settings, "data.loader=speech", "seed=0"],
        max_steps=plan.steps, batch_size=plan.batch, lr=1e-3, precision="32", accelerator="cpu",
    )  # fmt: skip
    fold = speech_training.Fold("split", frozenset(), frozenset())
    mine = speech_training.train(speech.built("takes", variant, tables, fold, 0), {}).state_dict()
    theirs = mw.load(run).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)

    rows = (tables / "all.csv").read_text().splitlines()
    trained = (tables / "split.csv").read_text().splitlines()
    (tables / "test.csv").write_text("\n".join([rows[0], *(row for row in rows if row not in trained)]) + "\n")
    evaluation = mw.evaluate(
        run, tables / "split.csv", labels="label", test=tables / "test.csv", test_labels="label",
        protocols=["knn", "linear"], baselines=("random-init", "simple"), seeds=1, metric="accuracy",
        out=tmp_path / "evaluation",
    )  # fmt: skip
    expected = {
        (row.features, row.protocol): list(row.values) for row in evaluation.table.rows if row.metric == "accuracy"
    }
    given = {(row["features"], row["protocol"]): row["values"] for row in found["methods"][title]["rows"]}
    assert given == expected
    assert (OURS, "linear probe") in given
    assert found["methods"][title]["headline"] == evaluation.headline


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", ["takes", "emotions"])
def test_mp3_reads_crops_of_one_length(name, recordings, tmp_path, monkeypatch):
    monkeypatch.setitem(speech.SETS, name, replace(speech.SETS[name], folder="fsdd", label="digit"))
    variant = speech.VARIANTS["MP3"]
    loader = mw.open_data(recordings / "fsdd", "speech", **speech.options_of(name, variant))
    assert {loader.read(index)["frames"].shape[1] for index in range(len(loader))} == {48}
    found = speech.run_set(name, recordings, tmp_path / "out", 1, ("MP3",))["methods"]["MP3"]
    assert {OURS, "random init"} <= {row["features"] for row in found["rows"]}


@pytest.mark.usefixtures("few_steps")
def test_each_speaker_counts_once_and_what_is_done_is_not_done_again(recordings, tmp_path, monkeypatch):
    """A judge that says the truth of two speakers of three gets two thirds right; TERA's variants share baselines."""
    calls = []

    def judged(name, encoder, whole, fold, seeds, baselines):
        calls.append((fold.name, seeds, baselines))
        loader, targets, given = speech.open_fold(whole, fold)
        y = targets.values[given:]
        right = y if fold.name != "b" else 1 - y
        sums = np.zeros((seeds, 3, 4 + 256))
        where = ["abc".index(loader.group(index)) for index in range(given, len(loader))]
        np.add.at(sums, (slice(None), where, y * 2 + right), 1)
        return {Key("random init" if baselines else OURS, "kNN", 1.0): sums}

    monkeypatch.setattr(speech, "judge", judged)
    titles = ("TERA", "TERA, time alone")
    found = speech.run_set("digits", recordings, tmp_path / "out", 2, titles)
    assert len(calls) == 2 * 3 * 2 + 3
    assert [call for call in calls if call[2]] == [(name, 2, BASELINES) for name in "abc"]
    for method in found["methods"].values():
        assert [row["values"] for row in method["rows"]] == [[pytest.approx(2 / 3)] * 2] * 2
        assert "24 samples in 3 groups, 3 folds, groups kept together, 2 seeds" in method["title"]
    assert speech.run_set("digits", recordings, tmp_path / "out", 2, titles) == found
    assert len(calls) == 2 * 3 * 2 + 3


# the page -----------------------------------------------------------------------------------------------------------


def test_page_is_written_between_its_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{speech.START}\nstale\n{speech.END}\nafter\n")
    monkeypatch.setattr(speech, "PAGE", page)
    speech.write_page()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert text.count("**TERA**, pre-trained |") == len(json.loads(speech.RESULT.read_text())) - 1
