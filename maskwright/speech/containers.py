"""What a sound file says of its own length, beside what is there: decoders stop early without a word.

libsndfile takes what a cut WAV or Ogg file still holds for all of it, and of MP3 without a table of its length it
guesses how long it is. So the declarations are read here, and compared.
"""

from __future__ import annotations

import functools
import mmap
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from maskwright.core.errors import DataError

HEAD = 64 * 2**10
"""Bytes at the start, behind a tag, in which an MP3 frame must be found."""
CUT = "a whole file; this one was cut short"
AGAIN = "Copy or write it again"
TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
PCM, FLOAT, A_LAW, MU_LAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
SMALLEST_BLOCK = 10
"""Bytes of the shortest block of FLAC: header, one constant, checksum."""
DENSEST = 8192
"""Samples that a byte can stand for at most: a packet of Vorbis has 8192 samples and at least a byte."""
MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Sample rates by the bits of the version: MPEG 1, 2 and 2.5."""
MP3_BITS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits a second by MPEG version (3 is 1, 2 is 2 and 2.5) and the bits of the layer (3 is I, 1 is III)."""


def kind_of(path: Path) -> str:
    """WAV, FLAC, OGG or MP3 by the first bytes, whatever the file is called; empty if it is none of them.

    Raises:
        DataError: cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})") from error
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    if head[:3] == b"ID3" or (len(head) > 3 and _mp3_frame(head, 0) is not None):
        return "MP3"
    return ""


# WAV -------------------------------------------------------------------------------------------------------------


def check_wav(path: Path, frames: int) -> None:
    """Compare the chunk of samples with the file, and with the frames that the decoder found.

    Raises:
        DataError: the file is shorter than it says, or says nothing.
    """
    size = path.stat().st_size
    wide = 0
    block = tag = None
    with path.open("rb") as file:
        order = ">" if file.read(4) == b"RIFX" else "<"
        at = 12
        while at + 8 <= size:
            file.seek(at)
            name, length = struct.unpack(f"{order}4sI", file.read(8))
            content = file.read(min(length, 40)) if name in (b"fmt ", b"ds64") else b""
            if name == b"ds64" and len(content) >= 16:
                wide = struct.unpack("<Q", content[8:16])[0]
            elif name == b"fmt " and len(content) >= 14:
                tag, _, _, _, block = struct.unpack(f"{order}HHIIH", content[:14])
            elif name == b"data":
                _check_samples(
                    path, wide if wide and length == 2**32 - 1 else length, size - at - 8, tag, block, frames
                )
                return
            at += 8 + length + length % 2
    raise DataError(path, "is a WAV file without a chunk of samples", CUT, AGAIN)


def _check_samples(path: Path, declared: int, there: int, tag: int | None, block: int | None, frames: int) -> None:
    plain = bool(block) and tag in (PCM, FLOAT, A_LAW, MU_LAW, EXTENSIBLE)
    width, unit = (block, "samples") if plain and block else (1, "bytes of samples")
    if declared > there:
        raise DataError(path, f"declares {declared // width} {unit}, but holds {there // width}", CUT, AGAIN)
    if plain and frames != declared // width:
        raise DataError(
            path, f"declares {declared // width} samples, but {frames} can be decoded", "a header that fits", AGAIN
        )


# FLAC ------------------------------------------------------------------------------------------------------------


def check_flac(path: Path, frames: int) -> None:
    """Whether as many samples as the header declares can be in a file of this size (RFC 9639, sections 8.2 and 9).

    Raises:
        DataError: they cannot: even silence takes 10 bytes a block.
    """
    with path.open("rb") as file:
        longest = int.from_bytes(file.read(12)[10:12], "big")
    size = path.stat().st_size
    if frames > size // SMALLEST_BLOCK * longest:
        raise DataError(
            path,
            f"declares {frames} samples, but of {size} bytes holds {size // SMALLEST_BLOCK * longest} at most",
            CUT,
            AGAIN,
        )


# Ogg -------------------------------------------------------------------------------------------------------------


def check_ogg(path: Path) -> None:
    """Whether all pages are there, undamaged and in order, up to the one that says it is the last (RFC 3533, section 6).

    Ogg declares no length, and decoders skip damaged pages without a word.

    Raises:
        DataError: a page is damaged or missing.
    """
    status = path.stat()
    reason = _ogg_fault(path, status.st_mtime_ns, status.st_size)
    if reason:
        raise DataError(path, reason, CUT if "ends" in reason else "undamaged pages", AGAIN)


@functools.lru_cache(maxsize=64)
def _ogg_fault(path: Path, changed: int, size: int) -> str:
    """What is wrong with the pages, empty if nothing; kept, as windows of one file follow one another."""
    last: dict[bytes, int] = {}
    ended = False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while at < size:
            header = data[at : at + 27]
            segments = data[at + 27 : at + 27 + header[26]] if len(header) == 27 else b""
            length = 27 + len(segments) + sum(segments)
            if header[:4] != b"OggS" and ended:
                break  # something else, such as a tag, follows the last page
            if len(header) < 27 or len(segments) < header[26] or at + length > size:
                return f"ends within a page of Ogg, at byte {at}"
            stream, number = header[14:18], int.from_bytes(header[18:22], "little")
            page = header[:22] + bytes(4) + header[26:] + data[at + 27 : at + length]
            if header[:4] != b"OggS" or _ogg_checksum(page) != int.from_bytes(header[22:26], "little"):
                return f"has a damaged page of Ogg at byte {at}"
            if stream in last and number != last[stream] + 1:
                return f"lacks a page of Ogg before byte {at}"
            last[stream], ended = number, bool(header[5] & 4)
            at += length
    return "" if ended else "ends before the page that ends an Ogg file"


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with the highest bit first and nothing inverted: zlib's, with the bits of each byte turned round."""
    turned = zlib.crc32(page.translate(TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


# MP3 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mp3:
    """Frames of sound that an MP3 file holds, those that it declares (None if it does not), and samples a frame."""

    there: int
    declared: int | None
    samples: int
    rest: int
    """Bytes behind the last whole frame that are no tag."""


def check_mp3(path: Path, frames: int) -> None:
    """Compare the frames that follow one another with the table of contents, and with what the decoder will give.

    Raises:
        DataError: it is shorter than it says, or the decoder would stop early.
    """
    status = path.stat()
    found = count_mp3(path, status.st_mtime_ns, status.st_size)
    if found.declared is not None and not found.there - 1 <= found.declared <= found.there:
        raise DataError(path, f"declares {found.declared} frames of MP3, but holds {found.there}", CUT, AGAIN)
    if found.rest:
        raise DataError(path, f"has {found.rest} bytes of another kind behind {found.there} frames of MP3", CUT, AGAIN)
    # an encoder's delay and padding, up to two frames and a little, are taken off
    if not (found.there - 4) * found.samples <= frames <= (found.there + 1) * found.samples:
        raise DataError(
            path,
            f"holds {found.there * found.samples} samples, of which {frames} would be decoded, as nothing in it says "
            "how long it is",
            "an MP3 file with a table of its length (Xing)",
            "Convert it to FLAC or WAV",
        )


@functools.lru_cache(maxsize=64)
def count_mp3(path: Path, changed: int, size: int) -> Mp3:
    """Follow the frames of an MP3 file from header to header; kept, as windows of one file follow one another.

    Raises:
        DataError: there is no frame.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while data[at : at + 3] == b"ID3" and at + 10 <= size:
            sizes = data[at + 6 : at + 10]
            at += 10 + sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
        stop = min(size, at + HEAD)
        first = next((place for place in range(at, stop) if data[place] == 255 and _follows(data, place, size)), None)
        if first is None:
            raise DataError(path, "holds no frame of MP3", "an MP3 file")
        declared = _declared_frames(data, first)
        there, at, samples = 0, first, 0
        while at + 4 <= size:
            frame = _mp3_frame(data[at : at + 4], 0)
            if frame is None or at + frame[0] > size:
                break
            samples = samples or frame[1]
            there += 1
            at += frame[0]
        rest = 0 if data[at : at + 3] == b"TAG" or data[at : at + 8] == b"APETAGEX" else size - at
        zeros = rest and not any(data[at : at + min(rest, HEAD)])
    if declared is not None:
        there -= 1  # the frame with the table holds no sound
    return Mp3(there, declared, samples, 0 if zeros else rest)


def _mp3_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """Bytes and samples of the frame whose header begins at `at`, None if there is none (ISO/IEC 11172-3, 2.4.1.3)."""
    if data[at] != 255 or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    bits, rate, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return None
    kilobits = MP3_BITS[(3, layer) if version == 3 else (2, 3 if layer == 3 else 2)][bits - 1]
    hertz = MP3_RATES[version][rate]
    if layer == 3:
        return (12000 * kilobits // hertz + padding) * 4, 384
    samples = 576 if layer == 1 and version != 3 else 1152
    return samples * 125 * kilobits // hertz + padding, samples


def _follows(data: mmap.mmap, at: int, size: int) -> bool:
    """Whether a frame begins here and another one, or the end, behind it."""
    frame = _mp3_frame(data[at : at + 4], 0) if at + 4 <= size else None
    if frame is None:
        return False
    behind = data[at + frame[0] : at + frame[0] + 4]
    return len(behind) < 4 or _mp3_frame(behind, 0) is not None or behind[:3] == b"TAG"


def _declared_frames(data: mmap.mmap, first: int) -> int | None:
    """Number of frames in the table that the first frame may hold instead of sound."""
    head = data[first : first + 192]
    for name in (b"Xing", b"Info"):
        at = head.find(name)
        if at > 0 and len(head) >= at + 12 and head[at + 7] & 1:
            return int.from_bytes(head[at + 8 : at + 12], "big")
    at = head.find(b"VBRI")
    return int.from_bytes(head[at + 14 : at + 18], "big") if at > 0 else None
