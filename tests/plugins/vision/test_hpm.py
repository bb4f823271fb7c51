"""HPM: checks of its paper and code."""

import math

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import BlockMasking, GuidedMasking
from maskwright.core.masking.hide import take
from maskwright.core.objective import pairwise_ranking
from maskwright.core.sample import Batch, Meta
from maskwright.core.trainer import Progress
from maskwright.plugins.vision.methods import hpm
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


@pytest.mark.parametrize("epoch", [0, 100, 199])
def test_147_of_196_are_hidden_whatever_the_epoch(epoch):
    method = _hpm(embed_dim=8, depth=1, num_heads=2)
    tokens = method.encoder.tokenize(images(2, size=112))
    _at(method, epoch, 200)
    mask = method.mask(tokens, keys(2))
    assert mask.masked.shape == (2, 147)
    assert mask.hidden.sum(1).tolist() == [147, 147]


def test_published_settings():
    """Raw pixels, as the released commands train; the decay of the moving average rises over 100 epochs."""
    with torch.device("meta"):
        method = Hpm()
    assert not method.norm_pix_loss
    assert (method.ema_start, method.ema_end, method.ema_epochs) == (0.999, 0.9999, 100)
    assert (method.hard_share, method.loss_weight, Hpm.default_masking["ratio"]) == (0.5, 1.0, 0.75)
    trainer = Hpm.presets["base"]["trainer"]
    assert (trainer["base_lr"], trainer["betas"], trainer["weight_decay"]) == (1.5e-4, (0.9, 0.95), 0.05)
    assert trainer["warmup"] * trainer["epochs"] == 40
    decays = []
    method.teacher.update = lambda student, decay: decays.append(decay)
    for epoch in (0, 50, 100, 700):
        _at(method, epoch, 800)
        method.after_step(epoch, 800)
    assert decays == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])


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


def test_each_loss_keeps_to_its_own_decoder(monkeypatch):
    """The ranking reaches what the decoders share, and no further into the other; errors are a constant to it."""
    method, given = _hpm(), {}

    def spy(predicted, errors, eps):
        predicted.retain_grad()
        given.update(ranking=pairwise_ranking(predicted, errors, eps), predicted=predicted, errors=errors, eps=eps)
        return given["ranking"]

    monkeypatch.setattr(hpm, "pairwise_ranking", spy)
    step = method(images(), keys())
    assert given["eps"] == 1e-6
    assert given["predicted"].shape == given["errors"].shape == (4, 12), "hidden patches alone"
    of_ranking = gradients(given["ranking"], method)
    reconstructs = ("decoder.blocks", "decoder.norm", "decoder.head")
    assert all(g is None for name, g in of_ranking.items() if name.startswith(reconstructs))
    shared = ("encoder.", "decoder.embed", "decoder.mask_token", "predictor.")
    assert all(g is not None for name, g in of_ranking.items() if name.startswith(shared))
    assert of_ranking["decoder.embed.weight"].abs().sum() > 0
    assert of_ranking["encoder.patch_embed.weight"].abs().sum() > 0
    assert step.loss.item() == pytest.approx(float(step.terms["reconstruction"] + step.terms["ranking"]), rel=1e-6)
    method.loss_weight = 0.0
    of_reconstruction = gradients(method(images(), keys()).loss, method)
    assert all(g is None or not g.any() for name, g in of_reconstruction.items() if name.startswith("predictor"))
    assert all(g.any() for name, g in of_reconstruction.items() if name.startswith(reconstructs))


def test_the_score_of_a_patch_is_the_mean_of_all_that_is_predicted_of_it(monkeypatch):
    """At hidden patches, whose input is the mask token, on the very input of the reconstructing decoder."""
    method, given, inputs = _hpm(), {}, []
    _at(method, 0, 200)
    ranking = pairwise_ranking
    monkeypatch.setattr(hpm, "pairwise_ranking", lambda p, e, eps: given.update(p=p, e=e) or ranking(p, e, eps))
    for stack in (method.decoder, method.predictor):
        stack.blocks[0].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    batch = images()
    loss = method(batch, keys()).terms["reconstruction"]
    assert torch.equal(*inputs)
    tokens = method.encoder.tokenize(batch)
    hidden = method.masking(tokens.grid, keys()).masked
    with torch.no_grad():
        values = method.predictor(inputs[0])
        errors = (method.decoder.decode(inputs[0]) - tokens.values).square().mean(-1)
    assert values.shape == (4, 16, 192)
    torch.testing.assert_close(given["p"], values.mean(-1).gather(1, hidden))
    torch.testing.assert_close(given["e"], errors.gather(1, hidden))
    torch.testing.assert_close(loss, errors.gather(1, hidden).mean())


