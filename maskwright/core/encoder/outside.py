"""Encoders that were not pre-trained here, on the same footing as ours: models of timm and the user's own modules.

`open_encoder` takes whatever a user may call an encoder; `fresh` gives the same architecture with random weights, the
baseline of every evaluation.

    open_encoder("runs/croma")                                        a run, or a folder that holds an encoder
    open_encoder("timm:vit_small_patch16_224", loader)                a model of timm with its published weights
    open_encoder("timm:resnet18,pretrained=false,weights=FILE", loader)
    open_encoder("torch:my_package.models:make,width=64", loader)     a module that your code makes
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskwright.core.encoder.base import Embedding, Encoder
from maskwright.core.encoder.outside_models import (
    KINDS,
    ModelText,
    build_timm,
    build_torch,
    load_pretrained,
    load_weights,
    trusted,
)
from maskwright.core.encoder.patches import as_tuple
from maskwright.core.errors import ConfigError, DataError, nearest
from maskwright.core.loader import Loader, Statistics
from maskwright.core.masking.base import Grid, Mask
from maskwright.core.sample import Batch, TensorSpec

if TYPE_CHECKING:
    from maskwright.core.trainer.run import Run

OURS = {
    "timm": {"pretrained", "weights", "normalization", "input", "resize", "in_chans"},
    "torch": {"normalization", "input", "resize", "folder"},
}
"""Settings of a text that we read; all others are the model's own."""
EIGHT_BIT = 255
TRIED_SIZE = 64
"""Pixels along each axis of the input that a module is tried with where there is no data to ask."""


