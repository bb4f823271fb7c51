"""Radiance fields of posed photographs, as grids for `maskwright.pointcloud.grids`.

photographs and poses ─ transforms ─▶ cameras ─ box ─▶ fit (field, render) ─▶ results: .npz, .json, .png
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.pointcloud.nerf.make import GridFit, fit_grid

__all__ = ["GridFit", "fit_grid"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late, so that the command line's help imports no torch
        from maskwright.pointcloud.nerf import make

        return getattr(make, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
