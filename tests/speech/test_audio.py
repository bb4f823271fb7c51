"""Sound files as they are and as they should not be: kinds, lengths that do not hold, odd rates, odd samples."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from maskwright.core.errors import DataError
from maskwright.core.trainer.data import SampleReader
from maskwright.speech.audio import open_audio, read_part
from maskwright.speech.containers import count_mp3
from maskwright.speech.fake import fake_word
from maskwright.speech.inspection import describe
from maskwright.speech.loaders import SpeechLoader

KINDS = {
    "pcm8.wav": ("WAV", "PCM_U8", 0.01),
    "pcm16.wav": ("WAV", "PCM_16", 1e-4),
    "pcm24.wav": ("WAVEX", "PCM_24", 1e-6),
    "pcm32.wav": ("WAV", "PCM_32", 1e-6),
    "float.wav": ("WAV", "FLOAT", 1e-7),
    "double.wav": ("WAV", "DOUBLE", 1e-7),
    "alaw.wav": ("WAV", "ALAW", 0.03),
    "mulaw.wav": ("WAV", "ULAW", 0.03),
    "big.wav": ("RF64", "PCM_16", 1e-4),
    "sound.flac": ("FLAC", "PCM_16", 1e-4),
    "sound24.flac": ("FLAC", "PCM_24", 1e-6),
    "sound.ogg": ("OGG", "VORBIS", 0.1),
    "sound.opus": ("OGG", "OPUS", 0.2),
    "sound.mp3": ("MP3", "MPEG_LAYER_III", 0.1),
}


@pytest.fixture(scope="module")
def sound():
    return np.concatenate([fake_word("kimu", 1), fake_word("mesa", 1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sound):
    root = tmp_path_factory.mktemp("kinds")
    for name, (kind, coding, _) in KINDS.items():
        soundfile.write(root / name, sound, 16000, format=kind, subtype=coding)
    return root


@pytest.mark.parametrize("name", KINDS)
def test_every_coding_gives_the_samples(folder, sound, name):
    audio = open_audio(folder / name)
    assert (audio.frames, audio.rate, audio.channels, audio.misnamed) == (len(sound), 16000, 1, False)
    samples = read_part(audio, 0, audio.frames, "mix")
    assert samples.dtype == np.float32
    assert np.abs(samples - sound).max() <= KINDS[name][2]
    part = read_part(audio, 5000, 3000, 0)
    assert np.abs(part - samples[5000:8000]).max() <= {"sound.opus": 0.02, "sound.mp3": 1e-6}.get(name, 0)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_cut_file_is_never_a_shorter_one(folder, tmp_path, name, share):
    content = (folder / name).read_bytes()
    place = tmp_path / name
    place.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"expected|cannot be decoded") as caught:
        SpeechLoader(place).read(0)
    assert caught.value.path == str(place)
    assert describe(place)["problem"]


def test_a_cut_wav_file_says_both_numbers(folder, tmp_path, sound):
    content = (folder / "pcm16.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: 44 + 2 * 1000])
    with pytest.raises(DataError, match=f"declares {len(sound)} samples, but holds 1000;"):
        open_audio(tmp_path / "cut.wav")


def test_a_cut_flac_file_is_found_where_it_is_read(folder, tmp_path, sound):
    content = (folder / "sound.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    audio = open_audio(tmp_path / "cut.flac")  # its header is whole
    assert len(read_part(audio, 0, 4000, 0)) == 4000
    with pytest.raises(DataError, match=f"of {len(sound)}"):
        read_part(audio, 0, audio.frames, 0)


def test_a_header_of_four_gigabytes_is_refused_before_anything_is_allocated(tmp_path):
    header = (
        b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    )
    place = tmp_path / "huge.wav"
    place.write_bytes(header + b"data" + struct.pack("<I", 2**32 - 38) + bytes(1000 - 44))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(DataError, match="declares 2147483629 samples, but holds 478"):
        SpeechLoader(place)
    assert time.perf_counter() - began < 0.5
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_flac_header_of_billions_of_samples_is_refused(folder, tmp_path):
    content = bytearray((folder / "sound.flac").read_bytes())
    content[21] |= 0x0F  # the highest of the 36 bits of the number of samples
    content[22:24] = b"\xff\xff"
    (tmp_path / "lie.flac").write_bytes(content)
    with pytest.raises(DataError, match=r"declares \d{11} samples"):
        SpeechLoader(tmp_path / "lie.flac", window=0.25)
    content[21] &= 0xF0
    content[22:26] = (5_000_000).to_bytes(4, "big")  # could be in a file of this size, but is not
    (tmp_path / "lie.flac").write_bytes(content)
    loader = SpeechLoader(tmp_path / "lie.flac", window=0.25)
    with pytest.raises(DataError, match="5000000"):
        loader.read(len(loader) - 1)


def test_a_wav_file_may_have_other_chunks_around_its_samples(folder, tmp_path, sound):
    content = (folder / "pcm16.wav").read_bytes()
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    (tmp_path / "more.wav").write_bytes(content[:36] + odd + content[36:] + odd)
    assert open_audio(tmp_path / "more.wav").frames == len(sound)


@pytest.mark.parametrize("name", ["sound.ogg", "sound.opus"])
def test_a_damaged_or_missing_page_of_ogg_is_noticed(folder, tmp_path, name):
    content = bytearray((folder / name).read_bytes())
    pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
    damaged = bytearray(content)
    damaged[pages[-1] + 200] ^= 1
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(DataError, match=f"damaged page of Ogg at byte {pages[-1]}"):
        open_audio(tmp_path / name)
    (tmp_path / name).write_bytes(content[: pages[-2]] + content[pages[-1] :])
    with pytest.raises(DataError, match=r"lacks a page|cannot be decoded"):
        open_audio(tmp_path / name)
    (tmp_path / name).write_bytes(content + b"TAG of another program")
    assert open_audio(tmp_path / name).frames > 0


def test_an_mp3_file_of_varying_bit_rate_without_a_table_is_not_read_in_part(tmp_path):
    generator = np.random.default_rng(0)
    loud = np.concatenate([1e-3 * generator.normal(size=80000), 0.3 * generator.normal(size=80000)])
    soundfile.write(tmp_path / "whole.mp3", loud, 16000, bitrate_mode="VARIABLE", compression_level=0.3)
    content = (tmp_path / "whole.mp3").read_bytes()
    table = content.index(content[:2], 4)
    assert open_audio(tmp_path / "whole.mp3").frames == 160000
    (tmp_path / "bare.mp3").write_bytes(content[table:])
    assert len(soundfile.read(tmp_path / "bare.mp3")[0]) < 120000  # what a decoder makes of it without a word
    with pytest.raises(DataError, match=r"of which \d+ would be decoded.*Convert it"):
        open_audio(tmp_path / "bare.mp3")
    with_tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257) + content + b"TAG" + bytes(125)
    (tmp_path / "tagged.mp3").write_bytes(with_tag)
    assert open_audio(tmp_path / "tagged.mp3").frames == 160000
    found = count_mp3(tmp_path / "tagged.mp3", 0, len(with_tag))
    assert found.there == found.declared
    assert found.samples == 576


def test_content_decides_and_not_the_name(folder, tmp_path, sound):
    (tmp_path / "called.wav").write_bytes((folder / "sound.flac").read_bytes())
    audio = open_audio(tmp_path / "called.wav")
    assert (audio.kind, audio.misnamed, audio.frames) == ("FLAC", True, len(sound))
    assert describe(tmp_path / "called.wav")["remark"] == "is FLAC, whatever its name says"
    for content, words in (
        (b"", "is empty"),
        (b"just words, no sound at all", "holds no sound"),
        (b"\x89PNG\r\n\x1a\n" * 20, "holds no sound"),
    ):
        (tmp_path / "not.wav").write_bytes(content)
        with pytest.raises(DataError, match=words):
            open_audio(tmp_path / "not.wav")


def test_files_that_hold_nothing_or_less_than_a_frame(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(DataError, match="holds no sample"):
        open_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "short.wav", np.zeros(399), 16000)
    with pytest.raises(DataError, match=r"24\.9 ms long; expected a frame of 25 ms"):
        SpeechLoader(tmp_path / "short.wav")
    soundfile.write(tmp_path / "short.wav", np.zeros(400), 16000)
    assert not SpeechLoader(tmp_path / "short.wav").read(0)["frames"].any()


def test_nan_in_a_float_file_is_named_and_set_aside(tmp_path, sound):
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        samples = sound.copy()
        samples[[77, 5000]] = value
        soundfile.write(tmp_path / name, samples, 16000, subtype="FLOAT")
        loader = SpeechLoader(tmp_path / name)
        with pytest.raises(DataError, match=f"NaN or infinity in 2 of {len(sound)}"):
            loader.read(0)
        bad = SampleReader(loader, 0)[(0, 0)]
        assert "NaN" in bad.reason
        assert describe(tmp_path / name)["problem"].startswith("holds NaN or infinity in 2 samples")
    soundfile.write(tmp_path / "huge.wav", sound * 1e25, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match="holds samples up to"):
        SpeechLoader(tmp_path / "huge.wav").read(0)


def test_remarks_on_clipping_offset_and_silence(tmp_path, sound):
    cases = {
        "clipped": np.clip(sound * 20, -1, 1),
        "offset": sound * 0.5 + 0.1,
        "silent": np.zeros(16000),
        "good": sound,
    }
    rows = {}
    for name, samples in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
        rows[name] = describe(tmp_path / f"{name}.wav")
    assert 0.02 < rows["clipped"]["clipped"] < 0.8
    assert "clipped" in rows["clipped"]["remark"]
    assert rows["offset"]["offset"] == pytest.approx(0.1, abs=2e-3)
    assert "DC offset" in rows["offset"]["remark"]
    assert rows["silent"]["silence"] == 1
    assert "silent throughout" in rows["silent"]["remark"]
    assert "remark" not in rows["good"]
    assert rows["good"]["clipped"] == 0 < rows["good"]["silence"] < 0.5
    frames = SpeechLoader(tmp_path / "silent.wav").read(0)["frames"]
    assert frames.shape == (80, 101)
    assert not frames.any()


def test_clipped_samples_are_counted(tmp_path):
    samples = np.zeros(1000, dtype=np.float32)
    samples[100:104] = 1 - 2**-15
    samples[200:202] = 1 - 2**-15  # too short a run
    samples[300:310] = -1
    samples[400:410] = 0.5
    soundfile.write(tmp_path / "runs.wav", np.stack([samples, 0 * samples], 1), 16000)
    assert describe(tmp_path / "runs.wav")["clipped"] == pytest.approx(14 / 2000)


def test_channels_rates_and_depths(tmp_path, sound):
    many = np.stack([sound * (number + 1) / 6 for number in range(6)], 1)
    soundfile.write(tmp_path / "six.wav", many, 96000, subtype="PCM_24")
    mixed = SpeechLoader(tmp_path / "six.wav", features="waveform", sample_rate=None)
    assert mixed.front.rate == 96000
    np.testing.assert_allclose(mixed.read(0)["frames"][0], many.mean(1), atol=1e-6)
    fifth = SpeechLoader(tmp_path / "six.wav", features="waveform", sample_rate=None, channel=4).read(0)
    np.testing.assert_allclose(fifth["frames"][0], many[:, 4], atol=1e-6)
    with pytest.raises(DataError, match="has 6 channels; expected a channel 6"):
        SpeechLoader(tmp_path / "six.wav", channel=6)
    sample = SpeechLoader(tmp_path / "six.wav").read(0)
    assert sample.meta.extra["source_rate"] == 96000
    assert sample.meta.extra["sample_rate"] == 16000
    assert sample["frames"].shape == (80, 1 + -(-len(sound) // 6) // 160)


def test_a_long_recording_is_never_in_memory_as_a_whole(tmp_path):
    place = tmp_path / "long.wav"
    tone = (0.1 * np.sin(np.arange(16000 * 60) * 0.05)).astype(np.float32)
    with soundfile.SoundFile(place, "w", 16000, 1, subtype="PCM_16") as file:
        for _ in range(20):
            file.write(tone)
    with pytest.raises(DataError, match=r"is 1200 s long; expected at most 600 s.*data\.window=30"):
        SpeechLoader(place)
    loader = SpeechLoader(place, window=10)
    assert len(loader) == 120
    tracemalloc.start()
    loader.read(0), loader.read(60), loader.read(119)
    SpeechLoader(place, seconds=3).read(0, torch.Generator().manual_seed(0))
    describe(place)
    assert tracemalloc.get_traced_memory()[1] < 12e6  # NumPy's part: a window has 0.6 MB, the whole 77 MB
    tracemalloc.stop()
