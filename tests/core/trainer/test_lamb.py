"""LAMB against timm's, and its state in checkpoints."""

import pytest
import torch
from torch import nn

from maskwright.core.recipe import TrainerSection
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.lamb import Lamb
from maskwright.core.trainer.optim import make_optimizer, parameter_groups


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def train(model, optimizer, steps, decay=0.3, first=0):
    for step in range(first, first + steps):
        x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1e-2, decay * group["decays"]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def test_the_same_weights_as_timm():
    optim = pytest.importorskip("timm.optim")
    ours, theirs = network(), network()
    train(ours, Lamb(parameter_groups(ours, 0.3), betas=(0.9, 0.95)), 6)
    groups = parameter_groups(theirs, 0.3)
    train(theirs, optim.Lamb(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-6, max_grad_norm=None), 6)
    start = network()
    for (name, a), b, before in zip(ours.named_parameters(), theirs.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name
        assert not torch.equal(a, before), name


def test_a_decayed_tensor_moves_by_its_own_length_and_others_as_in_adam():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    groups = [
        {"params": [weight], "decays": True, "names": ["weight"]},
        {"params": [bias], "decays": False, "names": ["bias"]},
    ]
    optimizer = Lamb(groups, lr=0.1)
    weight.grad, bias.grad = torch.tensor([[1.0, 1.0]]), torch.tensor([1.0, 1.0])
    optimizer.step()
    assert (weight.detach() - torch.tensor([[3.0, 4.0]])).norm().item() == pytest.approx(0.1 * 5, rel=1e-4)
    assert torch.allclose(bias, torch.tensor([2.9, 3.9]), atol=1e-4)
    zero = nn.Parameter(torch.zeros(1, 2))
    optimizer = Lamb([{"params": [zero]}], lr=0.1)
    zero.grad = torch.ones(1, 2)
    optimizer.step()  # no length to go by: ratio 1
    assert torch.allclose(zero, torch.full((1, 2), -0.1), atol=1e-4)


def test_a_closure_may_take_gradients():
    """As torch's own optimisers let it."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = Lamb([{"params": [weight]}], lr=0.1)

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 7
    assert torch.allclose(weight, torch.tensor([[3.0, 4.0]]) - 0.5 / 2**0.5, atol=1e-4)


def test_a_checkpoint_holds_all_of_its_state():
    whole = network()
    train(whole, Lamb(parameter_groups(whole, 0.3)), 6)
    first = network()
    optimizer = Lamb(parameter_groups(first, 0.3))
    train(first, optimizer, 3)
    second = network()
    second.load_state_dict(first.state_dict())
    again = Lamb(parameter_groups(second, 0.3))
    checkpoints.restore_optimizer(again, checkpoints.optimizer_tensors(optimizer))
    train(second, again, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_the_setting_chooses_it():
    settings = TrainerSection().model_copy(update={"optimizer": "lamb", "betas": (0.8, 0.9)})
    optimizer = make_optimizer(network(), settings)
    assert isinstance(optimizer, Lamb)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert isinstance(make_optimizer(network(), TrainerSection()), torch.optim.AdamW)
