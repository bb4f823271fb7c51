"""Objectives against naive formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, RandomMasking, sample_keys
from maskwright.core.objective import (
    cosine_distance,
    info_nce,
    masked_reconstruction,
    pairwise_ranking,
    soft_cross_entropy,
    standardise_patches,
    token_regression,
)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mask(batch=3, count=10, ratio=0.6):
    return RandomMasking(ratio)(Grid((count,)), sample_keys(torch.Generator().manual_seed(0), batch))


# reconstruction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", ["mse", "l1", "smooth_l1"])
def test_masked_reconstruction(kind, standardise):
    prediction, target, mask = _random(3, 10, 5), _random(3, 10, 5, seed=1) * 3 + 1, _mask()
    total, count = 0.0, 0
    for sample in range(3):
        for token in range(10):
            if not mask.hidden[sample, token]:
                continue
            t = target[sample, token]
            if standardise:
                mean = t.sum() / 5
                var = ((t - mean) ** 2).sum() / 4
                t = (t - mean) / (var + 1e-6).sqrt()
            error = (prediction[sample, token] - t).abs()
            if kind == "mse":
                error = error**2
            elif kind == "smooth_l1":
                error = torch.where(error < 0.5, error**2, error - 0.25)
            total, count = total + error.mean(), count + 1
    found = masked_reconstruction(prediction, target, mask, kind, standardise, beta=0.5)
    torch.testing.assert_close(found, total / count)


def test_without_a_mask_all_tokens_count():
    prediction, target = _random(2, 4, 3), _random(2, 4, 3, seed=1)
    torch.testing.assert_close(masked_reconstruction(prediction, target, None), ((prediction - target) ** 2).mean())


def test_nothing_hidden_costs_nothing_and_still_has_a_gradient():
    prediction = _random(2, 4, 3).requires_grad_()
    loss = masked_reconstruction(prediction, _random(2, 4, 3), _mask(2, 4, 0.0))
    assert loss == 0
    loss.backward()
    assert torch.all(prediction.grad == 0)


def test_visible_tokens_are_never_read():
    prediction, target, mask = _random(3, 10, 5), _random(3, 10, 5, seed=1), _mask()
    prediction[~mask.hidden] = float("nan")
    target[~mask.hidden] = float("inf")
    assert masked_reconstruction(prediction, target, mask, standardise=True).isfinite()


def test_constant_patches_standardise_to_zero():
    assert torch.all(standardise_patches(torch.full((1, 2, 4), 7.0)) == 0)


def test_unknown_kind():
    with pytest.raises(ConfigError, match="none of mse, l1, smooth_l1"):
        masked_reconstruction(_random(1, 2, 3), _random(1, 2, 3), None, "huber")


# contrast ---------------------------------------------------------------------------------------------------------


def _naive_info_nce(a, b, scale):
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(a)):
        forth = torch.stack([(scale * a[i] @ b[j]).exp() for j in range(len(b))])
        back = torch.stack([(scale * b[i] @ a[j]).exp() for j in range(len(a))])
        total = total - (forth[i] / forth.sum()).log() / 2 - (back[i] / back.sum()).log() / 2
    return total / len(a)


def test_info_nce():
    a, b = _random(6, 8).requires_grad_(), _random(6, 8, seed=1).requires_grad_()
    naive = _naive_info_nce(a, b, 5.0)
    for detach in (False, True):
        torch.testing.assert_close(info_nce(a, b, 5.0, detach), naive)
    expected = torch.autograd.grad(naive, (a, b))
    torch.testing.assert_close(torch.autograd.grad(info_nce(a, b, 5.0), (a, b)), expected)


def test_detached_keys_leave_each_side_its_own_cross_entropy():
    a, b = _random(6, 8).requires_grad_(), _random(6, 8, seed=1).requires_grad_()
    found = torch.autograd.grad(info_nce(a, b, 5.0, detach_keys=True), (a, b))
    for side, (query, keys) in enumerate(((a, b), (b, a))):
        logits = 5.0 * F.normalize(query, dim=1) @ F.normalize(keys.detach(), dim=1).T
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(6)) / 2, query)
        torch.testing.assert_close(found[side], expected)


def test_info_nce_of_equals_and_of_one():
    a = torch.eye(4)
    assert info_nce(a, a, 100.0) < 1e-6
    assert info_nce(a, a.flip(0), 100.0) > 50
    assert info_nce(a[:1], a[:1], 10.0) == 0
    torch.testing.assert_close(info_nce(a, a, 0.0), torch.tensor(math.log(4)))


# distillation -----------------------------------------------------------------------------------------------------


def test_teachers_get_no_gradient():
    student, teacher = _random(2, 3, 4).requires_grad_(), _random(2, 3, 4, seed=1).requires_grad_()
    for loss in (token_regression, cosine_distance, soft_cross_entropy):
        student_gradient, teacher_gradient = torch.autograd.grad(
            loss(student, teacher), (student, teacher), allow_unused=True
        )
        assert student_gradient.abs().sum() > 0
        assert teacher_gradient is None


def test_token_regression():
    student, teacher = _random(2, 3, 4), _random(2, 3, 4, seed=1) * 5 + 2
    mean, var = teacher.mean(-1, keepdim=True), teacher.var(-1, keepdim=True, correction=0)
    target = (teacher - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(token_regression(student, teacher, "mse"), ((student - target) ** 2).mean())
    torch.testing.assert_close(token_regression(student, teacher, "l1", False), (student - teacher).abs().mean())


def test_cosine_distance():
    a, b = _random(2, 3, 4), _random(2, 3, 4, seed=1)
    cosine = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(cosine_distance(a, b, 2.0), ((1 - cosine) ** 2).mean())
    assert cosine_distance(a, 3 * a) == pytest.approx(0, abs=1e-12)


def test_soft_cross_entropy():
    student, teacher, centre = _random(2, 3, 4), _random(2, 3, 4, seed=1), _random(4, seed=2)
    target = ((teacher - centre) / 0.04).softmax(-1)
    expected = -(target * (student / 0.1).softmax(-1).log()).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, centre=centre), expected)


# ranking ----------------------------------------------------------------------------------------------------------


def test_pairwise_ranking():
    prediction, value = _random(2, 5), _random(2, 5, seed=1)
    value[0, 1] = value[0, 0]  # a tie is no pair
    losses = []
    for row in range(2):
        for i in range(5):
            for j in range(5):
                if value[row, i] != value[row, j]:
                    p = torch.sigmoid(prediction[row, i] - prediction[row, j])
                    losses.append(-(p.log() if value[row, i] > value[row, j] else (1 - p).log()))
    torch.testing.assert_close(pairwise_ranking(prediction, value), torch.stack(losses).mean())
    assert pairwise_ranking(prediction, torch.zeros(2, 5)) == 0
    assert pairwise_ranking(100 * value, value) < pairwise_ranking(-value, value)
