"""`maskwright speech ...`, and what the plugin announces."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from maskwright.cli.main import app
from maskwright.core.errors import MaskwrightError
from maskwright.core.host import get_host
from maskwright.speech.fake import fake_corpus, fake_librispeech
from maskwright.speech.loaders import SpeechLoader


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["speech", *map(str, arguments)])
    if isinstance(done.exception, MaskwrightError):
        assert done.exception.exit_code == code, done.exception
        return str(done.exception)
    assert done.exit_code == code, done.output
    return done.output


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_manifest_lists_and_checks_a_corpus(tmp_path):
    fake_librispeech(tmp_path / "corpus")
    (tmp_path / "corpus" / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "corpus" / "quiet.wav", np.zeros(16000), 16000)
    said = run("manifest", tmp_path / "corpus", tmp_path / "list.csv")
    assert "8 utterances" in said
    assert "2 known speakers" in said
    assert "1 of them cannot be used" in said
    rows = rows_of(tmp_path / "list.csv")
    good = [row for row in rows if not row["problem"]]
    assert len(rows) == 8
    assert {row["speaker"] for row in good} == {"100", "101", ""}
    assert all(float(row["seconds"]) > 0.2 and row["rate"] == "16000" and row["channels"] == "1" for row in good)
    assert next(row for row in rows if "quiet" in row["file"])["remark"].startswith("is silent")
    assert rows[0]["file"].startswith("corpus/100/")
    loader = SpeechLoader(tmp_path / "list.csv")
    assert len(loader) == 7
    assert len(loader.bad_files) == 1
    assert loader.group(0) == "100"
    assert loader.read(1).meta.extra["text"] == "KIMU FO"
    assert "written as .csv" in run("manifest", tmp_path / "corpus", tmp_path / "list.txt", code=2)
    (tmp_path / "nothing").mkdir()
    assert "no sound file" in run("manifest", tmp_path / "nothing", tmp_path / "list.csv", code=3)


def test_features_are_what_the_loader_reads(tmp_path):
    table = fake_corpus(tmp_path / "words", speakers=1, takes=1)
    (tmp_path / "words" / "z.wav").write_bytes(b"no sound")
    said = run("features", tmp_path / "words", tmp_path / "out", "--kind", "mfcc", "--set", "data.deltas=2")
    assert "Wrote 3 files" in said
    assert "Left out" in said
    loader = SpeechLoader(tmp_path / "words", features="mfcc", deltas=2)
    with np.load(tmp_path / "out" / "speaker1_kimu_0.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["frames"], loader.read(1)["frames"])
        assert found["frames"].shape[0] == 39
        assert (int(found["sample_rate"]), str(found["group"])) == (16000, "speaker1_kimu_0.wav")
    one = table.parent / "speaker1_kimu_0.wav"
    assert "Give a folder" in run("features", one, tmp_path / "one.npz", "--set", "data.window=0.2", code=2)
    run("features", one, tmp_path / "one.npz")
    assert np.load(tmp_path / "one.npz")["frames"].shape[0] == 80


def test_features_of_windows_are_numbered(tmp_path):
    table = fake_corpus(tmp_path / "words", speakers=1, takes=1, words=("kimu",))
    run("features", table, tmp_path / "out", "--set", "data.window=0.2")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(SpeechLoader(table, window=0.2)) == 3
    assert names == ["speaker1_kimu_0-2.npz", "speaker1_kimu_0-3.npz", "speaker1_kimu_0.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "mel"], "log-mel"),
        (["--set", "data.melz=4"], 'Did you mean "mels"'),
        (["--set", "trainer.steps=4"], "only options of the loader"),
    ],
)
def test_options_that_do_not_fit(tmp_path, arguments, words):
    fake_corpus(tmp_path / "words", speakers=1, takes=1)
    assert words in run("features", tmp_path / "words", tmp_path / "out", *arguments, code=2)


def test_a_folder_that_is_not_empty_is_not_written_into(tmp_path):
    fake_corpus(tmp_path / "words", speakers=1, takes=1)
    assert "not empty" in run("features", tmp_path / "words", tmp_path / "words", code=2)


def test_the_plugin_is_light_and_says_what_it_needs():
    code = "import sys, maskwright.speech.plugin; print([m for m in ('torch', 'torchaudio', 'soundfile', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    component = get_host().component("loader", "speech")
    assert (component.extra, component.requires) == ("maskwright[speech]", ("soundfile", "torchaudio"))
    assert component.load() is SpeechLoader
    from maskwright.speech.plugin import diagnose

    facts = diagnose()
    assert facts["sound formats"] == "WAV, FLAC, OGG, MP3"
    assert "libsndfile" in facts["soundfile"]
