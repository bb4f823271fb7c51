"""Made-up CT volumes in the true file formats, for tests and first steps: a body, two lungs, a spine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def fake_ct(shape: Sequence[int] = (48, 40, 32), seed: int = 0) -> np.ndarray:
    """A body in HU, (i, j, k) int16: air -1000, soft tissue about 40, lungs about -800, a spine about 600."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, length) for length in shape], indexing="ij")
    wobble = 0.05 * generator.normal(size=4)
    values = np.full(shape, -1000.0)
    values[(x / (0.85 + wobble[0])) ** 2 + (y / (0.65 + wobble[1])) ** 2 < 1] = 40
    for side in (-1, 1):
        lung = ((x - side * 0.4) / 0.3) ** 2 + (y / 0.4) ** 2 + ((z - wobble[2]) / 0.9) ** 2 < 1
        values[lung] = -800
    values[x**2 + (y + 0.5 + wobble[3]) ** 2 < 0.01] = 600
    return (values + generator.normal(scale=12, size=shape)).round().astype(np.int16)


def fake_nifti(
    path: str | Path, shape: Sequence[int] = (48, 40, 32), spacing: Sequence[float] = (2.0, 2.0, 2.5), seed: int = 0
) -> Path:
    """One NIfTI file of a made-up CT with the patient in the middle of the scanner."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    image = nib.Nifti1Image(fake_ct(shape, seed), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def fake_series(
    folder: str | Path,
    shape: Sequence[int] = (48, 40, 12),
    spacing: Sequence[float] = (2.0, 2.0, 2.5),
    seed: int = 0,
    directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] | None = None,
    fields: dict[str, Any] | None = None,
) -> list[Path]:
    """A DICOM CT series, one file a slice, numbered against their order in space as scanners may.

    Args:
        shape: columns, rows, slices.
        spacing: millimetres between columns, rows, slices.
        directions: of rows and columns, towards left, posterior and superior.
        step: millimetres from slice to slice; along the normal without it.
        fields: further fields of the header, or other values of those that are there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows, count = shape
    values = fake_ct(shape, seed)
    normal = np.cross(directions[:3], directions[3:])
    step = normal * spacing[2] if step is None else np.asarray(step)
    # of the seed, so that equal calls give equal files
    uids = [generate_uid(entropy_srcs=[f"maskwright {seed} {kind}"]) for kind in ("study", "series", "frame")]
    files = []
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"maskwright {seed} slice {number}"])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{(number * 7 + 3) % count if count % 7 else count - number:04d}_{number:04d}.dcm"
        one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = uids
        one.PatientID, one.PatientName, one.Modality = f"FAKE{seed:04d}", "Made^Up", "CT"
        one.InstanceNumber, one.AcquisitionNumber = count - number, 1
        one.ImagePositionPatient = [float(round(value, 6)) for value in step * number]
        one.ImageOrientationPatient = [float(value) for value in directions]
        one.PixelSpacing, one.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        one.Rows, one.Columns, one.SamplesPerPixel = rows, columns, 1
        one.PhotometricInterpretation = "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (values[..., number].T + 1024).astype("<i2").tobytes()
        for name, value in (fields or {}).items():
            setattr(one, name, value)
        pydicom.dcmwrite(path, one, enforce_file_format=True)
        files.append(path)
    return files
