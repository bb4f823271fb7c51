"""Rendering: what a ray through a field sees (Mildenhall et al., "NeRF", ECCV 2020, equation 3).

Places along rays lie in one flat list, ray after ray, so that what is empty or hidden costs nothing: first densities
alone are looked up, without a gradient, and then colours and densities where light comes through (as nerfacc does; Li,
Gao, Tancik and Kanazawa, "NerfAcc", ICCV 2023, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskwright.pointcloud.nerf.field import Field

OUTSIDE_SAMPLES = 24
"""Places along a ray beyond the box; the distances grow as u / (1 - u) with u even."""
CLEAR = 1e-3
"""Share of light behind which nothing is looked up any more."""
THIN = 1e-4
"""Opacity of a step below which it is left out."""
OPAQUE = 50.0
"""Optical thickness of the last step outside."""


@dataclass
class Seen:
    """What rays see.

    Args:
        colour: (R, 3) in 0 to 1.
        opacity: (R,) of what is inside of the box.
        through: (R,) bool, whether a ray passes the box.
        spread: () how far the weights along a ray lie apart (Mip-NeRF 360, equation 15), mean over the rays.
    """

    colour: Tensor
    opacity: Tensor
    through: Tensor
    spread: Tensor


def enter_and_leave(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave a box, from the camera on, and (R,) bool whether they meet it."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    one, other = (low - origins) / safe, (high - origins) / safe
    enter = torch.minimum(one, other).amax(-1).clamp(min=0)
    leave = torch.maximum(one, other).amin(-1)
    return enter, leave, leave > enter


def render(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    background: Tensor | None = None,
    jitter: Tensor | None = None,
) -> Seen:
    """Colours along rays.

    A ray is looked at in steps of a voxel inside of the box, where it is occupied, and then in `OUTSIDE_SAMPLES` steps
    to infinity, the last of which is opaque. Between a camera and the box there is nothing: where anything may stand
    there, each camera gets a picture of its own before it (the mean of held-out photographs fell from 18.7 to 11.2 dB
    on 15 real photographs).

    Args:
        origins, directions: (R, 3) in the world; directions of unit length.
        background: (R, 3) or (3,) colour behind a field without an outside; black without it.
        jitter: (R, 2) in 0 to 1, where in the first step inside and outside to look; without it in the middle.
    """
    rays = len(origins)
    jitter = torch.full((rays, 2), 0.5, device=origins.device) if jitter is None else jitter
    enter, leave, through = enter_and_leave(origins, directions, field.low, field.high)
    ray, times, step = _march(field, origins, directions, enter, leave, through, jitter[:, :1])
    unit_origins, unit_directions = field.unit(origins), directions * 2 / (field.high - field.low)
    unit = unit_origins.index_select(0, ray) + times[:, None] * unit_directions.index_select(0, ray)
    with torch.no_grad():
        kept = field.is_occupied(unit)
        ray, times, unit = ray[kept], times[kept], unit[kept]
        thickness = field.density(unit) * step
        kept = (_before(thickness, ray, rays) < -math.log(CLEAR)) & (thickness > THIN)
        ray, times, unit = ray[kept], times[kept], unit[kept]
    colours, density = field.look_up(unit)
    thickness = density * step
    weights = (-_before(thickness, ray, rays)).exp() * -torch.expm1(-thickness)
    colour = origins.new_zeros(rays, 3).index_add(0, ray, weights[:, None] * colours)
    light = (-origins.new_zeros(rays).index_add(0, ray, thickness)).exp()
    opacity = 1 - light
    if field.has_outside:
        some = (light.detach() > CLEAR).nonzero()[:, 0]
        behind = _outside(field, origins[some], directions[some], leave[some], through[some], jitter[some, 1:])
        colour = colour.index_add(0, some, light[some, None] * behind)
    elif background is not None:
        colour = colour + light[:, None] * background
    longest = float((field.high - field.low).norm())
    return Seen(colour, opacity, through, _spread(weights, (times - enter[ray]) / longest, ray, rays))


@torch.no_grad()
def _march(
    field: Field, origins: Tensor, directions: Tensor, enter: Tensor, leave: Tensor, through: Tensor, jitter: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Rays (P,) and distances (P,) of all places inside of the box, in order, and the length of a step."""
    sizes = torch.tensor(field.inside.shape[:1:-1], device=origins.device)
    step = float(((field.high - field.low) / (sizes - 1)).min())
    longest = float((leave - enter)[through].max()) if through.any() else 0.0
    along = (torch.arange(math.ceil(longest / step), device=origins.device) + jitter) * step
    times = enter[:, None] + along
    ray, place = ((times < leave[:, None]) & through[:, None]).nonzero(as_tuple=True)
    return ray, times[ray, place], step


def _outside(
    field: Field, origins: Tensor, directions: Tensor, leave: Tensor, through: Tensor, jitter: Tensor
) -> Tensor:
    """Colours (R, 3) of what is beyond the box; a ray that misses it starts where it is closest to its middle."""
    middle, half = (field.high + field.low) / 2, ((field.high - field.low) / 2).mean()
    closest = ((middle - origins) * directions).sum(-1).clamp(min=0)
    start = torch.where(through, leave, closest)
    u = (torch.arange(OUTSIDE_SAMPLES, device=origins.device) + jitter) / OUTSIDE_SAMPLES
    times = start[:, None] + half * u / (1 - u).clamp(min=1e-3)
    points = origins[:, None] + times[..., None] * directions[:, None]
    colours, thickness = field.look_up_outside(field.unit(points.reshape(-1, 3)))
    thickness = thickness.view(-1, OUTSIDE_SAMPLES) / OUTSIDE_SAMPLES
    thickness = torch.cat([thickness[:, :-1], torch.full_like(thickness[:, :1], OPAQUE)], 1)
    weights = (thickness - thickness.cumsum(1)).exp() * -torch.expm1(-thickness)
    return (weights[..., None] * colours.view(-1, OUTSIDE_SAMPLES, 3)).sum(1)


def _before(values: Tensor, ray: Tensor, rays: int) -> Tensor:
    """(P,) sums of the values that come before each on its ray; `ray` (P,) ascends."""
    sums = values.double().cumsum(0) - values  # over all rays: single precision would not do
    counts = torch.bincount(ray, minlength=rays)
    first = (counts.cumsum(0) - counts).clamp(max=max(0, len(values) - 1))
    return (sums - sums[first].index_select(0, ray)).to(values.dtype) if len(values) else values


def _spread(weights: Tensor, times: Tensor, ray: Tensor, rays: int) -> Tensor:
    """Mean over rays of the sum of w_i w_j |t_i - t_j|, in one pass as times grow along a ray."""
    moment = _before(weights * times, ray, rays)
    return 2 * (weights * (times * _before(weights, ray, rays) - moment)).sum() / max(1, rays)
