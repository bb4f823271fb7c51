"""DICOM to NIfTI, windows, and slices as pictures: what `maskwright medical` does with files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.sample import BadFile
from maskwright.core.statistics import spread
from maskwright.core.trainer.files import atomic, whole_folder
from maskwright.medical.find import find_volumes
from maskwright.medical.loaders import AXES
from maskwright.medical.nifti import bare_name
from maskwright.medical.series import DicomVolume
from maskwright.medical.volume import View, Volume
from maskwright.medical.windows import Range, to_bytes, window_range
from maskwright.medical.writers import write_volume

SAMPLED = 2**20
"""Values that the range of a volume is taken from when no window is given."""


def convert_series(folder: str | Path, out: str | Path) -> tuple[list[tuple[Path, Volume]], list[BadFile]]:
    """Write each DICOM series as NIfTI, whole numbers as integers, padding as it is stored.

    Returns:
        Files with what was written into each; and what could not be used.

    Raises:
        DataError: there is no series, or a file is broken. ConfigError: the name of `out` does not fit.
    """
    out = Path(out)
    suffix = out.name[len(bare_name(out.name)) :]
    if suffix.lower() not in (".nii", ".nii.gz"):
        raise ConfigError(f"{out}: a name that ends in .nii.gz or .nii is needed.")
    found = find_volumes(folder)
    series = [volume for volume in found.volumes if isinstance(volume, DicomVolume)]
    if not series:
        reason = found.bad[0].reason.rstrip(".") if found.bad else "there are no DICOM files"
        raise DataError(folder, f"holds no DICOM series to convert: {reason}")
    written = []
    for number, volume in enumerate(series, start=1):
        end = f"-{number}" if len(series) > 1 else ""
        path = out.with_name(f"{bare_name(out.name)}{end}{suffix}")
        written.append((write_volume(path, volume.whole(), volume), volume))
    return written, found.bad


def one_volume(file: str | Path) -> Volume:
    """The one volume of a file or folder.

    Raises:
        DataError: there is none, or several.
    """
    found = find_volumes(file, single=True)
    if len(found.volumes) != 1:
        reason = f": {found.bad[0].reason.rstrip('.')}" if found.bad and not found.volumes else ""
        raise DataError(file, f"holds {len(found.volumes)} volumes{reason}", "one", "Name one file or series folder")
    return found.volumes[0]


def chosen_window(preset: str, centre: float | None, width: float | None) -> Range | None:
    """The range of a window by name or by numbers.

    Raises:
        ConfigError: both, or half of the numbers.
    """
    numbers = (centre is not None) + (width is not None)
    if numbers == 1 or (preset and numbers):
        raise ConfigError("Give --preset NAME, or --centre and --width together.")
    return window_range((centre, width) if centre is not None and width is not None else preset or None)


def write_window(
    file: str | Path, out: str | Path, preset: str = "", centre: float | None = None, width: float | None = None,
    volume: int = 0,
) -> Path:  # fmt: skip
    """A volume in a window: .nii.gz or .nii with its values clipped, on its own grid; .png of its middle axial slice.

    Raises:
        ConfigError: no window, or another ending.
    """
    out = Path(out)
    limits = chosen_window(preset, centre, width)
    if limits is None:
        raise ConfigError("Say which window: --preset lung, brain, bone or soft-tissue, or --centre and --width.")
    found = one_volume(file)
    check_frame(found, volume)
    if preset and found.modality and found.unit != "HU":
        raise ConfigError(f"{file} is of modality {found.modality} and not in HU: give --centre and --width.")
    if out.suffix.lower() == ".png":
        view = View.of(found, "RAS")
        write_png(out, picture_of(view, "axial", view.shape[2] // 2, volume, limits, 8))
        return out
    values = np.clip(found.read(tuple(slice(0, length) for length in found.shape), volume), *limits)  # type: ignore[arg-type]
    return write_volume(out, values.astype(np.float32), found)


def check_frame(found: Volume, volume: int) -> None:
    if not 0 <= volume < found.frames:
        raise ConfigError(f"{found.files[0]} has {found.frames} volumes, not a volume {volume} (counted from 0).")


def picture_of(view: View, axis: str, at: int, frame: int, limits: Range, bits: int) -> np.ndarray:
    """A slice, upright: (rows, columns) integers of 8 or 16 bits."""
    along = AXES[axis]
    box = [slice(0, length) for length in view.shape]
    box[along] = slice(at, at + 1)
    image = view.read(tuple(box), [frame])[0].take(0, axis=2 - along)  # type: ignore[arg-type]
    columns, rows = [other for other in range(3) if other != along]
    return view.upright(to_bytes(image, limits, bits), rows, columns)


def write_png(path: Path, image: np.ndarray) -> None:
    """A grey PNG of 8 or 16 bits, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def write_slices(
    file: str | Path, out: str | Path, axis: str = "axial", preset: str = "", bits: int = 8,
    count: int | None = None, volume: int = 0,
) -> int:  # fmt: skip
    """Slices of one axis as PNG, and slices.csv: file, slice, centre in mm (RAS+), values of black and white.

    Returns:
        How many were written.

    Raises:
        ConfigError: an option that does not fit, or a folder that is not empty.
    """
    if axis not in AXES or bits not in (8, 16) or (count is not None and count < 1):
        raise ConfigError(f"axis={axis}, bits={bits}, count={count}: one of {', '.join(AXES)}; 8 or 16; 1 or more.")
    limits = chosen_window(preset, None, None)
    found = one_volume(file)
    check_frame(found, volume)
    view = View.of(found, "RAS")
    depth = view.shape[AXES[axis]]
    limits = limits or value_range(view, volume)
    chosen = spread(depth, depth if count is None else count)
    rows = []
    with whole_folder(Path(out)) as folder:
        for at in chosen:
            name = f"{axis}_{at:04d}.png"
            write_png(folder / name, picture_of(view, axis, at, volume, limits, bits))
            middle = [(length - 1) / 2 for length in view.shape]
            middle[AXES[axis]] = at
            centre = (view.affine_at() @ [*middle, 1])[:3]
            rows.append([name, axis, at, *(f"{value:.4f}" for value in centre), *limits])
        with (folder / "slices.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["path", "axis", "slice", "x_mm", "y_mm", "z_mm", "black", "white"])
            writer.writerows(rows)
    return len(chosen)


def value_range(view: View, frame: int) -> Range:
    """Lowest and highest value of a volume, of evenly spread slices if it is large."""
    width, height, depth = view.shape
    low, high = np.inf, -np.inf
    for at in spread(depth, max(1, SAMPLED // (width * height))):
        values = view.read((slice(0, width), slice(0, height), slice(at, at + 1)), [frame])
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if high > low else (low, low + 1)
