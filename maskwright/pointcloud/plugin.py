"""What point clouds add. Imports neither torch nor laspy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from maskwright.core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

_component = functools.partial(Component, extra="maskwright[pointcloud]", requires=("laspy", "lazrs", "pyproj"))
_PACKAGE = "maskwright.pointcloud"


@hookimpl
def register_loaders() -> list[Component]:
    return [
        # first, so that LAS files are taken for scans unless points are asked for
        _component("scans", f"{_PACKAGE}.loaders:ScanLoader", "Large scans (LAS, LAZ), cut into tiles."),
        _component("points", f"{_PACKAGE}.loaders:PointLoader", "Files of points and meshes, one object each."),
        Component("grids", f"{_PACKAGE}.grids:GridLoader", "Radiance fields on regular grids, colour and opacity."),
    ]


@hookimpl
def register_encoders() -> list[Component]:
    return [
        Component(
            "point-transformer",
            f"{_PACKAGE}.encoders:PointTransformer",
            "Transformer over patches of points; only visible ones are computed.",
            "Point-MAE, 2022",
        ),
        Component("point-set", f"{_PACKAGE}.encoders:PointSetEncoder", "A PointNet of a whole cloud.", "PCN, 2018"),
    ]


@hookimpl
def register_methods() -> list[Component]:
    return [
        Component(
            "point-cmae",
            f"{_PACKAGE}.methods.point_cmae:PointCmae",
            "Two masks of one cloud: both rebuild hidden patches, and agree on those that both hide.",
            "Point-CMAE, Ren et al., ACCV 2024",
        ),
        Component(
            "p2c",
            f"{_PACKAGE}.methods.p2c:P2c",
            "Completes partial clouds, having seen no complete one.",
            "P2C, Cui et al., ICCV 2023",
        ),
        Component(
            "nerf-mae",
            f"{_PACKAGE}.methods.nerf_mae:NerfMae",
            "Colour and opacity of hidden blocks of a radiance field, by a Swin transformer on volumes.",
            "NeRF-MAE, Irshad et al., ECCV 2024",
        ),
    ]


@hookimpl
def diagnose() -> dict[str, str]:
    import laspy
    import pyproj

    backends = [backend.name for backend in laspy.LazBackend.detect_available()]
    return {"laspy": laspy.__version__, "LAZ": ", ".join(backends) or "none", "pyproj": pyproj.__version__}


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from maskwright.pointcloud.commands import add_commands

    add_commands(app)
