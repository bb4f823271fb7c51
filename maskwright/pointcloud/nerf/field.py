"""A radiance field whose parameters are the grid that is written.

Inside of the scene box each voxel holds the logits of a colour that is the same from all sides and the logarithm of a
density; both are interpolated between voxels, then activated (Sun, Sun and Chen, "Direct Voxel Grid Optimization", CVPR
2022, section 4.1, post-activation; Fridovich-Keil et al., "Plenoxels", CVPR 2022, for fields without a network). What
lies outside of the box is a second, coarse grid over contracted space (Barron et al., "Mip-NeRF 360", CVPR 2022,
equation 10, with the largest coordinate as the norm), and is thrown away afterwards.

Pure torch: nerfacc compiles CUDA kernels on its first call and does nothing without a CUDA compiler. A network behind
the grid (instant-ngp) costs more than the interpolation itself on a CPU.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = 100
"""The loaders of NeRF-MAE read opacity as 1 - exp(-exp(sigma) / 100): over a hundredth of their unit of length."""
HAZE = 0.5
"""Optical thickness of the whole box before the first step, along its longest side."""
OUTSIDE_HAZE = 1.0
"""Optical thickness of all that is outside, before the first step."""
EMPTY, FULL = -10.0, 10.0
"""Range of sigma that is written: opacities of 5e-7, and of 1 - 1e-95. Beyond, exponentials would overflow in the end."""
OUTSIDE = 64
"""Voxels a side of the grid of what is outside."""


class Field(nn.Module):
    """Colours and densities in a box, and around it.

    Args:
        box: (2, 3) lowest and highest corner.
        shape: (W, L, H) voxels along x, y and z; voxels lie on the faces of the box.
        shrink: voxels of the first grid are this factor larger; `refine` makes them finer.
        outside: whether there is anything around the box.
    """

    def __init__(self, box: Tensor, shape: tuple[int, int, int], shrink: int = 1, outside: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("low", box[0].clone())
        self.register_buffer("high", box[1].clone())
        self.edge = float((box[1] - box[0]).max()) / (max(shape) - 1)
        """Side of a voxel of the final grid, in the unit of the cameras."""
        first = [max(2, math.ceil(length / shrink)) for length in reversed(shape)]
        inside = torch.zeros(1, 4, *first)
        inside[:, 3] = math.log(STEP * HAZE / (max(shape) - 1))
        self.inside = nn.Parameter(inside)
        """(1, 4, H, L, W): logits of colour, and log(100 * optical thickness of a final voxel's side)."""
        around = torch.zeros(1, 4, *(OUTSIDE,) * 3) if outside else torch.zeros(0)
        if outside:
            around[:, 3] = math.log(OUTSIDE_HAZE)
        self.around = nn.Parameter(around)
        """(1, 4, D, H, W) over -2 to 2: logits of colour, and log of the optical thickness of all the way out."""
        self.register_buffer("occupied", torch.ones(first, dtype=torch.bool))
        self.register_buffer("seen", torch.ones(tuple(reversed(shape)), dtype=torch.bool))

    @property
    def has_outside(self) -> bool:
        return self.around.numel() > 0

    def unit(self, points: Tensor) -> Tensor:
        """(..., 3) points of the world with the box at -1 to 1."""
        return (points - self.low) / (self.high - self.low) * 2 - 1

    def look_up(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Colour (N, 3) in 0 to 1 and density (N,) in 1 / unit of the cameras, at (N, 3) places in -1 to 1."""
        values = sample(self.inside, unit)
        return values[:, :3].sigmoid(), thickness(values[:, 3]) / (STEP * self.edge)

    def density(self, unit: Tensor) -> Tensor:
        """Density (N,) alone."""
        return thickness(sample(self.inside[:, 3:], unit)[:, 0]) / (STEP * self.edge)

    def look_up_outside(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Colour (N, 3) and thickness (N,) of all the way out, at (N, 3) places beyond -1 to 1."""
        values = sample(self.around, contract(unit) / 2)
        return values[:, :3].sigmoid(), thickness(values[:, 3])

    def is_occupied(self, unit: Tensor) -> Tensor:
        """(N,) bool, whether the voxel that is nearest to a place in -1 to 1 holds anything, or one beside it does."""
        size = torch.tensor(self.occupied.shape[::-1], device=unit.device)
        at = ((unit + 1) / 2 * (size - 1)).round().long().clamp(torch.zeros_like(size), size - 1)
        index = (at[:, 2] * size[1] + at[:, 1]) * size[0] + at[:, 0]
        return self.occupied.view(-1)[index]

    @torch.no_grad()
    def update_occupied(self, opacity: float) -> float:
        """Skip voxels whose opacity (over a final voxel's side), and that of those beside them, is below this.

        Returns:
            share of voxels that are left.
        """
        alpha = -torch.expm1(-self.inside[:, 3:].exp() / STEP)
        filled = (alpha > opacity) & self._seen()
        self.occupied = F.max_pool3d(filled.float(), 3, 1, 1)[0, 0] > 0
        return float(self.occupied.float().mean())

    @torch.no_grad()
    def refine(self, shrink: int) -> None:
        """Grids with voxels this factor larger than the final ones, of the same field."""
        size = [max(2, math.ceil(length / shrink)) for length in reversed(self.shape)]
        finer = F.interpolate(self.inside, size, mode="trilinear", align_corners=True)
        self.inside = nn.Parameter(finer)
        self.occupied = F.interpolate(self.occupied[None, None].float(), size)[0, 0] > 0

    @torch.no_grad()
    def empty_unseen(self) -> None:
        """Nothing where `seen` is false."""
        self.inside[:, 3].masked_fill_(~self._seen()[:, 0], EMPTY)

    @torch.no_grad()
    def exported(self) -> Tensor:
        """(W, L, H, 4) colour in 0 to 1 and log(100 * optical thickness of a voxel's side)."""
        colour, density = self.inside[0, :3].sigmoid(), self.inside[0, 3:].clamp(EMPTY, FULL)
        return torch.cat([colour, density]).permute(3, 2, 1, 0).contiguous()

    def _seen(self) -> Tensor:
        """(1, 1, D, H, W) `seen` at the present resolution."""
        seen = self.seen[None, None].float()
        return F.interpolate(seen, self.inside.shape[2:], mode="trilinear", align_corners=True) > 0.5


def thickness(sigma: Tensor) -> Tensor:
    """exp(sigma), with an end."""
    return sigma.clamp(max=FULL).exp()


def sample(grid: Tensor, unit: Tensor) -> Tensor:
    """(N, C) values of a grid (1, C, D, H, W), whose outer voxels lie at -1 and 1, between its voxels at (N, 3) x, y, z."""
    return F.grid_sample(grid, unit[None, None, None], padding_mode="border", align_corners=True)[0, :, 0, 0].T


def contract(unit: Tensor) -> Tensor:
    """All of space in -2 to 2: what is in -1 to 1 stays (Mip-NeRF 360, equation 10)."""
    norm = unit.abs().amax(-1, keepdim=True).clamp(min=1)
    return (2 - 1 / norm) * unit / norm


def roughness(grid: Tensor, generator: torch.Generator, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Mean squared steps between neighbours of colour logits and of log densities, in a random box of a grid.

    Args:
        grid: (1, 4, D, H, W).
        share: of each side that the box has.
    """
    box = []
    for length in grid.shape[2:]:
        wanted = max(2, int(length * share))
        start = int(torch.randint(length - wanted + 1, (1,), generator=generator))
        box.append(slice(start, start + wanted))
    part = grid[(slice(None), slice(None), *box)]
    steps = [part.diff(dim=axis).square().mean((0, 2, 3, 4)) for axis in (2, 3, 4)]
    total = torch.stack(steps).sum(0)
    return total[:3].mean(), total[3]
