"""Damage NIfTI and DICOM files at random and read them: nothing but a DataError may come of it.

python -m tests.faults.fuzz_volumes --count 10000
"""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from maskwright.medical.fake import fake_ct, fake_nifti, fake_series
from tests.faults.fuzzing import Read, Reader, Wrong, damage, main

SHAPE = (40, 36, 6)
FORMATS = (
    "plain.nii", "zipped.nii.gz", "inner.nii.gz", "second.nii", "big.nii", "float.nii", "series.nii", "pair.hdr",
    "explicit.dcm", "implicit.dcm", "bigendian.dcm", "rle.dcm", "jpeg2000.dcm", "slice.dcm",
)  # fmt: skip


def write_originals(folder: Path, seed: int) -> None:
    """One sound file of each kind; `slice` is one of a series, beside the others."""
    values = fake_ct(SHAPE, seed)
    fake_nifti(folder / "plain.nii", SHAPE, seed=seed)
    fake_nifti(folder / "zipped.nii.gz", SHAPE, seed=seed)
    fake_nifti(folder / "inner.nii", SHAPE, seed=seed).rename(folder / "inner.nii.gz")  # is zipped after the damage
    nib.save(nib.Nifti2Image(values, np.eye(4)), folder / "second.nii")
    nib.save(nib.Nifti1Image(values, None, nib.Nifti1Header(endianness=">")), folder / "big.nii")
    turned = np.array([[0, 2, 0.1, 5], [2, 0, 0, 6], [0.1, 0, -3, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values.astype(np.float32) / 7, turned), folder / "float.nii")
    nib.save(nib.Nifti1Image(np.stack([values, values], -1), turned), folder / "series.nii")
    nib.save(nib.Nifti1Pair(values, turned), folder / "pair.img")
    (folder / "source").mkdir()
    files = fake_series(folder / "source", SHAPE, seed=seed)
    files[2].rename(folder / "slice.dcm")
    for name in ("explicit", "implicit", "bigendian", "rle", "jpeg2000"):
        one = pydicom.dcmread(files[0])
        keywords = {}
        if name == "implicit":
            one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            keywords = {"implicit_vr": True, "little_endian": True}
        elif name == "bigendian":
            one.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            one.PixelData = one.pixel_array.astype(">i2").tobytes()
            keywords = {"implicit_vr": False, "little_endian": False}
        elif name in ("rle", "jpeg2000"):
            one.compress(RLELossless if name == "rle" else JPEG2000Lossless, generate_instance_uid=False)
        pydicom.dcmwrite(folder / f"{name}.dcm", one, **keywords)


# reading -----------------------------------------------------------------------------------------------------------


def _check(loader, size: tuple[int, ...]) -> None:
    (name, spec) = next(iter(loader.spec.items()))
    for index in {0, len(loader) // 2, len(loader) - 1}:
        sample = loader.read(index)
        if tuple(sample[name].shape) != (spec.channel_count, *size):
            raise Wrong("other shape")
        if not sample[name].isfinite().all() or not np.isfinite(sample.meta.extra["affine"]).all():
            raise Wrong("not finite")
        picture = loader.picture(name, sample[name])
        if picture.shape[2] != 3:
            raise Wrong("other shape")


def read(path: Path, kind: str, folder: Path) -> None:
    """Read a damaged file as its user would: in 3-D, resampled, in slices; a slice of a series among the others."""
    from maskwright.core.errors import DataError
    from maskwright.medical.loaders import SliceLoader, VolumeLoader

    if kind == "slice.dcm":
        place = folder / "source" / "slice.dcm"
        place.write_bytes(path.read_bytes())
        path = place.parent
    VolumeLoader.accepts(path)
    volumes = (
        []
        if kind.endswith(".dcm") and kind != "slice.dcm"
        else [{"size": 24}, {"size": 20, "spacing": 3.0, "cache": 0}]
    )
    refused = None
    for loader, options, size in [
        *((VolumeLoader, options, (options["size"],) * 3) for options in volumes),
        (SliceLoader, {"size": (20, 28), "context": 1}, (20, 28)),
        (SliceLoader, {"size": 16, "axis": "sagittal", "window": (40.0, 400.0)}, (16, 16)),
    ]:
        try:
            _check(loader(path, volume="all", max_voxels=2**24, **options), size)
        except DataError as error:
            refused = error
    if refused is not None:
        raise refused


def reader(folder: Path) -> Reader:
    """Writes a damaged file of a kind, and gives what reads it."""
    originals = {name: (folder / name).read_bytes() for name in FORMATS}

    def damaged(kind: str, generator: np.random.Generator) -> Read:
        path = folder / "damaged" / kind
        content, _ = damage(originals[kind], generator, 1200)
        path.write_bytes(gzip.compress(content, 1) if kind == "inner.nii.gz" else content)
        if kind == "pair.hdr":
            (folder / "damaged" / "pair.img").write_bytes((folder / "pair.img").read_bytes())
        return lambda: read(path, kind, folder)

    return damaged


if __name__ == "__main__":
    main("tests.faults.fuzz_volumes", (__doc__ or "").split("\n")[0])
