"""w2v-BERT: who learns from which loss, what is masked, told apart and predicted."""

import math

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.masking import RandomMasking
from maskwright.core.masking.spans import SpanMasking, within
from maskwright.core.trainer.method import Progress
from maskwright.speech.conformer import ConvolutionModule
from maskwright.speech.contrast import contrastive, distractors, hidden_places
from maskwright.speech.methods.w2v_bert import W2vBert, mean_by_code
from maskwright.speech.quantizer import GumbelQuantizer, diversity_loss, gumbel, perplexity, step_keys
from maskwright.speech.units import unit_ids
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.speech.helpers import gradients, keys, parameters, spectrograms

SMALL = {
    "in_chans": 8,
    "embed_dim": 32,
    "depth": 2,
    "contrastive_depth": 1,
    "num_heads": 4,
    "front_chans": 4,
    "codes": 16,
    "code_dim": 16,
    "projection_dim": 16,
    "distractors": 10,
}
STACKING = {"front": "stacking", "fill": "learned"}


def make(**options):
    torch.manual_seed(0)
    return W2vBert(**{**SMALL, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**STACKING, "positions": "shaw", "conv_norm": "layer", "causal": True},
        {"spans": "exact", "positions": "none", "stack": 3, "front": "stacking"},
        {"masking": RandomMasking(0.5), "detach_features": True},
    ],
)
def test_the_contract(options):
    batch = made_up_batch(make().inputs, 4, 160)
    check_method(lambda: make(**options), batch)
    check_encoder(lambda: make(**options).encoder, batch)


def test_sizes_of_the_paper():
    with torch.device("meta"):
        assert parameters(W2vBert()) == pytest.approx(0.6e9, rel=0.05)
        assert parameters(W2vBert(**W2vBert.presets["xxl"]["method"])) == pytest.approx(1.0e9, rel=0.1)
        fairseq = W2vBert(**W2vBert.presets["fairseq"]["method"])
    assert fairseq.encoder.front.out_dim == 160
    assert (fairseq.context_proj.out_features, fairseq.classifier.out_features) == (768, 1024)


# gradients ----------------------------------------------------------------------------------------------------------


def only(contrastive_weight=0.0, prediction_weight=0.0, **options):
    method = make(
        contrastive_weight=contrastive_weight,
        prediction_weight=prediction_weight,
        depth=4,
        contrastive_depth=2,
        **options,
    ).train()
    return gradients(method(spectrograms(200, 150), keys(2)).loss, method)


def zero(gradient):
    return gradient is None or not gradient.any()


@pytest.mark.parametrize("options", [{}, STACKING])
def test_prediction_never_teaches_the_quantiser_but_the_lower_blocks(options):
    found = only(prediction_weight=1.0, **options)
    assert all(zero(g) for name, g in found.items() if name.startswith(("quantizer", "context_proj", "target_proj")))
    lower = [g for name, g in found.items() if name.startswith(("encoder.blocks.0.", "encoder.blocks.1."))]
    assert sum(not zero(g) for g in lower) > 0.9 * len(lower)
    assert not zero(found["classifier.weight"])


@pytest.mark.parametrize("options", [{}, STACKING])
def test_contrast_never_teaches_the_upper_blocks(options):
    found = only(contrastive_weight=1.0, **options)
    upper = ("encoder.blocks.2.", "encoder.blocks.3.", "classifier")
    assert all(zero(g) for name, g in found.items() if name.startswith(upper))
    for name in ("encoder.blocks.0.attn.qkv.weight", "encoder.blocks.1.mlp2.fc2.weight", "target_proj.weight"):
        assert not zero(found[name])
    assert not zero(found["quantizer.codebook"])
    assert not zero(found["quantizer.logits.weight"])


def test_the_front_learns_through_the_quantiser_unless_detached():
    """The gradient of the codebook's users alone: the mask hides every step from the blocks."""
    for detached in (False, True):
        method = make(detach_features=detached, diversity_weight=1.0).train()
        steps = method.encoder.tokenize(spectrograms(200))
        clean = steps.values.detach() if detached else steps.values
        codes = method.quantizer(clean[0], step_keys(keys(1), torch.arange(clean.shape[1])))
        loss = diversity_loss(codes.probabilities) + codes.vectors.square().mean()
        assert zero(gradients(loss, method)["encoder.front.conv1.weight"]) is detached


