"""The loader `images`: folders, lists and tar shards of images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import RAW_VALUES, Loader, Statistics
from maskwright.core.masking import Grid
from maskwright.core.sample import Meta, Sample, TensorSpec
from maskwright.core.statistics import Running, spread
from maskwright.plugins.vision import colour
from maskwright.plugins.vision.crops import Crop, Pixels, centre_crop, cut, random_crop
from maskwright.plugins.vision.images import AS_STORED, MAX_PIXELS, RANGES, SUFFIXES, Picture, from_bytes, reported
from maskwright.plugins.vision.layout import find_layout
from maskwright.plugins.vision.sources import LIST_SUFFIXES, Source, holds_list, open_folder, open_list, walk
from maskwright.plugins.vision.tar_shards import COMPRESSED_SUFFIXES, TarSource, holds_shards

MAX_FILES = 256
"""Images that statistics are taken from, spread evenly over all."""
BYTES_A_PIXEL = 16
"""A file of more bytes than this times `max_pixels` is refused before it is read."""
COLOUR_BINS = 4
"""Bins a channel of the colour histogram."""
CROP, FLIP, JITTER, BLUR = slice(0, 4), 4, slice(5, 14), slice(14, 16)
"""Which of a sample's random numbers serve what, so that switching one augmentation on leaves the others as they are."""
DRAWS = 16


