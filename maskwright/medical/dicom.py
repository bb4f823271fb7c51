"""DICOM: one file at a time. What is kept of a header is geometry, scaling and format; nothing that identifies anybody.

pydicom reads headers and decodes pixels. Its messages may quote a header, so none of them is passed on: an error says
what kind of thing is wrong, and where.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from maskwright.core.errors import DataError, MaskwrightError

SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_PIXELS = 2**30
LEAST_TAG = 8
"""Bytes between the end of the header and the pixels, at least."""
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
MODALITIES = ("CT", "MR", "PT", "NM", "US", "DX", "CR", "MG", "XA", "RF", "SEG", "OT", "SC", "OP", "OPT", "OCT", "ES", "GM", "SM", "IVUS", "IO", "PX", "XC", 
    "BI", "BMD", "DG", "EC", "HC", "KER", "LEN", "OPM", "OPV", "PA", "RG", "TG", "RTDOSE", "RTIMAGE")  # fmt: skip
"""Values of these fields that are passed on (PS3.3, C.7.3.1.1.1 and C.7.6.3.1.2); a header may hold anything instead."""
WANTED = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
"""What is read of a header. PatientID and the UIDs are hashed or compared at once, and dropped."""


@dataclass(frozen=True)
class Frame:
    """One picture of a file, and its place in the patient.

    Args:
        position: centre of the first pixel, in mm towards left, posterior and superior (LPS+); None if unknown.
        directions: direction of a row's pixels and of a column's pixels, unit vectors (LPS+); None if unknown.
        slope, intercept: to HU, or whatever the stored numbers are scaled to.
    """

    path: str
    number: int
    position: tuple[float, float, float] | None
    directions: tuple[float, ...] | None
    slope: float
    intercept: float


@dataclass(frozen=True)
class Picture:
    """The header of a file.

    Args:
        frames: its pictures; one unless it is a multi-frame file.
        spacing: millimetres between rows, and between columns.
        thickness: millimetres that a picture is thick, or lies from the next, if it says so.
        series, patient, instance: hashes; equal where the fields are.
        phase: acquisition, time and echo, which tell pictures of one place apart.
        padding: lowest and highest stored number that means that there is nothing.
        localiser: whether it is an overview to plan a scan on.
        inverted: whether low numbers are bright (MONOCHROME1), in a file whose numbers have no unit.
    """

    path: str
    frames: tuple[Frame, ...]
    rows: int
    columns: int
    spacing: tuple[float, float]
    thickness: float | None
    series: str
    patient: str
    instance: str
    phase: tuple[str, ...]
    modality: str
    padding: tuple[int, int] | None
    bits: int
    signed: bool
    localiser: bool
    inverted: bool
    unit: str


@contextlib.contextmanager
def _quiet(path: str | Path) -> Iterator[None]:
    """Let nothing out of pydicom but the kind of an error."""
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except MaskwrightError:
        raise
    except MemoryError:
        raise DataError(path, "needs more memory than there is to be read", "a DICOM file") from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # a broken file makes a library raise anything, with the header in its text; panics of Rust are no Exceptions
    except BaseException as error:
        kind = "it ends too early" if isinstance(error, EOFError) else type(error).__name__
        raise DataError(path, f"cannot be read as DICOM ({kind})", "a whole DICOM file", "Get it again") from None


def is_dicom(path: Path) -> bool:
    """Whether a file's name says DICOM, or else its first bytes do."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_picture(path: Path, salt: bytes, max_pixels: int = MAX_PIXELS) -> Picture | None:
    """The header of a file; None for one that holds no picture by its nature, such as a directory or a report.

    Args:
        salt: key of the hashes.

    Raises:
        DataError: no DICOM, damaged, colours, a format that nothing here decodes, or sizes that cannot be.
    """
    with _quiet(path):
        _refuse_deflated(path)
        with Path(path).open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(WANTED))
            read = file.tell()
        if not header and not header.file_meta:
            raise DataError(path, "holds no DICOM header", "a DICOM file")
        if header.get("SOPClassUID") == MediaStorageDirectoryStorage or "Rows" not in header:
            return None
        return _picture(path, header, read, salt, max_pixels)


