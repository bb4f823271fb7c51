"""Random changes of colour and sharpness, on tensors of any depth; `draws` are uniform numbers in [0, 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601, as torchvision rounds them)."""


def jitter(image: Tensor, amounts: tuple[float, float, float, float], top: float, draws: list[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue, in random order (Howard 2013; as torchvision's ColorJitter).

    Factors are uniform in [max(0, 1 - amount), 1 + amount]; hue is shifted by up to its amount, as a part of the circle.

    Args:
        image: (C, H, W) in [0, top]. Saturation and hue change nothing but images of 3 channels.
        amounts: of brightness, contrast, saturation and hue.
        draws: eight numbers, four of them for the order.
    """
    for which in sorted(range(4), key=lambda which: draws[4 + which]):
        amount, draw = amounts[which], draws[which]
        if amount == 0 or (which >= 2 and len(image) != 3):
            continue
        if which == 3:
            image = shift_hue(image, (2 * draw - 1) * amount, top)
            continue
        low = max(0.0, 1 - amount)
        factor = low + (1 + amount - low) * draw
        if which == 0:
            image = (image * factor).clamp(0, top)
        elif which == 1:
            image = torch.lerp(grey(image).mean(), image, factor).clamp(0, top)
        else:
            image = torch.lerp(grey(image).expand_as(image), image, factor).clamp(0, top)
    return image


def grey(image: Tensor) -> Tensor:
    """(1, H, W) brightness of colours, the mean of any other channels."""
    if len(image) == 3:
        return torch.tensordot(image.new_tensor(LUMA), image, 1)[None]
    return image.mean(0, keepdim=True)


def shift_hue(image: Tensor, shift: float, top: float) -> Tensor:
    """Turn the hue of (3, H, W) by `shift` of a full circle; value and saturation (HSV) stay."""
    value, low = image.amax(0), image.amin(0)
    chroma = value - low
    safe = chroma.clamp_min(1e-12)
    red, green, blue = image
    hue = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, hue) + 6 * shift
    # channel n of a hue h in sextants is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6
    sextants = torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    k = torch.remainder(sextants + hue, 6)
    return (value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, top)


def blur(image: Tensor, radius: float) -> Tensor:
    """Gaussian blur of (C, H, W) with standard deviation `radius` in pixels; borders are mirrored."""
    reach = min(max(1, round(3 * radius)), image.shape[1] - 1, image.shape[2] - 1)
    if reach < 1:
        return image
    x = torch.arange(-reach, reach + 1, dtype=image.dtype)
    kernel = torch.exp(-(x**2) / (2 * radius**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, kernel[None, None, None, :])
    return F.conv2d(rows, kernel[None, None, :, None])[:, 0]
