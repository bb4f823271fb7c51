"""Points: sampling, neighbours, Chamfer distances and normals against forms that are slow and plain."""

import math

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.pointcloud.ops import (
    ball_query,
    chamfer,
    farthest_point_sampling,
    gather,
    group,
    knn,
    nearest,
    neighbours,
    normal_consistency,
    one_way,
    pca_normals,
    region_aware_chamfer,
)

GENERATOR = torch.Generator().manual_seed(0)


def cloud(batch=3, count=200, axes=3):
    return torch.randn(batch, count, axes, generator=GENERATOR)


def lattice(batch=2, count=700):
    """Points with many equal distances and duplicates."""
    return torch.randint(0, 5, (batch, count, 3), generator=GENERATOR).float()


def plain_sampling(points, count, start=0):
    """One sample, one pick and one point at a time."""
    picked = []
    for sample in points:
        least = [math.inf] * len(sample)
        order = [start]
        while True:
            far = (sample - sample[order[-1]]) ** 2
            far = (far[:, 0] + far[:, 1] + far[:, 2]).tolist()
            least = [min(a, b) for a, b in zip(least, far, strict=True)]
            if len(order) == count:
                break
            order.append(least.index(max(least)))
        picked.append(order)
    return torch.tensor(picked)


def all_distances(queries, points):
    total = 0
    for axis in range(points.shape[2]):
        total = total + (queries[:, :, None, axis] - points[:, None, :, axis]) ** 2
    return total


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("points", [cloud(), lattice(2, 150)], ids=["random", "ties"])
def test_farthest_points_are_those_of_the_plain_form(points, start):
    assert torch.equal(farthest_point_sampling(points, 40, start), plain_sampling(points, 40, start))


def test_farthest_points_of_equal_points_are_index_zero():
    points = torch.ones(1, 6, 3)
    points[0, 4] = 2.0
    assert farthest_point_sampling(points, 4).tolist() == [[0, 4, 0, 0]]
    assert sorted(farthest_point_sampling(cloud(1, 9), 9)[0].tolist()) == list(range(9))


def test_farthest_points_do_not_depend_on_the_batch():
    points = cloud(5, 300)
    together = farthest_point_sampling(points, 30)
    assert torch.equal(together[3:4], farthest_point_sampling(points[3:4], 30))


@pytest.mark.parametrize(("count", "start"), [(0, 0), (11, 0), (3, 10), (3, -1)])
def test_impossible_samplings_are_refused(count, start):
    with pytest.raises(ConfigError):
        farthest_point_sampling(cloud(1, 10), count, start)


@pytest.mark.parametrize("k", [1, 2, 16])
@pytest.mark.parametrize("count", [60, 700])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_neighbours_are_those_of_all_distances(kind, count, k):
    points = cloud(2, count) if kind == "random" else lattice(2, count)
    queries = torch.cat([points[:, :20], points[:, 5:25] + 0.3], dim=1)
    distances = all_distances(queries, points)
    order = distances.sort(dim=2, stable=True)
    index, distance = knn(queries, points, k)
    assert torch.equal(index, order[1][..., :k])
    assert torch.equal(distance, order[0][..., :k].sqrt())


def test_neighbours_in_pieces_are_the_same(monkeypatch):
    points = cloud(3, 400)
    whole = neighbours._by_all(points, points, 5)
    monkeypatch.setattr(neighbours, "CHUNK", 1000)
    assert all(torch.equal(a, b) for a, b in zip(whole, neighbours._by_all(points, points, 5), strict=True))


def test_all_points_can_be_neighbours_and_more_are_refused():
    points = cloud(1, 600)
    assert torch.equal(knn(points[:, :3], points, 600)[0].sort(2)[0], torch.arange(600).expand(1, 3, 600))
    with pytest.raises(ConfigError, match="601 neighbours"):
        knn(points, points, 601)
    with pytest.raises(ConfigError, match="do not fit"):
        knn(points, cloud(2, 600), 1)


def test_points_of_a_ball():
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 0, 0]]])
    index, inside = ball_query(points[:, :1], points, radius=1.0, k=3)
    assert index.tolist() == [[[0, 1, 0]]]
    assert inside.tolist() == [[[True, True, False]]]


def test_gather_takes_rows_and_gives_gradients_back():
    points = cloud(2, 10).requires_grad_()
    index = torch.tensor([[[0, 3], [3, 3]], [[9, 0], [1, 2]]])
    rows = gather(points, index)
    assert torch.equal(rows[0, 1, 0], points[0, 3])
    assert torch.equal(rows[1, 0, 0], points[1, 9])
    rows.sum().backward()
    assert points.grad[0, 3].tolist() == [3, 3, 3]
    assert points.grad[1, 5].tolist() == [0, 0, 0]


def test_a_group_begins_with_its_centre():
    points = cloud(2, 100)
    centres = farthest_point_sampling(points, 8)
    assert torch.equal(group(points, centres, 4)[..., 0], centres)


@pytest.mark.parametrize("power", ["l1", "l2"])
def test_chamfer_is_the_plain_value_with_the_plain_gradient(power):
    first, second = cloud(2, 30).requires_grad_(), cloud(2, 50)
    value = chamfer(first, second, power)
    (gradient,) = torch.autograd.grad(value, first)
    distances = all_distances(first, second)
    if power == "l1":
        distances = distances.sqrt()
    ways = distances.amin(2).mean(), distances.amin(1).mean()
    plain = sum(ways) / (2 if power == "l1" else 1)
    (expected,) = torch.autograd.grad(plain, first)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(one_way(first, second, power), ways[0] if power == "l2" else distances.amin(2).mean())