class OutsideEncoder(Encoder):
    """A model of timm or a torch module behind the interface of an encoder. It cannot mask.

    Tokens are the features before pooling, in raster order: of a transformer without its prefix tokens (class,
    distillation and register tokens), of a convolutional network the last feature map. Pooled is what timm's own
    `forward_head(..., pre_logits=True)` gives where that is as wide as a token, else the mean over tokens. A torch
    module maps (B, C, *size) to (B, D), which is pooled and one token; to (B, N, D), pooled by the mean; or to
    (B, D, *map), pooled by the mean.

    An input of another size than the model takes is resized bilinearly (with antialiasing): to `resize` if that is
    given; to the next multiple of the patch if timm's `dynamic_img_size` makes the model take any number of patches; to
    the model's own size if it is fixed; convolutional networks and torch modules take it as it is.

    Args:
        spec: `timm:NAME,option=value` or `torch:package.module:Callable,option=value`. Weights are random: `open_encoder`
            loads them.
        in_chans: channels C of the input.
        input_name: which tensor of a sample is read.
        dims: its dimensions, "C H W" or (torch only) "C T" or "C D H W".
        normalization: "standard" or "none", see `Normalizer`.
        resize: pixels along each axis to which every input is resized.
        size: pixels along each axis of the input with which a torch module is tried, to learn its width.

    Shapes:
        input (B, C, *size) in physical units; `embed`: pooled (B, D), tokens (B, N, D).

    Raises:
        ConfigError: a text or options that name no model, or a `torch:` text that nobody but a file asked for.
        PluginError: timm or the named code cannot be imported.
    """

    hides = frozenset()
    module: Any
    """The model itself: an `nn.Module`, with what timm adds to it."""

    def __init__(
        self,
        spec: str = "timm:vit_tiny_patch16_224",
        in_chans: int = 3,
        input_name: str = "image",
        dims: str = "C H W",
        normalization: Literal["standard", "none"] = "standard",
        resize: tuple[int, ...] | None = None,
        size: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.model = ModelText.parse(spec)
        self.axes = len(dims.split()) - 1
        self.inputs = {input_name: TensorSpec(dims, in_chans)}
        self.input_name = input_name
        self.resize = None if resize is None else as_tuple(resize, self.axes)
        self.notes: list[str] = []
        """What a user should know of the loading: tensors left over or adapted."""
        self.scaling, self.trained = "auto", False
        """What was asked of the scaling of inputs, and whether weights were loaded; for `fit_outside`."""
        self.add_normalizers(normalization)
        if self.model.kind == "timm":
            if self.axes != 2:
                raise ConfigError(f'timm models take images (C H W), not "{input_name}" ({dims}).')
            self.module = build_timm(self.model, in_chans)
            self.embed_dim = int(self.module.num_features)
        else:
            self.module = build_torch(self.model)
            if next(self.module.parameters(), None) is None:
                raise ConfigError(f'"{self.model}" has no parameters, so it is no encoder.')
            self.embed_dim = self._try(in_chans, as_tuple(size or TRIED_SIZE, self.axes))

    def _try(self, in_chans: int, size: tuple[int, ...]) -> int:
        """Width of what a torch module gives, from one pass over zeros."""
        x = torch.zeros(1, in_chans, *self._size_for(size))
        self.module.eval()  # batch norms keep their statistics
        try:
            with torch.no_grad():
                return self._describe(x).tokens.shape[-1]
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f'"{self.model}" does not take an input of shape {tuple(x.shape)}: '
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        finally:
            self.module.train()

    def _size_for(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size to which an input of `size` pixels is resized."""
        if self.resize is not None:
            return self.resize
        if self.model.kind == "torch":
            return size
        if getattr(self.module, "dynamic_img_size", False):
            patch = as_tuple(self.module.patch_embed.patch_size, 2)
            return tuple(-(-s // p) * p for s, p in zip(size, patch, strict=True))
        config: dict[str, Any] = self.module.pretrained_cfg
        if config.get("fixed_input_size"):
            return as_tuple(self.model.values().get("img_size") or tuple(config["input_size"][1:]), 2)
        return size

    def tokenize(self, batch: Batch) -> Tensor:
        """The normalised and resized input (B, C, *size): the model cuts its own tokens."""
        x = self.normalizers[self.input_name](batch[self.input_name])
        size = tuple(x.shape[2:])
        target = self._size_for(size)
        if target == size:
            return x
        if self.axes == 2:
            return F.interpolate(x, size=target, mode="bilinear", align_corners=False, antialias=True)
        return F.interpolate(x, size=target, mode={1: "linear", 3: "trilinear"}[self.axes], align_corners=False)

    def forward(self, tokens: Tensor, mask: Mask | None = None) -> Tensor:
        """Features of all tokens, (B, N, D).

        Raises:
            ConfigError: a mask is given.
        """
        if mask is not None:
            raise ConfigError(
                f'"{self.model}" comes from outside and cannot hide tokens: it can be evaluated, fine-tuned and '
                f"exported, not pre-trained by masking."
            )
        return self._describe(tokens).tokens

    def embed_batch(self, batch: Batch) -> Embedding:
        return self._describe(self.tokenize(batch))

    def _describe(self, x: Tensor) -> Embedding:
        size = tuple(x.shape[2:])
        if self.model.kind == "torch":
            tokens, grid = self._tokens(self.module(x), size, 0, False)
            return Embedding(tokens.mean(1), tokens, grid)
        features = self.module.forward_features(x)
        last = getattr(self.module, "output_fmt", "NCHW") == "NHWC"
        tokens, grid = self._tokens(features, size, int(getattr(self.module, "num_prefix_tokens", 0)), last)
        pooled = self.module.forward_head(features, pre_logits=True)
        return Embedding(pooled if pooled.shape == (len(x), self.embed_dim) else tokens.mean(1), tokens, grid)

    def _tokens(self, found: Any, size: tuple[int, ...], prefix: int, channels_last: bool) -> tuple[Tensor, Grid]:
        """Tokens (B, N, D) and their grid, of what a model gives for an input of `size`."""
        if isinstance(found, Tensor) and found.ndim == 2:
            return found[:, None], Grid((1,))
        if isinstance(found, Tensor) and found.ndim == 3 and self.axes > 1:
            tokens = found[:, prefix:]
            return tokens, Grid(_lattice(tokens.shape[1], size))
        if isinstance(found, Tensor) and found.ndim == 2 + self.axes:
            maps = found.movedim(-1, 1) if channels_last else found
            return maps.flatten(2).transpose(1, 2), Grid(tuple(maps.shape[2:]))
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        wanted = "(B, D, length)" if self.axes == 1 else "(B, N, D) or (B, D, *map)"
        raise ConfigError(f'"{self.model}" gives {shape}; a tensor (B, D) or {wanted} was expected.')


def _lattice(count: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of `count` tokens that keep the proportions of `size`; (count,) where there is none."""
    factor = (count / math.prod(size)) ** (1 / len(size))
    shape = tuple(max(1, round(length * factor)) for length in size)
    return shape if math.prod(shape) == count else (count,)


# opening ------------------------------------------------------------------------------------------------------------


def open_encoder(what: str | Path | Run | Encoder, loader: Loader | None = None, trust: bool = False) -> Encoder:
    """Whatever a user may call an encoder, in evaluation mode.

    `timm:NAME` and `torch:package.module:Callable` take settings after commas. All but these go to the constructor:

    - timm: `pretrained` (true), `weights=FILE` (.safetensors, .pt, .pth; instead of a download), `in_chans` (of the data)
    - torch: `folder=DIR` loads the weights of a folder that such an encoder was saved in
    - both: `input` (which tensor of a sample; else its one image, or the first), `resize` (`224`, `96x128`),
      `normalization`: `data` scales by the loader's statistics; `none` not at all; `model` (timm, three channels) by the
      mean and deviation that the published weights were trained with, times 255. Without it: `model` for weights that
      are pretrained or from a file, on three channels of 8-bit data or without a loader; else `data`; without a loader
      values pass as they are.

    Args:
        what: an encoder, a run, the path of a run or of a folder that holds an encoder, or such a text.
        loader: the data it will see: number of channels and statistics.
        trust: also run code that a file names (a saved `torch:` encoder). A text that you give yourself is trusted.

    Raises:
        ConfigError: a text, setting or combination that cannot be used.
        DataError: files that cannot be used.
        PluginError: a library is missing, or the named code fails.
    """
    from maskwright.core.trainer.run import Run

    if isinstance(what, Encoder):
        return what.eval()
    if isinstance(what, Run):
        what = what.path
    if isinstance(what, str) and what.partition(":")[0] in KINDS:
        return _open_text(ModelText.parse(what), loader)
    path = Path(what)
    if not path.exists():
        raise DataError(
            path,
            "there is no such folder",
            "an encoder",
            "Give a run, a folder that `maskwright export` wrote, timm:NAME or torch:package.module:Callable",
        )
    with trusted(*(["*"] if trust else [])):
        return _open_folder(path)


def _open_folder(path: Path) -> Encoder:
    from maskwright.core.huggingface import is_huggingface, load_huggingface
    from maskwright.core.trainer.run import load_encoder

    return load_huggingface(path) if is_huggingface(path) else load_encoder(path)


def _open_text(text: ModelText, loader: Loader | None) -> Encoder:
    model, ours = text.split(OURS[text.kind])
    if "folder" in ours:
        return _open_named(model, Path(str(ours["folder"])))
    name, spec, size = _input_of(loader, ours.get("input"))
    channels = spec.channel_count or ours.get("in_chans") or model.values().get("in_chans") or 3
    if spec.channel_count and ours.get("in_chans", channels) != channels:
        raise ConfigError(f'in_chans={ours["in_chans"]}, but the data give {channels} channels of "{name}".')
    kind = ours.get("normalization", "auto")
    known = ("data", "none", "model")
    if kind not in ("auto", *known):
        raise ConfigError(f"normalization={kind} is none of these.{nearest(str(kind), known)}")
    resize = ours.get("resize")
    with torch.random.fork_rng(devices=[]), trusted(str(model)):  # torch draws weights from its global generator
        torch.manual_seed(0)
        encoder = OutsideEncoder(
            str(model),
            channels,
            name,
            spec.dims,
            "none" if kind == "none" else "standard",
            None if resize is None else as_tuple(resize, len(spec.dims.split()) - 1),
            size,
        )
    encoder.trained = _load(encoder, channels, ours) if text.kind == "timm" else False
    encoder.scaling = kind
    fit_outside(encoder, loader)
    return encoder.eval()


def _load(encoder: OutsideEncoder, channels: int, ours: dict[str, Any]) -> bool:
    """Load the weights that the settings ask for; whether there are any."""
    if "weights" in ours:
        encoder.notes += load_weights(encoder.module, encoder.model, channels, Path(str(ours["weights"])))
        return True
    pretrained = ours.get("pretrained", True)
    if not isinstance(pretrained, bool):
        raise ConfigError(f"pretrained={pretrained} is neither true nor false.")
    if pretrained:
        load_pretrained(encoder.module, encoder.model, channels)
    return pretrained


def _open_named(model: ModelText, folder: Path) -> Encoder:
    """A saved `torch:` encoder whose code the user names; the file must name the same, settings included."""
    with trusted(str(model)):
        encoder = _open_folder(folder)
    if not isinstance(encoder, OutsideEncoder) or str(encoder.model) != str(model):
        held = encoder.model if isinstance(encoder, OutsideEncoder) else type(encoder).__name__
        raise ConfigError(f'{folder} holds "{held}", not "{model}". Give the folder alone.')
    return encoder


def _input_of(loader: Loader | None, wanted: str | None) -> tuple[str, TensorSpec, tuple[int, ...] | None]:
    """Name, description and size of the input that an outside model reads."""
    if loader is None:
        return wanted or "image", TensorSpec("C H W"), None
    if wanted is not None and wanted not in loader.spec:
        raise ConfigError(f'The data give no "{wanted}".{nearest(wanted, loader.spec)}')
    images = [name for name, spec in loader.spec.items() if spec.dims == "C H W"]
    channelled = [name for name, spec in loader.spec.items() if spec.dims in ("C T", "C H W", "C D H W")]
    names = [wanted] if wanted else images or channelled
    if not names:
        given = ", ".join(f"{name} ({spec.dims})" for name, spec in loader.spec.items())
        raise ConfigError(f"An outside model needs an image (C H W), but the data give {given}.")
    size = tuple(loader.read(0)[names[0]].shape[1:]) if len(loader) else None
    return names[0], loader.spec[names[0]], size


def fit_outside(encoder: OutsideEncoder, loader: Loader | None) -> None:
    """Set the scaling of the input for some data; `open_encoder` says which it is.

    Raises:
        ConfigError: a scaling that was asked for and does not exist.
    """
    kind, trained = encoder.scaling, encoder.trained
    name, config = encoder.input_name, getattr(encoder.module, "pretrained_cfg", None) or {}
    channels = encoder.inputs[name].channel_count
    statistics = loader.statistics().get(name) if loader is not None and kind in ("auto", "data") else None
    mean, std = config.get("mean", ()), config.get("std", ())
    if kind == "model" and len(mean) != channels:
        raise ConfigError(
            f'normalization=model: "{encoder.model}" knows the scaling of {len(mean)} channels, not of {channels}. '
            f"Use normalization=data."
        )
    if kind == "data" and statistics is None:
        raise ConfigError("normalization=data needs data: without a loader there are no statistics.")
    suits = trained and len(mean) == channels == 3 and (loader is None or _eight_bit(loader, name, statistics))
    if kind == "model" or (kind == "auto" and suits):
        means, deviations = [EIGHT_BIT * m for m in mean], [EIGHT_BIT * s for s in std]
        statistics = Statistics(means, deviations, [0.0] * len(means), [float(EIGHT_BIT)] * len(means), 0)
    if statistics is not None:
        encoder.fit_normalizers({name: statistics})


def _eight_bit(loader: Loader, name: str, statistics: Statistics | None) -> bool:
    """Whether a tensor's values are whole numbers in 0 ... 255, and not merely 0 and 1."""
    if statistics is None or min(statistics.minimum) < 0 or not 1 < max(statistics.maximum) <= EIGHT_BIT:
        return False
    first = loader.read(0)[name]
    return bool((first == first.round()).all())


# the random baseline ------------------------------------------------------------------------------------------------


def fresh(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture and scaling of inputs with new random weights, in evaluation mode, on the same device.

    Raises:
        ConfigError: a `torch:` module that comes with weights of its own, so that no random one can be made of it.
    """
    new = _rebuilt(encoder, seed)
    if isinstance(encoder, OutsideEncoder) and encoder.model.kind == "torch":
        _check_random(encoder.model, new, _rebuilt(encoder, seed + 1))
    if isinstance(getattr(encoder, "normalizers", None), nn.ModuleDict):
        new.normalizers.load_state_dict(encoder.normalizers.state_dict())
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    return new.to(device).eval()


def _rebuilt(encoder: Encoder, seed: int) -> Encoder:
    texts = [str(encoder.model)] if isinstance(encoder, OutsideEncoder) else []
    with torch.random.fork_rng(devices=[]), trusted(*texts):  # torch draws weights from its global generator
        torch.manual_seed(seed)
        return type(encoder)(**encoder.options)


def _check_random(model: ModelText, one: Encoder, other: Encoder) -> None:
    """Refuse a module whose weights are mostly the same for two seeds: they were loaded, not drawn."""
    theirs = dict(other.named_parameters())
    same = total = 0
    for name, parameter in one.named_parameters():
        if parameter.numel() > 1 and (parameter != parameter.flatten()[0]).any():  # constants are no weights
            total += parameter.numel()
            same += parameter.numel() if parameter.equal(theirs[name]) else 0
    if same * 2 > total:
        raise ConfigError(
            f'"{model}" has the same weights for two seeds: it loads them by itself, so that there is no random '
            f"baseline. Add the setting that leaves its weights out."
        )