def _refuse_deflated(path: Path) -> None:
    """pydicom would inflate the whole data set at once, whatever its size."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DataError(
            path, "is stored deflated", "another transfer syntax", "Convert it first: dcmconv IN OUT (dcmtk)"
        )


def _picture(path: Path, header: Dataset, read: int, salt: bytes, max_pixels: int) -> Picture:
    rows, columns = _count(path, header, "Rows"), _count(path, header, "Columns")
    number = _count(path, header, "NumberOfFrames", 1)
    samples, colours = _count(path, header, "SamplesPerPixel", 1), str(header.get("PhotometricInterpretation", ""))
    if samples != 1 or not colours.startswith("MONOCHROME"):
        kind = colours if colours in COLOURS else "other than grey"
        raise DataError(
            path, f"is a colour picture ({kind}, {samples} numbers a pixel)", "one number a pixel (MONOCHROME)",
            "Save it as PNG and use the loader images",
        )  # fmt: skip
    if rows * columns * number > max_pixels:
        raise DataError(
            path, f"announces {number} x {rows} x {columns} pixels", f"at most {max_pixels}",
            "If that is true, raise data.max_voxels",
        )  # fmt: skip
    allocated, stored = _count(path, header, "BitsAllocated"), _count(path, header, "BitsStored")
    if allocated not in (1, 8, 16, 32) or stored > allocated:
        raise DataError(path, f"announces {stored} of {allocated} bits a pixel", "1, 8, 16 or 32")
    _check_stored(path, header, read, rows * columns * number * allocated // 8)
    if header.get("ModalityLUTSequence"):
        raise DataError(path, "turns its numbers into units by a table (Modality LUT)", "slope and intercept")
    signed = _count(path, header, "PixelRepresentation", 0) == 1
    modality = str(header.get("Modality", ""))
    modality = modality if modality in MODALITIES else ""
    # a CT's stored numbers are no HU by themselves
    scaled = "RescaleIntercept" in header or bool(_macro(header, "PixelValueTransformationSequence"))
    frames = _frames(path, header, number)
    return Picture(
        str(path), frames, rows, columns, _spacing(path, header), _thickness(header),
        _hash(salt, header.get("SeriesInstanceUID", "")),
        _patient(salt, header, path),
        _hash(salt, header.get("SOPInstanceUID", "")),
        tuple(_hash(salt, header.get(key, "")) for key in ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime")),
        modality, _padding(header, allocated, signed), stored, signed,
        "LOCALIZER" in (header.get("ImageType") or []),
        colours == "MONOCHROME1" and modality != "CT", "HU" if modality == "CT" and scaled else "as stored",
    )  # fmt: skip


def _count(path: Path, header: Dataset, key: str, default: int | None = None) -> int:
    value = header.get(key)
    if value is None or value == "":
        if default is None:
            raise DataError(path, f"its header has no {key}", "a DICOM picture")
        return default
    number = _number(value)
    if number is None or number != int(number) or number < (0 if key == "PixelRepresentation" else 1):
        raise DataError(path, f"its header has a {key} that is no number of 1 or more", "a DICOM picture")
    return int(number)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, None where they are not."""
    try:
        found = tuple(float(one) for one in value)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _check_stored(path: Path, header: Dataset, read: int, size: int) -> None:
    """Whether the pixels can be decoded here, and uncompressed ones are all there."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(path, "does not say how its pixels are stored (TransferSyntaxUID)", "a DICOM file (part 10)")
    if not syntax.is_compressed:
        there = path.stat().st_size - read - LEAST_TAG
        if there < size:
            raise DataError(
                path, f"has {max(0, there)} bytes of pixels", f"{size}, which its header announces", "Get it again"
            )
        return
    try:
        decodes = get_decoder(syntax).is_available
    except NotImplementedError:
        decodes = False
    if not decodes:
        raise DataError(
            path,
            f"is compressed as {syntax.name if syntax.name != syntax else 'something unknown'}, which nothing installed decodes",
            mend='pip install "maskwright[medical]" brings decoders of JPEG, JPEG-LS, JPEG 2000 and RLE',
        )


def _spacing(path: Path, header: Dataset) -> tuple[float, float]:
    """Millimetres between rows and columns; 1 where a picture says nothing, as screenshots do."""
    measures = _macro(header, "PixelMeasuresSequence")
    found = measures.get("PixelSpacing") or header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not found:
        return 1.0, 1.0
    spacing = _numbers(found, 2)
    if spacing is None or min(spacing) <= 0:
        raise DataError(path, "its PixelSpacing is not two numbers above 0", "millimetres between rows and columns")
    return spacing[0], spacing[1]


def _thickness(header: Dataset) -> float | None:
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        for place in (_macro(header, "PixelMeasuresSequence"), header):
            number = _number(place.get(key))
            if number:
                return abs(number)
    return None


def _macro(header: Dataset, name: str, number: int = 0) -> Any:
    """What a multi-frame file says of one of its frames, or of all (PS3.3, C.7.6.16); {} where it says nothing."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(sequence) or []
        found = groups[at].get(name) if at < len(groups) else None
        if found:
            return found[0]
    return {}


