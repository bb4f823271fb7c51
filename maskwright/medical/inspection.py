"""Rows about the volumes of a folder, for `maskwright inspect`. No identifying field of a header is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nibabel.orientations import aff2axcodes

from maskwright.core.errors import DataError
from maskwright.medical.find import find_volumes
from maskwright.medical.nifti import GROUP_PATTERN
from maskwright.medical.volume import Volume, set_aside


def inspect_volumes(path: str | Path) -> list[dict[str, Any]]:
    """A row a volume or single picture, then one for each file that cannot be used."""
    try:
        found = find_volumes(path, True, GROUP_PATTERN)
    except DataError as error:
        return [{"file": error.path, "problem": set_aside(error).reason}]
    rows = [_row(volume, label) for volume, label in zip(found.volumes, found.labels, strict=True)]
    return rows + [{"file": bad.path, "problem": bad.reason} for bad in found.bad]


def _row(volume: Volume, label: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file": volume.files[0],
        "files": len(volume.files),
        "voxels": list(volume.shape),
        "spacing mm": [round(value, 4) for value in volume.spacing],
        "axes lead to": "".join(aff2axcodes(volume.affine)),
        "unit": volume.unit,
        "modality": volume.modality or "not said",
        "group": volume.group,
    }
    if volume.frames > 1:
        row["volumes"] = volume.frames
    if label is not None:
        row["label"] = label
    if 1 in volume.shape:
        row["remark"] = "one slice: for the loader slices"
    return row