# masking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, STACKING])
def test_content_of_hidden_steps_changes_targets_and_nothing_that_the_blocks_get(options):
    method = make(**options).eval()
    batch = spectrograms(200, 160)
    steps = method.encoder.tokenize(batch)
    hidden = method.hidden(steps, keys(2))
    got = []
    method.encoder.blocks[0].register_forward_pre_hook(lambda block, inputs: got.append(inputs[0]))
    before = method.context(steps, hidden, keys(2))[-1]
    noise = torch.where(hidden[..., None], torch.randn_like(steps.values), 0)
    changed = type(steps)(steps.values + noise, steps.grid, steps.lengths)
    after = method.context(changed, hidden, keys(2))[-1]
    assert torch.equal(got[0], got[1])
    assert torch.equal(before, after)
    codes = [method.quantizer.logits(each.values)[hidden] for each in (steps, changed)]
    assert not torch.allclose(codes[0], codes[1])
    assert bool((codes[0].argmax(-1) != codes[1].argmax(-1)).any())


def test_random_vectors_differ_and_learned_ones_do_not():
    for options, same in (({}, False), (STACKING, True)):
        method = make(**options).eval()
        got = []
        method.encoder.blocks[0].register_forward_pre_hook(lambda block, inputs, got=got: got.append(inputs[0]))
        steps = method.encoder.tokenize(spectrograms(200))
        hidden = method.hidden(steps, keys(1))
        method.context(steps, hidden, keys(1))
        inside = got[0][0, : hidden.shape[1]][hidden[0]]
        assert bool((inside == inside[:1]).all()) is same


def test_counts_of_hidden_steps():
    batch = spectrograms(400, 360, 300)
    steps = make(**STACKING).encoder.tokenize(batch)
    counts = {
        spans: make(**STACKING, spans=spans).hidden(steps, keys(3)).sum(1)
        for spans in ("independent", "equal", "exact")
    }
    assert len(counts["equal"].unique()) == 1
    assert len(counts["independent"].unique()) > 1
    masking = SpanMasking()
    assert counts["exact"].tolist() == [n - int(round(n * (1 - masking.ratio), 6)) for n in (200, 180, 150)]


# contrast -----------------------------------------------------------------------------------------------------------


def test_places_of_hidden_steps():
    hidden = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    places, counts = hidden_places(hidden)
    assert counts.tolist() == [3, 1]
    assert places[0].tolist() == [1, 2, 4]
    assert int(places[1, 0]) == 0


def test_distractors_are_uniform_over_the_other_hidden_steps():
    counts = torch.tensor([7, 2, 12] * 500)
    found = distractors(keys(1500), counts, 12, 20)
    for count in (7, 2, 12):
        rows = found[counts == count][:, :count]
        own = torch.arange(count)[:, None]
        assert not (rows == own).any()
        assert int(rows.min()) == 0
        assert int(rows.max()) == count - 1
        for step in range(count):
            share = torch.bincount(rows[:, step].flatten(), minlength=count).float() / rows[:, step].numel()
            expected = torch.full((count,), 1 / (count - 1))
            expected[step] = 0
            assert float((share - expected).abs().max()) < 5 * (0.25 / rows[:, step].numel()) ** 0.5
    alone = distractors(keys(1500)[5:6], counts[5:6], 12, 20)
    assert torch.equal(alone, found[5:6])


