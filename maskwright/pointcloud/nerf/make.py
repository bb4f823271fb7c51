"""From posed photographs to a grid of colour and density (`maskwright pointcloud nerf-grid`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.trainer.precision import resolve_accelerator
from maskwright.pointcloud.nerf.box import box_of_cameras
from maskwright.pointcloud.nerf.cameras import Camera
from maskwright.pointcloud.nerf.field import Field
from maskwright.pointcloud.nerf.fit import Progress, View, fit, psnr, render_view
from maskwright.pointcloud.nerf.results import write_comparison, write_grid, write_record
from maskwright.pointcloud.nerf.transforms import Frame, Posed, read_photograph, read_transforms

LONGEST_SIDE = 240
"""Pixels that photographs are reduced to where no factor is given."""
FEWEST_TO_FIT = 3
MOST_VOXELS = 512**3
UPRIGHT = 0.5
"""Cosine between z and the mean upward direction of the cameras below which z is said not to point up."""
Box = Literal["auto", "file", "cube", "cameras"]


@dataclass
class GridFit:
    """What `fit_grid` did.

    Args:
        path: the .npz; a record .json and a picture .png lie beside it under the same name.
        shape: (W, L, H) voxels.
        box: (2, 3) places of the first and the last voxel.
        psnr: of each held-out photograph, by name, in dB.
        mean_psnr: the mean of `psnr`, NaN where none is held out.
        plain_psnr: the same of a picture in the mean colour of the photographs that were fitted; a field has to beat it.
        steps, seconds: made, and taken by the fit alone.
        opaque: share of voxels with an opacity above 0.5.
        remarks: what the user should know: photographs that are not there, z that does not point up.
    """

    path: Path
    shape: tuple[int, int, int]
    box: np.ndarray
    psnr: dict[str, float]
    mean_psnr: float
    plain_psnr: float
    steps: int
    seconds: float
    opaque: float
    remarks: list[str]


def fit_grid(
    transforms: str | Path,
    out: str | Path,
    *,
    resolution: int = 64,
    box: Box = "auto",
    aabb: Sequence[float] | None = None,
    steps: int = 1500,
    seconds: float | None = None,
    downscale: int | None = None,
    hold_every: int = 8,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    rate: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> GridFit:
    """Fit a radiance field to posed photographs and write it as a grid that the loader `grids` reads.

    The grid is the field itself: what is written are its parameters, at places evenly spread from the lowest to the
    highest corner of the box, both included (NeRF-MAE, grid extraction). Colour does not depend on the direction, so
    nothing has to be averaged over cameras; gloss becomes a blur. What fewer than two cameras can see is empty. Axes
    are those of the file; z is taken to point up.

    Args:
        transforms: a transforms.json of instant-ngp or nerfstudio, or the folder that holds it. Photographs with an
            opacity are scenes before nothing; others go on beyond the box, and that part is fitted and thrown away.
        out: file to write, .npz.
        resolution: voxels along the longest side of the box; the published grids have 160.
        box: "file", `aabb` or `room_bbox` of the file; "cube", instant-ngp's from `aabb_scale`, `scale` and `offset`;
            "cameras", what half of the cameras see (`box.box_of_cameras`); "auto", the file's or else the cameras'.
        aabb: the box itself, six numbers: the lowest x, y, z and the highest.
        steps: of the optimiser.
        seconds: time after which the fit ends early. Which step that is depends on the machine, the result with it.
        downscale: photographs are reduced by this factor; without it to `LONGEST_SIDE` pixels or less.
        hold_every: every so manieth photograph is not fitted but compared with, from the middle of the first so many on.
        hold_out: names (file_path, or its last part) of the photographs to hold out instead.
        seed: of rays and of where they are looked at. Results repeat on one processor with one number of threads.
        device: auto, cpu or cuda.
        rate: learning rate of the first step; `fit.first_rate` without it. A few hundred steps need more, such as 0.1.
        say: called with lines of progress.

    Raises:
        ConfigError: an option out of its range. DataError: photographs or poses that cannot be used.
    """
    out = Path(out)
    _check(out, resolution, steps, seconds, downscale, hold_every, rate)
    posed = read_transforms(transforms)
    held = _held_out(posed.frames, hold_every, hold_out)
    factor = downscale or _factor(posed.frames)
    to_fit = _views([frame for frame in posed.frames if frame.name not in held], factor)
    if len(to_fit) < FEWEST_TO_FIT:
        raise ConfigError(f"--hold-out leaves {len(to_fit)} photographs to fit, of at least {FEWEST_TO_FIT}.")
    to_compare = _views([frame for frame in posed.frames if frame.name in held], factor)
    _same_kind([*to_fit, *to_compare], transforms)
    corners = _choose_box(posed, box, aabb, [view.camera for view in to_fit], transforms)
    shape, corners = grid_in(corners, resolution)
    remarks = _remarks(posed)
    for remark in remarks:
        say(remark)
    say(
        f"{len(to_fit)} photographs of {to_fit[0].camera.lens.width} x {to_fit[0].camera.lens.height} pixels to fit, "
        f"{len(to_compare)} held out; {' x '.join(map(str, shape))} voxels from {_text(corners[0])} to {_text(corners[1])}."
    )

    def report(progress: Progress) -> None:
        say(
            f"step {progress.step} of {progress.steps}, {progress.seconds:.0f} s, PSNR of the fit {progress.psnr:.2f} dB"
        )

    started = time.monotonic()
    field, made = fit(to_fit, corners, shape, steps, seconds, seed, resolve_accelerator(device), rate, report)
    taken = time.monotonic() - started
    scores, plain, pictures = _compare(field, to_fit, to_compare)
    grid = field.exported().cpu().numpy()
    opaque = float((-np.expm1(-np.exp(grid[..., 3]) / 100) > 0.5).mean())
    done = GridFit(
        out,
        shape,
        corners,
        scores,
        float(np.mean(list(scores.values()))) if scores else float("nan"),
        plain,
        made,
        taken,
        opaque,
        remarks,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_grid(out, grid, corners, field.edge)
    write_record(out.with_suffix(".json"), _record(done, field, transforms, factor, seed, len(to_fit)))
    if pictures:
        write_comparison(out.with_suffix(".png"), *zip(*pictures, strict=True))  # type: ignore[arg-type]
    return done


def grid_in(box: np.ndarray, resolution: int) -> tuple[tuple[int, int, int], np.ndarray]:
    """(W, L, H) of a grid with cubic voxels, and its box (2, 3): the sides are rounded to whole voxels about the middle."""
    extent, middle = box[1] - box[0], box.mean(0)
    edge = extent.max() / (resolution - 1)
    steps = np.maximum(1, np.round(extent / edge))
    shape = tuple(int(count) + 1 for count in steps)
    return shape, np.stack([middle - steps * edge / 2, middle + steps * edge / 2])


def _check(
    out: Path,
    resolution: int,
    steps: int,
    seconds: float | None,
    downscale: int | None,
    hold_every: int,
    rate: float | None,
) -> None:
    problems = []
    if out.suffix.lower() != ".npz":
        problems.append(f"{out}: the file to write must end in .npz.")
    if not 4 <= resolution <= MOST_VOXELS ** (1 / 3):
        problems.append(f"--resolution {resolution} must be 4 to {round(MOST_VOXELS ** (1 / 3))}.")
    if steps < 1:
        problems.append(f"--steps {steps} must be 1 or more.")
    if seconds is not None and seconds <= 0:
        problems.append(f"--seconds {seconds:g} must be more than 0.")
    if downscale is not None and downscale < 1:
        problems.append(f"--downscale {downscale} must be 1 or more.")
    if hold_every < 2 and hold_every != 0:
        problems.append(f"--hold-every {hold_every} must be 2 or more, or 0 to hold none out.")
    if rate is not None and not 0 < rate <= 1:
        problems.append(f"rate={rate:g} must be more than 0 and at most 1.")
    if problems:
        raise ConfigError(" ".join(problems))


def _held_out(frames: list[Frame], every: int, names: Sequence[str]) -> set[str]:
    """Names of the frames to compare with."""
    if not names:
        # the middle of each stretch: the ends of a path would be held out by counting from the first
        held = [frame.name for number, frame in enumerate(frames) if every and number % every == every // 2]
        return set(held or ([frames[len(frames) // 2].name] if every else []))
    held = set()
    for name in names:
        found = [frame.name for frame in frames if name in (frame.name, Path(frame.name).name, Path(frame.name).stem)]
        if not found:
            raise ConfigError(
                f"--hold-out {name}: no photograph has this name.{nearest(name, [f.name for f in frames])}"
            )
        held.update(found)
    return held


def _factor(frames: list[Frame]) -> int:
    longest = max(max(frame.camera.lens.width, frame.camera.lens.height) for frame in frames)
    return max(1, -(-longest // LONGEST_SIDE))


def _views(frames: list[Frame], factor: int) -> list[View]:
    views = []
    for frame in frames:
        lens = frame.camera.lens.reduced(factor)
        if min(lens.width, lens.height) < 1:
            raise ConfigError(f"--downscale {factor} leaves no pixel of {frame.file}.")
        colours, opacity = read_photograph(frame, factor)
        views.append(View(frame.name, replace(frame.camera, lens=lens), colours, opacity))
    return views


def _same_kind(views: list[View], where: object) -> None:
    clear = [view.name for view in views if view.opacity is not None]
    if clear and len(clear) < len(views):
        raise DataError(
            where,
            f"names {len(clear)} photographs with an opacity, such as {clear[0]}, and {len(views) - len(clear)} without",
            "one kind",
            "Remove the alpha channel, or give all photographs one",
        )


def _choose_box(
    posed: Posed, box: Box, aabb: Sequence[float] | None, cameras: list[Camera], where: object
) -> np.ndarray:
    if aabb is not None:
        corners = np.array(aabb, float)
        if corners.shape != (6,) or not np.isfinite(corners).all() or (corners[3:] <= corners[:3]).any():
            raise ConfigError(f"--aabb {list(aabb)} must be six numbers: the lowest x, y, z and the highest.")
        return corners.reshape(2, 3)
    if box not in ("auto", "file", "cube", "cameras"):
        raise ConfigError(f"--box {box} is none of auto, file, cube, cameras.")
    if box == "file" and posed.box is None:
        raise DataError(where, "declares no box", "aabb or room_bbox", "Name it with --aabb, or leave out --box")
    if box == "cube" and posed.cube is None:
        raise DataError(where, "declares no cube", "aabb_scale", "Name the box with --aabb, or leave out --box")
    if box == "cube" and posed.cube is not None:
        return posed.cube
    if box in ("auto", "file") and posed.box is not None:
        return posed.box
    return box_of_cameras(cameras, where)


def _remarks(posed: Posed) -> list[str]:
    remarks = []
    if posed.missing:
        names = ", ".join(posed.missing[:5]) + (" ..." if len(posed.missing) > 5 else "")
        remarks.append(f"{len(posed.missing)} photographs are not there and left out: {names}")
    up = np.mean([frame.camera.pose[:3, 1] for frame in posed.frames], 0)
    if up[2] < UPRIGHT * np.linalg.norm(up):
        remarks.append("The cameras' upward direction is not z: the grid keeps the file's axes, so its z is not up.")
    return remarks


def _compare(
    field: Field, fitted: list[View], held: list[View]
) -> tuple[dict[str, float], float, list[tuple[np.ndarray, np.ndarray]]]:
    """PSNR by name, the mean PSNR of a plain colour, and pairs of photograph and rendering; on white."""
    plain = np.mean([_on_white(view).mean((0, 1)) for view in fitted], 0)
    scores, plain_scores, pictures = {}, [], []
    for view in held:
        photograph = _on_white(view)
        rendering = render_view(field, view.camera).colour.cpu().numpy().reshape(photograph.shape)
        scores[view.name] = psnr(float(((rendering - photograph) ** 2).mean()))
        plain_scores.append(psnr(float(((plain - photograph) ** 2).mean())))
        pictures.append((photograph, rendering))
    return scores, float(np.mean(plain_scores)) if plain_scores else float("nan"), pictures


def _on_white(view: View) -> np.ndarray:
    if view.opacity is None:
        return view.colours
    return view.colours * view.opacity[..., None] + 1 - view.opacity[..., None]


def _record(done: GridFit, field: Field, transforms: object, factor: int, seed: int, fitted: int) -> dict[str, Any]:
    def rounded(value: float) -> float | None:
        return round(value, 3) if np.isfinite(value) else None

    return {
        "source": str(transforms),
        "photographs_fitted": fitted,
        "downscale": factor,
        "voxels": list(done.shape),
        "aabb": done.box.tolist(),
        "edge": field.edge,
        "density": "exp: opacity of a voxel = 1 - exp(-exp(sigma) / 100); density by length = exp(sigma) / (100 edge)",
        "colour": "the same from all directions",
        "held_out_psnr": {name: rounded(value) for name, value in done.psnr.items()},
        "held_out_psnr_mean": rounded(done.mean_psnr),
        "held_out_psnr_of_mean_colour": rounded(done.plain_psnr),
        "opaque_share": round(done.opaque, 5),
        "steps": done.steps,
        "seconds": round(done.seconds, 1),
        "seed": seed,
        "device": str(field.low.device),
        "remarks": done.remarks,
    }


def _text(corner: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in corner) + ")"
