"""Point-CMAE on .npy clouds of points, as a plugin of a single file."""

import numpy as np
import torch

from maskwright.core.component import Component
from maskwright.core.folder import FolderLoader
from maskwright.core.hookspecs import hookimpl
from maskwright.core.loader import Statistics
from maskwright.core.sample import Meta, Sample, TensorSpec

_PACKAGE = "maskwright.pointcloud"


class NpyClouds(FolderLoader):
    """A folder of .npy clouds (N, 3); the label is the folder that a file lies in."""

    suffixes = (".npy",)

    def __init__(self, path):
        super().__init__(path)
        self.spec = {"points": TensorSpec("N C", ("x", "y", "z"))}

    def read_file(self, file):
        return {"points": torch.from_numpy(np.load(file, allow_pickle=False)).float()}

    def read(self, index, generator=None):
        meta = Meta(str(self.files[index]), self.group(index), index, label=self.label(index))
        return Sample(self.read_file(self.files[index]), meta)

    def statistics(self):
        return {"points": Statistics([0.0] * 3, [1.0] * 3, [-1.0] * 3, [1.0] * 3, 1)}

    def picture(self, name, tensor):
        picture = np.full((64, 64, 3), 255, dtype=np.uint8)
        column, row = (((tensor[:, axis] + 2) * 16).clamp(0, 63).long().numpy() for axis in (0, 2))
        picture[63 - row, column] = 0
        return picture

    def simple_features(self, sample, cells=None):
        points = sample["points"]
        return {"channel statistics": torch.cat([points.mean(0), points.std(0)])}


@hookimpl
def register_loaders():
    return [Component("npy-clouds", "maskwright_plugin_points_plugin:NpyClouds", "Folders of .npy clouds.")]


@hookimpl
def register_encoders():
    return [Component("trial-transformer", f"{_PACKAGE}.encoders:PointTransformer", "Transformer over patches.")]


@hookimpl
def register_methods():
    return [Component("trial-cmae", f"{_PACKAGE}.methods.point_cmae:PointCmae", "Two masks, two decoders.")]
