"""The tokenizer of DALL-E, from weights that the user has as plain tensors."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder import Tokens, VisionTransformer
from maskwright.core.encoder.teacher import freeze
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.loader import Loader
from maskwright.core.masking import Mask
from maskwright.core.weights import read_state
from maskwright.plugins.vision.tokenizers import Tokenizer

GROUPS, BLOCKS = 4, 2
"""Groups of blocks, the image being halved between them, and blocks of a group."""
CONVERT = (
    "The official file holds a whole Python object, which is not opened here. Where you trust it and have the package "
    'dall_e, save its tensors: torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), "encoder.pt")'
)


class DalleTokenizer(Tokenizer):
    """Codes of DALL-E's discrete VAE (Ramesh et al., ICML 2021; the encoder as published in openai/DALL-E).

    It looks at the image at 8 pixels a token, 112 for 14 x 14, scaled from the physical image on its device; CAE's
    data pipeline made the smaller image from the original by Lanczos. Convolutions follow the precision of training,
    the last layer is float32, as published.

    Args:
        path: .safetensors, or .pt of tensors alone, with the published names (`blocks.group_1.block_1.res_path.conv_1.w`).
        encoder: what is trained; its input must be an RGB image of 0 to 255.

    Raises:
        ConfigError: another input. DataError: no such file, or other weights.
    """

    def __init__(self, path: str | Path, encoder: VisionTransformer) -> None:
        super().__init__()
        if encoder.in_chans != 3 or len(encoder.patch_size) != 2:
            raise ConfigError(
                f"DALL-E's tokenizer reads images of 3 channels, red, green and blue, not {encoder.in_chans} channels on "
                f"{len(encoder.patch_size)} axes. Use method.tokenizer=kmeans, or method.target=pixels."
            )
        self.input_name = encoder.input_name
        self.patch_values = encoder.patch_embed.in_features
        state = _read_dalle(Path(path))
        width, self.vocabulary = len(state["blocks.input.w"]), len(state["blocks.output.conv.w"])
        self.blocks = _dalle_layers(width, self.vocabulary)
        self.load_state_dict(state)
        freeze(self)
        self.label = f"DALL-E's discrete VAE, {self.vocabulary} codes ({Path(path).name})"

    def prepare(self, loader: Loader, encoder: VisionTransformer, generator: torch.Generator) -> None:
        """Check that the images look like RGB of 0 to 255.

        Raises:
            ConfigError: they do not.
        """
        seen = loader.statistics()[self.input_name]
        low, high = min(seen.minimum), max(seen.maximum)
        if low < 0 or not 1 < high <= 255:
            raise ConfigError(
                f"DALL-E's tokenizer reads RGB images of 0 to 255, but the data lie between {low:.4g} and {high:.4g}. Use "
                f"method.tokenizer=kmeans, or data of 8-bit images."
            )

    @torch.no_grad()
    def forward(self, images: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
        codes = self.codes(images, (tokens.grid.shape[0], tokens.grid.shape[1]))
        return codes.flatten(1).gather(1, mask.masked)

    def codes(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes of whole images: (B, 3, H, W) of 0 to 255 to (B, *grid) int64."""
        size = [8 * side for side in grid]
        x = images.float()
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255)
        return self.blocks(0.8 * x / 255 + 0.1).argmax(1)

    def values(self, codes: Tensor) -> Tensor:
        """Zeros: the decoder that would draw a code is not there."""
        return torch.zeros(*codes.shape, self.patch_values, device=codes.device)


class _Conv(nn.Module):
    """A convolution that keeps the size of the image, with the published names of its weights."""

    def __init__(self, in_chans: int, out_chans: int, side: int, exact: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(out_chans, in_chans, side, side))
        self.b = nn.Parameter(torch.zeros(out_chans))
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        if not self.exact:
            return F.conv2d(x, self.w, self.b, padding="same")
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.w, self.b, padding="same")


class _Block(nn.Module):
    """x, brought to the new width where it changes, plus 1/64 of four convolutions, each behind a ReLU."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.id_path = nn.Identity() if width == out else _Conv(width, out, 1)
        inner = out // 4
        sizes = [(width, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, out, 1)]
        self.res_path = nn.Sequential()
        for number, size in enumerate(sizes, 1):
            self.res_path.add_module(f"relu_{number}", nn.ReLU())
            self.res_path.add_module(f"conv_{number}", _Conv(*size))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.res_path(x) / (GROUPS * BLOCKS) ** 2


def _dalle_layers(width: int, vocabulary: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("input", _Conv(3, width, 7))
    inside = width
    for number in range(GROUPS):
        group = nn.Sequential()
        for block in range(BLOCKS):
            group.add_module(f"block_{block + 1}", _Block(inside, width * 2**number))
            inside = width * 2**number
        if number < GROUPS - 1:
            group.add_module("pool", nn.MaxPool2d(2))
        layers.add_module(f"group_{number + 1}", group)
    output = nn.Sequential()
    output.add_module("relu", nn.ReLU())
    output.add_module("conv", _Conv(inside, vocabulary, 1, exact=True))
    layers.add_module("output", output)
    return layers


def _read_dalle(path: Path) -> dict[str, Tensor]:
    """All tensors of the encoder, and nothing else.

    Raises:
        DataError: no such file, a pickled object, or other tensors.
    """
    wanted = "the encoder of DALL-E's discrete VAE"
    try:
        state = read_state(path, wanted, "Give the path of its weights, or set method.tokenizer=kmeans")
    except DataError as error:
        mend = CONVERT if path.is_file() else error.mend
        raise DataError(path, error.found, error.expected, mend) from error
    widths = [state.get(name) for name in ("blocks.input.w", "blocks.output.conv.w")]
    if not all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in widths):
        raise DataError(path, f"holds {', '.join(list(state)[:3])} ... and no blocks.input.w", wanted)
    with torch.device("meta"):
        layers = _dalle_layers(len(state["blocks.input.w"]), len(state["blocks.output.conv.w"]))
    shapes = {f"blocks.{name}": tuple(tensor.shape) for name, tensor in layers.state_dict().items()}
    problems = [f"no {name}" for name in shapes if name not in state]
    problems += [f"an unknown {name}" for name in state if name not in shapes]
    for name, shape in shapes.items():
        found = tuple(getattr(state.get(name), "shape", ()))
        if name in state and found != shape:
            problems.append(f"{name} of shape {found} instead of {shape}")
    if problems:
        raise DataError(path, f"holds {'; '.join(problems[:5])}", wanted)
    return state
