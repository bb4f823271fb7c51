"""What volumes lie in a folder: NIfTI files and DICOM series, in any number of sub-folders."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.medical.cache import private_folder
from maskwright.medical.dicom import Picture, is_dicom, read_picture
from maskwright.medical.nifti import MAX_VOXELS, NiftiVolume, bare_name, is_nifti, patient_of
from maskwright.medical.series import stack
from maskwright.medical.volume import Volume, set_aside

PEEK = 64
"""DICOM headers that are read to find out whether a folder holds series."""


@dataclass(frozen=True)
class Found:
    """Volumes, each with its label (the first folder below the one that was opened), and what cannot be used."""

    volumes: list[Volume]
    labels: list[str | None]
    bad: list[BadFile]


def find_volumes(
    path: str | Path,
    single: bool = False,
    group_pattern: str = "",
    salt_file: str = "",
    max_voxels: int = MAX_VOXELS,
    cache: float = 0.0,
) -> Found:
    """Every volume below a folder, in order of name, or those of one file.

    Args:
        single: whether single DICOM slices are volumes of one slice, or are set aside; localisers, directories and
            reports are neither.
        group_pattern: regular expression that finds the patient in the path of a NIfTI file.
        salt_file: key of the hashes that stand for DICOM patients.

    Raises:
        DataError: there is nothing there, or the one file that was named cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(path, "there is no such file or folder")
    if path.is_file() and not is_nifti(path) and not is_dicom(path):
        NiftiVolume(path, max_voxels)  # says what it is not
    salt: bytes | None = None
    volumes: list[Volume] = []
    bad: list[BadFile] = []
    slices: dict[Path, list[Picture]] = defaultdict(list)
    for file in walk(path):
        try:
            if is_nifti(file):
                volumes.append(NiftiVolume(file, max_voxels, cache))
            elif file.stat().st_size == 0:
                bad.append(BadFile(str(file), "is empty"))
            else:
                salt = salt or read_salt(salt_file)
                picture = read_picture(file, salt, max_voxels)
                if picture is not None and not (picture.localiser and not single):
                    slices[file.parent].append(picture)
        except DataError as error:
            if path.is_file():
                raise
            bad.append(set_aside(error))
        except OSError as error:
            bad.append(BadFile(str(file), f"cannot be read ({error.strerror})"))
    for pictures in slices.values():
        made, refused = stack(pictures, single)
        volumes += made
        bad += refused
    root = path if path.is_dir() else path.parent
    volumes.sort(key=lambda volume: volume.files[0])
    _name(volumes, root, group_pattern)
    return Found(volumes, [_label(volume, root) for volume in volumes], bad)


def walk(path: Path) -> Iterator[Path]:
    """NIfTI and DICOM files in order of name, hidden ones left out; of a pair of .hdr and .img the first."""
    if path.is_file():
        yield path
        return
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith(".") or not file.is_file():
                continue
            if (is_nifti(file) and file.suffix.lower() != ".img") or is_dicom(file):
                yield file


def holds_volumes(path: Path, single: bool) -> bool:
    """Whether there is a NIfTI file or a DICOM series (with `single`, any DICOM file). Looks at few headers."""
    if path.is_file():
        return is_nifti(path) or (is_dicom(path) and (single or _is_series([path])))
    waiting: list[Path] = []
    for file in walk(path):
        if is_nifti(file) or single:
            return True
        waiting.append(file)
        if len(waiting) == PEEK:
            break
    return _is_series(waiting)


def _is_series(files: list[Path]) -> bool:
    seen = set()
    for file in files:
        try:
            picture = read_picture(file, b"not kept")
        except DataError:
            continue
        if picture is None:
            continue
        if len(picture.frames) > 1 or (file.parent, picture.series) in seen:
            return True
        seen.add((file.parent, picture.series))
    return False


def read_salt(file: str) -> bytes:
    """The key of the hashes: up to 64 bytes of a file, or 32 random ones that are kept in the user's cache folder.

    Raises:
        ConfigError: the file is not there, or empty.
    """
    if file:
        try:
            salt = Path(file).read_bytes().strip()[:64]
        except OSError as error:
            raise ConfigError(f"data.salt_file={file} cannot be read ({error.strerror}).") from error
        if not salt:
            raise ConfigError(f"data.salt_file={file} is empty: it must hold a secret, such as 32 random characters.")
        return salt
    place = private_folder("medical") / "salt"
    if not place.is_file():
        with tempfile.NamedTemporaryFile(dir=place.parent) as own:  # readable by its owner alone
            own.write(secrets.token_hex(32).encode())
            own.flush()
            os.fsync(own.fileno())
            with contextlib.suppress(FileExistsError):  # of processes that start together, all take the first one's key
                os.link(own.name, place)
    return place.read_bytes()[:64]


def _name(volumes: list[Volume], root: Path, pattern: str) -> None:
    """Names below the folder: of NIfTI the file, of DICOM the folder, or the file where a folder holds several."""
    names = []
    for volume in volumes:
        file = Path(volume.files[0])
        below = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        if isinstance(volume, NiftiVolume):
            names.append(below.with_name(bare_name(below.name)).as_posix())
        elif len(volume.files) > 1:
            names.append(below.parent.as_posix() if len(below.parts) > 1 else (root.name or "series"))
        else:
            names.append(below.with_suffix("").as_posix())
    taken, number = Counter(names), Counter[str]()
    for volume, name in zip(volumes, names, strict=True):
        number[name] += 1
        volume.name = name if taken[name] == 1 else f"{name}-{number[name]}"
        if isinstance(volume, NiftiVolume):
            volume.group = patient_of(name, pattern)


def _label(volume: Volume, root: Path) -> str | None:
    """The first folder below the root, unless that folder is the series itself."""
    file = Path(volume.files[0])
    folders = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
    own = 1 if len(volume.files) > 1 and not isinstance(volume, NiftiVolume) else 0
    return folders[0] if len(folders) > own else None