def test_contrast_is_the_paper_s_formula():
    torch.manual_seed(0)
    counts = torch.tensor([6, 4])
    context, target = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    ids = torch.tensor([[0, 1, 2, 0, 3, 4], [5, 6, 5, 7, 0, 0]])
    others = distractors(keys(2), counts, 6, 5)
    loss, logits = contrastive(context, target, ids, counts, others, 0.1)
    assert logits.shape == (2, 6, 6)
    each = []
    for row in range(2):
        for step in range(int(counts[row])):
            places = [step, *(o for o in others[row, step].tolist() if ids[row, o] != ids[row, step])]
            cosine = torch.cosine_similarity(context[row, step], target[row, places], dim=-1) / 0.1
            each.append(cosine.logsumexp(0) - cosine[0])
            left_out = 6 - len(places)
            assert int(logits[row, step].isinf().sum()) == left_out
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_untrained_accuracy_is_chance_among_the_finite_candidates():
    """With random contexts the true step wins as often as any candidate that is no copy of it."""
    torch.manual_seed(0)
    counts = torch.full((64,), 60)
    ids = torch.randint(0, 256, (64, 60))  # so many that two distractors seldom share a code, and with it a chance
    book = torch.randn(256, 8)
    others = distractors(keys(64), counts, 60, 20)
    _, logits = contrastive(torch.randn(64, 60, 8), book[ids], ids, counts, others)
    chance = (1 / logits.isfinite().sum(-1)).mean()
    best = logits.amax(-1, keepdim=True)
    right = ((logits == best) & logits.isfinite())[..., 0].float().mean()
    assert float(right) > 1 / 21
    assert float(right) == pytest.approx(float(chance), abs=0.006)


def test_a_row_with_one_hidden_step_costs_nothing():
    loss, _ = contrastive(
        torch.randn(1, 1, 4),
        torch.randn(1, 1, 4),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.tensor([1]),
        distractors(keys(1), torch.tensor([1]), 1, 5),
    )
    assert float(loss) == 0


# quantiser ----------------------------------------------------------------------------------------------------------


def test_perplexity_and_diversity():
    assert float(perplexity(torch.full((50, 64), 1 / 64))) == pytest.approx(64, rel=1e-4)
    assert float(diversity_loss(torch.full((50, 64), 1 / 64))) == pytest.approx(0, abs=1e-4)
    one = torch.eye(64)[:1].expand(50, -1)
    assert float(diversity_loss(one)) == pytest.approx(63 / 64, abs=1e-4)
    # means over steps, not of perplexities: each step is certain, all together use all codes
    assert float(diversity_loss(torch.eye(64))) == pytest.approx(0, abs=1e-4)


def test_initial_codebook_and_logits():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(160, 512, 256)
    state = quantizer.state_dict()
    assert 0 <= float(state["codebook"].min()) < 0.001
    assert 0.999 < float(state["codebook"].max()) <= 1
    assert float(state["logits.weight"].std()) == pytest.approx(1, abs=0.01)
    assert not state["logits.bias"].any()


def test_codes_are_drawn_in_training_and_the_likeliest_in_evaluation():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(4, 5, 3)
    x = (0.7 * torch.randn(1, 4)).expand(20_000, -1)
    many = step_keys(keys(1), torch.arange(20_000))
    codes = quantizer(x, many)
    share = torch.bincount(codes.ids, minlength=5) / 20_000
    torch.testing.assert_close(share, codes.probabilities[0].detach(), atol=0.02, rtol=0)
    assert torch.equal(codes.ids, quantizer(x, many).ids)
    torch.testing.assert_close(codes.vectors, quantizer.codebook[codes.ids], atol=1e-6, rtol=1e-6)
    quantizer.eval()
    assert bool((quantizer(x, many).ids == codes.probabilities[0].argmax()).all())


def test_gradients_pass_as_if_the_choice_were_soft():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(4, 5, 3).double()
    quantizer.temperature = 0.7
    x, direction, noise_keys = torch.randn(6, 4).double(), torch.randn(6, 3), step_keys(keys(1), torch.arange(6))
    (quantizer(x, noise_keys).vectors * direction).sum().backward()
    found = quantizer.logits.weight.grad.clone()
    quantizer.zero_grad()
    noisy = quantizer.logits(x).float() + gumbel(noise_keys, 5)
    soft = (noisy / 0.7).softmax(-1)
    ((soft.double() @ quantizer.codebook.detach()) * direction).sum().backward()
    torch.testing.assert_close(found, quantizer.logits.weight.grad, atol=1e-5, rtol=1e-5)


def test_temperature_follows_the_step():
    method = make(temperature_decay=0.9)
    found = []
    for step in (0, 1, 10, 1000):
        method.start_step(Progress(step, 2000))
        found.append(method.quantizer.temperature)
    assert found == pytest.approx([2.0, 1.8, 2 * 0.9**10, 0.1])
    with torch.device("meta"):
        assert GumbelQuantizer(4).decay == 0.999995


