"""Spectral features of speech: ours for a whole batch, torchaudio, and the extractor of transformers that w2v-BERT reads.

    python -m benchmarks.speech_features [--json FILE]

8 clips of 10 s at 16 kHz, 80 bands, float32. Within each kind of features all sides give equal numbers first: to 1e-4 of
torchaudio's; the extractor of transformers computes in double precision, so cells without energy differ more, and its mean
difference is checked. The last rows read FLAC files of 10 s from the page cache, with all that the loader does.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor

from benchmarks.common import environment, interleave, parser, report
from maskwright.speech.fake import WORDS, fake_word
from maskwright.speech.features import kaldi_fbank, log_mel
from maskwright.speech.loaders import SpeechLoader

CLIPS, SECONDS, RATE, MELS = 8, 10, 16000, 80
Side = Callable[[], Tensor]


def clips(seed: int) -> Tensor:
    """(CLIPS, L) of made-up speech."""
    sounds = []
    for speaker in range(CLIPS):
        words = [fake_word(WORDS[number % len(WORDS)], speaker, seed=seed + number) for number in range(40)]
        sounds.append(np.concatenate(words)[: SECONDS * RATE])
    return torch.from_numpy(np.stack(sounds))


def write(folder: Path, waves: Tensor) -> None:
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"{number}.flac", wave.numpy(), RATE)


def sides_of(waves: Tensor, folder: Path) -> dict[str, dict[str, Side]]:
    """Ways to the same numbers (CLIPS, MELS, T), by kind of features; the first of each is the reference."""
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=400, hop_length=160, n_mels=MELS)
    extractor = SeamlessM4TFeatureExtractor(stride=1)
    loader = SpeechLoader(folder, cmvn=False)

    def by_kaldi() -> Tensor:
        return torch.stack([kaldi.fbank(wave[None] * 2**15, num_mel_bins=MELS, dither=0.0).T for wave in waves])

    def by_transformers() -> Tensor:
        raw = [wave.numpy() for wave in waves]
        found = extractor(raw, sampling_rate=RATE, do_normalize_per_mel_bins=False, return_tensors="pt")
        return found["input_features"].mT

    def plain_files() -> Tensor:
        read = [torch.from_numpy(soundfile.read(folder / f"{n}.flac", dtype="float32")[0]) for n in range(CLIPS)]
        return torch.stack([(mel(wave) + 1e-10).log() for wave in read])

    return {
        "log-mel": {
            "torchaudio MelSpectrogram": lambda: (mel(waves) + 1e-10).log(),
            "maskwright": lambda: log_mel(waves),
        },
        "kaldi-fbank": {
            "torchaudio compliance.kaldi, clip by clip": by_kaldi,
            "transformers SeamlessM4TFeatureExtractor": by_transformers,
            "maskwright": lambda: kaldi_fbank(waves),
        },
        "files, log-mel": {
            "soundfile and torchaudio MelSpectrogram": plain_files,
            "maskwright, loader": lambda: torch.stack([loader.read(number)["frames"] for number in range(CLIPS)]),
        },
    }


def check_equal(kind: str, sides: dict[str, Side]) -> None:
    """All sides must give the numbers of the first."""
    first, *others = sides
    reference = sides[first]()
    for name in others:
        away = (sides[name]() - reference).abs()
        limit = away.mean() < 1e-3 if "transformers" in name else away.max() < 1e-4
        if not limit:
            raise SystemExit(
                f"{name} gives other {kind} than {first}: up to {away.max():.2g}, {away.mean():.2g} on average."
            )
        print(f"{kind}: {name} differs from {first} by {away.max():.1e} at most, {away.mean():.1e} on average")


def main() -> None:
    args = parser(__doc__, rounds=30).parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    waves = clips(args.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="maskwright-speech-") as folder:
        write(Path(folder), waves)
        for kind, sides in sides_of(waves, Path(folder)).items():
            check_equal(kind, sides)
            times = interleave(sides, args.rounds)
            for name, found in times.items():
                rows.append(
                    {
                        "side": f"{kind}: {name}",
                        "min ms": found.fastest * 1e3,
                        "median ms": found.median * 1e3,
                        "time / ours": found.over(times[list(times)[-1]]),
                        "hours of sound a minute": CLIPS * SECONDS / 60 / found.fastest,
                    }
                )
    where = environment(args.seed, packages=["torchaudio", "transformers", "soundfile"])
    report(f"{CLIPS} clips of {SECONDS} s at {RATE} Hz, {MELS} bands", rows, where, args.json)


if __name__ == "__main__":
    main()
