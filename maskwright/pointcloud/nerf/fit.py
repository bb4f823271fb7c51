"""Fitting a radiance field to posed photographs, on a processor or a GPU, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.trainer.data import generator_for
from maskwright.pointcloud.nerf.cameras import Camera
from maskwright.pointcloud.nerf.field import Field, roughness
from maskwright.pointcloud.nerf.render import Seen, enter_and_leave, render

RAYS = 1024
"""Rays of a step."""
LAST_RATE = 0.01
"""Learning rate of the logits at the last step."""
STAGES = ((0.0, 4), (0.1, 2), (0.3, 1))
"""From which share of the fit on voxels are how much larger than the final ones."""
OCCUPANCY_FROM, OCCUPANCY_EVERY = 0.08, 100
"""Share of the fit, and steps, after which what is empty is skipped."""
SKIPPED = 3e-3
"""Opacity over a final voxel's side below which a voxel counts as empty."""
SMOOTH_COLOUR, SMOOTH_DENSITY = 1e-2, 1e-3
"""Weights of squared steps between neighbouring voxels."""
COMPACT = 1e-2
"""Weight of how far apart what a ray meets lies."""
VIEWS = 2
"""Cameras that must see a voxel: depth does not follow from one."""
REPORTS = 10
"""Lines of progress in all."""
CHUNK = 8192
"""Rays that are rendered at once for a picture."""


@dataclass
class View:
    """A photograph to fit or to compare with.

    Args:
        name: as in the file.
        camera: of the reduced size.
        colours: (h, w, 3) float32 in 0 to 1.
        opacity: (h, w) float32 in 0 to 1, or None for opaque photographs.
    """

    name: str
    camera: Camera
    colours: np.ndarray
    opacity: np.ndarray | None


@dataclass
class Progress:
    """Where a fit stands: steps done, of how many, seconds so far, mean PSNR in dB of the last batches."""

    step: int
    steps: int
    seconds: float
    psnr: float


