"""NIfTI files that lie where the volumes lie that they belong to."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from maskwright.core.errors import DataError
from maskwright.core.trainer.files import atomic
from maskwright.medical.nifti import NiftiVolume, is_gzip, read_header
from maskwright.medical.volume import View, Volume, resample

LEVEL = 4
"""Of gzip: hardly larger than the usual 9, and three times as fast."""
SCANNER = 1
"""Code of an affine that leads to the scanner's own coordinates."""


def write_volume(path: str | Path, array: np.ndarray, source: Volume | View) -> Path:
    """Write a volume that lies where its source lies: .nii or .nii.gz, atomically.

    Args:
        path: ends in .nii or .nii.gz.
        array: on the grid of a volume (i, j, k), or of a view (D, H, W); with one axis more in front, channels or
            classes (C, D, H, W), a 4-D file. Integers stay integers: brought back from a view's spacing, they are those
            of the nearest voxel; floats are interpolated.
        source: what gives grid, affine, codes of sform and qform, and units; of a view, its volume.

    Raises:
        DataError: an array of another shape, or a type that NIfTI does not have. DiskFullError: no space.
    """
    path = Path(path)
    bands = array[None] if array.ndim == 3 else array
    volume, wanted = (source.volume, source.shape[::-1]) if isinstance(source, View) else (source, source.shape)
    if bands.ndim != 4 or bands.shape[1:] != wanted:
        raise DataError(path, f"was given an array of shape {array.shape}", f"{wanted}, or with channels in front")
    header = header_for(volume, bands.dtype, len(bands), path)
    write_bands(path, header, map(restored(source), bands) if isinstance(source, View) else iter(bands))
    return path


def restored(view: View) -> Callable[[np.ndarray], np.ndarray]:
    """A function that brings (D, H, W) of a view back to (i, j, k) of its volume."""

    def restore(band: np.ndarray) -> np.ndarray:
        values = band.transpose(2, 1, 0)
        if view.resampled:
            steps = [1 / step for step in view.steps]
            offsets = [-shift / step for shift, step in zip(view.shifts(), view.steps, strict=True)]
            order = 0 if values.dtype.kind in "iub" else 1
            values = resample(values, steps, offsets, view.lengths(), order)
        values = values[tuple(slice(None, None, -1) if flip else slice(None) for flip in view.flips)]
        return values.transpose(np.argsort(view.order))

    return restore


def header_for(volume: Volume, dtype: np.dtype, bands: int = 1, path: str | Path = "") -> nib.Nifti1Header:
    """A header with the grid, affine, codes and units of a volume, and nothing else of its source.

    Raises:
        DataError: a type that NIfTI does not have.
    """
    header = nib.Nifti2Header() if max(volume.shape) > 32767 else nib.Nifti1Header()
    try:
        header.set_data_dtype(np.uint8 if dtype.kind == "b" else dtype)
    except HeaderDataError as error:
        raise DataError(path, f"cannot hold numbers of type {dtype}", "integers or floats of up to 64 bits") from error
    header.set_data_shape((*volume.shape, bands) if bands > 1 else volume.shape)
    sform = qform = SCANNER
    spatial, time = "mm", "unknown"
    if isinstance(volume, NiftiVolume):
        old = read_header(Path(volume.files[0]))[0]
        sform, qform = int(old["sform_code"]), int(old["qform_code"])
        spatial, time = old.get_xyzt_units()
    header.set_zooms((*np.linalg.norm(volume.affine[:3, :3], axis=0), *([1.0] if bands > 1 else [])))
    if sform:
        header.set_sform(volume.affine, code=sform)
    if qform:
        # a qform of its own may lie elsewhere than the sform: both are kept
        own = old.get_qform() if isinstance(volume, NiftiVolume) else volume.affine
        header.set_qform(own, code=qform, strip_shears=True)
    header.set_xyzt_units(spatial, time)
    return header


def write_bands(path: Path, header: nib.Nifti1Header, bands: Iterator[np.ndarray]) -> None:
    """Write volumes (i, j, k) one after another behind a header, atomically."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError(path, "has another ending", ".nii or .nii.gz")
    dtype = header.get_data_dtype()
    path.parent.mkdir(parents=True, exist_ok=True)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    with atomic(path) as temporary, temporary.open("wb") as raw:
        # neither name nor time in the gzip header: equal contents are equal files
        file = gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) if is_gzip(path) else raw
        file.write(header.binaryblock)
        file.write(b"\0" * (header.single_vox_offset - len(header.binaryblock)))
        for band in bands:
            file.write(np.asarray(band, dtype=dtype).tobytes(order="F"))
        if file is not raw:
            file.close()
