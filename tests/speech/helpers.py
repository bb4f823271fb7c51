"""Spectrograms and keys that the tests of the speech methods share."""

import torch

from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch, Meta


def keys(count=4, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def spectrograms(*lengths, bins=8, seed=0, padded=None):
    """A batch of random frames (B, bins, T) of these lengths, filled up with zeros to `padded` or the longest."""
    longest = padded or max(lengths)
    frames = torch.zeros(len(lengths), bins, longest)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(1000 * seed + row)
        frames[row, :, :length] = torch.randn(bins, length, generator=generator)
    metas = [Meta(str(row), index=row) for row in range(len(lengths))]
    return Batch({"frames": frames}, metas, lengths={"frames": torch.tensor(lengths)})


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def gradients(loss, module):
    """Gradient of every trainable parameter by name; None where the loss does not depend on it."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found, strict=True))
