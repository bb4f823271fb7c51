"""What vision adds: images as they come, and methods for any single image, volume or series. Imports no torch."""

from __future__ import annotations

from maskwright.core.hookspecs import Component, hookimpl

_METHODS = "maskwright.plugins.vision.methods"


@hookimpl
def register_loaders() -> list[Component]:
    return [
        Component(
            "images",
            "maskwright.plugins.vision.loaders:ImageLoader",
            "Images in folders, lists (CSV) and WebDataset tar shards.",
        )
    ]


@hookimpl
def register_methods() -> list[Component]:
    return [
        Component(
            "mae",
            f"{_METHODS}.mae:Mae",
            "Reconstruction of hidden patches of any single image, volume or series.",
            "MAE, He et al., CVPR 2022",
        ),
        Component(
            "colormae",
            f"{_METHODS}.color_mae:ColorMae",
            "MAE whose masks come from filtered noise.",
            "ColorMAE, Hinojosa et al., ECCV 2024",
            aliases=("color-mae",),
        ),
        Component(
            "hpm",
            f"{_METHODS}.hpm:Hpm",
            "MAE that learns which patches are hard, and hides those.",
            "HPM, Wang et al., CVPR 2023",
        ),
        Component(
            "dmae",
            f"{_METHODS}.dmae:Dmae",
            "MAE that also learns a middle layer of a frozen teacher from the same visible patches.",
            "DMAE, Bai et al., CVPR 2023",
        ),
        Component(
            "crate-mae",
            f"{_METHODS}.crate_mae:CrateMae",
            "White-box transformer blocks, mask tokens before the encoder.",
            "CRATE-MAE, Pai et al., ICLR 2024",
        ),
        Component(
            "crop-mae",
            f"{_METHODS}.crop_mae:CropMae",
            "Two patches of a crop and the whole of a larger one: the rest is found there.",
            "CropMAE, Eymael et al., ECCV 2024",
            aliases=("cropmae",),
        ),
        Component(
            "gmml",
            f"{_METHODS}.gmml:Gmml",
            "Groups of pixels are overwritten by noise or by another image, and restored.",
            "GMML, Atito et al., 2022",
        ),
        Component(
            "cae",
            f"{_METHODS}.cae:Cae",
            "Hidden patches are represented from the visible ones first, then decoded.",
            "CAE, Chen et al., IJCV 2023",
        ),
        Component(
            "mp3",
            f"{_METHODS}.mp3:Mp3",
            "Patches without positions say where they belong.",
            "MP3, Zhai et al., ICML 2022",
        ),
    ]
