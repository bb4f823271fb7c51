"""What vision adds: methods for any single image, volume or series. Imports no torch."""

from __future__ import annotations

from maskwright.core.hookspecs import Component, hookimpl


@hookimpl
def register_methods() -> list[Component]:
    return [
        Component(
            "mae",
            "maskwright.plugins.vision.methods.mae:Mae",
            "Reconstruction of hidden patches of any single image, volume or series.",
            "MAE, He et al., CVPR 2022",
        )
    ]
