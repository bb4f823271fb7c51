"""NIfTI-1 and NIfTI-2: headers that are checked, and voxels read where they lie.

Headers are taken apart by nibabel, without its repairs: it would turn a spacing of 0 into 1 in silence. Voxels are
mapped into memory, so a crop costs the pages that it touches; gzip'd files are inflated once into the cache.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from maskwright.core.errors import ConfigError, DataError
from maskwright.medical.cache import inflated
from maskwright.medical.volume import Box, Volume, check_affine

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
MAX_VOXELS = 2**30
"""Voxels above which a volume is refused."""
GROUP_PATTERN = r"sub-[A-Za-z0-9]+"
"""Patients of a BIDS data set."""
MAX_RATIO = 1040
"""Bytes that one byte of a gzip stream can stand for, at most."""
UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres of the codes for metre, millimetre and micrometre; other codes are taken for millimetres."""


class NiftiVolume(Volume):
    """One NIfTI file, or a pair of .hdr and .img.

    Args:
        path: the file; of a pair, either.
        max_voxels: more are refused before anything is allocated.
        cache: gigabytes that inflated copies may take in all.

    Raises:
        DataError: no NIfTI, damaged, a header that contradicts itself or the file's size, colours or complex numbers.
    """

    def __init__(self, path: Path, max_voxels: int = MAX_VOXELS, cache: float = 20.0) -> None:
        path = header_file(path)
        self.cache = cache
        header, single = read_header(path)
        self.voxels = path if single else _voxel_file(path)
        self.gzipped = is_gzip(self.voxels)
        self.files = [str(path)] if single else [str(path), str(self.voxels)]
        self.name = self.group = bare_name(path.name)
        self.shape, self.frames = _shape(path, header, max_voxels)
        self.dtype = _dtype(path, header)
        self.offset = _offset(path, header, single)
        self.slope, self.intercept = _scaling(path, header)
        self.millimetres = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
        self.affine = _affine(path, header, self.millimetres)
        self._check_size()

    def _check_size(self) -> None:
        """Compare the bytes that the header announces with those that are there."""
        announced = self.offset + math.prod(self.shape) * self.frames * self.dtype.itemsize
        there = self.voxels.stat().st_size
        if (announced > there) if not self.gzipped else (announced > MAX_RATIO * there):
            size = f"{announced / 1e6:.1f} MB ({' x '.join(map(str, self.shape))} voxels)"
            raise DataError(
                self.voxels,
                f"has {there / 1e6:.3f} MB{', gzipped' if self.gzipped else ''}",
                f"{size}, which its header announces",
                "It is cut short, or its header is wrong; get it again",
            )

    def read(self, box: Box, frame: int = 0) -> np.ndarray:
        with np.errstate(all="ignore"):
            values = self.stored(box, frame).astype(np.float32)
            if self.slope != 1.0:
                values *= np.float32(self.slope)
            if self.intercept != 0.0:
                values += np.float32(self.intercept)
        return values

    def stored(self, box: Box, frame: int = 0) -> np.ndarray:
        """A box of voxels as they are stored, without scaling: (i, j, k) of the file's own type."""
        shape = (*self.shape, self.frames)
        count = math.prod(shape)
        try:
            if not self.gzipped:
                self._check_size()  # a file that has shrunk must not be mapped
                whole = np.memmap(self.voxels, self.dtype, "r", self.offset, shape, "F")
            else:
                found = inflated(self.voxels, self.offset, count * self.dtype.itemsize, self.cache)
                if isinstance(found, Path):
                    whole = np.memmap(found, self.dtype, "r", 0, shape, "F")
                else:
                    whole = found.view(self.dtype).reshape(shape, order="F")
        except OSError as error:
            raise DataError(self.voxels, f"cannot be read ({error.strerror})") from error
        return np.asarray(whole[(*box, frame)])


# headers -----------------------------------------------------------------------------------------------------------


def is_nifti(path: Path) -> bool:
    """Whether a file's name, and for .hdr and .img its first bytes, say NIfTI: rasters also come as .hdr and .img."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return True
    if not name.endswith((".hdr", ".img")):
        return False
    try:
        with header_file(path).open("rb") as file:
            start = file.read(348)
    except (OSError, DataError):
        return False
    return start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0"


def is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def bare_name(name: str) -> str:
    """A file's name without .nii, .nii.gz, .hdr or .img."""
    return re.sub(r"\.(nii\.gz|nii|hdr|img\.gz|img)$", "", name, flags=re.IGNORECASE)


