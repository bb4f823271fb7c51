"""Spectral features as pure functions of waveforms, for whole batches at once and on any device."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import torchaudio
import torchaudio.compliance.kaldi
from torch import Tensor

from maskwright.core.errors import ConfigError

Kind = Literal["log-mel", "kaldi-fbank", "mfcc", "waveform"]
FLOOR = 1e-10
"""Added to mel energies and deviations, as in TERA's front end (s3prl)."""
KALDI_FLOOR = torch.finfo(torch.float32).eps
KALDI_LOW, PRE_EMPHASIS, FULL_SCALE = 20.0, 0.97, 2.0**15
"""Lowest frequency in Hz, pre-emphasis, and the range of 16-bit samples that Kaldi's features are computed in."""


@dataclass(frozen=True)
class FrontEnd:
    """What becomes of a waveform.

    Args:
        kind: log-mel (TERA, Liu et al. 2021), kaldi-fbank (Kaldi's compute-fbank-feats without dither), mfcc (cosine
            transform of log-mel) or waveform.
        rate: of samples, in Hz.
        mels: bands, `coefficients`: of mfcc, `deltas`: orders of change over time that become further channels.
        frame_ms, hop_ms: length of a frame, and from one to the next.
        rms: dB of full scale that each waveform is brought to first.
        cmvn: bring each channel of an utterance to mean 0 and deviation 1.

    Raises:
        ConfigError: numbers out of their range, or bands narrower than a step of the transform.
    """

    kind: Kind = "log-mel"
    rate: int = 16000
    mels: int = 80
    coefficients: int = 13
    deltas: int = 0
    frame_ms: float = 25.0
    hop_ms: float = 10.0
    rms: float | None = None
    cmvn: bool = True

    def __post_init__(self) -> None:
        if self.kind == "waveform":
            if self.deltas:
                raise ConfigError("data.deltas belongs to spectral features, not to the waveform. Leave it out.")
            return
        if not (0 < self.hop_ms <= self.frame_ms <= 1000) or self.hop < 1 or self.frame < 4:
            raise ConfigError(
                f"data.frame_ms={self.frame_ms:g}, data.hop_ms={self.hop_ms:g}: up to 1000 ms, the hop no longer than "
                f"the frame and no shorter than a sample, and 4 samples a frame are needed."
            )
        if not 4 <= self.mels <= 512 or not 0 <= self.deltas <= 2:
            raise ConfigError(f"data.mels={self.mels}, data.deltas={self.deltas}: 4 to 512, and 0, 1 or 2, are needed.")
        if not 1 <= self.coefficients <= self.mels:
            raise ConfigError(f"data.coefficients={self.coefficients}: 1 to data.mels={self.mels} are needed.")
        bands = _kaldi_bands if self.kind == "kaldi-fbank" else _mel_bands
        empty = int((bands(self.rate, self._points, self.mels).amax(0) == 0).sum())
        if empty:
            raise ConfigError(
                f"data.mels={self.mels}: {empty} of them lie between two frequencies of a frame of {self.frame_ms:g} ms "
                f"at {self.rate} Hz and would hold nothing. Take fewer, such as data.mels={self.mels // 2}, or longer frames."
            )

    @property
    def frame(self) -> int:
        """Samples of a frame."""
        return int(self.rate * self.frame_ms / 1000 + 1e-6)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next; 1 of waveforms."""
        return 1 if self.kind == "waveform" else int(self.rate * self.hop_ms / 1000 + 1e-6)

    @property
    def _points(self) -> int:
        return _power_of_two(self.frame) if self.kind == "kaldi-fbank" else self.frame

    @property
    def shortest(self) -> int:
        """Fewest samples that give a frame."""
        return 1 if self.kind == "waveform" else self.frame

    @property
    def channels(self) -> int:
        if self.kind == "waveform":
            return 1
        return (self.coefficients if self.kind == "mfcc" else self.mels) * (1 + self.deltas)

    @property
    def unit(self) -> str:
        base = {"log-mel": "log mel", "kaldi-fbank": "log mel (Kaldi)", "mfcc": "cepstrum", "waveform": "full scale"}
        return base[self.kind] + (", deviations from each utterance's mean" if self.cmvn else "")

    def length(self, samples: int) -> int:
        """Frames of a waveform of so many samples."""
        if self.kind == "waveform":
            return samples
        if self.kind == "kaldi-fbank":
            return 1 + (samples - self.frame) // self.hop
        return 1 + (samples - self.frame % 2) // self.hop

    def __call__(self, waveform: Tensor) -> Tensor:
        """(..., L) from -1 to 1 to (..., C, T) float32, all L of them real."""
        x = waveform if self.rms is None else scale_rms(waveform, self.rms)
        if self.kind == "waveform":
            x = x[..., None, :]
        elif self.kind == "kaldi-fbank":
            x = kaldi_fbank(x, self.rate, self.mels, self.frame_ms, self.hop_ms)
        else:
            x = log_mel(x, self.rate, self.mels, self.frame_ms, self.hop_ms)
            if self.kind == "mfcc":
                x = cepstrum(x, self.coefficients)
        if self.deltas:
            x = with_deltas(x, self.deltas)
        return normalise(x) if self.cmvn else x


def log_mel(
    waveform: Tensor, rate: int = 16000, mels: int = 80, frame_ms: float = 25.0, hop_ms: float = 10.0
) -> Tensor:
    """Log of mel energies: (..., L) to (..., mels, 1 + L // hop).

    Frames lie about their place with mirrored ends; Hann window, power, triangles of the HTK scale up to half the rate
    without normalisation of their area, log(energy + 1e-10). As torchaudio's MelSpectrogram with its defaults and a frame
    as long as its transform, and TERA's front end (Liu et al. 2021, s3prl).
    """
    frame, hop = int(rate * frame_ms / 1000 + 1e-6), int(rate * hop_ms / 1000 + 1e-6)
    window = _window("hann", frame).to(waveform)
    bands = _mel_bands(rate, frame, mels).to(waveform)
    mirrored = F.pad(waveform.reshape(-1, waveform.shape[-1]), (frame // 2, frame // 2), mode="reflect")
    energies = _energies(mirrored.unfold(-1, frame, hop), window, frame) @ bands
    return (energies + FLOOR).log_().transpose(-1, -2).reshape(*waveform.shape[:-1], mels, -1)


def kaldi_fbank(
    waveform: Tensor, rate: int = 16000, mels: int = 80, frame_ms: float = 25.0, hop_ms: float = 10.0
) -> Tensor:
    """Kaldi's filter bank without dither: (..., L) from -1 to 1 to (..., mels, 1 + (L - frame) // hop).

    Samples as 16-bit integers count; whole frames only, mean of each taken off, pre-emphasis 0.97, Povey's window, padded
    to a power of two, power, triangles from 20 Hz to half the rate, log. Equals torchaudio.compliance.kaldi.fbank of
    waveform * 2^15, and what w2v-BERT reads (Chung et al. 2021) before its normalisation.
    """
    frame, hop = int(rate * frame_ms / 1000 + 1e-6), int(rate * hop_ms / 1000 + 1e-6)
    points = _power_of_two(frame)
    window = _window("povey", frame).to(waveform)
    bands = _kaldi_bands(rate, points, mels).to(waveform)
    if waveform.ndim > 1 and waveform.device.type == "cpu":  # a clip's frames fit the cache, a batch's do not
        clips = [kaldi_fbank(clip, rate, mels, frame_ms, hop_ms) for clip in waveform.reshape(-1, waveform.shape[-1])]
        return torch.stack(clips).reshape(*waveform.shape[:-1], mels, -1)
    frames = (waveform * FULL_SCALE).unfold(-1, frame, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - PRE_EMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    energies = _energies(frames, window, points) @ bands
    return energies.clamp_min_(KALDI_FLOOR).log_().transpose(-1, -2)


def cepstrum(log_energies: Tensor, coefficients: int = 13) -> Tensor:
    """Orthonormal cosine transform (DCT-II) of log energies: (..., mels, T) to (..., coefficients, T)."""
    return _cosines(log_energies.shape[-2], coefficients).to(log_energies) @ log_energies


def with_deltas(x: Tensor, orders: int = 1) -> Tensor:
    """Append the slopes over five frames, and their slopes: (..., C, T) to (..., C * (1 + orders), T).

    Slopes are those of the regression line (Young et al., The HTK Book, section 5.9), ends repeated.
    """
    parts = [x]
    for _ in range(orders):
        padded = F.pad(parts[-1].reshape(-1, 1, x.shape[-1]), (2, 2), mode="replicate").reshape(*x.shape[:-1], -1)
        ahead, behind = padded[..., 3:-1] - padded[..., 1:-3], padded[..., 4:] - padded[..., :-4]
        parts.append((ahead + 2 * behind) / 10)
    return torch.cat(parts, -2)


def normalise(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean 0 and deviation 1 (n - 1) over time of each channel; a channel that never changes becomes 0, not noise.

    Args:
        x: (..., C, T); `lengths`: (...) frames that are real, all without it. Frames behind become 0.
    """
    real = torch.ones_like(x[..., :1, :], dtype=torch.bool)
    if lengths is not None:
        real = (torch.arange(x.shape[-1], device=x.device) < lengths[..., None])[..., None, :]
    exact = torch.where(real, x, 0).double()  # so that the mean of equal numbers is that number
    count = real.sum(-1, keepdim=True)
    away = torch.where(real, exact - exact.sum(-1, keepdim=True) / count.clamp_min(1), 0)
    deviation = ((away**2).sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    return (away / (deviation + FLOOR)).to(x.dtype)


def scale_rms(waveform: Tensor, decibels: float = -25.0) -> Tensor:
    """Bring the root mean square of (..., L) to so many dB of full scale; silence stays silent."""
    rms = waveform.square().mean(-1, keepdim=True).sqrt()
    return waveform * (10 ** (decibels / 20) / (rms + FLOOR))


def _energies(frames: Tensor, window: Tensor, points: int) -> Tensor:
    """Power spectrum of frames (..., T, frame): (..., T, points // 2 + 1)."""
    spectrum = torch.view_as_real(torch.fft.rfft(frames * window, n=points))
    return spectrum[..., 0].square().addcmul_(spectrum[..., 1], spectrum[..., 1])


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length()


@functools.lru_cache(maxsize=16)
def _window(name: str, length: int) -> Tensor:
    if name == "hann":
        return torch.hann_window(length, periodic=True)
    return torch.hann_window(length, periodic=False).pow(0.85)


@functools.lru_cache(maxsize=16)
def _mel_bands(rate: int, points: int, mels: int) -> Tensor:
    """Triangles whose corners lie evenly on the mel scale, straight in Hz: (points // 2 + 1, mels)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # empty bands are refused by `FrontEnd` in words of its own
        return torchaudio.functional.melscale_fbanks(points // 2 + 1, 0.0, float(rate // 2), mels, rate)


@functools.lru_cache(maxsize=16)
def _kaldi_bands(rate: int, points: int, mels: int) -> Tensor:
    """Triangles that are straight on the mel scale itself, none over the highest frequency: (points // 2 + 1, mels)."""
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(mels, points, rate, KALDI_LOW, 0.0, 0.0, 0.0, 1.0)
    return F.pad(bands, (0, 1)).T.contiguous()


@functools.lru_cache(maxsize=16)
def _cosines(mels: int, coefficients: int) -> Tensor:
    """Rows of the orthonormal DCT-II, (coefficients, mels)."""
    return torchaudio.functional.create_dct(coefficients, mels, "ortho").T.contiguous()
