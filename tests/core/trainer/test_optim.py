import itertools

import pytest
import torch

from maskwright.core.encoder import VisionTransformer
from maskwright.core.recipe import TrainerSection
from maskwright.core.trainer.optim import lr_at, make_optimizer, parameter_groups, weight_decay_at


def test_schedule_rises_linearly_and_falls_as_a_cosine():
    rates = [lr_at(step, total=100, warmup=10, peak=1.0, min_ratio=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.1 + 0.9 / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert lr_at(0, 10, 0, 2.0) == 2.0


def test_weight_decay_follows_half_a_cosine_or_stays():
    assert weight_decay_at(7, 10, 0.05, None) == 0.05
    decays = [weight_decay_at(step, 100, 0.04, 0.4) for step in range(101)]
    assert decays[0] == pytest.approx(0.04)
    assert decays[50] == pytest.approx(0.22)
    assert decays[100] == pytest.approx(0.4)
    assert all(a < b for a, b in itertools.pairwise(decays))


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2)
        self.head = torch.nn.Linear(8, 2)


def test_no_decay_for_one_dimensional_tensors_and_every_parameter_once():
    module = Holder()
    groups = parameter_groups(module, 0.05)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1), name
    decayed = [name for group in groups if group["weight_decay"] for name in group["names"]]
    assert "encoder.cls_token" in decayed  # three-dimensional, as in MAE


def test_layer_decay_follows_depth():
    scales = {
        name: group["lr_scale"]
        for group in parameter_groups(Holder(), 0.05, layer_decay=0.5)
        for name in group["names"]
    }
    assert scales["encoder.patch_embed.weight"] == scales["encoder.cls_token"] == 0.5**4
    assert scales["encoder.blocks.0.attn.qkv.weight"] == 0.5**3
    assert scales["encoder.blocks.2.mlp.fc1.bias"] == 0.5
    assert scales["encoder.norm.weight"] == scales["head.weight"] == 1


def test_frozen_parameters_are_left_out():
    module = Holder()
    module.head.requires_grad_(False)
    optimizer = make_optimizer(module, TrainerSection())
    assert not any(name.startswith("head") for group in optimizer.param_groups for name in group["names"])