def header_file(path: Path) -> Path:
    """The file that holds the header: of an .img, the .hdr beside it."""
    if path.suffix.lower() != ".img":
        return path
    for suffix in (".hdr", ".HDR"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise DataError(path, "has no .hdr beside it", "a pair of .hdr and .img")


def _voxel_file(path: Path) -> Path:
    for suffix in (".img", ".IMG", ".img.gz"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise DataError(path, "has no .img beside it", "a pair of .hdr and .img")


def read_header(path: Path) -> tuple[nib.Nifti1Header, bool]:
    """The header as it stands in the file, nothing mended, and whether the voxels are in the same file.

    Raises:
        DataError: no NIfTI header.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(540) if not is_gzip(path) else gzip.GzipFile(fileobj=raw).read(540)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, "is no whole gzip file", "a NIfTI file", "Get it again") from error
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "a NIfTI file") from error
    if start[4:8] in (b"n+2\0", b"ni2\0") and len(start) == 540:
        return nib.Nifti2Header(start, check=False), start[4:8] == b"n+2\0"
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return nib.Nifti1Header(start[:348], check=False), start[344:348] == b"n+1\0"
    found = "is empty" if not start else "has no NIfTI header"
    if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        found = "is in the older Analyze format, which does not say left from right"
    raise DataError(path, found, "NIfTI-1 or NIfTI-2", "Convert it, for instance with nibabel or dcm2niix")


def _shape(path: Path, header: nib.Nifti1Header, max_voxels: int) -> tuple[tuple[int, int, int], int]:
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(length < 1 for length in dim[1 : dim[0] + 1]):
        raise DataError(path, f"its header announces the dimensions {dim}", "1 to 7 of at least 1 voxel each")
    sizes = dim[1 : dim[0] + 1] + [1] * 7
    if any(length > 1 for length in sizes[4:]):
        raise DataError(
            path, f"has {dim[0]} dimensions, {' x '.join(map(str, dim[1 : dim[0] + 1]))}", "at most 4", "Split it"
        )
    if math.prod(sizes[:3]) > max_voxels:
        raise DataError(
            path,
            f"its header announces {' x '.join(map(str, sizes[:3]))} voxels",
            f"at most {max_voxels}",
            "If that is true, raise data.max_voxels",
        )
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _dtype(path: Path, header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(path, f"has voxels of an unknown type, code {int(header['datatype'])}") from error
    if dtype.fields is not None:
        raise DataError(path, "holds RGB colours", "one number a voxel", "Convert it to grey, or to one file a channel")
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        raise DataError(path, f"holds voxels of type {dtype}", "real numbers", "Take the magnitude first")
    return dtype


def _offset(path: Path, header: nib.Nifti1Header, single: bool) -> int:
    offset, least = float(header["vox_offset"]), (int(header["sizeof_hdr"]) + 4 if single else 0)
    if offset == 0:
        return least
    if not math.isfinite(offset) or offset < least or offset > 2**40 or offset != int(offset):
        raise DataError(path, f"its header puts the voxels at byte {offset:g}", f"{least} or more")
    return int(offset)


def _scaling(path: Path, header: nib.Nifti1Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(
            path, "its header scales values by numbers that are not finite", "slope and intercept"
        ) from error
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _affine(path: Path, header: nib.Nifti1Header, millimetres: float) -> np.ndarray:
    spacing = header["pixdim"][1:4].astype(float)
    used = max(1, min(3, int(header["dim"][0])))
    if not np.isfinite(spacing[:used]).all() or (spacing[:used] <= 0).any():
        raise DataError(
            path,
            f"its header has a spacing of {' x '.join(f'{value:g}' for value in spacing)}",
            "millimetres above 0",
            "Mend its header (nibabel: header.set_zooms)",
        )
    header["pixdim"][1 + used : 4] = 1  # a picture has no third spacing
    with np.errstate(all="ignore"):
        try:
            affine = np.array(header.get_best_affine(), dtype=float)
        except (ValueError, HeaderDataError) as error:
            raise DataError(
                path, "its header has no valid rotation (qform)", "a quaternion", "Mend its header"
            ) from error
    check_affine(path, affine, millimetres)
    return affine


def patient_of(relative: str, pattern: str) -> str:
    """The part of a path that names the patient: the first group of the pattern, or all of what it finds; else the path."""
    try:
        found = re.search(pattern, relative) if pattern else None
    except re.error as error:
        raise ConfigError(f'data.group_pattern="{pattern}" is no regular expression ({error}).') from error
    if found is None:
        return relative
    return next((part for part in found.groups() if part), found[0]) or relative
