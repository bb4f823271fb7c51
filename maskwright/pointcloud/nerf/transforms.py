"""Reading transforms.json, the posed photographs of instant-ngp, nerfstudio and the synthetic scenes of NeRF."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskwright.core.errors import DataError
from maskwright.pointcloud.nerf.cameras import Camera, Lens

FEWEST = 4
"""Photographs below which no field is fitted."""
SUFFIXES = ("", ".png", ".jpg", ".jpeg")
"""Tried behind a file's name: the synthetic scenes of NeRF leave it out."""
MODES = ("L", "LA", "P", "RGB", "RGBA")
OFF_ROTATION = 1e-3
"""How far the columns of a pose may be from unit length and right angles."""
NGP_SCALE, NGP_OFFSET = 0.33, (0.5, 0.5, 0.5)
"""instant-ngp's defaults: places in its unit cube are scale * place + offset."""


@dataclass(frozen=True)
class Frame:
    """A photograph and its camera, in full size."""

    name: str
    file: Path
    camera: Camera


@dataclass
class Posed:
    """What a transforms.json holds.

    Args:
        frames: photographs that are there, in the order of the file.
        missing: names of those that are not.
        box: (2, 3) lowest and highest corner that the file declares as `aabb` or `room_bbox`, else None.
        cube: (2, 3) corners of the cube that instant-ngp would fit in: `aabb_scale`, `scale` and `offset`, else None.
    """

    frames: list[Frame]
    missing: list[str] = field(default_factory=list)
    box: np.ndarray | None = None
    cube: np.ndarray | None = None


def read_transforms(path: str | Path) -> Posed:
    """Cameras and files of a transforms.json, or of the folder that it lies in.

    Raises:
        DataError: no such file; no poses; a pose that is no rotation and shift; no focal length; a lens that is not
            supported; a photograph of another size than declared; fewer than `FEWEST` photographs.
    """
    path = Path(path)
    path = path / "transforms.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(path, "is not there", "a transforms.json of instant-ngp or nerfstudio") from None
    except (OSError, ValueError) as error:
        raise DataError(path, f"is no JSON file that can be read ({error})") from None
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames:
        raise DataError(path, "holds no poses", "a list of frames, each with file_path and transform_matrix")
    posed = Posed([], box=_box(data, path), cube=_cube(data, path))
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise DataError(path, f"frame {number} has no file_path")
        where = f"frame {number} ({frame['file_path']})"
        pose = _pose(frame.get("transform_matrix"), path, where)
        file = _file(path.parent, frame["file_path"])
        if file is None:
            posed.missing.append(frame["file_path"])
            continue
        lens = _lens({**data, **frame}, file, path, where)  # nerfstudio allows a lens for each frame
        posed.frames.append(Frame(frame["file_path"], file, Camera(lens, pose)))
    if len(posed.frames) < FEWEST:
        lost = f"; missing: {', '.join(posed.missing[:5])}" + (" ..." if len(posed.missing) > 5 else "")
        raise DataError(
            path,
            f"has {len(posed.frames)} photographs that are there" + (lost if posed.missing else ""),
            f"at least {FEWEST}",
            "Names in file_path are relative to the folder of the file",
        )
    return posed


