"""What remote sensing adds. Imports neither torch nor rasterio."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from maskwright.core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

_component = functools.partial(Component, extra="maskwright[remote-sensing]", requires=("rasterio",))
_PACKAGE = "maskwright.remote_sensing"
_CROMA = "CROMA, Fuller et al., NeurIPS 2023"


@hookimpl
def register_methods() -> list[Component]:
    return [
        _component(
            "croma",
            f"{_PACKAGE}.methods.croma:Croma",
            "Contrast and joint reconstruction of radar and optical images.",
            _CROMA,
        )
    ]


@hookimpl
def register_encoders() -> list[Component]:
    return [
        _component(
            "croma",
            f"{_PACKAGE}.methods.croma:CromaEncoder",
            "Radar, optical and fusion transformers with distance-biased attention.",
            _CROMA,
        )
    ]


@hookimpl
def register_loaders() -> list[Component]:
    return [
        _component(
            "s1s2",
            f"{_PACKAGE}.loaders:PairLoader",
            "Pairs of Sentinel-1 and Sentinel-2 GeoTIFFs, or BigEarthNet folders.",
        ),
        _component("geotiff", f"{_PACKAGE}.loaders:GeoTiffLoader", "GeoTIFFs of any number of bands."),
    ]


@hookimpl
def register_tasks() -> list[Component]:
    return [
        _component(
            "land-cover", f"{_PACKAGE}.tasks:LandCover", "Land cover of each pixel: water, trees, crops, built area ..."
        )
    ]


@hookimpl
def register_demos() -> list[Component]:
    return [
        _component("remote-sensing", f"{_PACKAGE}.demo:run", "CROMA on real Sentinel-1/2 tiles, in about two minutes.")
    ]


@hookimpl
def diagnose() -> dict[str, str]:
    import rasterio

    wanted = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG", "HDF4", "netCDF")
    with rasterio.Env() as environment:
        drivers = environment.drivers()
    return {
        "GDAL": rasterio.__gdal_version__,
        "GDAL drivers": ", ".join(name for name in wanted if name in drivers),
        "GDAL drivers not built in": ", ".join(name for name in wanted if name not in drivers) or "none of those used",
    }


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from maskwright.remote_sensing.commands import add_commands

    add_commands(app)