def test_chamfer_forgets_the_order_and_is_zero_for_equal_sets():
    first, second = cloud(2, 64), cloud(2, 64)
    mixed = first[:, torch.randperm(64, generator=GENERATOR)]
    assert float(chamfer(first, mixed)) == 0
    torch.testing.assert_close(chamfer(first, second), chamfer(mixed, second))


@pytest.mark.parametrize("power", ["l1", "l2"])
def test_chamfer_has_a_finite_gradient_at_distance_zero(power):
    first = cloud(1, 20).requires_grad_()
    chamfer(first, first.detach().clone(), power).backward()
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_chamfer_of_large_sets_is_that_of_pieces(monkeypatch):
    first, second = cloud(1, 900), cloud(1, 1100)
    large = nearest(first, second)  # by trees
    monkeypatch.setattr("maskwright.pointcloud.ops.distances.TREE_POINTS", 10**9)
    monkeypatch.setattr("maskwright.pointcloud.ops.distances.CHUNK", 10**9)
    assert all(torch.equal(a, b) for a, b in zip(large, nearest(first, second), strict=True))


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="do not fit"):
        chamfer(cloud(2), cloud(3))
    with pytest.raises(ConfigError, match="without points"):
        chamfer(cloud(2), torch.zeros(2, 0, 3))
    with pytest.raises(ConfigError, match="l1 nor l2"):
        chamfer(cloud(2), cloud(2), "l3")


def test_region_aware_chamfer_looks_only_near_the_centres():
    points = cloud(2, 300)
    centres = farthest_point_sampling(points, 6)
    patches = gather(points, group(points, centres, 10))
    prediction = points + 0.05 * cloud(2, 300)
    places = gather(points, centres)
    near = knn(places, prediction, 20)[0].flatten(1)
    outside = next(i for i in range(300) if not bool((near[0] == i).any()))
    moved = prediction.clone()
    moved[0, outside] = moved[0, outside] * 10
    value = region_aware_chamfer(prediction, patches, places, 20)
    assert torch.equal(value, region_aware_chamfer(moved, patches, places, 20))
    assert float(chamfer(prediction, points, "l1")) != float(chamfer(moved, points, "l1"))


def test_region_aware_chamfer_of_the_cloud_itself():
    points = cloud(2, 300)
    centres = farthest_point_sampling(points, 6)
    patches, places = gather(points, group(points, centres, 10)), gather(points, centres)
    assert float(region_aware_chamfer(points, patches, places, 10)) == 0
    wider = region_aware_chamfer(points, patches, places, 20)
    near = gather(points, knn(places, points, 20)[0]).flatten(1, 2)
    assert float(wider) > 0
    assert float(one_way(patches.flatten(1, 2), near, "l1")) == 0
    torch.testing.assert_close(wider, one_way(near, patches.flatten(1, 2), "l1") / 2)


def rotation(seed):
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return matrix


def plane(seed, count=400):
    flat = torch.rand(1, count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    flat[..., 2] = 0
    return flat @ rotation(seed).T, rotation(seed)[:, 2]


def sphere(count=1024):
    x = torch.randn(1, count, 3, generator=torch.Generator().manual_seed(5))
    return x / x.norm(dim=2, keepdim=True)


def noise(count=1024):
    return torch.rand(1, count, 3, generator=torch.Generator().manual_seed(6)) * 2 - 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_normals_of_a_plane(seed):
    points, normal = plane(seed)
    found = pca_normals(points, 16)
    assert float((found @ normal).abs().min()) > 0.9999


def test_normals_of_a_sphere_point_outwards_or_inwards():
    points = sphere()
    along = (pca_normals(points, 16) * points).sum(-1).abs()
    assert float(along.min()) > 0.93
    assert float(along.mean()) > 0.99


def test_the_gradient_of_a_normal_is_the_true_one():
    points = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points[..., 2] *= 0.2
    points.requires_grad_()
    index = neighbours.knn(points, points, 8)[0]

    def aligned(x):
        from maskwright.pointcloud.ops.normals import _normals

        normals = _normals(x, index)
        return normals * normals[..., 2:].detach().sign()  # the sign of an eigenvector means nothing

    assert torch.autograd.gradcheck(aligned, points, atol=1e-3)


@pytest.mark.parametrize("sign", ["absolute", "majority"])
def test_gradients_are_finite_where_no_normal_is_defined(sign):
    points = torch.zeros(1, 64, 3)
    points[0, 32:, 0] = torch.arange(32.0)
    points.requires_grad_()
    normal_consistency(points, 8, 16, sign).backward()
    assert bool(points.grad.isfinite().all())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_consistency_is_zero_on_a_plane_in_any_orientation(seed):
    assert float(normal_consistency(plane(seed)[0])) < 1e-5


def test_consistency_is_lower_on_a_sphere_than_on_noise():
    for sign in ("absolute", "majority"):
        assert float(normal_consistency(sphere(), sign=sign)) < 0.5 * float(normal_consistency(noise(), sign=sign))


def test_the_released_sign_punishes_a_tilted_plane():
    assert float(normal_consistency(plane(1)[0], sign="majority")) > float(normal_consistency(noise(), sign="majority"))


def test_impossible_normals_are_refused():
    with pytest.raises(ConfigError):
        pca_normals(noise(10), 2)
    with pytest.raises(ConfigError):
        normal_consistency(noise(100), neighbours=1)
    with pytest.raises(ConfigError):
        normal_consistency(noise(100), sign="other")
