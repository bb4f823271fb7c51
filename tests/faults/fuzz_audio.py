"""Damage WAV, FLAC, OGG and MP3 files at random and read them: nothing but a DataError may come of it.

    python -m tests.faults.fuzz_audio --count 10000

Files are read in a child process of limited memory. It says which file it is about to read, so that one that crashes or
hangs it is known; the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from maskwright.speech.fake import fake_word

ADDRESS_SPACE = 6 * 2**30
PEAK = 1000
"""Resident MB that no file may take, with torch and all else that is imported."""
SECONDS_A_FILE = 20
"""Of wall time, on a machine that may be busy with other things; 5 s of processor time are the goal."""
SECONDS_OF_PROCESSOR = 5
RATE = 16000
EXTREMES = (0, 1, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 0x7F800000, 0xFFC00000)
FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16"), "pcm24.wav": ("WAVEX", "PCM_24"), "pcm8.wav": ("WAV", "PCM_U8"),
    "float.wav": ("WAV", "FLOAT"), "law.wav": ("WAV", "ULAW"), "long.wav": ("RF64", "PCM_16"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"), "sound.flac": ("FLAC", "PCM_16"), "sound.ogg": ("OGG", "VORBIS"),
    "sound.opus": ("OGG", "OPUS"), "sound.mp3": ("MP3", "MPEG_LAYER_III"), "bare.mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
SILENT = ("bare.mp3",)
"""Of these, whole frames at the end may go without a trace: nothing in the file says how many there are."""
BAD = ("foreign exception", "other shape", "not finite", "shorter", "slow", "crash", "hang", "memory")
"""Outcomes that must not happen. A changed sample cannot be noticed where there is no checksum."""


def peak_mebibytes() -> float:
    """Most memory that this process has held. getrusage would count what its parent held when it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def write_originals(folder: Path, seed: int) -> None:
    """One sound file of each kind, about a second long; `bare` is an MP3 of constant bit rate without a table."""
    sound = np.concatenate([fake_word(word, seed=seed) for word in ("kimu", "mesa")])
    for name, (kind, coding) in FORMATS.items():
        stereo = np.stack([sound, sound[::-1]], 1) if name in ("pcm24.wav", "sound.flac") else sound
        more = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if name == "bare.mp3" else {}
        soundfile.write(folder / name, stereo, RATE, format=kind, subtype=coding, **more)
    bare = (folder / "bare.mp3").read_bytes()
    (folder / "bare.mp3").write_bytes(bare[bare.index(bare[:2], 4) :])  # the first frame is the table


