"""A hierarchical convolutional encoder that computes visible cells only: any timm ConvNet with a pyramid, or a plain one."""

from __future__ import annotations

import functools
import itertools
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Embedding, Encoder, Tokens
from maskwright.core.encoder.cells import Cells
from maskwright.core.encoder.normalize import NormalizationKind
from maskwright.core.encoder.outside_models import ModelText, build_timm
from maskwright.core.encoder.patches import patch_grid, patchify, unpatchify
from maskwright.core.encoder.residual import ResidualNetwork
from maskwright.core.encoder.sparse import active_of, to_sparse
from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Grid, Mask
from maskwright.core.masking.hide import drop
from maskwright.core.sample import Batch, TensorSpec

PLAIN = "plain"
PROBED = 1e-9
"""Largest difference of sparse and dense maps in double precision that counts as rounding, relative to the largest value."""


class SparseConvNet(Encoder):
    """A ConvNet over the visible cells of an image or volume; a cell is as wide as the network's total stride.

    `module` is the network itself, with the parameter names that it has in timm, so that its weights load there:

        weights = {k[7:]: v for k, v in load_file("RUN/encoder.safetensors").items() if k.startswith("module.")}
        timm.create_model("resnet50", num_classes=0).load_state_dict(weights)

    Its inputs are scaled by the statistics of the data, `normalizers` in the same file. `embed` is dense and takes any
    size; pooled is the mean over the last map, tokens are its positions.

    Args:
        backbone: name of a model of timm, with settings after commas (`resnet50,zero_init_last=false`), for images; or
            "plain", a residual network of `widths`, `depths` and `stem_stride`, for images and volumes.
        dims: "C H W" or "C D H W".
        in_chans: channels C.
        scales: maps that `pyramid` gives, the deepest and those before it.
        widths, depths, stem_stride: of a plain network, see `ResidualNetwork`.
        drop_path: share of samples that skip the last block in training.
        input_name: which tensor of a sample is read.
        normalization: see `Normalizer`.

    Shapes:
        input (B, C, *size) in physical units; tokens (B, N, C * stride ** axes); output (B, V, D).

    Raises:
        ConfigError: a network without a pyramid of maps, or with layers that have no sparse meaning.
        PluginError: timm is not installed.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        dims: Literal["C H W", "C D H W"] = "C H W",
        in_chans: int = 3,
        scales: int = 4,
        widths: tuple[int, ...] = (32, 64, 128),
        depths: tuple[int, ...] = (2, 2, 2),
        stem_stride: int = 1,
        drop_path: float = 0.0,
        input_name: str = "image",
        normalization: NormalizationKind = "standard",
    ) -> None:
        super().__init__()
        if dims not in ("C H W", "C D H W"):
            raise ConfigError(f'method.dims="{dims}" is neither "C H W" nor "C D H W".')
        self.axes, self.in_chans, self.input_name = len(dims.split()) - 1, in_chans, input_name
        self.inputs = {input_name: TensorSpec(dims, in_chans)}
        self.add_normalizers(normalization)
        if backbone == PLAIN:
            self.module: nn.Module = ResidualNetwork(self.axes, in_chans, widths, depths, stem_stride, drop_path)
        else:
            self.module = _timm(backbone, self.axes, in_chans, drop_path)
        found_widths, found_strides = _pyramid_of(self.module, backbone)
        if not 1 <= scales <= len(found_strides):
            raise ConfigError(f"method.scales={scales}: {backbone} has {len(found_strides)} maps; give 1 to that many.")
        self.widths, self.strides = found_widths[-scales:], found_strides[-scales:]
        """Channels and strides of the maps of `pyramid`, deepest last."""
        self.stride, self.embed_dim = self.strides[-1], self.widths[-1]
        to_sparse(self.module)
        if backbone != PLAIN and not any(parameter.is_meta for parameter in self.module.parameters()):
            _probe(backbone)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Positions of a cell along each axis."""
        return (self.stride,) * self.axes

    def tokenize(self, batch: Batch) -> Tokens:
        x = self.normalizers[self.input_name](batch[self.input_name])
        grid = patch_grid(tuple(x.shape[2:]), self.patch_size, self.input_name)
        return Tokens(patchify(x, self.patch_size), grid)

    def pyramid(self, tokens: Tokens, mask: Mask) -> tuple[list[Tensor], Cells]:
        """Maps of the visible cells, (B * V, C, *side) for each of `widths`, and where they stand. Deepest last.

        Raises:
            ConfigError: a single visible cell in the whole batch: no batch norm can be trained on one position.
        """
        cells = Cells(tokens.grid, mask.visible)
        if self.training and cells.batch * cells.count < 2:
            raise ConfigError(
                "One visible cell in a batch gives a batch norm nothing to compare. Use a larger trainer.batch_size, a "
                "larger input, or a lower masking.ratio."
            )
        values = drop(tokens.values, mask).flatten(0, 1)
        values = values.view(len(values), self.in_chans, *self.patch_size)
        layout = torch.channels_last if self.axes == 2 else torch.channels_last_3d
        with active_of(self.module).showing(cells):
            return self.maps(values.contiguous(memory_format=layout)), cells

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C, *size) of each of `widths` for an input in network units. Deepest last."""
        if isinstance(self.module, ResidualNetwork):
            return self.module(x)[-len(self.widths) :]
        module: Any = self.module
        last, maps = module.forward_intermediates(x, indices=len(self.widths))
        return [*maps[:-1], last]  # some networks widen the last map once more

    def forward(self, tokens: Tokens, mask: Mask | None = None) -> Tensor:
        """Features of the visible cells (B, V, D): the deepest map, a position a cell."""
        if mask is not None:
            return self.pyramid(tokens, mask)[0][-1].flatten(1).unflatten(0, (len(mask), -1))
        x = unpatchify(tokens.values, tokens.grid, self.patch_size, self.in_chans)
        return self.maps(x)[-1].flatten(2).transpose(1, 2)

    def embed_batch(self, batch: Batch) -> Embedding:
        last = self.maps(self.normalizers[self.input_name](batch[self.input_name]))[-1]
        tokens = last.flatten(2).transpose(1, 2)
        return Embedding(tokens.mean(1), tokens, Grid(tuple(last.shape[2:])))


def _timm(backbone: str, axes: int, in_chans: int, drop_path: float) -> nn.Module:
    """A model of timm without head; what stands behind the last map is frozen, for nothing trains it."""
    if axes != 2:
        raise ConfigError(
            f'timm has networks for images only. Use method.backbone={PLAIN} for volumes, not "{backbone}".'
        )
    text = f"timm:{backbone}" + (f",drop_path_rate={drop_path}" if drop_path else "")
    module = build_timm(ModelText.parse(text), in_chans)
    head = getattr(module, "head", None)
    if isinstance(head, nn.Module):
        head.requires_grad_(False)
    return module


def _pyramid_of(module: Any, backbone: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and strides of the maps of a network, deepest last; strides double from map to map.

    Raises:
        ConfigError: it has no such maps.
    """
    if isinstance(module, ResidualNetwork):
        return module.widths, module.strides
    info = [(int(entry["num_chs"]), int(entry["reduction"])) for entry in getattr(module, "feature_info", ())]
    strides = [stride for _, stride in info]
    doubling = len(info) > 1 and all(b == 2 * a for a, b in itertools.pairwise(strides))
    if not doubling or not hasattr(module, "forward_intermediates"):
        raise ConfigError(
            f'"{backbone}" gives maps of strides {strides or "unknown"}, not a pyramid whose strides double. Choose a '
            f"ConvNet such as resnet50, convnext_small, regnety_032 or efficientnet_b0."
        )
    return (*(width for width, _ in info[:-1]), int(module.num_features)), tuple(strides)


