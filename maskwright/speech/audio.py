"""Sound files: what they hold, and parts of them, checked against what they say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from maskwright.core.errors import DataError
from maskwright.speech import containers

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
MAX_CHANNELS = 64
RATES = (1_000, 1_000_000)
"""Lowest and highest sample rate in Hz that is believed."""
BLOCK = 2**16
"""Samples that are decoded at once: memory follows what a file holds, not what it declares."""
UNKNOWN = 2**62
"""libsndfile says a number beyond it where a file does not say how long it is."""
Channel = int | Literal["mix"]


@dataclass(frozen=True)
class Audio:
    """One sound file.

    Args:
        kind: WAV, FLAC, OGG or MP3, by its content.
        coding: how samples are stored, as libsndfile calls it (PCM_16, FLOAT, ULAW, VORBIS ...).
        frames: samples of each channel.
        rate: of samples, in Hz.
    """

    path: Path
    kind: str
    coding: str
    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    @property
    def misnamed(self) -> bool:
        """Whether its ending promises another kind."""
        return self.path.suffix.lower() not in (
            f".{self.kind.lower()}",
            *((".oga", ".opus") if self.kind == "OGG" else ()),
        )


def open_audio(path: Path) -> Audio:
    """Read the header of a sound file; its content decides what it is, not its name.

    Raises:
        DataError: no sound file, an empty or damaged one, or one that is shorter than it declares.
    """
    kind = containers.kind_of(path)
    if not kind:
        found = "is empty" if path.stat().st_size == 0 else "holds no sound that can be read, whatever its name says"
        raise DataError(path, found, "WAV, FLAC, OGG or MP3")
    try:
        with soundfile.SoundFile(path) as file:
            found_kind, audio = (
                file.format,
                Audio(path, kind, file.subtype, file.frames, file.samplerate, file.channels),
            )
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        raise DataError(
            path, f"begins like {kind}, but cannot be decoded ({_reason(error)})", f"a whole {kind} file"
        ) from error
    if found_kind.removesuffix("EX").replace("RF64", "WAV") != kind and not (kind == "MP3" and found_kind == "MPEG"):
        raise DataError(path, f"begins like {kind}, but is decoded as {found_kind}", f"a whole {kind} file")
    if not RATES[0] <= audio.rate <= RATES[1]:
        raise DataError(path, f"has {audio.rate} samples a second", f"{RATES[0]} to {RATES[1]}")
    if not 1 <= audio.channels <= MAX_CHANNELS:
        raise DataError(path, f"has {audio.channels} channels", f"1 to {MAX_CHANNELS}")
    if audio.frames >= UNKNOWN:
        raise DataError(
            path,
            "does not say how long it is",
            "a length in its header",
            "Write it again, to a file and not into a pipe",
        )
    if audio.frames > path.stat().st_size * containers.DENSEST:
        raise DataError(
            path, f"declares {audio.frames} samples in {path.stat().st_size} bytes", "fewer", containers.AGAIN
        )
    if kind == "WAV":
        containers.check_wav(path, audio.frames)
    elif kind == "FLAC":
        containers.check_flac(path, audio.frames)
    elif kind == "OGG":
        containers.check_ogg(path)
    elif kind == "MP3":
        containers.check_mp3(path, audio.frames)
    if audio.frames < 1:
        raise DataError(path, "holds no sample", "sound")
    return audio


def blocks(audio: Audio, start: int = 0, count: int | None = None) -> Iterator[np.ndarray]:
    """(n, channels) float32 after another, from -1 to 1, n up to `BLOCK`, of a part of a file.

    Raises:
        DataError: damaged, or shorter than declared; says where.
    """
    count = audio.frames - start if count is None else count
    done = 0
    try:
        with soundfile.SoundFile(audio.path) as file:
            if start:
                file.seek(start)
            while done < count:
                block = file.read(min(BLOCK, count - done), dtype="float32", always_2d=True)
                if not len(block):
                    break
                done += len(block)
                yield block
    except (soundfile.SoundFileError, RuntimeError, ValueError, OSError) as error:
        raise DataError(
            audio.path,
            f"cannot be decoded behind sample {start + done} of {audio.frames} ({_reason(error)})",
            f"a whole {audio.kind} file",
            containers.AGAIN,
        ) from error
    if done < count:
        raise DataError(
            audio.path,
            f"declares {audio.frames} samples, but only {start + done} can be decoded",
            containers.CUT,
            containers.AGAIN,
        )


def read_part(audio: Audio, start: int, count: int, channel: Channel) -> np.ndarray:
    """(count,) float32 from -1 to 1 of one channel, or of the mean of all.

    Raises:
        DataError: damaged, shorter than declared, or NaN or infinity in it.
    """
    one = 0 if audio.channels == 1 else channel  # a mean over an axis of one takes its time
    parts = [block.mean(1) if one == "mix" else block[:, one] for block in blocks(audio, start, count)]
    samples = np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        raise DataError(audio.path, f"holds NaN or infinity in {bad} of {count} samples read", "numbers")
    return samples


def _reason(error: Exception) -> str:
    """What libsndfile says, without the path in it."""
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(str(text).split()).strip(" .")[:150]