def damage(data: bytes, generator: np.random.Generator) -> tuple[bytes, bool]:
    """Cut a file short, or change bytes near its start, anywhere, or four at a time to extreme values.

    Returns:
        The damaged file, and whether it was only cut.
    """
    kind = generator.integers(5)
    if kind == 0:
        return data[: int(generator.integers(len(data)))], True
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        place = int(generator.integers(min(len(data), 120)))
        if kind == 1:
            changed[place] = int(generator.integers(256))
        elif kind == 2:
            changed[int(generator.integers(len(data)))] = int(generator.integers(256))
        elif kind == 3:
            place = min(place // 2 * 2, len(data) - 4)
            value = int(generator.choice(EXTREMES))
            changed[place : place + 4] = value.to_bytes(4, str(generator.choice(["little", "big"])))
        else:
            changed[place : place + 2] = changed[place // 2 : place // 2 + 2]
    return bytes(changed), False


# the child -------------------------------------------------------------------------------------------------------


class _Wrong(Exception):
    """What was read is not what the file or the loader announced."""


def read(path: Path) -> int:
    """Read a damaged file as its user would, whole, in crops and windows: samples of the source that it gave."""
    from maskwright.core.errors import DataError
    from maskwright.speech.inspection import inspect_sound
    from maskwright.speech.loaders import SpeechLoader

    refused, frames = None, 0
    for row in inspect_sound(path):
        if "problem" not in row and not (row["seconds"] >= 0 and 0 <= row["clipped"] <= 1 and 0 <= row["silence"] <= 1):
            raise _Wrong("other shape")
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
                    raise _Wrong("other shape")
                if not sample["frames"].isfinite().all():
                    raise _Wrong("not finite")
                loader.picture("frames", sample["frames"])
            if not options:
                frames = loader.pieces[0].count
        except DataError as error:
            refused = error
    if refused is not None:
        raise refused
    return frames


def child(folder: Path, start: int, stop: int, seed: int) -> None:
    """Read damaged files `start` to `stop`; a line of JSON before and after each."""
    import torch

    from maskwright.core.errors import DataError

    torch.set_num_threads(1)
    os.environ["MASKWRIGHT_CACHE"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    names = list(FORMATS)
    originals = {name: (folder / name).read_bytes() for name in names}
    lengths = {name: read(folder / name) for name in names}
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    for number in range(start, stop):
        generator = np.random.default_rng([seed, number])
        kind = names[number % len(names)]
        path = damaged / kind
        content, cut = damage(originals[kind], generator)
        path.write_bytes(content)
        print(json.dumps({"about to read": number, "kind": kind}), flush=True)
        started, processor = time.perf_counter(), time.process_time()
        words = ""
        try:
            given = read(path)
            # one that was only cut must not pass for a whole, shorter one
            outcome = "shorter" if cut and given < lengths[kind] and kind not in SILENT else "read"
        except DataError as error:
            outcome, words = "DataError", str(error)
        except _Wrong as error:
            outcome = str(error)
        except Exception as error:
            outcome, words = "foreign exception", f"{type(error).__name__}: {error}"[:300]
        seconds, busy = time.perf_counter() - started, time.process_time() - processor
        peak = peak_mebibytes()
        if outcome in ("read", "DataError"):
            outcome = "slow" if busy > SECONDS_OF_PROCESSOR else "memory" if peak > PEAK else outcome
        done = {"number": number, "kind": kind, "outcome": outcome, "words": words, "seconds": seconds, "peak": peak}
        print(json.dumps(done), flush=True)


# the parent ------------------------------------------------------------------------------------------------------


def run(count: int, folder: Path, seed: int = 0) -> list[dict]:
    """Outcomes of `count` damaged files."""
    write_originals(folder, seed)
    found: list[dict] = []
    while len(found) < count:
        found += _one_child(folder, len(found), count, seed)
    return found


def _one_child(folder: Path, start: int, stop: int, seed: int) -> list[dict]:
    command = [
        sys.executable,
        "-m",
        "tests.faults.fuzz_audio",
        "--child",
        str(folder),
        str(start),
        str(stop),
        str(seed),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    done: list[dict] = []
    pending = None
    for line in _lines(process.stdout):
        if line is None:  # nothing for too long
            process.kill()
            process.wait()
            return [*done, {**(pending or {"kind": "start"}), "outcome": "hang", "words": ""}]
        message = json.loads(line)
        if "outcome" in message:
            done.append(message)
            pending = None
        else:
            pending = message
    process.wait()
    if pending is not None or not done:
        done.append({**(pending or {"kind": "start"}), "outcome": "crash", "words": f"exit {process.returncode}"})
    return done


def _lines(stream: IO[str]) -> Iterator[str | None]:
    """Lines as they come, then the end; None when none comes for too long."""
    waiting: queue.Queue[str | None] = queue.Queue()

    def follow() -> None:
        for line in stream:
            waiting.put(line)
        waiting.put("")

    threading.Thread(target=follow, daemon=True).start()
    first = True
    while True:
        try:
            line = waiting.get(timeout=SECONDS_A_FILE + (60 if first else 0))  # imports come first
        except queue.Empty:
            yield None
            return
        first = False
        if not line:
            return
        yield line


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--child", nargs=4, metavar=("FOLDER", "START", "STOP", "SEED"))
    args = options.parse_args()
    if args.child:
        child(Path(args.child[0]), *map(int, args.child[1:]))
        return
    with tempfile.TemporaryDirectory(prefix="maskwright-fuzz-") as folder:
        found = run(args.count, Path(folder), args.seed)
    for outcome, times in Counter(one["outcome"] for one in found).most_common():
        print(f"{outcome}: {times}")
    print(
        f"longest {max(one.get('seconds', 0) for one in found):.2f} s, peak {max(one.get('peak', 0) for one in found):.0f} MB"
    )
    for one in found:
        if one["outcome"] in BAD:
            print(one)


if __name__ == "__main__":
    main()