class ImageLoader(Loader):
    """Images in PNG, JPEG, WebP, BMP, GIF (first frame) and TIFF, from a folder, a list or tar shards.

    `image` (C, H, W) holds numbers as stored: 0 to 255, 0 to 65535, or those of a TIFF of floating point numbers. EXIF
    orientation is applied, transparent pixels are laid on `background`, palettes, CMYK, YCbCr and LAB become RGB.

    With a generator a random crop is resized and mirrored (`crop_scale`, `crop_ratio`, `flip`, `jitter`, `blur`);
    without one, or with `augment: false`, the image is brought to its size as `resize` says. A sample's label is the
    name of its sub-folder, or what the list or the shard says; its group likewise, or else the file itself.

    Args:
        path: a folder of images, an image, a CSV or TSV that names images, a tar, or a folder of tars.
        size: side in pixels, or [height, width].
        channels: grey (1), rgb (3), all (every stored channel, alpha too), or auto: grey if all images looked at are,
            the number of channels of TIFFs that have others than grey or colour, else rgb.
        resize: crop (short side to size / crop_share, then the middle), squash (the whole image), none (as stored; then
            nothing is cropped at random either, and all images must have one size).
        crop_share: part of the resized short side that the middle keeps; MAE's evaluation has 224 of 256.
        augment: whether training images are changed at random at all.
        crop_scale: smallest and largest share of the area that a random crop keeps.
        crop_ratio: smallest and largest width / height of a random crop.
        flip: probability of mirroring left and right.
        interpolation: bicubic or bilinear, antialiased.
        jitter: strength of random brightness, contrast, saturation and hue; GMML has [0.1, 0.1, 0.1, 0.01].
        jitter_probability: how many images are changed so; GMML has 0.3.
        blur: probability of a Gaussian blur with a radius of 0.1 to 2 pixels; GMML has 0.1.
        background: colour under transparent pixels, 0 to 255, one number or red, green and blue.
        path_column: column of a list that names the images; found by name (path, file, filename, image) if left out.
        label_column: column of a list, or key of a shard's JSON, with the label (label, class, target).
        group_column: column of a list, or key of a shard's JSON, with patient or scene (group, patient, scene, subject).
        max_pixels: height x width above which an image is refused before it is decoded.
    """

    suffixes = (*SUFFIXES, *LIST_SUFFIXES, ".tar")

    def __init__(
        self,
        path: str | Path,
        size: int | tuple[int, int] = 224,
        channels: Literal["auto", "grey", "rgb", "all"] = "auto",
        resize: Literal["crop", "squash", "none"] = "crop",
        crop_share: float = 0.875,
        augment: bool = True,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        jitter: tuple[float, float, float, float] | None = None,
        jitter_probability: float = 0.3,
        blur: float = 0.0,
        background: int | tuple[int, int, int] = 255,
        path_column: str = "",
        label_column: str = "",
        group_column: str = "",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.resize, self.crop_share, self.augment = resize, crop_share, augment
        self.crop_scale, self.crop_ratio, self.flip = crop_scale, crop_ratio, flip
        self.jitter, self.jitter_probability, self.blur = jitter, jitter_probability, blur
        self.max_pixels = max_pixels
        self._check_options(background)
        self.source = _open_source(Path(path), path_column, label_column, group_column)
        self.bad_files = self.source.bad_files
        self.layout = find_layout(self.source, channels, max_pixels)
        if jitter is not None and self.layout.depth == AS_STORED:
            raise ConfigError(
                "data.jitter needs numbers of 0 to 255 or 0 to 65535, but these images hold others. Leave it out."
            )
        paper = (background,) * 3 if isinstance(background, int) else background
        self._pixels = Pixels(self.layout.channels, self.layout.keep_alpha, paper, interpolation)
        self.spec = {"image": TensorSpec("C H W", self.layout.names, self.layout.unit)}

    def _check_options(self, background: int | tuple[int, int, int]) -> None:
        paper = (background,) if isinstance(background, int) else background
        amounts = self.jitter or (0, 0, 0, 0)
        checks = [
            (min(self.size) >= 1, f"data.size={list(self.size)} must be positive"),
            (0 < self.crop_share <= 1, f"data.crop_share={self.crop_share} must lie in (0, 1]"),
            (
                0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
                f"data.crop_scale={self.crop_scale} needs 0 < a <= b <= 1",
            ),
            (0 < self.crop_ratio[0] <= self.crop_ratio[1], f"data.crop_ratio={self.crop_ratio} needs 0 < a <= b"),
            (0 <= self.flip <= 1, f"data.flip={self.flip} is a probability, 0 to 1"),
            (0 <= self.blur <= 1, f"data.blur={self.blur} is a probability, 0 to 1"),
            (
                0 <= self.jitter_probability <= 1,
                f"data.jitter_probability={self.jitter_probability} must lie in 0 to 1",
            ),
            (min(amounts) >= 0 and amounts[3] <= 0.5, f"data.jitter={amounts} needs numbers from 0, hue to 0.5"),
            (all(0 <= value <= 255 for value in paper), f"data.background={background} needs numbers of 0 to 255"),
            (self.max_pixels >= 1, f"data.max_pixels={self.max_pixels} must be positive"),
        ]
        problems = [text for holds, text in checks if not holds]
        if problems:
            raise ConfigError("\n".join(f"{text}." for text in problems))

    # what is there -------------------------------------------------------------------------------------------------

    @classmethod
    def accepts(cls, path: Path) -> bool:
        if path.is_dir():
            return next(walk(path, SUFFIXES), None) is not None or holds_shards(path)
        if not path.is_file():
            return False
        if path.suffix.lower() in LIST_SUFFIXES:
            return holds_list(path)
        return path.suffix.lower() in SUFFIXES or holds_shards(path)

    def __len__(self) -> int:
        return len(self.source)

    def group(self, index: int) -> str:
        return self.source.group(index)

    def label(self, index: int) -> str | None:
        """Class of sample `index` as text, None where there is none."""
        return self.source.label(index)

    def sources(self, index: int) -> list[str]:
        return [self.source.file(index)]

    def bytes_per_sample(self) -> int:
        if self.resize == "none":
            return super().bytes_per_sample()
        return 4 * self.layout.channels * self.size[0] * self.size[1]

    # reading -------------------------------------------------------------------------------------------------------

    def read(self, index: int, generator: torch.Generator | None = None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.source.root} has {len(self)} images, not an image {index}")
        where = self.source.name(index)
        picture = from_bytes(self.source.content(index, BYTES_A_PIXEL * self.max_pixels), where, self.max_pixels)
        self.layout.check(picture)
        random = generator is not None and self.augment
        draws = torch.rand(DRAWS, generator=generator, dtype=torch.float64).tolist() if random else []
        crop = self._crop(picture, draws)
        whole = Crop(0, 0, picture.height, picture.width)
        size = (picture.height, picture.width) if self.resize == "none" else self.size
        with reported(where):
            values = cut(picture, crop or whole, size, self._pixels, random and draws[FLIP] < self.flip)
        image = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        if random:
            image = self._recolour(image, draws)
        extra: dict[str, Any] = {"width": picture.width, "height": picture.height}
        if crop is not None:
            extra["crop"] = crop.as_list()
        meta = Meta(where, self.group(index), index, label=self.label(index), extra=extra)
        return Sample({"image": image}, meta)

    def _crop(self, picture: Picture, draws: list[float]) -> Crop | None:
        """The part of an image that is read; None for the whole."""
        if self.resize == "none":
            return None
        if draws:
            return random_crop(picture.height, picture.width, self.crop_scale, self.crop_ratio, draws[CROP])
        if self.resize == "squash":
            return None
        return centre_crop(picture.height, picture.width, self.size, self.crop_share)

    def _recolour(self, image: Tensor, draws: list[float]) -> Tensor:
        chance, *rest = draws[JITTER]
        if self.jitter is not None and chance < self.jitter_probability:
            image = colour.jitter(image, self.jitter, RANGES[self.layout.depth], rest)
        chance, radius = draws[BLUR]
        if chance < self.blur:
            image = colour.blur(image, 0.1 + 1.9 * radius)
        return image

    # what it looks like --------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Statistics]:
        return self._statistics

    @functools.cached_property
    def _statistics(self) -> dict[str, Statistics]:
        """Of up to `MAX_FILES` images as they are read without anything random."""
        chosen, running, reason = spread(len(self), MAX_FILES), Running(self.layout.channels), ""
        for index in chosen:
            try:
                running.add(self.read(index)["image"].numpy())
            except DataError as error:  # the trainer sets the file aside when it meets it
                reason = reason or str(error)
        if not running.count.any():
            raise DataError(
                self.source.root, f"none of {len(chosen)} images looked at can be used: {reason.rstrip('.')}"
            )
        return {"image": running.result()}

    def picture(self, name: str, tensor: Tensor) -> np.ndarray:
        """Grey of 1 channel, else the first three; floating point numbers from darkest to brightest."""
        x = tensor.detach().float().cpu()
        x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
        if self.layout.depth == AS_STORED:
            low, high = x.amin(), x.amax()
            x = (x - low) / (high - low).clamp_min(1e-12) * 255
        elif self.layout.depth == "16 bits":
            x = x / 257
        return x.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()

    def simple_features(self, sample: Sample, cells: Grid | None = None) -> dict[str, Tensor]:
        """Those of every loader, with raw values as a small image, and a histogram of colours (Swain and Ballard 1991).

        The histogram counts pixels in 4 x 4 x 4 bins of the first three channels, or 64 bins of grey.
        """
        features = super().simple_features(sample, cells)
        if cells is not None:
            return features
        image = sample["image"].float()
        side = max(1, int((RAW_VALUES / len(image)) ** 0.5))
        small = (min(side, image.shape[1]), min(side, image.shape[2]))
        features["raw values"] = F.adaptive_avg_pool2d(image, small).flatten()
        if self.layout.depth in RANGES:
            features["colour histogram"] = _histogram(image / RANGES[self.layout.depth])
        return features


def _histogram(image: Tensor) -> Tensor:
    """Shares of pixels (64,) of (C, H, W) in [0, 1]."""
    used = image[:3] if len(image) >= 3 else image[:1]
    bins = COLOUR_BINS if len(used) == 3 else COLOUR_BINS**3
    codes = torch.zeros(used.shape[1:], dtype=torch.long)
    for channel in used:
        codes = codes * bins + (channel * bins).long().clamp(0, bins - 1)
    return torch.bincount(codes.flatten(), minlength=COLOUR_BINS**3).float() / codes.numel()


def _open_source(path: Path, path_column: str, label_column: str, group_column: str) -> Source:
    if not path.exists():
        raise DataError(path, "there is no such file or folder")
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return open_list(path, path_column, label_column, group_column)
    tars = path.name.lower().endswith((".tar", *COMPRESSED_SUFFIXES)) and path.is_file()
    if tars or (path.is_dir() and next(walk(path, SUFFIXES), None) is None and holds_shards(path)):
        return TarSource(path, label_column, group_column)
    return open_folder(path)
