"""Buffers that a forward pass changes survive a step that is refused."""

import torch
from torch import nn

from maskwright.core.trainer.buffers import BufferMemory


def test_statistics_of_batch_norms_come_back():
    module, memory = nn.BatchNorm1d(2), BufferMemory()
    for seed in range(3):
        torch.manual_seed(seed)
        module(torch.randn(8, 2))
        memory.keep(module)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module(torch.full((8, 2), float("nan")))
        assert not module.running_mean.isfinite().any()
        memory.put_back()
        assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
        assert module.running_mean.isfinite().all()


def test_a_buffer_that_was_replaced_is_kept_anew():
    module, memory = nn.BatchNorm1d(2), BufferMemory()
    memory.keep(module)
    module.register_buffer("running_mean", torch.full((3,), 7.0))
    memory.keep(module)
    module.running_mean.zero_()
    memory.put_back()
    assert module.running_mean.tolist() == [7, 7, 7]
