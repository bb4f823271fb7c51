"""The loader `speech`: utterances as sequences of spectral frames, whole, as crops, or in windows of long files."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking.base import Grid
from maskwright.core.sample import BadFile, Meta, Sample, TensorSpec
from maskwright.core.statistics import cached, compute, fingerprint
from maskwright.speech import corpus, pictures, simple
from maskwright.speech.audio import SUFFIXES, Audio, Channel, open_audio, read_part
from maskwright.speech.features import FrontEnd, Kind
from maskwright.speech.inspection import inspect_sound
from maskwright.speech.resample import margin, resample, resampled_length, step_of

SLACK = 0.05
"""Seconds that a segment may reach beyond its file, as times in lists are rounded."""
A_BUCKET, MAX_BUCKETS = 64, 16
"""Fewest utterances of a bucket, and most buckets."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one sample is read from: `count` samples of a file from `start` on, at its own rate."""

    utterance: corpus.Utterance
    audio: Audio
    start: int
    count: int
    group: str


class SpeechLoader(Loader):
    """Utterances of sound files (WAV, FLAC, OGG, MP3; their content decides, not their name).

    `frames` (C, T) float32 holds a column for each frame of time: log energies of mel bands from low to high, cepstral
    coefficients, or, for waveforms, one row of samples from -1 to 1. T is as long as each utterance is, unless `seconds`
    cuts crops. `path` is a file, a folder, a table with a column `file` (and any of label, speaker, text, start, end), a
    folder in LibriSpeech's layout, or a Kaldi data folder. The group is the speaker that a table, utt2spk or LibriSpeech's
    layout names, else what `group_pattern` finds, else the file. The label is that of the table, or the folder a file lies
    in. `meta.extra` holds sample_rate, source_rate, seconds, start, channel, frames (those that are real), and text.

    Args:
        path: a file, folder or table.
        features: log-mel, kaldi-fbank, mfcc or waveform.
        sample_rate: Hz that sound is brought to; None keeps it, and files of another rate than the first are set aside.
        channel: mix is the mean of all; a number takes one, counted from 0.
        seconds: length of a crop, at random with a generator, else from the middle; a shorter utterance gets zeros behind
            its frames. Left out, utterances are read whole, each as long as it is.
        window: seconds; longer recordings become windows of so much that follow one another, each read alone. What is left
            at the end belongs to the last one if it is less than half a window.
        mels: bands of log-mel, kaldi-fbank and mfcc.
        coefficients: of mfcc.
        deltas: 1 adds slopes over time as further channels, 2 also their slopes.
        frame_ms: length of a frame in milliseconds.
        hop_ms: milliseconds from one frame to the next.
        rms: dB of full scale, such as -25, that what is read is brought to first.
        cmvn: bring each channel to mean 0 and deviation 1 over the real frames of what is read; for all but waveforms unless
            said otherwise.
        group_pattern: regular expression that finds the speaker in a file's path; its first group, if it has any.
        label_column: column of a table that holds labels, if it is not called label.
        longest: seconds; longer utterances are set aside unless `seconds` or `window` cuts them, so that memory has a bound.
        buckets: into how many buckets of like length utterances go that share a batch; by their number if left out.

    Raises:
        ConfigError: an option out of its range. DataError: there is no utterance that can be used.
    """

    suffixes = SUFFIXES

    def __init__(
        self,
        path: str | Path,
        features: Kind = "log-mel",
        sample_rate: int | None = 16000,
        channel: int | Literal["mix"] = "mix",
        seconds: float | None = None,
        window: float | None = None,
        mels: int = 80,
        coefficients: int = 13,
        deltas: Literal[0, 1, 2] = 0,
        frame_ms: float = 25.0,
        hop_ms: float = 10.0,
        rms: float | None = None,
        cmvn: bool | None = None,
        group_pattern: str = "",
        label_column: str = "",
        longest: float = 600.0,
        buckets: int | None = None,
    ) -> None:
        _check_options(sample_rate, channel, seconds, window, rms, longest, buckets)
        self.path, self.channel, self.seconds, self.window = Path(path), channel, seconds, window
        self._longest, self._buckets, self._pattern = longest, buckets, group_pattern
        cmvn = features != "waveform" if cmvn is None else cmvn
        found = corpus.read_corpus(path, label_column)
        self.bad_files = found.bad
        opened = self._open(found.utterances, sample_rate)
        rate = sample_rate or (opened[0][1].rate if opened else 16000)
        self.front = FrontEnd(features, rate, mels, coefficients, deltas, frame_ms, hop_ms, rms, cmvn)
        self.pieces = [piece for one, audio in opened for piece in self._pieces(one, audio)]
        if not self.pieces:
            if len(self.bad_files) == 1:
                raise DataError(self.bad_files[0].path, self.bad_files[0].reason.rstrip("."))
            first = f"; the first, {self.bad_files[0].path}: {self.bad_files[0].reason}" if self.bad_files else ""
            raise DataError(
                path, f"holds no utterance that can be used, and {len(self.bad_files)} that cannot{first.rstrip('.')}"
            )
        self.spec = {
            "frames": TensorSpec("C T", self.front.channels, self.front.unit, variable=seconds is None),
        }
        self._reading = {"front": repr(self.front), "channel": channel, "seconds": seconds, "window": window}

    # what there is -------------------------------------------------------------------------------------------------

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return corpus.holds_speech(Path(path))

    @classmethod
    def inspect(cls, path: str | Path) -> list[dict[str, Any]]:
        """A row a file: kind, seconds, rate, channels, share of clipped samples and silence, DC offset; or what is wrong."""
        return inspect_sound(path)

    def _open(self, utterances: list[corpus.Utterance], rate: int | None) -> list[tuple[corpus.Utterance, Audio]]:
        """Headers of all files, each read once; what cannot be used is set aside."""
        known: dict[Path, Audio | None] = {}
        for file in dict.fromkeys(one.file for one in utterances):
            try:
                known[file] = self._usable(open_audio(file))
            except DataError as error:
                known[file] = None
                self._set_aside(file, error)
        if rate is None and any(known.values()):
            first = next(audio for audio in known.values() if audio)
            for file, audio in known.items():
                if audio and audio.rate != first.rate:
                    known[file] = None
                    reason = f"has {audio.rate} samples a second, but {first.path} {first.rate}. Set data.sample_rate"
                    self.bad_files.append(BadFile(str(file), reason))
        return [(one, audio) for one in utterances if (audio := known[one.file])]

    def _usable(self, audio: Audio) -> Audio:
        if self.channel != "mix" and self.channel >= audio.channels:
            raise DataError(audio.path, f"has {audio.channels} channels", f"a channel {self.channel}, counted from 0")
        return audio

    def _set_aside(self, file: Path, error: DataError) -> None:
        self.bad_files.append(BadFile(str(file), str(error).removeprefix(f"{error.path}: ")))

    def _pieces(self, one: corpus.Utterance, audio: Audio) -> list[Piece]:
        """An utterance, or its windows."""
        start = round(one.start * audio.rate)
        stop = audio.frames if one.end is None else round(one.end * audio.rate)
        try:
            if start >= audio.frames or stop > audio.frames + SLACK * audio.rate:
                raise DataError(
                    one.file,
                    f"is {audio.seconds:g} s long",
                    f"a part from {one.start:g} to {'the end' if one.end is None else f'{one.end:g}'} s",
                )
            stop = min(stop, audio.frames)
            self._check_length(one, audio, stop - start)
        except DataError as error:
            self._set_aside(one.file, error)
            return []
        group = one.speaker or corpus.speaker_of(one.file, self._root, self._pattern)
        edges = [start, stop]
        if self.window is not None:
            length, step = self.window * audio.rate, step_of(audio.rate, self.front.rate)
            step = (
                step if step <= audio.rate // 10 else 1
            )  # windows begin where both rates have a sample, so that they join
            count = max(1, math.floor((stop - start) / length + 0.5))
            edges = [start, *(start + int(length * number) // step * step for number in range(1, count)), stop]
        return [Piece(one, audio, a, b - a, group) for a, b in itertools.pairwise(edges)]

    @property
    def _root(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _check_length(self, one: corpus.Utterance, audio: Audio, count: int) -> None:
        shortest = self.front.shortest
        if resampled_length(count, audio.rate, self.front.rate) < shortest:
            raise DataError(
                one.file,
                f"{'is' if one.end is None and not one.start else 'has a part that is'} {count / audio.rate * 1000:.3g} ms long",
                f"a frame of {shortest / self.front.rate * 1000:g} ms at least",
            )
        if self.seconds is None and self.window is None and count > self._longest * audio.rate:
            raise DataError(
                one.file,
                f"is {count / audio.rate:.0f} s long",
                f"at most {self._longest:g} s at once",
                "Read it in windows (data.window=30), in crops (data.seconds=4), or raise data.longest",
            )

    def __len__(self) -> int:
        return len(self.pieces)

    # reading -------------------------------------------------------------------------------------------------------

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, not a sample {index}")
        piece = self.pieces[index]
        start, count, wanted = piece.start, piece.count, None
        if self.seconds is not None:
            wanted = round(self.seconds * self.front.rate)
            needed = -(-wanted * piece.audio.rate // self.front.rate)
            if count > needed:
                room = count - needed
                draw = 0.5 if generator is None else torch.rand((), generator=generator, dtype=torch.float64).item()
                start, count = start + (room // 2 if generator is None else int(draw * (room + 1))), needed
        frames = self._frames(piece.audio, start, count, self.channel, wanted)
        real = frames.shape[1]
        if wanted is not None:
            frames = torch.nn.functional.pad(frames, (0, self.front.length(wanted) - real))
        variable = frozenset({"frames"}) if wanted is None else frozenset[str]()
        return Sample({"frames": frames}, self._meta(index, start, count, real), variable)

    def waveform(self, audio: Audio, start: int, count: int, channel: Channel = "mix") -> Tensor:
        """Samples (L,) of a part of a file at the loader's rate; what lies around it is heard by the filter alone."""
        reach, step = margin(audio.rate, self.front.rate), step_of(audio.rate, self.front.rate)
        before = min(reach, start // step * step)
        after = min(reach, audio.frames - start - count)
        samples = torch.from_numpy(read_part(audio, start - before, before + count + after, channel))
        samples = resample(samples, audio.rate, self.front.rate)
        first = before * self.front.rate // audio.rate
        return samples[first : first + resampled_length(count, audio.rate, self.front.rate)]

    def _frames(
        self, audio: Audio, start: int, count: int, channel: Channel, wanted: int | None, front: FrontEnd | None = None
    ) -> Tensor:
        """Features (C, T) of a part of a file, of at most `wanted` samples.

        Raises:
            DataError: damaged, or numbers beyond what can be computed with.
        """
        front, waveform = front or self.front, self.waveform(audio, start, count, channel)[:wanted]
        frames = front(torch.nn.functional.pad(waveform, (0, max(0, front.shortest - len(waveform)))))
        if not bool(frames.isfinite().all()):
            raise DataError(
                audio.path, f"holds samples up to {float(waveform.abs().max()):.3g}", "samples from -1 to 1 or near it"
            )
        return frames

    def _meta(self, index: int, start: int, count: int, real: int) -> Meta:
        piece = self.pieces[index]
        extra: dict[str, Any] = {
            "sample_rate": self.front.rate,
            "source_rate": piece.audio.rate,
            "start": start / piece.audio.rate,
            "seconds": count / piece.audio.rate,
            "channel": self.channel,
            "frames": real,
        }
        if piece.utterance.text:
            extra["text"] = piece.utterance.text
        if piece.utterance.name:
            extra["name"] = piece.utterance.name
        return Meta(str(piece.utterance.file), piece.group, index, label=piece.utterance.label, extra=extra)

    def group(self, index: int) -> str:
        return self.pieces[index].group

    def label(self, index: int) -> str | None:
        return self.pieces[index].utterance.label

    def sources(self, index: int) -> list[str]:
        return [str(self.pieces[index].utterance.file)]

    # lengths -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance or window, (N,) int, as it is read whole."""
        return np.array(
            [
                self.front.length(resampled_length(piece.count, piece.audio.rate, self.front.rate))
                for piece in self.pieces
            ]
        )

    def buckets(self) -> np.ndarray | None:
        """Buckets of about equally many utterances by their length; None for crops, which are all equally long."""
        if self.seconds is not None:
            return None
        number = self._buckets or min(MAX_BUCKETS, max(1, len(self) // A_BUCKET))
        edges = np.quantile(self.lengths, np.arange(1, number) / number)
        return np.unique(np.searchsorted(edges, self.lengths, side="left"), return_inverse=True)[1]

    def bytes_per_sample(self) -> int:
        """Those of the longest utterance, as a batch is filled up to it."""
        crop = None if self.seconds is None else self.front.length(round(self.seconds * self.front.rate))
        return 4 * self.front.channels * int(crop or self.lengths.max())

    # what is in it -------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Statistics]:
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Of the real frames of up to 64 samples as they are read without anything random; kept in the user's cache."""

        def read(index: int) -> dict[str, np.ndarray]:
            sample = self.read(index)
            return {"frames": sample["frames"][:, : sample.meta.extra["frames"]].numpy()}

        files = {str(piece.utterance.file) for piece in self.pieces}
        key = fingerprint(files, {"loader": type(self).__name__, **self._reading, "samples": len(self)})
        return cached(key, {"frames": self.front.channels}, lambda: compute(len(self), read, self.path))

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """A spectrogram: a row a channel, in the order of the tensor, from dark to light; of a waveform one row."""
        return pictures.spectrogram(tensor)

    def upright(self, name: str, picture: np.ndarray) -> np.ndarray:
        """Low frequencies below."""
        return np.ascontiguousarray(picture[::-1])

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        """Statistics over time, with slopes, and averages of eight stretches; before `cmvn`, which would erase them.

        Of waveforms they are those of log-mel.
        """
        if cells is not None:
            return super().simple_features(sample, cells)
        front = replace(self.front, cmvn=False, deltas=0)
        if front.kind == "waveform":
            front = FrontEnd("log-mel", front.rate, 40 if front.rate >= 8000 else 8, cmvn=False)
        extra, audio = sample.meta.extra, open_audio(Path(sample.meta.source))
        start, count = round(extra["start"] * audio.rate), round(extra["seconds"] * audio.rate)
        wanted = None if self.seconds is None else round(self.seconds * self.front.rate)
        return simple.utterance_features(self._frames(audio, start, count, extra["channel"], wanted, front))


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of the frames of batches that only fill shorter utterances up.

    Args:
        lengths: (N,) frames of each utterance; `batches`: indices of each batch.
    """
    filled = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / filled


def _check_options(
    rate: int | None,
    channel: Channel,
    seconds: float | None,
    window: float | None,
    rms: float | None,
    longest: float,
    buckets: int | None,
) -> None:
    """Raise ConfigError with all that is out of its range."""
    problems = []
    if rate is not None and not 1000 <= rate <= 1_000_000:
        problems.append(f"data.sample_rate={rate}: 1000 to 1000000 Hz are needed.")
    if channel != "mix" and channel < 0:
        problems.append(f"data.channel={channel}: mix, or a number from 0 on, is needed.")
    for name, value in (("seconds", seconds), ("window", window), ("longest", longest)):
        if value is not None and not 0.1 <= value <= 1e6:
            problems.append(f"data.{name}={value:g}: 0.1 to 1000000 seconds are needed.")
    if rms is not None and not -100 <= rms <= 0:
        problems.append(f"data.rms={rms:g}: -100 to 0 dB are needed.")
    if buckets is not None and buckets < 1:
        problems.append(f"data.buckets={buckets}: at least 1 is needed.")
    if problems:
        raise ConfigError("\n".join(problems))