def _padding(header: Dataset, bits: int, signed: bool) -> tuple[int, int] | None:
    """Stored numbers that mean nothing. Writers mix up signs, so numbers are taken modulo 2**bits."""
    ends = [_number(header.get(key)) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    values = []
    for end in ends:
        value = int(ends[0] if end is None else end) % 2**bits
        values.append(value - 2**bits if signed and value >= 2 ** (bits - 1) else value)
    return min(values), max(values)


def _hash(salt: bytes, value: Any) -> str:
    return hashlib.blake2b(str(value).encode(), key=salt, digest_size=8).hexdigest()


def _patient(salt: bytes, header: Dataset, path: Path) -> str:
    """A patient by a keyed hash of the ID; where there is none, the study, the series or the file stands for it."""
    for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        if value := str(header.get(key) or "").strip():
            return f"patient-{_hash(salt, value)}"
    return f"patient-{_hash(salt, path.resolve())}"


def _frames(path: Path, header: Dataset, count: int) -> tuple[Frame, ...]:
    frames = []
    for number in range(count):
        place = _macro(header, "PlanePositionSequence", number).get("ImagePositionPatient")
        turn = _macro(header, "PlaneOrientationSequence", number).get("ImageOrientationPatient")
        scale = _macro(header, "PixelValueTransformationSequence", number) or header
        if count == 1:
            place, turn = place or header.get("ImagePositionPatient"), turn or header.get("ImageOrientationPatient")
        position, directions = _numbers(place, 3), _numbers(turn, 6)
        if (place and position is None) or (turn and directions is None):
            raise DataError(path, "its position or orientation is not made of finite numbers", "millimetres")
        if directions is not None:
            _check_directions(path, directions)
        slope, intercept = (
            _number(scale.get(key, fill)) for key, fill in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        if slope is None or intercept is None or slope == 0 or abs(slope) > 1e9 or abs(intercept) > 1e9:
            raise DataError(path, "its rescale slope and intercept are no usable numbers", "a slope other than 0")
        frames.append(Frame(str(path), number, position, directions, slope, intercept))  # type: ignore[arg-type]
    return tuple(frames)


def _check_directions(path: Path, directions: tuple[float, ...]) -> None:
    row, column = np.array(directions[:3]), np.array(directions[3:])
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 0.01:
        raise DataError(path, "its ImageOrientationPatient is not two directions at right angles", "two unit vectors")


# pixels ------------------------------------------------------------------------------------------------------------


def read_stored(picture: Picture, frame: Frame) -> np.ndarray:
    """Numbers of a frame as they are stored, (rows, columns).

    Raises:
        DataError: the pixels are damaged.
    """
    multiple = len(picture.frames) > 1
    with _quiet(frame.path):
        pixels = pydicom.pixels.pixel_array(frame.path, index=frame.number if multiple else None, raw=True)
        if pixels.shape != (picture.rows, picture.columns):
            raise DataError(
                frame.path, f"decodes to pixels of shape {pixels.shape}", f"({picture.rows}, {picture.columns})"
            )
    return pixels


def read_values(picture: Picture, frame: Frame, as_zero: int | None = None) -> np.ndarray:
    """A frame in its unit, (rows, columns) float32; NaN where the file says that there is nothing.

    Args:
        as_zero: stored number that is taken as 0 before slope and intercept.
    """
    stored = read_stored(picture, frame)
    if as_zero is not None:
        stored = np.where(stored == as_zero, 0, stored)
    values = stored.astype(np.float32)
    if frame.slope != 1:
        values *= np.float32(frame.slope)
    values += np.float32(frame.intercept)
    if picture.padding is not None:
        low, high = picture.padding
        nothing = (stored >= low) & (stored <= high)
        if nothing.any() and not nothing.all():
            values[nothing] = np.nan
    if picture.inverted:  # so that more is brighter in every file
        lowest = -(2 ** (picture.bits - 1)) if picture.signed else 0
        ends = 2 * lowest + 2**picture.bits - 1
        values = np.float32(ends * frame.slope + 2 * frame.intercept) - values
    return values
