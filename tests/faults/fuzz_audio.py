"""Damage WAV, FLAC, OGG and MP3 files at random and read them: nothing but a DataError may come of it.

python -m tests.faults.fuzz_audio --count 10000
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from maskwright.speech.fake import fake_word
from tests.faults.fuzzing import Read, Reader, Wrong, damage, main

RATE = 16000
FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16"), "pcm24.wav": ("WAVEX", "PCM_24"), "pcm8.wav": ("WAV", "PCM_U8"),
    "float.wav": ("WAV", "FLOAT"), "law.wav": ("WAV", "ULAW"), "long.wav": ("RF64", "PCM_16"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"), "sound.flac": ("FLAC", "PCM_16"), "sound.ogg": ("OGG", "VORBIS"),
    "sound.opus": ("OGG", "OPUS"), "sound.mp3": ("MP3", "MPEG_LAYER_III"), "bare.mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
SILENT = ("bare.mp3",)
"""Of these, whole frames at the end may go without a trace: nothing in the file says how many there are."""


def write_originals(folder: Path, seed: int) -> None:
    """One sound file of each kind, about a second long; `bare` is an MP3 of constant bit rate without a table."""
    sound = np.concatenate([fake_word(word, seed=seed) for word in ("kimu", "mesa")])
    for name, (kind, coding) in FORMATS.items():
        stereo = np.stack([sound, sound[::-1]], 1) if name in ("pcm24.wav", "sound.flac") else sound
        more = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if name == "bare.mp3" else {}
        soundfile.write(folder / name, stereo, RATE, format=kind, subtype=coding, **more)
    bare = (folder / "bare.mp3").read_bytes()
    (folder / "bare.mp3").write_bytes(bare[bare.index(bare[:2], 4) :])  # the first frame is the table


# reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> int:
    """Read a damaged file as its user would, whole, in crops and windows: samples of the source that it gave."""
    from maskwright.core.errors import DataError
    from maskwright.speech.inspection import inspect_sound
    from maskwright.speech.loaders import SpeechLoader

    refused, frames = None, 0
    for row in inspect_sound(path):
        if "problem" not in row and not (row["seconds"] >= 0 and 0 <= row["clipped"] <= 1 and 0 <= row["silence"] <= 1):
            raise Wrong("other shape")
    for options in ({}, {"features": "kaldi-fbank", "seconds": 0.5}, {"features": "waveform", "window": 0.25}):
        try:
            loader = SpeechLoader(path, **options)
            for index in {0, len(loader) // 2, len(loader) - 1}:
                sample = loader.read(index)
                wanted = (
                    loader.front.channels,
                    loader.front.length(8000) if "seconds" in options else loader.lengths[index],
                )
                if tuple(sample["frames"].shape) != wanted:
                    raise Wrong("other shape")
                if not sample["frames"].isfinite().all():
                    raise Wrong("not finite")
                loader.picture("frames", sample["frames"])
            if not options:
                frames = loader.pieces[0].count
        except DataError as error:
            refused = error
    if refused is not None:
        raise refused
    return frames


def reader(folder: Path) -> Reader:
    """Writes a damaged file of a kind, and gives what reads it; one that was only cut must not pass for a whole, shorter one."""
    originals = {name: (folder / name).read_bytes() for name in FORMATS}
    lengths = {name: read(folder / name) for name in FORMATS}

    def damaged(kind: str, generator: np.random.Generator) -> Read:
        path = folder / "damaged" / kind
        content, cut = damage(originals[kind], generator, 120)
        path.write_bytes(content)

        def check() -> None:
            if read(path) < lengths[kind] and cut and kind not in SILENT:
                raise Wrong("shorter")

        return check

    return damaged


if __name__ == "__main__":
    main("tests.faults.fuzz_audio", (__doc__ or "").split("\n")[0])