def read_photograph(frame: Frame, factor: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (h, w, 3) of a photograph and its opacity (h, w), None where it has none, float32 in 0 to 1.

    Args:
        factor: side of the blocks of pixels whose mean becomes one.

    Raises:
        DataError: it cannot be decoded, or is of another kind than 8-bit grey or colour.
    """
    try:
        with Image.open(frame.file) as image:
            if image.mode not in MODES:
                raise DataError(frame.file, f"is of Pillow's mode {image.mode}", f"8 bits: {', '.join(MODES)}")
            clear = image.mode in ("LA", "RGBA") or "transparency" in image.info
            picture = image.convert("RGBA" if clear else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(frame.file, f"cannot be decoded ({error})") from None
    values = np.asarray(picture, np.float32) / 255
    colours, opacity = values[..., :3], values[..., 3:] if clear else None
    if opacity is None:
        return _blocks(colours, factor), None
    means = _blocks(opacity, factor)
    # colours of blocks are weighed by opacity: what a clear pixel holds is no colour of the scene
    return _blocks(colours * opacity, factor) / np.maximum(means, 1e-6), means[..., 0]


def _blocks(values: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor pixels of (h, w, C); what is left over is cut off."""
    h, w = (length // factor for length in values.shape[:2])
    return values[: h * factor, : w * factor].reshape(h, factor, w, factor, -1).mean((1, 3))


def _file(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        file = folder / (name + suffix)
        if file.is_file():
            return file
    return None


def _pose(matrix: Any, path: Path, where: str) -> np.ndarray:
    """(4, 4) float64."""
    try:
        pose = np.array(matrix, float)
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise DataError(path, f"{where} has no transform_matrix of numbers", "4 rows of 4 numbers")
    if not np.isfinite(pose).all():
        raise DataError(path, f"{where} has NaN or infinite numbers in its transform_matrix")
    rotation = pose[:3, :3]
    off = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if off > OFF_ROTATION or np.linalg.det(rotation) < 0:
        what = "mirrors" if off <= OFF_ROTATION else f"is no rotation (its columns are off by {off:.3g})"
        raise DataError(
            path, f"{where} has a transform_matrix that {what}", "a rotation and a shift from the camera to the world"
        )
    if len(pose) == 4 and np.abs(pose[3] - (0, 0, 0, 1)).max() > OFF_ROTATION:
        raise DataError(path, f"{where} has a transform_matrix whose last row is {pose[3].tolist()}", "[0, 0, 0, 1]")
    return np.vstack([pose[:3], (0, 0, 0, 1)])


def _lens(data: dict[str, Any], file: Path, path: Path, where: str) -> Lens:
    try:
        with Image.open(file) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(file, f"cannot be decoded ({error})") from None
    given = {name: _number(data, name, path, where) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    if (given["w"] or width, given["h"] or height) != (width, height):
        raise DataError(
            file,
            f"has {width} x {height} pixels",
            f"{given['w']:g} x {given['h']:g} as {path.name} declares",
            "Put the photographs there that the cameras were found with, or correct w, h and the lens",
        )
    model = str(data.get("camera_model", "OPENCV"))
    if "FISHEYE" in model or "EQUI" in model or data.get("is_fisheye"):
        raise DataError(path, f"{where} has a lens of the kind {model}", "a pinhole or OpenCV's radial distortion")
    coefficients = {name: _number(data, name, path, where) or 0.0 for name in ("k1", "k2", "k3", "k4", "p1", "p2")}
    if coefficients.pop("k4"):
        raise DataError(path, f"{where} has a distortion k4, which is not supported", "k1, k2, k3, p1, p2")
    fx = given["fl_x"] or _focal(_number(data, "camera_angle_x", path, where), width)
    fy = given["fl_y"] or _focal(_number(data, "camera_angle_y", path, where), height)
    if not fx and not fy:
        raise DataError(path, f"{where} has no focal length", "fl_x, or camera_angle_x in radians")
    lens = Lens(
        width,
        height,
        fx or fy,
        fy or fx,
        width / 2 if given["cx"] is None else given["cx"],
        height / 2 if given["cy"] is None else given["cy"],
        **coefficients,
    )
    if min(lens.fx, lens.fy) <= 0:
        raise DataError(path, f"{where} has a focal length of {min(lens.fx, lens.fy):g} pixels", "more than 0")
    try:
        lens.reach()
    except ValueError as error:
        raise DataError(path, f"{where}: {error}", "coefficients of OpenCV", "Check k1, k2, k3, p1, p2") from None
    return lens


def _focal(angle: float | None, pixels: int) -> float | None:
    """Focal length in pixels of a full angle of view."""
    return None if angle is None or not 0 < angle < math.pi else pixels / 2 / math.tan(angle / 2)


def _number(data: dict[str, Any], name: str, path: Path, where: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(path, f"{where} has {name}={value!r}", "a finite number")
    return float(value)


def _corners(value: Any, name: str, path: Path) -> np.ndarray:
    try:
        box = np.array(value, float)
    except (TypeError, ValueError):
        box = np.zeros(0)
    if box.shape != (2, 3) or not np.isfinite(box).all() or (box[1] <= box[0]).any():
        raise DataError(path, f"has {name}={value}", "[[x, y, z], [x, y, z]]: lowest and highest corner")
    return box


def _box(data: dict[str, Any], path: Path) -> np.ndarray | None:
    for name in ("aabb", "room_bbox"):
        if data.get(name) is not None:
            return _corners(data[name], name, path)
    return None


def _cube(data: dict[str, Any], path: Path) -> np.ndarray | None:
    size = _number(data, "aabb_scale", path, "the file")
    if size is None:
        return None
    scale = _number(data, "scale", path, "the file") or NGP_SCALE
    offset = np.array(data.get("offset") or NGP_OFFSET, float)
    if offset.shape != (3,) or size <= 0 or scale <= 0:
        raise DataError(path, f"has aabb_scale={size:g}, scale={scale:g} and offset={offset.tolist()}", "sizes above 0")
    return np.stack([(0.5 - size / 2 - offset) / scale, (0.5 + size / 2 - offset) / scale])
