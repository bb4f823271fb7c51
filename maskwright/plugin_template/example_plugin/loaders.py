import numpy as np
import torch
from PIL import Image

from maskwright.core.folder import FolderLoader
from maskwright.core.sample import TensorSpec


class Pictures(FolderLoader):
    """Pictures of any size, scaled to small grey ones; the folder of each file is its class.

    Args:
        size: pixels along each side.
    """

    suffixes = (".pgm", ".bmp", ".png", ".jpg")

    def __init__(self, path, size: int = 32):
        super().__init__(path)
        self.size = size
        self.spec = {"image": TensorSpec("C H W", ("grey",), "0 to 255")}

    def read_file(self, file):
        with Image.open(file) as picture:
            grey = picture.convert("L").resize((self.size, self.size))
        return {"image": torch.from_numpy(np.array(grey, dtype=np.float32))[None]}
