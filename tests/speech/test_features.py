"""Spectral features against independent implementations, by hand, and on what has no variation."""

import numpy as np
import pytest
import torch
import torchaudio
import torchaudio.compliance.kaldi as kaldi

from maskwright.core.errors import ConfigError
from maskwright.speech.fake import fake_word
from maskwright.speech.features import (
    FrontEnd,
    cepstrum,
    kaldi_fbank,
    log_mel,
    normalise,
    scale_rms,
    with_deltas,
)
from maskwright.speech.resample import _direct, margin, resample, resampled_length, step_of


@pytest.fixture(scope="module")
def waves():
    return torch.from_numpy(np.stack([np.tile(fake_word("kimu", speaker), 3)[:20000] for speaker in range(3)]))


@pytest.mark.parametrize(("rate", "mels"), [(16000, 80), (8000, 40), (22050, 64), (11025, 40)])
def test_log_mel_is_that_of_torchaudio(waves, rate, mels):
    frame, hop = int(rate * 0.025), int(rate * 0.01)
    peer = torchaudio.transforms.MelSpectrogram(rate, n_fft=frame, hop_length=hop, n_mels=mels)
    ours = log_mel(waves, rate, mels)
    torch.testing.assert_close(ours, (peer(waves) + 1e-10).log(), atol=1e-4, rtol=0)
    assert ours.shape[-1] == FrontEnd(rate=rate, mels=mels).length(waves.shape[-1])


@pytest.mark.parametrize(("rate", "mels"), [(16000, 80), (8000, 40), (16000, 23)])
def test_kaldi_features_are_those_of_torchaudio(waves, rate, mels):
    ours = kaldi_fbank(waves, rate, mels)
    for one, wave in zip(ours, waves, strict=True):
        peer = kaldi.fbank(wave[None] * 2**15, num_mel_bins=mels, sample_frequency=float(rate), dither=0.0)
        torch.testing.assert_close(one, peer.T, atol=1e-4, rtol=0)
    assert ours.shape[-1] == FrontEnd("kaldi-fbank", rate, mels).length(waves.shape[-1])


def test_kaldi_features_are_those_that_w2v_bert_reads(waves):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.SeamlessM4TFeatureExtractor(stride=2)
    for wave in waves:
        peer = extractor(wave.numpy(), sampling_rate=16000, do_normalize_per_mel_bins=False, return_tensors="np")
        peer = torch.from_numpy(peer["input_features"][0]).reshape(-1, 80).T  # two frames side by side
        ours = kaldi_fbank(wave)
        peer = peer[:, : ours.shape[1]]  # filled up to whole pairs
        assert (ours - peer).abs().mean() < 1e-3
        assert (ours - peer).abs().max() < 0.1  # where there is next to no energy, in single precision


def test_cepstra_and_slopes_are_those_of_torchaudio(waves):
    energies = log_mel(waves)
    peer = torchaudio.functional.create_dct(13, 80, "ortho")
    torch.testing.assert_close(cepstrum(energies), (energies.mT @ peer).mT, atol=1e-4, rtol=1e-5)
    slopes = torchaudio.functional.compute_deltas(energies)
    both = with_deltas(energies, 2)
    torch.testing.assert_close(both[:, 80:160], slopes, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[:, 160:], torchaudio.functional.compute_deltas(slopes), atol=1e-5, rtol=0)


def test_a_ramp_has_a_constant_slope():
    ramp = 3 * torch.arange(20.0).expand(2, 20)
    assert with_deltas(ramp)[2:, 2:-2].unique().tolist() == [3.0]


def test_a_tone_lies_in_the_band_of_its_frequency():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    top = 2595 * np.log10(1 + 8000 / 700)
    wanted = 2595 * np.log10(1 + 1000 / 700) / top * 81 - 1  # centre m lies at (m + 1) / 81 of the mel scale
    for features in (log_mel(tone), kaldi_fbank(tone)):
        assert abs(int(features.mean(-1).argmax()) - wanted) <= 1


