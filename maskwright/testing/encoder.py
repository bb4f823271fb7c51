"""The contract of an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from maskwright.core.encoder import Embedding, Encoder, Normalizer, Tokens
from maskwright.core.masking import Mask, RandomMasking, fold, sample_keys
from maskwright.core.sample import Batch, InputSpec, Sample, collate
from maskwright.testing.data import rows, statistics_of
from maskwright.testing.require import by_name, require, same_bits


def check_encoder(factory: Callable[[], Encoder], data: Sample | Batch, tolerance: float = 1e-4) -> None:
    """Check an encoder on a sample or a batch that suits it.

    It can be built again from its recorded options; `embed` gives (B, D) and (B, N, D), finite, without gradients, the
    same every time and for a sample alone as in a batch, and leaves the training mode as it was; weights survive
    safetensors bit by bit; what is hidden does not change one bit of `forward` where the encoder drops hidden tokens.

    Args:
        factory: builds a new encoder; small ones keep the check quick.
        tolerance: by how much an embedding may differ alone and in a batch, relative to its largest value.

    Raises:
        AssertionError: what does not hold, and where.
    """
    torch.manual_seed(0)
    encoder = factory()
    name = type(encoder).__name__
    require(isinstance(encoder, Encoder), f"{name} is no maskwright.core.encoder.Encoder.")
    batch = collate([data, data]) if isinstance(data, Sample) else data
    require_inputs(encoder.inputs, batch, name)
    normalizers = dict(getattr(encoder, "normalizers", None) or {})
    for key in encoder.inputs:
        there = isinstance(normalizers.get(key), Normalizer)
        require(there, f'{name}: no Normalizer for "{key}". Call self.add_normalizers(kind) in the constructor.')
    encoder.fit_normalizers(statistics_of(batch, encoder.inputs))
    _check_options(encoder, name)
    whole = _check_embed(encoder, batch, name)
    _check_neighbours(encoder, batch, whole, tolerance, name)
    _check_weights(encoder, factory, batch, whole, name)
    if "drop" in encoder.hides:
        _check_hidden(encoder, batch, name)


def require_inputs(inputs: InputSpec, batch: Batch, name: str) -> None:
    """Require that a batch holds what `inputs` names, with its dimensions and channels."""
    for key, spec in inputs.items():
        require(key in batch.tensors, f'{name} needs "{key}", but the data hold {", ".join(batch.tensors)}.')
        shape, dims = tuple(batch[key].shape[1:]), spec.dims.split()
        require(len(shape) == len(dims), f'{name}: "{key}" has shape {shape}, but `inputs` says ({spec.dims}).')
        if "C" in dims and spec.channel_count is not None:
            channels = shape[dims.index("C")]
            same = channels == spec.channel_count
            require(same, f'{name}: "{key}" has {channels} channels, but `inputs` says {spec.channel_count}.')


def round_trip(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights after they were written as safetensors and read back."""
    return load(save({key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}))


def _check_options(encoder: Encoder, name: str) -> None:
    options = getattr(encoder, "options", None)
    require(
        options is not None, f"{name}: no recorded options. Call super().__init__() and define __init__ in the class."
    )
    try:
        written = json.loads(json.dumps(options))
    except TypeError as error:
        raise AssertionError(
            f"{name}: its options cannot be written as JSON ({error}). Use numbers and names."
        ) from error
    again = type(encoder)(**written)
    ours, theirs = ({k: tuple(v.shape) for k, v in module.state_dict().items()} for module in (encoder, again))
    other = [
        f"{key} {ours.get(key)} and {theirs.get(key)}" for key in ours | theirs if ours.get(key) != theirs.get(key)
    ]
    require(not other, f"{name}: built again from its options, it has other weights: {'; '.join(other[:3])}.")


def _check_embed(encoder: Encoder, batch: Batch, name: str) -> Embedding:
    torch.manual_seed(1)
    encoder.train()
    whole = encoder.embed(batch)
    require(encoder.training, f"{name}.embed leaves the encoder in evaluation mode; it must put the mode back.")
    encoder.eval()
    count, width = len(batch), encoder.embed_dim
    for part, found in {"": whole, **whole.parts}.items():
        where = f"{name}.embed{f' part {part}' if part else ''}"
        tokens = found.grid.count
        shapes = (tuple(found.pooled.shape), tuple(found.tokens.shape))
        wanted = ((count, width), (count, tokens, width))
        require(shapes == wanted, f"{where}: pooled and tokens have shapes {shapes}; {wanted} were expected.")
        for what in (found.pooled, found.tokens):
            require(bool(what.isfinite().all()), f"{where}: gives NaN or infinity.")
            require(not what.requires_grad, f"{where}: carries a gradient. Override embed_batch, not embed.")
    torch.manual_seed(2)
    again = encoder.embed(batch)
    same = same_bits(whole.pooled, again.pooled) and same_bits(whole.tokens, again.tokens)
    require(same, f"{name}.embed: gives something else the second time. Nothing may be random in evaluation mode.")
    return whole


def _check_neighbours(encoder: Encoder, batch: Batch, whole: Embedding, tolerance: float, name: str) -> None:
    for index in (0, len(batch) - 1):
        alone = encoder.embed(rows(batch, [index]))
        for a, b in ((alone.pooled[0], whole.pooled[index]), (alone.tokens[0], whole.tokens[index])):
            far = float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
            close = far <= tolerance
            require(close, f"{name}.embed: sample {index} differs by {far:.1e} alone and in a batch.")


def _check_weights(encoder: Encoder, factory: Callable[[], Encoder], batch: Batch, whole: Embedding, name: str) -> None:
    torch.manual_seed(3)
    other = factory()
    other.load_state_dict(round_trip(encoder))
    same = same_bits(other.embed(batch).tokens, whole.tokens)
    require(same, f"{name}: weights loaded into a new encoder give another embedding. Register state as buffers.")


def _check_hidden(encoder: Encoder, batch: Batch, name: str) -> None:
    """Change hidden tokens and compare the features of visible ones bit by bit; then change visible ones."""
    tokens = encoder.tokenize(batch)
    keys = sample_keys(torch.Generator().manual_seed(4), len(batch))
    streams = tokens if isinstance(tokens, dict) else {"": tokens}
    masks = {key: RandomMasking(0.5)(t.grid, fold(keys, stream)) for stream, (key, t) in enumerate(streams.items())}

    def features(changed: dict[str, Tokens]) -> dict[str, Tensor]:
        several = isinstance(tokens, dict)
        with torch.no_grad():
            return by_name(encoder(changed if several else changed[""], masks if several else masks[""]))

    before = features(streams)
    after = features({key: _disturb(t, masks[key], hidden=True) for key, t in streams.items()})
    for key, value in before.items():
        require(same_bits(value, after[key]), f"{name}.forward: hidden tokens change the {key} of visible ones.")
    seen = features({key: _disturb(t, masks[key], hidden=False) for key, t in streams.items()})
    moved = any(not same_bits(value, seen[key]) for key, value in before.items())
    require(moved, f"{name}.forward: visible tokens do not change its features.")


def _disturb(tokens: Tokens, mask: Mask, hidden: bool) -> Tokens:
    where = mask.hidden if hidden else ~mask.hidden
    noise = torch.randn(tokens.values.shape, generator=torch.Generator().manual_seed(6))
    return Tokens(torch.where(where.unsqueeze(-1), tokens.values + noise, tokens.values), tokens.grid)
