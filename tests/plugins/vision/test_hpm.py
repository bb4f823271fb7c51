"""HPM: checks of its paper and code."""

import math

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import BlockMasking, GuidedMasking
from maskwright.core.objective import pairwise_ranking
from maskwright.core.trainer import Progress
from maskwright.plugins.vision.methods.hpm import LOG_EPS, Hpm
from maskwright.testing import check_method
from tests.plugins.vision.helpers import DECODER, ENCODER, gradients, images, keys, make, parameters

SMALL = {**ENCODER, **DECODER}


def _hpm(**options):
    return make(Hpm, **{**SMALL, **options})


def _at(method, epoch, epochs):
    method.start_step(Progress(epoch, epochs, epoch, epochs))


@pytest.mark.parametrize("options", [{}, {"norm_pix_loss": True}, {"target": "ema"}, {"block": "crate"}])
def test_the_contract(options):
    check_method(lambda: _hpm(**options), images())


def test_parameter_counts():
    with torch.device("meta"):
        method = Hpm()
    assert parameters(method) == 137_269_760
    tables = 197 * (768 + 512)  # fixed position tables, which the published code counts
    assert 137_269_760 + tables == 137_521_920


def test_schedule_of_hard_patches():
    with torch.device("meta"):
        method = Hpm()
    counts = {}
    for epochs in (200, 800):
        for epoch in range(epochs):
            _at(method, epoch, epochs)
            counts[epochs, epoch] = method.hard_count(147)
    assert counts[200, 0] == 0
    assert counts[200, 199] == counts[800, 799] == 73
    assert min(epoch for epoch in range(200) if counts[200, epoch]) == 2
    assert min(epoch for epoch in range(800) if counts[800, epoch]) == 10


def test_the_hardest_are_hidden_and_the_others_at_random():
    method = _hpm(patch_size=4)
    tokens = method.encoder.tokenize(images())
    score = torch.rand(4, 64, generator=torch.Generator().manual_seed(1))
    method.scores = lambda tokens: score
    _at(method, 99, 100)
    hidden, hard = 48, 24
    assert method.hard_count(hidden) == hard
    times = torch.zeros(4, 64)
    for seed in range(300):
        mask = method.mask(tokens, keys(seed=seed))
        assert mask.masked.shape == (4, hidden)
        times += mask.hidden
    hardest = torch.zeros(4, 64, dtype=torch.bool).scatter(1, score.topk(hard, dim=1).indices, True)
    assert torch.all(times[hardest] == 300)
    share = times[~hardest] / 300  # 24 of the other 40
    assert abs(share.mean() - 0.6) < 1e-6
    assert (share - 0.6).abs().max() < 5 * math.sqrt(0.6 * 0.4 / 300)


def test_the_first_epoch_of_many_is_random():
    method = _hpm()
    tokens = method.encoder.tokenize(images())
    _at(method, 0, 200)
    assert torch.equal(method.mask(tokens, keys()).masked, method.masking(tokens.grid, keys()).masked)


def test_scores_come_from_the_teacher_and_the_whole_image():
    method = _hpm()
    batch = images()
    tokens = method.encoder.tokenize(batch)
    before = method.scores(tokens)
    assert before.shape == (4, 16)
    with torch.no_grad():
        method.encoder.patch_embed.weight.mul_(2)
        method.predictor.head.weight.mul_(2)
    assert torch.equal(method.scores(tokens), before)
    other = images(seed=1)
    other.tensors["image"][:, :, :8, :8] += 1  # every patch counts, hidden or not
    assert not torch.allclose(method.scores(method.encoder.tokenize(other)), before)
    with torch.no_grad():
        method.decoder.mask_token.add_(1)  # nothing is masked, so nothing holds the token
    assert torch.equal(method.scores(tokens), before)


