"""Teachers: a slow copy of a network, or a frozen one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskwright.core.encoder.base import Encoder, Tokens
from maskwright.core.encoder.vit import VisionTransformer
from maskwright.core.errors import ConfigError
from maskwright.core.masking.base import Mask
from maskwright.core.masking.hide import take
from maskwright.core.sample import Batch

if TYPE_CHECKING:
    from maskwright.core.loader import Loader


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode for good and no gradients. Returns the module itself."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


class EMATeacher(nn.Module):
    """Exponential moving average of a network: t <- decay * t + (1 - decay) * s after every step; buffers are copied.

    Args:
        student: the network to follow. It is copied, not kept.
        decay: in [0, 1); may be given anew at each `update` where it follows a schedule.
    """

    def __init__(self, student: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(f"The decay of a moving average must lie in [0, 1), not {decay}.")
        self.decay = decay
        self.module = freeze(copy.deepcopy(student))

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float | None = None) -> None:
        decay = self.decay if decay is None else decay
        ours: list[torch.Tensor] = list(self.module.parameters())
        theirs = [parameter.detach().to(own.dtype) for own, parameter in zip(ours, student.parameters(), strict=True)]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for own, buffer in zip(self.module.buffers(), student.buffers(), strict=True):
            own.copy_(buffer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.module(*args, **kwargs)


class FeatureTeacher(nn.Module):
    """A teacher that gives a vision transformer, its student, features of the student's own tokens.

    Args:
        what: "ema", a moving average of the student; or an encoder, or whatever `open_encoder` takes: a run directory,
            `timm:NAME`. Its weights never change. They are kept in checkpoints, so that a resumed run has the teacher
            that it began with.
        student: the encoder that learns.
        decay: of the moving average.

    Shapes:
        (B, [1 +] V, `embed_dim`) for the V visible tokens, the class token first if `num_prefix_tokens`
        is 1. A vision transformer of ours sees visible tokens only. An outside model cannot hide any, so it sees the
        whole input and its features are taken at visible places.

    Raises:
        ConfigError: a teacher that gives no features of single tokens. DataError: no encoder is at that path.
    """

    def __init__(self, what: str | Path | Encoder, student: VisionTransformer, decay: float = 0.999) -> None:
        super().__init__()
        self.ema = EMATeacher(student, decay) if what == "ema" else None
        self.frozen = None if what == "ema" else freeze(_open(what, student))
        self.name = "a moving average of the encoder" if what == "ema" else _name(what)
        """For reports."""
        self.embed_dim: int = self.encoder.embed_dim
        if set(self.encoder.inputs) != {student.input_name}:
            raise ConfigError(
                f'The teacher {self.name} reads {", ".join(self.encoder.inputs)}, the student "{student.input_name}". '
                f"Choose a teacher of the same input, or set method.input_name."
            )
        module = self.encoder if self.ours else getattr(self.encoder, "module", None)
        blocks = getattr(module, "blocks", None) if self.ours or hasattr(module, "forward_intermediates") else None
        self.depth = len(blocks) if blocks is not None else 0
        """Blocks whose outputs `layers` can give."""
        self.num_prefix_tokens = self.encoder.num_prefix_tokens if self.ours else 0

    @property
    def encoder(self) -> Any:
        return self.ema.module if self.ema is not None else self.frozen

    @property
    def ours(self) -> bool:
        """Whether it is a vision transformer of ours, which can hide tokens."""
        return isinstance(self.encoder, VisionTransformer)

    def prepare(self, loader: Loader, student: nn.Module) -> None:
        """Take over the scaling of the inputs; to be called once, when the student's is set."""
        from maskwright.core.encoder.outside import OutsideEncoder, fit_outside

        if self.ema is not None:
            self.ema.update(student, 0.0)
        elif isinstance(self.frozen, OutsideEncoder):
            fit_outside(self.frozen, loader)

    def update(self, student: nn.Module, decay: float | None = None) -> None:
        """Follow the student, if this is its moving average."""
        if self.ema is not None:
            self.ema.update(student, decay)

    @torch.no_grad()
    def forward(self, batch: Batch, tokens: Tokens, mask: Mask | None = None) -> Tensor:
        """Features of visible tokens, after the last norm.

        Args:
            batch: the input.
            tokens: the student's tokens of it.

        Raises:
            ConfigError: the teacher cuts the input into other tokens than the student.
        """
        if self.ours:
            return self.encoder(self._own(batch, tokens), mask)
        embedding = self.encoder.embed_batch(batch)
        return _visible(embedding.tokens, embedding.grid.shape, tokens, mask)

    @torch.no_grad()
    def layers(self, batch: Batch, tokens: Tokens, mask: Mask | None, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of blocks (from 0) before any norm, one tensor each. Blocks behind the last of them do not run.

        Raises:
            ConfigError: as `forward`, or there is no such block.
        """
        if self.ours:
            return self.encoder.hidden_states(self._own(batch, tokens), layers, mask)
        if not self.depth or max(layers) >= self.depth:
            raise ConfigError(f"The teacher {self.name} has {self.depth} blocks, not {max(layers) + 1}.")
        found = self.encoder.module.forward_intermediates(
            self.encoder.tokenize(batch), indices=list(layers), stop_early=True, intermediates_only=True
        )
        return [_visible(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]), tokens, mask) for maps in found]

    def _own(self, batch: Batch, tokens: Tokens) -> Tokens:
        """The input as this teacher sees it: scaled by its own statistics, unless it is the student's average."""
        if self.ema is not None:
            return tokens
        own = self.encoder.tokenize(batch)
        _same_grid(own.grid.shape, tokens)
        return own


def _visible(features: Tensor, shape: tuple[int, ...], tokens: Tokens, mask: Mask | None) -> Tensor:
    """Features (B, N, D) of an outside teacher at the student's visible places."""
    _same_grid(shape, tokens)
    return features if mask is None else take(features, mask.visible)


def _name(what: str | Path | Encoder) -> str:
    if isinstance(what, Encoder):
        return f"a given {type(what).__name__} of width {what.embed_dim}"
    return what if isinstance(what, str) and ":" in what else Path(what).name


def _same_grid(shape: tuple[int, ...], tokens: Tokens) -> None:
    if tuple(shape) != tokens.grid.shape:
        raise ConfigError(
            f"The teacher cuts the input into {' x '.join(map(str, shape))} tokens, the student into "
            f"{' x '.join(map(str, tokens.grid.shape))}. Choose method.patch_size so that both have the same, or "
            f"another teacher."
        )


def _open(what: str | Path | Encoder, student: VisionTransformer) -> Encoder:
    """The frozen teacher. An outside model is built for the student's input."""
    from maskwright.core.encoder.outside import KINDS, open_encoder

    if isinstance(what, str) and what.partition(":")[0] in KINDS:
        given = {"input": student.input_name, "in_chans": student.in_chans}
        what += "".join(f",{name}={value}" for name, value in given.items() if f",{name}=" not in what)
    return open_encoder(what)
