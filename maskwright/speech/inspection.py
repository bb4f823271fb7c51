"""Rows about sound files, for `maskwright inspect` and lists of a corpus: what they are, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.statistics import spread
from maskwright.speech.audio import Audio, blocks, open_audio
from maskwright.speech.corpus import read_corpus, speaker_of

LISTENED = 1000
"""Files that are read as a whole, evenly spread; of the others the header alone."""
NEAR_FULL, RUN = 0.98, 3
"""Equal neighbours, so many and at this share of full scale or above, are a clipped peak."""
SILENCE = -60.0
"""dB of full scale below which a stretch of 25 ms is silent."""
CLIPPED_REMARK, OFFSET_REMARK = 0.001, 0.02
"""Shares of clipped samples, and of full scale, from which a file gets a remark."""


@dataclass(frozen=True)
class Sound:
    """What listening to a whole file tells.

    Args:
        peak: largest absolute sample, of full scale. clipped: share of samples in flat peaks.
        offset: mean of all samples, of full scale. silence: share of stretches of 25 ms below -60 dB.
        odd: number of samples that are NaN or infinite.
    """

    peak: float
    clipped: float
    offset: float
    silence: float
    odd: int


def listen(audio: Audio) -> Sound:
    """Read a file block by block, however long it is.

    Raises:
        DataError: damaged, or shorter than declared.
    """
    peak, total, clipped, odd, quiet, stretches = 0.0, 0.0, 0, 0, 0, 0
    stretch = max(1, audio.rate // 40)
    rest = np.zeros((0, audio.channels), dtype=np.float32)
    for block in blocks(audio):
        good = np.isfinite(block)
        odd += int((~good).sum())
        block = np.where(good, block, 0)
        peak = max(peak, float(np.abs(block).max()))
        total += float(block.sum(dtype=np.float64))
        clipped += _clipped(block)
        joined = np.concatenate([rest, block])
        whole = len(joined) // stretch * stretch
        power = (joined[:whole].astype(np.float64) ** 2).mean(1).reshape(-1, stretch).mean(1)
        quiet += int((power < 10 ** (SILENCE / 10)).sum())
        stretches += len(power)
        rest = joined[whole:]
    if not stretches:  # shorter than one stretch
        quiet, stretches = int(float((rest.astype(np.float64) ** 2).mean()) < 10 ** (SILENCE / 10)), 1
    number = audio.frames * audio.channels
    return Sound(peak, clipped / number, total / number, quiet / stretches, odd)


def _clipped(block: np.ndarray) -> int:
    """Samples (n, channels) in runs of at least `RUN` equal ones near full scale."""
    high = np.abs(block) >= NEAR_FULL
    if not high.any():
        return 0
    same = high[:-2] & (block[:-2] == block[1:-1]) & (block[1:-1] == block[2:])
    inside = np.zeros(block.shape, dtype=bool)
    for offset in range(RUN):
        inside[offset : len(block) - RUN + 1 + offset] |= same
    return int(inside.sum())


def describe(file: Path, whole: bool = True) -> dict[str, Any]:
    """What there is to say of a sound file; `problem` if it cannot be used.

    Args:
        whole: read all of it; else its header alone.
    """
    row: dict[str, Any] = {"file": str(file)}
    try:
        audio = open_audio(file)
        row |= {
            "format": f"{audio.kind} {audio.coding}",
            "seconds": round(audio.seconds, 3),
            "rate": audio.rate,
            "channels": audio.channels,
        }
        if not whole:
            return row
        sound = listen(audio)
    except DataError as error:
        return row | {"problem": str(error).removeprefix(f"{error.path}: ")}
    row |= {
        "peak": round(sound.peak, 4),
        "clipped": round(sound.clipped, 5),
        "offset": round(sound.offset, 5) + 0.0,
        "silence": round(sound.silence, 3),
    }
    if sound.odd:
        return row | {"problem": f"holds NaN or infinity in {sound.odd} samples; expected numbers."}
    remarks = []
    if audio.misnamed:
        remarks.append(f"is {audio.kind}, whatever its name says")
    if sound.peak == 0:
        remarks.append("is silent throughout: every sample is 0")
    elif sound.silence == 1:
        remarks.append("is silent throughout")
    if sound.peak > 1.5:
        remarks.append(f"has samples up to {sound.peak:.3g}, beyond full scale")
    if sound.clipped >= CLIPPED_REMARK:
        remarks.append(f"is clipped in {sound.clipped:.2%} of its samples")
    if abs(sound.offset) >= OFFSET_REMARK:
        remarks.append(f"lies {sound.offset:+.3f} off the middle (DC offset)")
    return row | ({"remark": "; ".join(remarks)} if remarks else {})


def inspect_sound(path: str | Path) -> list[dict[str, Any]]:
    """A row a file, then what a list names that is no utterance."""
    try:
        corpus = read_corpus(path)
    except DataError as error:
        return [{"file": error.path, "problem": str(error).removeprefix(f"{error.path}: ")}]
    by_file: dict[Path, list] = {}
    for one in corpus.utterances:
        by_file.setdefault(one.file, []).append(one)
    heard = set(spread(len(by_file), LISTENED))
    root = Path(path) if Path(path).is_dir() else Path(path).parent
    rows = []
    for number, (file, parts) in enumerate(by_file.items()):
        row = describe(file, number in heard)
        groups = {one.speaker or speaker_of(one.file, root, "") for one in parts}
        row["group"] = groups.pop() if len(groups) == 1 else f"{len(groups)} speakers"
        labels = {one.label for one in parts} - {None}
        if labels:
            row["label"] = labels.pop() if len(labels) == 1 else f"{len(labels)} labels"
        if len(parts) > 1:
            row["parts"] = len(parts)
        rows.append(row)
    return rows + [{"file": bad.path, "problem": bad.reason} for bad in corpus.bad]
