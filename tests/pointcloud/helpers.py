"""Small clouds and keys that the tests of methods on points share."""

import torch

from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch, Meta

SMALL = {"num_groups": 16, "group_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "decoder_depth": 2}


def clouds(count=4, points=160, channels=3, seed=0):
    """Points on noisy ellipsoids, (count, points, channels)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, points, 3, generator=generator)
    x = x / x.norm(dim=2, keepdim=True) * (0.5 + torch.rand(count, 1, 3, generator=generator))
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    more = torch.rand(count, points, channels - 3, generator=generator)
    return torch.cat([x, more], dim=2)


def batch_of(points):
    return Batch({"points": points}, [Meta(str(i), group=str(i), index=i) for i in range(len(points))])


def keys(count=4, seed=0):
    return sample_keys(torch.Generator().manual_seed(seed), count)


def make(method_class, **options):
    torch.manual_seed(0)
    return method_class(**options)


def size(module):
    return sum(p.numel() for p in module.parameters())
