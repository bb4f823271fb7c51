"""Random crops of a whole batch at once, on its device: boxes, antialiased resizing, flips, and crops of crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking.random_keys import uniform


def crop_boxes(
    keys: Tensor,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Random boxes by MAE's rule without retries (He et al. 2022, the crop of the linear probe).

    Area ~ U(scale) * H * W, aspect = exp(U(ln ratio)), width = round(sqrt(area * aspect)) and height =
    round(sqrt(area / aspect)), each at most the image's, at a uniform place.

    Args:
        keys: (B,) one a sample, as in `random_keys`; a box is a pure function of its key.
        size: height and width of the images in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width over height.

    Returns:
        (B, 4) int64: top, left, height, width in pixels.

    Raises:
        ConfigError: `scale` or `ratio` is no range of such numbers.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"Crop scale {tuple(scale)} is no range within (0, 1]: it is a share of the image's area.")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ConfigError(f"Crop ratio {tuple(ratio)} is no range of positive numbers: it is width over height.")
    image_height, image_width = size
    # in double precision no rounding hangs on the last bit, which may differ between devices
    random = uniform(keys, 4).double()
    area = (scale[0] + random[:, 0] * (scale[1] - scale[0])) * image_height * image_width
    root_aspect = ((math.log(ratio[0]) + random[:, 1] * math.log(ratio[1] / ratio[0])) / 2).exp()
    width = (area.sqrt() * root_aspect).round().long().clamp(1, image_width)
    height = (area.sqrt() / root_aspect).round().long().clamp(1, image_height)
    top = (random[:, 2] * (image_height - height + 1)).long()
    left = (random[:, 3] * (image_width - width + 1)).long()
    return torch.stack([top, left, height, width], dim=1)


def crop_and_resize(
    images: Tensor, boxes: Tensor, out_size: int | tuple[int, int], flip: Tensor | None = None
) -> Tensor:
    """Crop each image to its own box, resize bilinearly with antialiasing, and mirror where asked.

    Resampling is separable: out = A_y X A_x^T, with one pair of small matrices a sample whose rows are triangle filters
    that reach max(scale, 1) pixels and are normalised inside of the box. Only pixels inside of the box count, as if it
    had been cut out first. The result is that of torchvision's `resized_crop(antialias=True)` on each image in turn.

    Args:
        images: (B, C, H, W), floating point.
        boxes: (B, 4) top, left, height, width in pixels.
        out_size: height and width of the result, or one number for both.
        flip: (B,) bool, mirrors the columns of a sample after its crop.

    Returns:
        (B, C, *out_size) of the type of `images`; gradients flow back to them.

    Raises:
        ConfigError: `images` are no floating point numbers, or `out_size` is less than 1.
    """
    if not images.is_floating_point():
        raise ConfigError(f"Images to resize must be floating point numbers, not {images.dtype}.")
    out = (out_size, out_size) if isinstance(out_size, int) else tuple(out_size)
    if min(out) < 1:
        raise ConfigError(f"Images cannot be resized to {' x '.join(map(str, out))} pixels.")
    top, left, height, width = boxes.unbind(1)
    rows = _resampling(top, height, images.shape[2], out[0])
    columns = _resampling(left, width, images.shape[3], out[1])
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    with torch.autocast(images.device.type, enabled=False):  # eight bits would be too few for pixels
        resized = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)
    return resized.to(images.dtype)


def _resampling(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """(B, out, size) float32 matrices that resample `length` pixels from `start` on to `out` pixels."""
    start, length = start.double()[:, None, None], length.double()[:, None, None]
    scale = length / out
    centre = start + (torch.arange(out, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(size, device=start.device) + 0.5
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > start) & (pixel < start + length))
    return (weights / weights.sum(2, keepdim=True)).float()


def compose(outer: Tensor, inner: Tensor, out_size: int | Sequence[int]) -> Tensor:
    """Where a crop of a resized crop lies in the original image: (B, 4) float64 top, left, height, width in pixels.

    Args:
        outer: (B, 4) boxes in the original image.
        inner: (B, 4) boxes in the outer crops after those were resized, and before any flip.
        out_size: height and width to which the outer crops were resized, or one number for both.
    """
    out = (out_size, out_size) if isinstance(out_size, int) else tuple(out_size)
    pixel = outer[:, 2:].double() / torch.tensor(out, dtype=torch.float64, device=outer.device)
    return torch.cat([outer[:, :2] + inner[:, :2] * pixel, inner[:, 2:] * pixel], dim=1)
