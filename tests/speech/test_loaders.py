"""The loader `speech`: the contract, lengths, crops, windows, groups, statistics, buckets, real recordings."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.labels import labels_of
from maskwright.core.inspection import inspect_data
from maskwright.core.joined import JoinedLoader
from maskwright.core.options import check_options, describe_options
from maskwright.core.sample import TensorSpec, check_inputs, collate
from maskwright.core.trainer.data import Plan, StepSampler
from maskwright.speech.fake import WORDS, fake_corpus, fake_word
from maskwright.speech.features import log_mel, normalise
from maskwright.speech.loaders import SpeechLoader, padding_share
from maskwright.testing.loader import check_loader


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return fake_corpus(tmp_path_factory.mktemp("words"), speakers=3, words=WORDS[:3], takes=2)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """17 s at 22,050 Hz."""
    sound = np.concatenate([fake_word("kimu", 1, 22050, seed) for seed in range(27)])
    place = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(place, sound, 22050)
    return place


OPTIONS = [
    {},
    {"features": "kaldi-fbank", "seconds": 0.3, "deltas": 2},
    {"features": "mfcc", "sample_rate": 8000, "mels": 40, "deltas": 1, "rms": -25.0},
    {"features": "waveform", "seconds": 1.0},
    {"features": "waveform", "cmvn": True, "window": 0.3},
    {"cmvn": False, "sample_rate": None, "channel": 0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_contract(table, options):
    loader = SpeechLoader(table, **options)
    assert not loader.bad_files
    check_loader(loader, samples=5)
    for index in range(0, len(loader), 5):
        sample = loader.read(index, torch.Generator().manual_seed(index))
        assert len(sample["frames"]) == loader.front.channels
        assert sample.variable == (frozenset() if "seconds" in options else {"frames"})


def test_the_default_is_the_front_end_of_tera(table):
    loader = SpeechLoader(table)
    sample = loader.read(3)
    wave = torch.from_numpy(soundfile.read(sample.meta.source, dtype="float32")[0])
    torch.testing.assert_close(sample["frames"], normalise(log_mel(wave)))
    assert loader.spec == {
        "frames": TensorSpec("C T", 80, "log mel, deviations from each utterance's mean", variable=True)
    }
    assert sample["frames"].mean(1).abs().max() < 1e-5
    torch.testing.assert_close(sample["frames"].std(1), torch.ones(80), atol=1e-4, rtol=0)


def test_meta_says_who_spoke_what_and_where(table):
    loader = SpeechLoader(table)
    for index, want in enumerate(["fo", "fo", "kimu", "kimu", "sa", "sa"]):
        sample = loader.read(index)
        extra = sample.meta.extra
        assert (sample.meta.label, sample.meta.group, extra["text"]) == (want, "speaker1", want)
        info = soundfile.info(sample.meta.source)
        assert (extra["sample_rate"], extra["source_rate"], extra["channel"], extra["start"]) == (
            16000,
            16000,
            "mix",
            0,
        )
        assert extra["seconds"] == info.frames / 16000
        assert extra["frames"] == sample["frames"].shape[1] == loader.lengths[index] == 1 + info.frames // 160
    assert {loader.group(index) for index in range(18)} == {"speaker1", "speaker2", "speaker3"}
    assert labels_of("label", loader) == labels_of(f"{table}:label", loader)


def test_groups_by_pattern_or_else_the_file(table):
    folder = table.parent
    loader = SpeechLoader(folder, group_pattern=r"(speaker\d)_")
    assert {loader.group(index) for index in range(18)} == {"speaker1", "speaker2", "speaker3"}
    assert SpeechLoader(folder, group_pattern=r"speaker\d").group(17) == "speaker3"
    assert SpeechLoader(folder).group(0) == "speaker1_fo_0.wav"
    with pytest.raises(ConfigError, match="regular expression"):
        SpeechLoader(folder, group_pattern="(")


def test_labels_are_folders(table, tmp_path):
    for word in ("sa", "fo"):
        (tmp_path / word).mkdir()
        shutil.copy(table.parent / f"speaker1_{word}_0.wav", tmp_path / word)
    loader = SpeechLoader(tmp_path)
    assert [loader.label(0), loader.label(1)] == ["fo", "sa"]
    assert loader.group(0) == "fo/speaker1_fo_0.wav"


# crops and windows -----------------------------------------------------------------------------------------------


def test_crops_are_parts_of_the_whole(talk):
    whole = torch.from_numpy(soundfile.read(talk, dtype="float32")[0])
    loader = SpeechLoader(talk, seconds=2, features="waveform", sample_rate=None)
    starts = set()
    for seed in range(20):
        sample = loader.read(0, torch.Generator().manual_seed(seed))
        start = round(sample.meta.extra["start"] * 22050)
        assert torch.equal(sample["frames"][0], whole[start : start + 44100])
        starts.add(start)
    assert len(starts) == 20
    middle = loader.read(0).meta.extra["start"]
    assert middle == pytest.approx((len(whole) / 22050 - 2) / 2, abs=1e-4)


@pytest.mark.parametrize("features", ["log-mel", "kaldi-fbank", "waveform"])
def test_crops_all_have_one_length_and_short_ones_zeros_behind(talk, table, features):
    loader = JoinedLoader([SpeechLoader(path, features=features, seconds=1.5) for path in (talk, table)])
    samples = [loader.read(index, torch.Generator().manual_seed(1)) for index in (0, 1, 9)]
    batch = collate(samples)
    assert not batch.lengths
    frames, short = batch["frames"][1], samples[1].meta.extra["frames"]
    assert 0 < short < frames.shape[1]
    assert not frames[:, short:].any()
    own = SpeechLoader(table, features=features).read(0)["frames"]
    assert torch.equal(frames[:, :short], own)  # so that zeros were no part of what was normalised


def test_windows_join_into_the_whole(talk):
    whole = SpeechLoader(talk, features="waveform").read(0)["frames"]
    loader = SpeechLoader(talk, features="waveform", window=2.5)
    samples = [loader.read(index) for index in range(len(loader))]
    torch.testing.assert_close(torch.cat([sample["frames"] for sample in samples], 1), whole, atol=1e-6, rtol=0)
    assert [sample["frames"].shape[1] for sample in samples[:-1]] == [40000] * (len(loader) - 1)
    assert 20000 <= samples[-1]["frames"].shape[1] < 60000  # a rest of less than half a window belongs to the last one
    assert [sample.meta.extra["start"] for sample in samples[:3]] == [0, 2.5, 5]
    assert len({sample.meta.group for sample in samples}) == 1
    crops = SpeechLoader(talk, window=2.5, seconds=1)
    assert len(crops) == len(loader)
    assert 2.5 <= crops.read(1, torch.Generator().manual_seed(3)).meta.extra["start"] <= 4


def test_files_of_several_rates(talk, table, tmp_path):
    shutil.copy(talk, tmp_path / "b.wav")
    shutil.copy(table.parent / "speaker1_sa_0.wav", tmp_path / "a.wav")
    assert {SpeechLoader(tmp_path).read(index).meta.extra["sample_rate"] for index in (0, 1)} == {16000}
    kept = SpeechLoader(tmp_path, sample_rate=None)
    assert (len(kept), kept.front.rate) == (1, 16000)
    assert kept.bad_files[0].path == str(tmp_path / "b.wav")
    assert "22050 samples a second, but" in kept.bad_files[0].reason


# lengths and buckets ---------------------------------------------------------------------------------------------


def epoch(loader, buckets, batch=16):
    sizes = () if buckets is None else tuple(np.bincount(buckets).tolist())
    plan = Plan(len(loader), batch, 1, 1, 1, sizes)
    plan = Plan(len(loader), batch, 1, 1, plan.micro_per_epoch, sizes)
    return [np.array([index for _, index in keys]) for keys in StepSampler(plan, 0, bucket_of=buckets)]


def test_buckets_hold_like_lengths_and_save_padding(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(256):
        soundfile.write(tmp_path / f"{number:03d}.wav", np.zeros(int(8000 * 2 ** generator.uniform(0, 3))), 16000)
    loader = SpeechLoader(tmp_path)
    buckets = loader.buckets()
    np.testing.assert_allclose(np.bincount(buckets), [64] * 4, atol=2)  # equal lengths stay together
    for number in range(3):
        assert loader.lengths[buckets == number].max() <= loader.lengths[buckets == number + 1].min()
    before, after = (padding_share(loader.lengths, epoch(loader, one)) for one in (None, buckets))
    assert before > 0.35
    assert after < 0.25
    assert SpeechLoader(tmp_path, buckets=8).buckets().max() == 7
    assert SpeechLoader(tmp_path, seconds=1).buckets() is None
    assert SpeechLoader(tmp_path, buckets=1000).buckets().max() < 256


def test_a_batch_is_filled_up_and_a_method_must_heed_it(table):
    loader = SpeechLoader(table)
    batch = collate([loader.read(0), loader.read(2)])
    assert batch.lengths["frames"].tolist() == loader.lengths[[0, 2]].tolist()
    assert batch["frames"].shape == (2, 80, loader.lengths[[0, 2]].max())
    assert loader.bytes_per_sample() == 4 * 80 * loader.lengths.max()
    with pytest.raises(ConfigError, match=r"data\.seconds"):
        check_inputs(loader.spec, {"frames": TensorSpec("C T", 80)}, "loader", "method")
    check_inputs(SpeechLoader(table, seconds=0.5).spec, {"frames": TensorSpec("C T", 80)}, "loader", "method")


# what is in it ---------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_real_frames(table):
    loader = SpeechLoader(table, cmvn=False, seconds=2)
    found = loader.statistics()["frames"]
    real = torch.cat([SpeechLoader(table, cmvn=False).read(index)["frames"] for index in range(18)], 1).double()
    np.testing.assert_allclose(found.mean, real.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.std, real.std(1), rtol=1e-5)
    assert found.count == real.shape[1]
    assert loader.statistics() is loader.statistics()
    assert SpeechLoader(table, cmvn=False, seconds=2).statistics() == loader.statistics()


def test_simple_features_know_what_normalisation_erases(table):
    loader, raw = SpeechLoader(table), SpeechLoader(table, cmvn=False)
    sample = loader.read(5)
    features = loader.simple_features(sample)
    frames = raw.read(5)["frames"]
    torch.testing.assert_close(features["channel statistics"], torch.cat([frames.mean(1), frames.std(1, correction=0)]))
    assert {name: len(values) for name, values in features.items()} == {
        "channel statistics": 160,
        "statistics with deltas": 480,
        "averages in time": 640,
    }
    crops = SpeechLoader(table, seconds=0.2)
    crop = crops.read(5)
    part = SpeechLoader(table, seconds=0.2, cmvn=False).read(5)["frames"]
    torch.testing.assert_close(crops.simple_features(crop)["channel statistics"][:80], part.mean(1))
    waves = SpeechLoader(table, features="waveform", sample_rate=8000)
    assert len(waves.simple_features(waves.read(0))["channel statistics"]) == 80
    joined = JoinedLoader([raw, loader])
    torch.testing.assert_close(joined.simple_features(joined.read(23)), features)


def test_simple_features_tell_words_apart(table):
    loader = SpeechLoader(table)
    features = torch.stack([loader.simple_features(loader.read(index))["averages in time"] for index in range(18)])
    labels, groups = np.array(labels_of("label", loader)), np.array([loader.group(index) for index in range(18)])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    distance = torch.cdist(features, features).numpy()
    distance[groups[:, None] == groups[None]] = np.inf  # the nearest of another speaker
    assert (labels[distance.argmin(1)] == labels).mean() > 0.7


def test_pictures_keep_rows_and_are_turned_upright(table):
    loader = SpeechLoader(table)
    frames = torch.zeros(80, 50)
    frames[3, 10:20] = 1
    picture = loader.picture("frames", frames)
    assert picture.shape == (80, 50, 3)
    bright = picture.sum(2) > 300
    assert bright[3, 10:20].all()
    assert bright.sum() == 10
    assert (loader.upright("frames", picture)[76] == picture[3]).all()


def test_inspection_and_choice_of_the_loader(table, tmp_path):
    rows = inspect_data(table)
    assert len(rows) == 18
    assert {"file", "format", "seconds", "rate", "channels", "peak", "clipped", "offset", "silence", "group"} <= set(
        rows[0]
    )
    assert rows[0]["group"] == "speaker1"
    assert open_loader(table)[0] == open_loader(table.parent)[0] == "speech"
    (tmp_path / "a.wav").write_bytes(b"no sound")
    (tmp_path / "b.wav").write_bytes(b"")
    problems = [row["problem"] for row in inspect_data(tmp_path)]
    assert "holds no sound" in problems[0]
    assert "is empty" in problems[1]
    with pytest.raises(DataError, match="holds no utterance that can be used, and 2 that cannot"):
        SpeechLoader(tmp_path)
    with pytest.raises(DataError, match="holds no sound"):
        open_loader(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 0}, "data.seconds=0: 0.1 to"),
        ({"window": 2e6, "sample_rate": 5}, "data.sample_rate=5: 1000 to.*\n.*data.window"),
        ({"channel": -1}, "data.channel=-1"),
        ({"rms": 3.0}, "data.rms=3"),
        ({"buckets": 0}, "data.buckets=0"),
        ({"label_column": "word"}, "no column"),
        ({"label_column": "lable"}, 'Did you mean "label"'),
        ({"sample_rate": 8000}, "data.mels=40"),
    ],
)
def test_options_out_of_range(table, options, words):
    with pytest.raises(ConfigError, match=words):
        SpeechLoader(table, **options)


def test_options_are_validated_and_described():
    problems = []
    options = check_options("data", SpeechLoader, {"features": "mfcc", "seconds": "2", "channel": "mix"}, problems)
    assert not problems
    assert options["seconds"] == 2
    check_options("data", SpeechLoader, {"features": "mel", "channel": "left", "deltas": 3}, problems)
    assert len(problems) >= 3
    for name, _, _, text in describe_options(SpeechLoader):
        assert text, f"{name} has no description"


# real recordings -------------------------------------------------------------------------------------------------


def test_spoken_digits_of_8_khz(shared_data):
    loader = SpeechLoader(shared_data / "speech" / "fsdd" / "labels.csv", label_column="digit")
    assert len(loader) == 600
    assert not loader.bad_files
    assert {loader.label(index) for index in range(600)} == set("0123456789")
    assert {loader.group(index) for index in range(600)} == {"george", "lucas", "nicolas", "theo"}
    check_loader(loader)
    before, after = (padding_share(loader.lengths, epoch(loader, one)) for one in (None, loader.buckets()))
    assert after < 0.5 * before
    narrow = SpeechLoader(loader.path, sample_rate=8000, mels=40, label_column="digit")
    assert abs(narrow.lengths - loader.lengths).max() <= 1


def test_real_sentences_and_other_sounds(shared_data):
    emotions = SpeechLoader(shared_data / "speech" / "emodb" / "labels.csv", label_column="emotion")
    assert len(emotions) == 83
    assert len({emotions.group(index) for index in range(83)}) == 7
    check_loader(emotions)
    sentences = SpeechLoader(shared_data / "speech" / "ljspeech_sample", features="kaldi-fbank")
    check_loader(sentences)
    assert sentences.read(0).meta.extra["source_rate"] == 22050
    noises = SpeechLoader(shared_data / "audio" / "drone_helicopter_background", seconds=1, channel=1)
    check_loader(noises)
    rows = SpeechLoader.inspect(shared_data / "audio")
    assert {row["channels"] for row in rows} == {2}
    assert not [row for row in rows if "problem" in row]