@functools.lru_cache(maxsize=64)
def _probe(backbone: str) -> None:
    """Refuse a network whose layers mix positions in a way that cells do not: attention, blurring, resizing.

    With all cells visible, its maps must be those of the dense network, up to the rounding of double precision. Weights
    that begin alike (norms, layer scales, zeros) would hide a difference, so they are drawn anew. The caller's random
    numbers stay what they were.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module: Any = _timm(backbone, 2, 3, 0.0).eval().double()
        for parameter in module.parameters():
            if parameter.ndim == 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.uniform_(0.5, 1.5)
        widths, strides = _pyramid_of(module, backbone)
        x = torch.randn(2, 3, 2 * strides[-1], 2 * strides[-1], dtype=torch.float64)
        cells = Cells(Grid((2, 2)), torch.tensor([[2, 0, 1, 3], [0, 3, 2, 1]]))
        try:
            dense = module.forward_intermediates(x)
            with active_of(to_sparse(module)).showing(cells):
                sparse = module.forward_intermediates(cells.gather(x))
            pairs = [(cells.spread(a), b) for a, b in zip([*sparse[1], sparse[0]], [*dense[1], dense[0]], strict=True)]
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f'"{backbone}" cannot work cell by cell: {reason}') from error
    shapes = [(b.shape[1], 2 * strides[-1] // b.shape[2]) for _, b in pairs]
    told = list(zip(widths, strides, strict=True))
    if shapes[:-2] != told[:-1] or shapes[-1] != told[-1] or shapes[-2][1] != strides[-1]:
        raise ConfigError(f'"{backbone}" gives maps of (width, stride) {shapes[:-1]}, and timm says {told}.')
    far = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    if not far <= PROBED:
        raise ConfigError(
            f'"{backbone}" mixes positions in a way that has no meaning for visible cells alone, such as attention or '
            f"blurring (difference {far:.1e}). Choose a plain ConvNet such as resnet50, convnext_small, regnety_032 or "
            f"efficientnet_b0."
        )
