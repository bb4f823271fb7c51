"""Farthest points and neighbours of point clouds, against Open3D, SciPy, fpsample and plain torch loops.

    python -m benchmarks.point_ops

All sides of a row get the same points and must give the same result before they are timed: the same picks in the same
order, the same neighbours. The plain form is what a method falls back to where its compiled extensions are missing: a
loop over picks with fresh tensors and torch's argmax, and a matrix of all distances with topk. fpsample is timed where
it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import open3d
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from benchmarks.common import environment, interleave, parser, report
from maskwright.pointcloud.ops import chamfer, farthest_point_sampling, gather, knn

SIZES = ((32, 1024, 64), (32, 8192, 512), (1, 100_000, 512))
"""Clouds, points of each, picks."""
NEIGHBOURS = 32


def surfaces(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Points on noisy ellipsoids, (batch, count, 3)."""
    points = torch.randn(batch, count, 3, generator=generator)
    points = points / points.norm(dim=2, keepdim=True) * (0.5 + torch.rand(batch, 1, 3, generator=generator))
    return points + 0.01 * torch.randn(points.shape, generator=generator)


def plain_sampling(points: Tensor, count: int) -> Tensor:
    batch, size, _ = points.shape
    picked = torch.zeros(batch, count, dtype=torch.int64)
    least = torch.full((batch, size), float("inf"))
    at, rows = torch.zeros(batch, dtype=torch.int64), torch.arange(batch)
    for number in range(count):
        picked[:, number] = at
        distance = ((points - points[rows, at][:, None]) ** 2).sum(-1)
        least = torch.minimum(least, distance)
        at = least.argmax(-1)
    return picked


def plain_neighbours(queries: Tensor, points: Tensor, k: int) -> Tensor:
    parts = zip(queries.split(1), points.split(1), strict=True)
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(a, b, compute_mode=exact).topk(k, largest=False)[1] for a, b in parts])


def open3d_sampling(points: Tensor, count: int) -> np.ndarray:
    """Open3D gives points and not their numbers, (B, count, 3). Its older interface is the faster one."""
    vectors = [open3d.utility.Vector3dVector(sample.double().numpy()) for sample in points]
    clouds = [open3d.geometry.PointCloud(vector).farthest_point_down_sample(count) for vector in vectors]
    return np.stack([np.asarray(cloud.points) for cloud in clouds]).astype(np.float32)


def fpsample_sampling(points: Tensor, count: int) -> Tensor:
    import fpsample

    picks = [fpsample.bucket_fps_kdline_sampling(sample.numpy(), count, h=7, start_idx=0) for sample in points]
    return torch.from_numpy(np.stack(picks).astype(np.int64))


def tree_neighbours(queries: Tensor, points: Tensor, k: int) -> Tensor:
    found = [cKDTree(b.numpy()).query(a.numpy(), k, workers=-1)[1] for a, b in zip(queries, points, strict=True)]
    return torch.from_numpy(np.stack(found))


def open3d_neighbours(queries: Tensor, points: Tensor, k: int) -> Tensor:
    found = []
    for a, b in zip(queries, points, strict=True):
        search = open3d.core.nns.NearestNeighborSearch(open3d.core.Tensor(b.numpy()))
        search.knn_index()
        found.append(search.knn_search(open3d.core.Tensor(a.numpy()), k)[0].numpy())
    return torch.from_numpy(np.stack(found).astype(np.int64))


def check(name: str, ours: Tensor, theirs: Tensor) -> str:
    """Share of equal entries; below 1 where rounding decides otherwise between points that are equally far."""
    share = float((ours == theirs).double().mean())
    if share < 0.99:
        raise SystemExit(f"{name} agrees with ours in {share:.1%} only.")
    return f"{share:.2%}"


def rows_of(what: str, sides: dict[str, Callable[[], Any]], agree: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    times = interleave(sides, rounds, warmup=1)
    return [
        {
            "job": what,
            "side": name,
            "ms min": time.fastest * 1e3,
            "ms median": time.median * 1e3,
            "times ours": time.over(times["maskwright"]),
            "equal": agree.get(name, ""),
        }
        for name, time in times.items()
    ]


def main() -> None:
    args = parser(__doc__, rounds=7).parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    extra = ["fpsample"] if importlib.util.find_spec("fpsample") else []
    rows: list[dict[str, Any]] = []
    for batch, count, picks in SIZES:
        points = surfaces(batch, count, generator)
        size = f"{batch} x {count} to {picks}"
        sides: dict[str, Callable[[], Any]] = {
            "maskwright": lambda p=points, n=picks: farthest_point_sampling(p, n),
            "plain torch": lambda p=points, n=picks: plain_sampling(p, n),
            "open3d": lambda p=points, n=picks: open3d_sampling(p, n),
        }
        if extra:
            sides["fpsample"] = lambda p=points, n=picks: fpsample_sampling(p, n)
        ours = sides["maskwright"]()
        taken = gather(points, ours)
        agree = {name: check(name, ours, sides[name]()) for name in sides if name not in ("maskwright", "open3d")}
        # Open3D returns the points in the order of the cloud
        theirs = torch.from_numpy(sides["open3d"]())
        agree["open3d"] = check("open3d", gather(points, ours.sort(1)[0]), theirs)
        rows += rows_of(f"farthest points, {size}", sides, agree, args.rounds)
        sides = {
            "maskwright": lambda p=points, q=taken: knn(q, p, NEIGHBOURS)[0],
            "plain torch": lambda p=points, q=taken: plain_neighbours(q, p, NEIGHBOURS),
            "SciPy tree": lambda p=points, q=taken: tree_neighbours(q, p, NEIGHBOURS),
            "open3d": lambda p=points, q=taken: open3d_neighbours(q, p, NEIGHBOURS),
        }
        ours = sides["maskwright"]()
        agree = {name: check(name, ours, sides[name]()) for name in sides if name != "maskwright"}
        rows += rows_of(f"{NEIGHBOURS} neighbours, {size}", sides, agree, args.rounds)
    rows += chamfer_rows(generator, args.rounds)
    where = environment(args.seed, "cpu", ["open3d", "scipy", *extra])
    report("Points: sampling, neighbours, Chamfer distance", rows, where, args.json)


def chamfer_rows(generator: torch.Generator, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward, against `torch.cdist`."""
    found = []
    for batch, count in ((1216, 32), (8, 2048)):
        first, second = surfaces(batch, count, generator).requires_grad_(), surfaces(batch, count, generator)

        def with_matrix(a: Tensor = first, b: Tensor = second) -> Tensor:
            distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
            return distances.amin(2).square().mean() + distances.amin(1).square().mean()

        def ours(a: Tensor = first, b: Tensor = second) -> Tensor:
            return chamfer(a, b)

        gradients = [torch.autograd.grad(side(), first)[0] for side in (ours, with_matrix)]
        torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-3)
        sides: dict[str, Callable[[], Any]] = {
            "maskwright": lambda f=ours, a=first: torch.autograd.grad(f(), a),
            "cdist": lambda f=with_matrix, a=first: torch.autograd.grad(f(), a),
        }
        found += rows_of(f"Chamfer with gradient, {batch} x {count}", sides, {"cdist": "gradient"}, rounds)
    return found


if __name__ == "__main__":
    main()
