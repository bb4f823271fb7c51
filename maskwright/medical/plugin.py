"""What medical imaging adds. Imports neither torch nor nibabel nor pydicom."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from maskwright.core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

_component = functools.partial(Component, extra="maskwright[medical]", requires=("nibabel", "pydicom"))
_PACKAGE = "maskwright.medical"


@hookimpl
def register_loaders() -> list[Component]:
    return [
        _component("volumes", f"{_PACKAGE}.loaders:VolumeLoader", "NIfTI files and DICOM series, in 3-D."),
        _component("slices", f"{_PACKAGE}.loaders:SliceLoader", "Slices of NIfTI files and DICOM, in 2-D."),
    ]


@hookimpl
def register_encoders() -> list[Component]:
    return [
        Component(
            "uni4eye",
            f"{_PACKAGE}.methods.uni4eye:UnifiedTransformer",
            "One vision transformer for pictures and volumes.",
            "Uni4Eye, 2022",
        )
    ]


@hookimpl
def register_methods() -> list[Component]:
    return [
        Component(
            "spark",
            f"{_PACKAGE}.methods.spark:SparK",
            "A ConvNet that computes visible cells only; hidden ones are repainted from maps of several scales.",
            "SparK, Tian et al., ICLR 2023",
        ),
        Component(
            "uni4eye",
            f"{_PACKAGE}.methods.uni4eye:Uni4Eye",
            "One transformer for pictures and volumes; values and gradients of hidden patches are rebuilt.",
            "Uni4Eye, Cai et al., MICCAI 2022",
        ),
    ]


@hookimpl
def diagnose() -> dict[str, str]:
    import nibabel
    import pydicom
    from pydicom import uid
    from pydicom.pixels.decoders.base import get_decoder

    syntaxes = {
        "JPEG": uid.JPEGBaseline8Bit,
        "JPEG lossless": uid.JPEGLosslessSV1,
        "JPEG-LS": uid.JPEGLSLossless,
        "JPEG 2000": uid.JPEG2000Lossless,
        "RLE": uid.RLELossless,
    }
    decoded = {name: get_decoder(syntax).is_available for name, syntax in syntaxes.items()}
    return {
        "nibabel": nibabel.__version__,
        "pydicom": pydicom.__version__,
        "DICOM decoders": ", ".join(name for name, there in decoded.items() if there) or "none",
        "DICOM decoders missing": ", ".join(name for name, there in decoded.items() if not there) or "none",
    }


@hookimpl
def register_commands(app: typer.Typer) -> None:
    from maskwright.medical.commands import add_commands

    add_commands(app)
