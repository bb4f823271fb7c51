"""DICOM series: slices put in order by where they lie, as volumes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskwright.core.errors import DataError
from maskwright.core.sample import BadFile
from maskwright.medical.dicom import Frame, Picture, read_stored, read_values
from maskwright.medical.volume import Box, Volume, check_affine, set_aside

TILT = 0.5
"""Degrees by which slices may lie shifted against each other."""
UNEVEN = 0.05
"""Part of a slice's distance by which it may differ from the others."""
SAME_PLACE = 1e-3
"""Millimetres within which two slices lie at the same place."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's axes, towards left and posterior, to NIfTI's."""


class DicomVolume(Volume):
    """Slices of one series in order: i along rows, j along columns, k along the normal.

    Args:
        slices: in order, each with the header of its file.
        affine: (4, 4), from (i, j, k) to millimetres (RAS+).
    """

    def __init__(self, slices: Sequence[tuple[Picture, Frame]], affine: np.ndarray) -> None:
        first = slices[0][0]
        self.slices, self.affine = list(slices), affine
        self.files = list(dict.fromkeys(frame.path for _, frame in slices))
        self.name = Path(first.path).stem
        self.group, self.modality, self.unit = first.patient, first.modality, first.unit
        self.shape = (first.columns, first.rows, len(slices))
        self.as_zero: int | None = None
        """Stored number that is taken as 0, see `read_values`."""

    def read(self, box: Box, frame: int = 0) -> np.ndarray:
        columns, rows, places = box
        chosen = self.slices[places]
        values = np.empty((len(chosen), rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
        for at, (picture, one) in enumerate(chosen):
            values[at] = read_values(picture, one, self.as_zero)[rows, columns]
        return values.transpose(2, 1, 0)

    def whole(self) -> np.ndarray:
        """All voxels with padding as it is stored: (i, j, k) int16 or int32 if all values are whole, else float32."""
        pictures = [
            read_stored(picture, one).astype(np.float64) * one.slope + one.intercept for picture, one in self.slices
        ]
        values = np.stack(pictures).transpose(2, 1, 0)
        if not (values == np.round(values)).all():
            return values.astype(np.float32)
        small = np.iinfo(np.int16)
        return values.astype(np.int16 if small.min <= values.min() and values.max() <= small.max else np.int32)


def stack(pictures: Sequence[Picture], single: bool) -> tuple[list[DicomVolume], list[BadFile]]:
    """Volumes of the files of a folder: one a series, and one a phase or orientation where a series mixes them.

    Args:
        single: whether pictures without neighbours become volumes of one slice; else they are set aside.

    Returns:
        Volumes, and what cannot be used, with the reason.
    """
    by_series: dict[tuple, list[tuple[Picture, Frame]]] = defaultdict(list)
    for picture in pictures:
        for frame in picture.frames:
            # localisers of other orientations are part of many a series
            turn = None if frame.directions is None else tuple(np.round(frame.directions, 2).tolist())
            key = (picture.patient, picture.series, picture.modality, picture.rows, picture.columns, turn)
            by_series[key].append((picture, frame))
    volumes, bad = [], []
    for slices in by_series.values():
        made, refused = _of_series(slices, single)
        volumes += made
        bad += refused
    return sorted(volumes, key=lambda volume: volume.files[0]), bad


def _of_series(slices: list[tuple[Picture, Frame]], single: bool) -> tuple[list[DicomVolume], list[BadFile]]:
    first = slices[0][1]
    if first.directions is None or any(frame.position is None for _, frame in slices):
        if single:
            return [DicomVolume([one], _unlocated(one[0])) for one in slices], []
        reason = "does not say where its pictures lie; use the loader slices"
        return [], [BadFile(path, reason) for path in dict.fromkeys(frame.path for _, frame in slices)]
    slices, copies = _without_copies(slices)
    volumes, bad = [], copies
    for phase in _phases(slices):
        if len(phase) == 1 and not single:
            bad.append(BadFile(phase[0][1].path, "is a single slice, no volume; use the loader slices"))
            continue
        try:
            volumes.append(_in_order(phase))
        except DataError as error:
            bad.append(set_aside(error))
    return volumes, bad


def _unlocated(picture: Picture) -> np.ndarray:
    """As if the patient was seen from the front, lying: rows from right to left, columns from front to back."""
    rows, columns = picture.spacing
    return LPS @ np.diag([columns, rows, picture.thickness or 1.0, 1.0])


def _without_copies(
    slices: list[tuple[Picture, Frame]],
) -> tuple[list[tuple[Picture, Frame]], list[BadFile]]:
    seen: dict[tuple[str, int], str] = {}
    kept, copies = [], []
    for picture, frame in sorted(slices, key=lambda one: (one[1].path, one[1].number)):
        key = (picture.instance, frame.number)
        if key in seen:
            copies.append(BadFile(frame.path, f"is a copy of {seen[key]}: the same instance twice"))
        else:
            seen[key] = Path(frame.path).name
            kept.append((picture, frame))
    return kept, copies


def _along(slices: Sequence[tuple[Picture, Frame]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) in mm (LPS+), and how far each lies along the normal (N,)."""
    positions = np.array([frame.position for _, frame in slices], dtype=float)
    directions = np.array(slices[0][1].directions)
    return positions, positions @ np.cross(directions[:3], directions[3:])


def _phases(slices: list[tuple[Picture, Frame]]) -> list[list[tuple[Picture, Frame]]]:
    """The slices apart by acquisition, time and echo, if they lie at the same places otherwise and no more then."""
    if not _repeated(slices):
        return [slices]
    phases: dict[tuple[str, ...], list[tuple[Picture, Frame]]] = defaultdict(list)
    for picture, frame in slices:
        phases[picture.phase].append((picture, frame))
    return [slices] if any(_repeated(phase) for phase in phases.values()) else list(phases.values())


def _repeated(slices: Sequence[tuple[Picture, Frame]]) -> int:
    """How many slices lie where another lies."""
    return int((np.diff(np.sort(_along(slices)[1])) < SAME_PLACE).sum())


def _in_order(slices: list[tuple[Picture, Frame]]) -> DicomVolume:
    """One volume.

    Raises:
        DataError: slices at one place, missing or unevenly spaced slices, a tilted gantry.
    """
    folder = Path(slices[0][1].path).parent if len({frame.path for _, frame in slices}) > 1 else slices[0][1].path
    repeated = _repeated(slices)
    if repeated:
        raise DataError(
            folder,
            f"{repeated} of {len(slices)} slices of a series lie where another lies",
            "one slice at each place",
            "Two series or phases may be mixed, or files be there twice: sort them apart",
        )
    places = _along(slices)[1]
    slices = [slices[at] for at in np.argsort(places)]
    positions, places = _along(slices)
    directions = np.array(slices[0][1].directions)
    normal = np.cross(directions[:3], directions[3:])
    picture = slices[0][0]
    if len(slices) == 1:
        distance = picture.thickness or 1.0
    else:
        _check_tilt(folder, positions, normal)
        distance = _distance(folder, places)
    rows, columns = picture.spacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[:3] * columns, directions[3:] * rows
    # the straight line from the first slice to the last: rounding of single positions does not add up
    affine[:3, 2] = normal * distance if len(slices) == 1 else (positions[-1] - positions[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    affine = LPS @ affine
    check_affine(folder, affine)
    _check_formats(folder, slices)
    return DicomVolume(slices, affine)


def _check_tilt(folder: object, positions: np.ndarray, normal: np.ndarray) -> None:
    run = positions[-1] - positions[0]
    sideways = np.linalg.norm(np.cross(run, normal))
    degrees = float(np.degrees(np.arctan2(sideways, abs(run @ normal))))
    if degrees > TILT:
        raise DataError(
            folder,
            f"its slices are shifted against each other by {degrees:.1f} degrees: the gantry was tilted",
            "slices straight behind each other",
            "Correct it first: dcm2niix FOLDER writes a file with _Tilt_ in its name",
        )


def _distance(folder: object, places: np.ndarray) -> float:
    """Millimetres between slices.

    Raises:
        DataError: some are missing, or they lie unevenly.
    """
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > max(UNEVEN * usual, 0.01))
    if len(wrong):
        at = int(wrong[0])
        wide = Counter(round(float(gap / usual)) - 1 for gap in gaps[wrong] if gap > usual)
        missing = sum(count * times for count, times in wide.items() if count > 0)
        whole = all(abs(gap / usual - round(gap / usual)) < 2 * UNEVEN for gap in gaps[wrong])
        found = f"{missing} of its slices are missing" if whole and missing else "its slices lie unevenly"
        raise DataError(
            folder,
            f"{found}: {gaps[at]:.2f} mm between slices {at + 1} and {at + 2}",
            f"{usual:.2f} mm as between most of its {len(places)} slices",
            "Get the files that are missing, or resample it first (dcm2niix)",
        )
    return usual


def _check_formats(folder: object, slices: Sequence[tuple[Picture, Frame]]) -> None:
    spacings = np.array([picture.spacing for picture, _ in slices])
    if np.ptp(spacings, axis=0).max() > 1e-3 * spacings.min():
        raise DataError(folder, "slices of one series have different pixel spacings", "one spacing", "Sort them apart")