@pytest.mark.parametrize(("gap", "apart"), [(2, 1.5e-5), (5, 1.6e-4), (10, 0.025), (15, 1.6)])
def test_the_constant_in_the_logarithm_caps_the_tails(gap, apart):
    """A log-sigmoid agrees early in training and not in the tails, where a pair costs 13.8 at most."""
    scores, errors = torch.tensor([[0.0, gap]], dtype=torch.float64), torch.tensor([[1.0, 0.0]])
    capped, plain = pairwise_ranking(scores, errors, LOG_EPS), pairwise_ranking(scores, errors)
    assert plain.item() == pytest.approx(gap + math.log1p(math.exp(-gap)))
    assert capped <= -math.log(LOG_EPS)
    assert apart / 4 < (plain - capped) < apart


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


def test_one_look_of_the_teacher_in_a_step_at_the_whole_image_before_the_student():
    """None at all as long as no patch is hidden for being hard. It has no gradient, and moves behind the step only."""
    method, order = _hpm(), []
    encoder = method.teacher.module[0]
    encoder.blocks[0].register_forward_pre_hook(lambda _, x: order.append(("teacher", x[0].shape[1])))
    encoder.register_forward_hook(lambda _, __, out: order.append(("gradient", out.requires_grad)))
    method.encoder.blocks[0].register_forward_pre_hook(lambda _, x: order.append(("student", x[0].shape[1])))
    before = {name: p.clone() for name, p in method.teacher.module.named_parameters()}
    _at(method, 0, 200)
    method(images(), keys())
    assert order == [("student", 1 + 4)]
    order.clear()
    _at(method, 199, 200)
    method(images(), keys()).loss.backward()
    assert order == [("teacher", 1 + 16), ("gradient", False), ("student", 1 + 4)]
    assert all(torch.equal(p, before[name]) for name, p in method.teacher.module.named_parameters())


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


def _half_noise(count, seed):
    """Images of which one side, in any direction, is noise that nothing can predict, and the other is empty."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    angle = torch.rand(count, 1, 1, generator=generator) * 2 * math.pi
    side = angle.cos() * x + angle.sin() * y > 0
    noise = torch.randn(count, 1, 32, 32, generator=generator)
    return Batch({"image": noise * side[:, None]}, [Meta(str(number)) for number in range(count)])


def _rank_correlation(a, b):
    """Spearman's, within each row of (B, N); the mean over rows."""
    a, b = (x.argsort(1).argsort(1).double() for x in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()).mean().item()


def test_the_predictor_comes_to_rank_the_errors_of_images_that_it_was_not_trained_on():
    """And says it of each image: the scores of one image say nothing of the errors of another."""
    method, steps, test = _hpm(in_chans=1, depth=2, ema_start=0.9, ema_end=0.9), 400, _half_noise(64, 1)
    tokens = method.encoder.tokenize(test)
    mask = method.masking(tokens.grid, keys(64, seed=9))

    def correlations():
        with torch.no_grad():
            x = method.decoder.fill(method.encoder(tokens, mask), mask, tokens.grid)
            errors = method._errors(take(method.decoder.decode(x), mask.masked), test, tokens, mask)
            scores = method.predictor(x).mean(-1)
        return [_rank_correlation(of.gather(1, mask.masked), errors) for of in (scores, scores.roll(1, 0))]

    before = correlations()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=4e-3, betas=(0.9, 0.95))
    for step in range(steps):
        _at(method, step, steps)
        optimizer.zero_grad()
        method(_half_noise(32, 100 + step), keys(32, seed=step)).loss.backward()
        optimizer.step()
        method.after_step(step, steps)
    own, of_another = correlations()
    assert abs(before[0]) < 0.15
    assert own > 0.4
    assert abs(of_another) < 0.15
