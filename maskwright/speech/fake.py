"""Made-up speech in the true file formats, for tests and first steps: voiced syllables of several speakers.

A train of pulses, one a period of the voice, goes through resonances at the formants of vowels (Fant's source-filter
model; frequencies after Peterson and Barney 1952), and a consonant of filtered noise comes before each vowel.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

VOWELS = {
    "a": (730, 1090, 2440),
    "i": (270, 2290, 3010),
    "u": (300, 870, 2240),
    "e": (530, 1840, 2480),
    "o": (570, 840, 2410),
}
"""First three formants in Hz."""
CONSONANTS = {"s": (4500, 7500), "f": (1500, 6500), "k": (1500, 3000), "m": (150, 350)}
"""Band of the noise in Hz."""
WORDS = ("sa", "kimu", "fo", "mesa", "kuki")


def fake_word(
    word: str = "sa", speaker: int = 0, rate: int = 16000, seed: int = 0, seconds_a_syllable: float = 0.22
) -> np.ndarray:
    """A word of syllables (a consonant and a vowel each) in the voice of a speaker: (L,) float32 from -1 to 1.

    Args:
        speaker: sets the pitch and the length of the vocal tract. seed: of the noise and of how fast it is spoken.
    """
    voice = np.random.default_rng([7, speaker])
    pitch, tract = 95 + 25 * (speaker % 6) + 6 * voice.random(), 0.92 + 0.2 * voice.random()
    take = np.random.default_rng([speaker, seed, *word.encode()])
    parts = []
    for consonant, vowel in zip(word[::2], word[1::2], strict=True):
        length = round(rate * seconds_a_syllable * (0.85 + 0.3 * take.random()))
        parts += [
            _noise(CONSONANTS[consonant], length // 4, rate, take),
            _vowel(VOWELS[vowel], length, rate, pitch, tract, take),
        ]
    sound = np.concatenate([np.zeros(rate // 25), *parts, np.zeros(rate // 25)])
    sound = sound / np.abs(sound).max() * (0.3 + 0.3 * take.random())
    return (sound + take.normal(scale=1e-4, size=len(sound))).astype(np.float32)


def _vowel(
    formants: tuple[int, ...], length: int, rate: int, pitch: float, tract: float, take: np.random.Generator
) -> np.ndarray:
    glide = pitch * (1 + 0.12 * np.linspace(0.5, -0.5, length) + 0.02 * take.normal())
    sound = np.diff(np.floor(np.cumsum(glide) / rate), prepend=0)
    # the slope of the voice's spectrum, and what lips do to it: nothing of frequency 0 leaves them
    sound = signal.lfilter([1, -1], np.convolve([1, -0.96], [1, -0.9]), sound)
    for number, formant in enumerate(formants):
        if (centre := formant * tract) < 0.45 * rate:
            radius, angle = np.exp(-np.pi * (60 + 30 * number) / rate), 2 * np.pi * centre / rate
            poles = [1, -2 * radius * np.cos(angle), radius**2]
            sound = signal.lfilter([sum(poles)], poles, sound)
    return sound / np.abs(sound).max() * np.hanning(length) ** 0.3


def _noise(band: tuple[int, int], length: int, rate: int, take: np.random.Generator) -> np.ndarray:
    low, high = (min(edge / rate * 2, 0.95) for edge in band)
    filters = signal.butter(2, [min(low, 0.8), high], btype="bandpass", output="sos")
    sound = signal.sosfilt(filters, take.normal(size=length))
    return 0.3 * sound / np.abs(sound).max() * np.hanning(length)


def fake_corpus(
    folder: str | Path,
    speakers: int = 3,
    words: tuple[str, ...] = WORDS[:3],
    takes: int = 2,
    rate: int = 16000,
    kind: str = "wav",
    seed: int = 0,
) -> Path:
    """Files `speaker1_sa_0.wav` and so on, and `labels.csv` with file, label, speaker and text; gives the table's path.

    Args:
        kind: wav, flac, ogg or mp3.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for speaker in range(speakers):
        for word in words:
            for take in range(takes):
                name = f"speaker{speaker + 1}_{word}_{take}.{kind}"
                soundfile.write(folder / name, fake_word(word, speaker, rate, seed + take), rate)
                rows.append([name, word, f"speaker{speaker + 1}", word])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "speaker", "text"], *rows])
    return folder / "labels.csv"


def fake_librispeech(folder: str | Path, speakers: int = 2, utterances: int = 3, seed: int = 0) -> Path:
    """FLAC files in LibriSpeech's layout, speaker/chapter/speaker-chapter-number.flac, with their texts."""
    for speaker in range(speakers):
        place = Path(folder, str(100 + speaker), str(9000 + speaker))
        place.mkdir(parents=True, exist_ok=True)
        stem, lines = f"{100 + speaker}-{9000 + speaker}", []
        for number in range(utterances):
            words = [WORDS[(speaker + number + at) % len(WORDS)] for at in range(1 + number % 3)]
            sound = np.concatenate([fake_word(word, speaker, seed=seed + number) for word in words])
            soundfile.write(place / f"{stem}-{number:04d}.flac", sound, 16000)
            lines.append(f"{stem}-{number:04d} {' '.join(words).upper()}\n")
        (place / f"{stem}.trans.txt").write_text("".join(lines))
    return Path(folder)


def fake_kaldi(folder: str | Path, speakers: int = 2, words: tuple[str, ...] = WORDS, seed: int = 0) -> Path:
    """A Kaldi data folder: a recording a speaker, cut by `segments`, with `utt2spk` and `text`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "text")}
    for speaker in range(speakers):
        sounds = [fake_word(word, speaker, seed=seed) for word in words]
        ends = np.cumsum([len(sound) for sound in sounds]) / 16000
        soundfile.write(folder / f"talk{speaker}.wav", np.concatenate(sounds), 16000)
        lists["wav.scp"].append(f"talk{speaker} talk{speaker}.wav")
        for number, (word, end) in enumerate(zip(words, ends, strict=True)):
            name = f"s{speaker}-{number:03d}"
            lists["segments"].append(f"{name} talk{speaker} {end - len(sounds[number]) / 16000:.4f} {end:.4f}")
            lists["utt2spk"].append(f"{name} s{speaker}")
            lists["text"].append(f"{name} {word}")
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
