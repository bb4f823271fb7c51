"""Nearest neighbours within clouds, exact on every device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from maskwright.core.errors import ConfigError

CHUNK = 2**22
"""Most distances that are held at a time: 16 MiB of float32."""
TREE_POINTS = 512
"""Points of a cloud from which on a k-d tree is faster than all distances on a CPU."""
TREE_AXES = 4
"""Most axes on which a k-d tree is used."""
_SLACK = 1e-6
"""Squares of float32 distances are off by less than this, relatively."""
_FIRST = 2**32


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, D) `values` at (B, ...) `index`: (B, ..., D). Differentiable in the values."""
    batch, count, width = values.shape
    first = torch.arange(0, batch * count, count, device=index.device).view(-1, *[1] * (index.ndim - 1))
    # whole rows are copied, as in maskwright.core.masking.hide.take
    return torch.nn.functional.embedding(index + first, values.reshape(batch * count, width))


def squared_distances(queries: Tensor, points: Tensor) -> Tensor:
    """All squared distances of (B, Q, d) to (B, N, d): (B, Q, N), from differences, so that close points are exact."""
    total = None
    for axis in range(queries.shape[-1]):
        offset = queries[:, :, None, axis] - points[:, None, :, axis]
        total = offset.mul_(offset) if total is None else total.add_(offset.mul_(offset))
    assert total is not None
    return total


@torch.no_grad()
def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, nearest first, of equally near ones the lowest index first.

    Exact: the result is that of all float32 distances, which are held in pieces of bounded size. On CPUs a k-d tree finds
    the candidates in large clouds of few axes; where rounding or equal distances could decide otherwise than the tree, the
    query is looked at again with all distances.

    Args:
        queries: (B, Q, d). points: (B, N, d), both in one unit. No gradient flows through the choice.
        k: number of neighbours, 1 to N. A query that is a point of the cloud is its own first neighbour, unless a
            duplicate of it has a lower index.

    Returns:
        Indices (B, Q, k) int64 and distances (B, Q, k) in the unit of the points.

    Raises:
        ConfigError: more neighbours than points, or clouds that do not fit each other.
    """
    if queries.ndim != 3 or points.ndim != 3 or len(queries) != len(points) or queries.shape[2] != points.shape[2]:
        raise ConfigError(
            f"Queries of shape {tuple(queries.shape)} and points of shape {tuple(points.shape)} do not fit each other: "
            f"(B, Q, d) and (B, N, d) were expected."
        )
    if not 1 <= k <= points.shape[1]:
        raise ConfigError(
            f"{k} neighbours were asked for in clouds of {points.shape[1]} points. Let the loader give more points, or "
            f"choose a smaller group_size."
        )
    queries, points = queries.detach().float(), points.detach().float()
    small_axes = points.shape[2] <= TREE_AXES and points.shape[1] >= TREE_POINTS
    if points.device.type == "cpu" and small_axes and bool(points.isfinite().all() and queries.isfinite().all()):
        index, square = _by_tree(queries, points, k)
    else:
        index, square = _by_all(queries, points, k)
    return index, square.sqrt_()


def _by_all(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and squared distances, (B, Q, k) each, from all distances."""
    batch, rows, size = len(queries), queries.shape[1], points.shape[1]
    index = torch.empty((batch, rows, k), dtype=torch.int64, device=points.device)
    square = torch.empty((batch, rows, k), dtype=torch.float32, device=points.device)
    samples = max(1, min(batch, CHUNK // max(1, rows * size)))
    step = max(1, min(rows, CHUNK // size))
    for b in range(0, batch, samples):
        for q in range(0, rows, step):
            part = (slice(b, b + samples), slice(q, q + step))
            distances = squared_distances(queries[part], points[b : b + samples])
            square[part], index[part] = _lowest(distances, k)
    return index, square


def _lowest(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k lowest of (B, Q, N) values that are not negative, and their indices; ties by index."""
    if k == 1:
        index = first_lowest(distances)[..., None]
        return distances.gather(2, index), index
    more = min(k + 1, distances.shape[2])
    values, index = distances.topk(more, dim=2, largest=False)
    # topk leaves the order of equal values open, within the k and at their edge
    tied = (values[..., 1:] <= values[..., :-1]).any(2)
    if bool(tied.any()):
        rows = distances[tied]
        # bits of floats that are not negative sort like the floats, so that each (distance, index) is one whole number
        keys = rows.view(torch.int32).to(torch.int64) * _FIRST + torch.arange(rows.shape[1], device=rows.device)
        keys = keys.topk(more, dim=1, largest=False)[0]
        index[tied] = keys % _FIRST
        values[tied] = rows.gather(1, index[tied])
    return values[..., :k], index[..., :k]


def first_lowest(values: Tensor) -> Tensor:
    """Index (...) of the first of the lowest values along the last axis of (..., N)."""
    if values.device.type == "cpu":  # NumPy's search is vectorised, several times as fast as torch's
        return torch.from_numpy(values.numpy().argmin(-1))
    return values.argmin(-1)


def _by_tree(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `_by_all` gives, found with a k-d tree for each cloud."""
    more = min(k + 1, points.shape[1])

    def search(sample: int) -> tuple[Tensor, Tensor]:
        # trees without balance are built faster and searched as fast
        tree = cKDTree(points[sample].numpy(), balanced_tree=False, compact_nodes=False)
        far, index = tree.query(queries[sample].numpy(), k=list(range(1, more + 1)))
        return torch.from_numpy(index), torch.from_numpy(far)

    with ThreadPoolExecutor(max_workers=max(1, min(torch.get_num_threads(), len(points)))) as pool:
        found, far = (torch.stack(parts) for parts in zip(*pool.map(search, range(len(points))), strict=True))
    index = found[..., :k].contiguous()
    square = _squares(queries, points, index)
    unsure = (square[..., 1:] <= square[..., :-1]).any(2)
    if more > k:
        unsure |= far[..., k].square() <= far[..., k - 1].square() * (1 + _SLACK)
    for sample in unsure.any(1).nonzero()[:, 0].tolist():
        rows = unsure[sample].nonzero()[:, 0]
        part = _by_all(queries[sample, rows][None], points[sample][None], k)
        index[sample, rows], square[sample, rows] = part[0][0], part[1][0]
    return index, square


def _squares(queries: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """Squared distances (B, Q, k) of queries to the points at `index`, in the order of sums of `squared_distances`."""
    offset = gather(points, index).sub_(queries[:, :, None])
    total = offset[..., 0].square()
    for axis in range(1, offset.shape[-1]):
        total.add_(offset[..., axis].square())
    return total


def ball_query(queries: Tensor, points: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    """Up to k points within a radius of each query, nearest first (PointNet++ takes the first k in the order of the cloud).

    Args:
        queries: (B, Q, d). points: (B, N, d).
        radius: in the unit of the points; a point at exactly this distance is inside.
        k: most points of a query, 1 to N.

    Returns:
        Indices (B, Q, k) int64 and which of them are inside, (B, Q, k) bool. Places that are left over repeat the nearest
        point, which itself may be outside.

    Raises:
        ConfigError: as `knn`.
    """
    index, distance = knn(queries, points, k)
    inside = distance <= radius
    return torch.where(inside, index, index[..., :1]), inside


def group(points: Tensor, centre_index: Tensor, k: int) -> Tensor:
    """Indices (B, G, k) of the k nearest points of each centre, given by its index (B, G)."""
    return knn(gather(points, centre_index), points, k)[0]
