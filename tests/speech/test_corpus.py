"""Layouts of corpora: LibriSpeech, Kaldi data folders, tables; what is wrong in lists."""

import pytest
import soundfile

from maskwright.core.errors import DataError
from maskwright.speech.corpus import holds_speech, read_corpus
from maskwright.speech.fake import WORDS, fake_corpus, fake_kaldi, fake_librispeech, fake_word
from maskwright.speech.loaders import SpeechLoader


def test_librispeech(tmp_path):
    loader = SpeechLoader(fake_librispeech(tmp_path / "train"))
    assert [loader.group(index) for index in range(6)] == ["100"] * 3 + ["101"] * 3
    assert {loader.label(index) for index in range(6)} == {None}
    assert loader.read(1).meta.extra["text"] == "KIMU FO"
    assert [loader.group(0) for loader in [SpeechLoader(tmp_path / "train" / "101" / "9001")]] == ["101"]


def test_kaldi_segments(tmp_path):
    folder = fake_kaldi(tmp_path / "data")
    loader = SpeechLoader(folder)
    assert len(loader) == 2 * len(WORDS)
    assert not loader.bad_files
    whole, rate = soundfile.read(folder / "talk1.wav", dtype="float32")
    waves = SpeechLoader(folder, features="waveform")
    for index in range(len(WORDS), 2 * len(WORDS)):
        sample = waves.read(index)
        extra, word = sample.meta.extra, WORDS[index - len(WORDS)]
        assert (extra["name"], extra["text"], sample.meta.group) == (f"s1-{index - len(WORDS):03d}", word, "s1")
        start = round(extra["start"] * rate)
        assert (sample["frames"][0].numpy() == whole[start : start + sample["frames"].shape[1]]).all()
    assert holds_speech(folder)
    assert len(SpeechLoader(folder / "wav.scp")) == len(loader)


def test_kaldi_without_segments_and_with_faults(tmp_path):
    folder = fake_kaldi(tmp_path / "data")
    (folder / "segments").unlink()
    assert [SpeechLoader(folder).read(index).meta.extra["name"] for index in (0, 1)] == ["talk0", "talk1"]
    lines = [
        "a talk0 0.1 0.5",
        "b talk0 5 600",
        "c talk0 0.5 0.1",
        "d talk9 0 1",
        "e talk0 0.5 -1",
        "f talk0 99 -1",
        "g talk1 x 1",
    ]
    (folder / "segments").write_text("\n".join(lines) + "\n")
    loader = SpeechLoader(folder)
    assert [loader.read(index).meta.extra["name"] for index in range(len(loader))] == ["a", "e"]
    reasons = " | ".join(bad.reason for bad in loader.bad_files)
    for words in (
        "a part from 5 to 600 s",
        "no part of a file",
        'does not name "talk9"',
        "from 99 to the end",
        "no numbers",
    ):
        assert words in reasons
    (folder / "segments").write_text("a talk0 0.1\n")
    with pytest.raises(DataError, match='2 fields behind "a"'):
        SpeechLoader(folder)


@pytest.mark.parametrize("command", ["touch {} |", "| cat", "sph2pipe -f wav a.sph |"])
def test_kaldi_commands_are_not_run(tmp_path, command):
    folder = fake_kaldi(tmp_path / "data")
    proof = tmp_path / "proof"
    with (folder / "wav.scp").open("a") as file:
        file.write(f"evil {command.format(proof)}\n")
    with pytest.raises(DataError, match='runs a command for "evil"'):
        SpeechLoader(folder)
    assert not proof.exists()


def test_tables(tmp_path):
    fake_corpus(tmp_path, speakers=1, words=("kimu",), takes=1)
    table = tmp_path / "list.tsv"
    rows = [
        ["wav", "start", "end", "Speaker", "emotion"],
        ["speaker1_kimu_0.wav", "", "", "anna", "glad"],
        ["speaker1_kimu_0.wav", "0.1", "0.3", "bert", ""],
        ["absent.wav", "", "", "bert", "sad"],
        ["speaker1_kimu_0.wav", "0.1", "far", "bert", "sad"],
        ["speaker1_kimu_0.wav", "0.1", "7", "bert", "sad"],
    ]
    table.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    loader = SpeechLoader(table, label_column="emotion")
    assert [(loader.group(index), loader.label(index)) for index in (0, 1)] == [("anna", "glad"), ("bert", None)]
    assert loader.read(1)["frames"].shape[1] == 21
    reasons = sorted(bad.reason for bad in loader.bad_files)
    assert len(reasons) == 3
    assert any("named in line 4" in reason for reason in reasons)
    assert any("no numbers, in line 5" in reason for reason in reasons)
    assert any("a part from 0.1 to 7 s" in reason for reason in reasons)
    assert holds_speech(table)


def test_tables_of_other_things_are_not_taken(tmp_path):
    (tmp_path / "pictures.csv").write_text("file,label\na.png,1\n")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    assert not any(holds_speech(tmp_path / f"{name}.csv") for name in ("pictures", "numbers", "binary"))
    with pytest.raises(DataError, match="one called file"):
        read_corpus(tmp_path / "numbers.csv")


def test_folders_skip_what_is_hidden_and_what_is_no_sound(tmp_path):
    for name in ("b.wav", "a.FLAC", ".hidden.wav", "note.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("words")
        else:
            soundfile.write(tmp_path / name, fake_word(), 16000, format=name.split(".")[-1].upper())
    assert [one.file.name for one in read_corpus(tmp_path).utterances] == ["a.FLAC", "b.wav"]
    with pytest.raises(DataError, match="no such file"):
        read_corpus(tmp_path / "absent")
