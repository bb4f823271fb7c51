"""The methods on points keep the published contract."""

import pytest

from maskwright.pointcloud.methods.p2c import P2c
from maskwright.pointcloud.methods.point_cmae import PointCmae
from maskwright.testing import check_method
from tests.pointcloud.helpers import batch_of, clouds


@pytest.mark.parametrize("options", [{}, {"consistency": "official"}], ids=["diagonal", "official"])
def test_point_cmae_keeps_its_contract(options):
    small = {"num_groups": 16, "group_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "decoder_depth": 1}
    check_method(lambda: PointCmae(**small, **options, drop_path=0.0), batch_of(clouds()))


@pytest.mark.parametrize("partition", ["batch", "sample"])
def test_p2c_keeps_its_contract(partition):
    small = {"num_groups": 16, "group_size": 8, "roles": (5, 9, 2), "embed_dim": 32, "generator_width": 48}
    normals = {"output_points": 96, "normal_neighbours": 6, "normal_points": 10}
    check_method(lambda: P2c(**small, **normals, partition=partition), batch_of(clouds()))
