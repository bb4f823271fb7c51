"""Geometry of point clouds in plain torch: batched, without compiled extensions, the same on every device."""

from maskwright.pointcloud.ops.distances import chamfer, nearest, one_way, region_aware_chamfer
from maskwright.pointcloud.ops.neighbours import ball_query, gather, group, knn
from maskwright.pointcloud.ops.normals import normal_consistency, pca_normals
from maskwright.pointcloud.ops.sampling import farthest_point_sampling

__all__ = [
    "ball_query",
    "chamfer",
    "farthest_point_sampling",
    "gather",
    "group",
    "knn",
    "nearest",
    "normal_consistency",
    "one_way",
    "pca_normals",
    "region_aware_chamfer",
]