def test_gumbel_noise():
    noise = gumbel(keys(200), 500)
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)


# padding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {**STACKING, "positions": "shaw", "conv_norm": "layer"}, {"positions": "none", "causal": True}]
)
@pytest.mark.parametrize("length", [61, 200, 333])
def test_padding_changes_no_embedding(options, length):
    encoder = make(**options).encoder
    alone = encoder.embed(spectrograms(length))
    count = alone.tokens.shape[1]
    for padded, others in ((length + 1, []), (length + 90, [44]), (length + 200, [length + 200, 7])):
        batch = spectrograms(length, *others, padded=padded)
        found = encoder.embed(batch)
        torch.testing.assert_close(found.tokens[0, :count], alone.tokens[0], atol=2e-6, rtol=1e-6)
        assert not found.tokens[0, count:].any()
        batch["frames"][0, :, length:] = 1e5
        assert torch.equal(encoder.embed(batch).tokens, found.tokens)


def test_padding_changes_no_loss_in_training():
    for options in ({}, STACKING):
        method = make(**options).train()
        first, second = (method(spectrograms(160, 99, padded=padded), keys(2)).loss for padded in (160, 240))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_batch_norm_counts_true_steps_only():
    module = ConvolutionModule(8, 5).train()
    x, real = torch.randn(2, 20, 8), within(torch.tensor([20, 12]), 20)
    first = module(x, real)
    mean = module.middle_norm.running_mean.clone()
    module.middle_norm.reset_running_stats()
    longer = torch.nn.functional.pad(x, (0, 0, 0, 30), value=9.0)
    second = module(longer, within(torch.tensor([20, 12]), 50))
    torch.testing.assert_close(first[real], second[:, :20][real])
    torch.testing.assert_close(mean, module.middle_norm.running_mean)


# pictures, units, options -------------------------------------------------------------------------------------------


def test_codes_are_drawn_as_the_mean_of_visible_steps():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    drawn = mean_by_code(values, torch.tensor([2, 2, 0]), 4)
    assert drawn[2].tolist() == [2, 3]
    assert drawn[0].tolist() == [10, 20]
    torch.testing.assert_close(drawn[1], values.mean(0))


@pytest.mark.parametrize(("options", "reach"), [({}, (-3, 4)), (STACKING, (0, 2))])
def test_seen_frames_are_the_receptive_field(options, reach):
    encoder = make(**options).encoder.eval()
    x = spectrograms(60)
    clean = encoder.tokenize(x).values
    for step in (0, 5, clean.shape[1] - 1):
        flags = torch.zeros(1, clean.shape[1], dtype=torch.bool)
        flags[0, step] = True
        seen = encoder.seen_frames(flags, 60)[0]
        for frame in range(60):
            other = spectrograms(60)
            other["frames"][0, :, frame] += torch.randn(8, generator=torch.Generator().manual_seed(frame))
            changed = bool((encoder.tokenize(other).values[0, step] != clean[0, step]).any())
            assert not changed or bool(seen[frame])
        first = step * encoder.front.stride
        expected = [frame for frame in range(60) if reach[0] <= frame - first < reach[1]]
        assert seen.nonzero()[:, 0].tolist() == expected


def test_units_have_the_length_of_their_utterance():
    method = make(**STACKING)
    batch = spectrograms(60, 31, 44)
    ids = unit_ids(method, batch)
    assert [len(row) for row in ids] == [30, 15, 22]
    alone = unit_ids(method, spectrograms(60))
    assert torch.equal(alone[0], ids[0])
    assert method.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive_depth": 3}, "one of the blocks 1 to"),
        ({"kernel": 4}, "odd number"),
        ({"codes": 1}, "2 or more"),
        ({"lowest_temperature": 3.0}, "Temperatures fall"),
        ({"masking": RandomMasking(0.0)}, "none is hidden"),
        ({"distractors": 0}, "1 or more"),
        ({"positions": "rope"}, "none of sinusoid"),
        ({"conv_norm": "group"}, "neither"),
        ({"front": "waveform"}, "neither"),
        ({"front": "stacking", "stack": 0}, "1 or more frames"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