def fit(
    views: list[View],
    box: np.ndarray,
    shape: tuple[int, int, int],
    steps: int,
    seconds: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    rate: float | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Field, int]:
    """A field that shows the views, and the steps that were made.

    Each step takes `RAYS` pixels at random from all views. Photographs with an opacity are put on a random colour, so
    that what is clear in them must be clear in the field; then there is nothing outside of the box.

    Args:
        views: at least one; all or none with an opacity.
        box: (2, 3) lowest and highest corner of the scene.
        shape: (W, L, H) voxels along x, y and z.
        steps: of the optimiser.
        seconds: a time after which the fit ends early; its schedule is shortened to fit. Without it the field is a
            function of the seed, on one machine's processor.
        rate: learning rate of the logits at the first step, `first_rate` without it; it ends at `LAST_RATE`.
    """
    clear = views[0].opacity is not None
    torch_box = torch.from_numpy(np.asarray(box, np.float32))
    field = Field(torch_box, shape, STAGES[0][1], outside=not clear)
    field.seen = torch.from_numpy(seen_by(views, box, shape) >= VIEWS)
    field.to(device)
    origins, directions, colours, opacities = _pixels(views, torch_box, device)
    rate = first_rate(shape) if rate is None else rate
    generator = generator_for(seed, 1)
    optimiser, stage, started, errors = _optimiser(field), 0, time.monotonic(), []
    step = 0
    for step in range(1, steps + 1):
        done = (step - 1) / steps
        if seconds is not None:
            done = max(done, (time.monotonic() - started) / seconds)
            if done >= 1:
                step -= 1
                break
        while stage + 1 < len(STAGES) and done >= STAGES[stage + 1][0]:
            stage += 1
            field.refine(STAGES[stage][1])
            optimiser = _optimiser(field)
        if done >= OCCUPANCY_FROM and step % OCCUPANCY_EVERY == 0:
            field.update_occupied(SKIPPED)
        for group in optimiser.param_groups:
            group["lr"] = rate * (LAST_RATE / rate) ** done
        chosen = torch.randint(len(origins), (RAYS,), generator=generator).to(device)
        jitter = torch.rand(RAYS, 2, generator=generator).to(device)
        target, background = colours[chosen], None
        if clear:
            background = torch.rand(RAYS, 3, generator=generator).to(device)
            target = target * opacities[chosen] + background * (1 - opacities[chosen])
        seen = render(field, origins[chosen], directions[chosen], background, jitter)
        error = F.mse_loss(seen.colour, target)
        loss = error + COMPACT * seen.spread
        for grid in (field.inside, field.around) if field.has_outside else (field.inside,):
            colour_steps, density_steps = roughness(grid, generator)
            loss = loss + SMOOTH_COLOUR * colour_steps + SMOOTH_DENSITY * density_steps
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        errors.append(error.detach())
        if step % max(1, steps // REPORTS) == 0:
            report(Progress(step, steps, time.monotonic() - started, psnr(float(torch.stack(errors).mean()))))
            errors.clear()
    if stage + 1 < len(STAGES):
        field.refine(1)
    field.empty_unseen()
    field.update_occupied(0.0)
    return field, step


@torch.no_grad()
def render_view(field: Field, camera: Camera, background: float = 1.0) -> Seen:
    """What a camera sees, all its pixels row by row, on grey of this brightness where the field is clear."""
    device = field.low.device
    origins, directions = (torch.from_numpy(x.astype(np.float32)).to(device) for x in camera.rays())
    behind = torch.full((3,), background, device=device)
    parts = [
        render(field, origins[at : at + CHUNK], directions[at : at + CHUNK], behind)
        for at in range(0, len(origins), CHUNK)
    ]
    return Seen(
        torch.cat([part.colour for part in parts]),
        torch.cat([part.opacity for part in parts]),
        torch.cat([part.through for part in parts]),
        torch.stack([part.spread for part in parts]).mean(),
    )


def first_rate(shape: tuple[int, int, int]) -> float:
    """Learning rate of the first step: 0.03 at 64 voxels along the longest side, in proportion, at most 0.1.

    Rays meet a voxel of a fine grid more seldom. On 15 real photographs held-out ones lost 2 dB at 64 voxels with 0.1,
    for want of which 160 voxels were left foggy after a thousand steps.
    """
    return min(0.1, 0.03 * max(shape) / 64)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of colours in 0 to 1."""
    return float(-10 * np.log10(max(error, 1e-10)))


def seen_by(views: list[View], box: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, L, W) int, how many cameras have a voxel in their photograph, whatever stands before it."""
    x, y, z = (np.linspace(low, high, count) for low, high, count in zip(box[0], box[1], shape, strict=True))
    counts = np.zeros(shape[::-1], np.int32)
    layer = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[..., ::-1].reshape(-1, 2)
    for number, height in enumerate(z):
        points = np.concatenate([layer, np.full((len(layer), 1), height)], 1)
        for view in views:
            counts[number] += view.camera.sees(points).reshape(counts.shape[1:])
    return counts


def _optimiser(field: Field) -> torch.optim.Optimizer:
    parameters = [p for p in field.parameters() if p.numel()]
    return torch.optim.Adam(parameters, lr=LAST_RATE, betas=(0.9, 0.99), eps=1e-12, fused=True)


def _pixels(views: list[View], box: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origins (N, 3), directions (N, 3), colours (N, 3) and opacities (N, 1) of the pixels of all views.

    Without an outside only rays that meet the box: others have nothing to learn.
    """
    parts: list[list[Tensor]] = [[], [], [], []]
    for view in views:
        origins, directions = view.camera.rays()
        opacity = np.ones(view.colours.shape[:2]) if view.opacity is None else view.opacity
        arrays = [origins, directions, view.colours.reshape(-1, 3), opacity.reshape(-1, 1)]
        tensors = [torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays]
        if view.opacity is not None:
            meets = enter_and_leave(tensors[0], tensors[1], box[0], box[1])[2]
            tensors = [tensor[meets] for tensor in tensors]
        for part, tensor in zip(parts, tensors, strict=True):
            part.append(tensor)
    origins, directions, colours, opacities = (torch.cat(part).to(device) for part in parts)
    return origins, directions, colours, opacities