def test_ranking_loss():
    p = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    error = torch.rand(3, 12, generator=torch.Generator().manual_seed(1))
    loss = pairwise_ranking(p, error, LOG_EPS)
    torch.testing.assert_close(pairwise_ranking(p + 7, error, LOG_EPS), loss)
    assert torch.equal(pairwise_ranking(p, error.exp() * 3, LOG_EPS), loss)
    constant = pairwise_ranking(torch.zeros(3, 12), error, LOG_EPS)
    assert constant == pytest.approx(math.log(2), abs=1e-5)
    order = error.argsort(1).argsort(1).float()
    assert -2e-6 < pairwise_ranking(order * 100, error, LOG_EPS) < 1e-6
    assert pairwise_ranking(order * -100, error, LOG_EPS).item() == pytest.approx(-math.log(1e-6), abs=1e-3)
    by_hand, pairs = 0.0, 0
    for row in range(3):
        for i in range(12):
            for j in range(12):
                if error[row, i] != error[row, j]:
                    q = torch.sigmoid(p[row, i] - p[row, j])
                    q = q if error[row, i] > error[row, j] else 1 - q
                    by_hand -= math.log(q + 1e-6)
                    pairs += 1
    assert pairs == 3 * 12 * 11
    assert loss == pytest.approx(by_hand / pairs, rel=1e-5)
    tied = pairwise_ranking(p, torch.ones(3, 12), LOG_EPS)
    assert tied == 0


def test_each_loss_keeps_to_its_own_decoder():
    method = _hpm()
    batch = images()
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, keys())
    x = method.decoder.fill(method.encoder(tokens, mask), mask, tokens.grid)
    errors = torch.rand(4, 12, generator=torch.Generator().manual_seed(3))
    ranking = pairwise_ranking(method.predictor(x).mean(-1)[:, :12], errors, LOG_EPS)
    of_ranking = gradients(ranking, method)
    own = ("decoder.blocks", "decoder.norm", "decoder.head")
    assert all(g is None for name, g in of_ranking.items() if name.startswith(own))
    assert of_ranking["decoder.embed.weight"].abs().sum() > 0
    assert of_ranking["encoder.patch_embed.weight"].abs().sum() > 0
    step = method(batch, keys())
    method.loss_weight = 0.0
    of_reconstruction = gradients(method(batch, keys()).loss, method)
    assert all(g is None or not g.any() for name, g in of_reconstruction.items() if name.startswith("predictor"))
    assert step.loss.item() == pytest.approx(float(step.terms["reconstruction"] + step.terms["ranking"]), rel=1e-6)


def test_the_teacher_follows_the_recursion_and_has_no_gradient():
    method = _hpm(ema_start=0.9, ema_end=0.99, ema_epochs=10)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    expected = {name: p.clone() for name, p in method.teacher.module.named_parameters()}
    for epoch in range(12):
        _at(method, epoch, 12)
        method(images(seed=epoch), keys(seed=epoch)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(epoch, 12)
        decay = 0.9 + min(epoch / 10, 1) * 0.09
        student = dict(method._scorer().named_parameters())
        expected = {name: decay * p + (1 - decay) * student[name].detach() for name, p in expected.items()}
    for name, p in method.teacher.module.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=1e-5, atol=1e-6)
        assert p.grad is None
        assert not p.requires_grad


def test_features_as_target():
    """2 - 2 cos to the average of the encoder on the whole input; the heads are as wide as the features."""
    method = _hpm(target="ema")
    assert method.decoder.head.out_features == method.predictor.head.out_features == 32
    batch = images()
    tokens = method.encoder.tokenize(batch)
    mask = method.masking(tokens.grid, keys())
    predicted = torch.randn(4, 12, 32)
    errors = method._errors(predicted, batch, tokens, mask)
    whole = method.encoder(tokens)[:, 1:]  # the average still equals the encoder
    target = torch.stack([whole[i, mask.masked[i]] for i in range(4)])
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (predicted, target)]
    torch.testing.assert_close(errors, (unit[0] - unit[1]).square().sum(-1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="norm_pix_loss"):
        _hpm(target="ema", norm_pix_loss=True)


def test_other_maskings_and_a_guide():
    for masking in (BlockMasking(0.5), GuidedMasking(0.5, strength=1.0)):
        method = _hpm(masking=masking)
        _at(method, 9, 10)
        step = method(images(), keys())
        assert step.loss.isfinite()
    tokens = method.encoder.tokenize(images())
    _at(method, 0, 1000)
    hidden = method.mask(tokens, keys()).hidden
    top = torch.zeros_like(hidden).scatter(1, method.scores(tokens).topk(8, dim=1).indices, True)
    assert torch.equal(hidden, top)  # all by the teacher's scores


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match="hard_share"):
        _hpm(hard_share=1.5)
