"""Small radiance fields in the published format: coloured boxes and balls on a floor."""

import numpy as np


def scene(size=(20, 16, 12), seed=0):
    """(W, L, H, 4) float32: colour in 0 to 1 and density before an exponential (-10 empty, 8 solid)."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(length) for length in size], indexing="ij")
    grid = np.full((*size, 4), 0.5, np.float32)
    grid[..., 3] = -10
    solid = [(z < 2, (0.6, 0.5, 0.4))]
    for number in range(4):
        centre = generator.uniform(0, 1, 3) * np.array(size) * (1, 1, 0.6)
        radius = generator.uniform(2, 4)
        away = np.stack([x, y, z], -1) - centre
        ball = (away**2).sum(-1) < radius**2 if number % 2 else (np.abs(away) < radius).all(-1)
        solid.append((ball, generator.uniform(0, 1, 3)))
    for where, colour in solid:
        grid[where, :3], grid[where, 3] = colour, 8
    return grid


def write_grids(folder, count=4, **options):
    """`count` scenes as .npz, as NeRF-RPN writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        grid = scene(seed=number, **options)
        np.savez_compressed(folder / f"scene_{number}.npz", rgbsigma=grid, resolution=np.array(grid.shape[:3]))
    return folder
