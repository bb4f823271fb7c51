"""Small methods, batches and runs that the tests of several methods share."""

import torch

from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch, Meta

ENCODER = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def make(method_class, **options):
    """A method with seeded weights."""
    torch.manual_seed(0)
    return method_class(**options)


def batch_of(*shape, count=4, name="image", seed=0):
    """Random samples (count, *shape), images of (3, 32, 32) without a shape."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *(shape or (3, 32, 32)), generator=generator)
    return Batch({name: x}, [Meta(str(i), index=i) for i in range(count)])


def images(count=4, size=32, channels=3, seed=0):
    return batch_of(channels, size, size, count=count, seed=seed)


def keys(count=4, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def parameters(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def gradients(loss, module):
    """Gradient of every trainable parameter by name; None where the loss does not depend on it."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))