def test_features_of_a_batch_are_those_of_its_members(waves):
    for kind in ("log-mel", "kaldi-fbank", "mfcc", "waveform"):
        front = FrontEnd(kind)
        for one, wave in zip(front(waves), waves, strict=True):
            torch.testing.assert_close(one, front(wave), atol=1e-4, rtol=1e-4)


def test_normalised_channels_have_mean_0_and_deviation_1_over_real_frames(waves):
    x = log_mel(waves)
    lengths = torch.tensor([x.shape[-1], 60, 21])
    y = normalise(x, lengths)
    for one, raw, length in zip(y, x, lengths, strict=True):
        real = raw[:, :length]
        expected = (real - real.mean(1, keepdim=True)) / (real.std(1, keepdim=True) + 1e-10)
        torch.testing.assert_close(one[:, :length], expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(one[:, :length], normalise(real))
        assert not one[:, length:].any()


@pytest.mark.parametrize("value", [0.0, -23.02585, 1 / 3, 1e6])
@pytest.mark.parametrize("length", [1, 2, 1000])
def test_what_never_changes_becomes_zero(value, length):
    assert not normalise(torch.full((3, length), value)).any()


def test_silence_and_a_single_frame_give_numbers():
    for kind in ("log-mel", "kaldi-fbank", "mfcc", "waveform"):
        for cmvn in (True, False):
            front = FrontEnd(kind, cmvn=cmvn, rms=-25.0)
            for length in (400, 16000):
                frames = front(torch.zeros(length))
                assert frames.isfinite().all()
                assert not cmvn or not frames.any()


def test_loudness_is_brought_to_a_level(waves):
    level = scale_rms(waves * 0.01, -25.0).square().mean(-1).log10() * 10
    torch.testing.assert_close(level, torch.full((3,), -25.0), atol=1e-3, rtol=0)
    assert not scale_rms(torch.zeros(100)).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 8000, "mels": 80}, "data.mels=40"),
        ({"mels": 128}, "hold nothing"),
        ({"hop_ms": 30.0}, "hop no longer"),
        ({"hop_ms": 0.01}, "shorter than a sample"),
        ({"mels": 2}, "4 to 512"),
        ({"kind": "mfcc", "coefficients": 81}, "data.coefficients"),
        ({"kind": "waveform", "deltas": 1}, "data.deltas"),
    ],
)
def test_front_ends_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        FrontEnd(**options)


# sample rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "wanted"), [(8000, 16000), (22050, 16000), (44100, 16000), (96000, 16000), (16000, 8000)]
)
def test_resampling_is_that_of_torchaudio_with_and_without_a_table(waves, rate, wanted):
    peer = torchaudio.functional.resample(waves[0], rate, wanted)
    torch.testing.assert_close(resample(waves[0], rate, wanted), peer, atol=1e-5, rtol=0)
    step = rate // step_of(rate, wanted)
    torch.testing.assert_close(_direct(waves[0], rate // step, wanted // step), peer, atol=1e-5, rtol=0)
    assert len(peer) == resampled_length(len(waves[0]), rate, wanted)


def test_rates_without_a_small_ratio_take_no_gigabytes():
    seconds = torch.arange(44101 * 2, dtype=torch.float64) / 44101
    found = resample(torch.sin(2 * torch.pi * 440 * seconds).float(), 44101, 16000)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(32000, dtype=torch.float64) / 16000).float()
    assert len(found) == 32000
    assert (found - expected)[100:-100].abs().max() < 2e-3


def test_margins_are_multiples_of_the_step():
    for rate, wanted in ((22050, 16000), (8000, 16000), (44101, 16000)):
        assert margin(rate, wanted) % step_of(rate, wanted) == 0 < margin(rate, wanted)
    assert margin(16000, 16000) == 0
