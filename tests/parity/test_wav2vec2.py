"""Quantiser, distractors and contrastive loss against transformers' wav2vec 2.0, with the same weights and choices."""

import pytest
import torch
import torch.nn.functional as F

from maskwright.core.masking import sample_keys
from maskwright.speech.contrast import contrastive, distractors
from maskwright.speech.quantizer import GumbelQuantizer, diversity_loss, gumbel, perplexity, step_keys

outside = pytest.importorskip("transformers.models.wav2vec2.modeling_wav2vec2", reason="transformers is not installed")
CODES, WIDTH, IN_DIM = 24, 12, 16


def quantisers():
    torch.manual_seed(0)
    config = outside.Wav2Vec2Config(
        num_codevector_groups=1,
        num_codevectors_per_group=CODES,
        codevector_dim=WIDTH,
        conv_dim=(IN_DIM,),
        conv_stride=(2,),
        conv_kernel=(2,),
        num_feat_extract_layers=1,
    )
    theirs, ours = outside.Wav2Vec2GumbelVectorQuantizer(config), GumbelQuantizer(IN_DIM, CODES, WIDTH)
    torch.nn.init.uniform_(theirs.codevectors)
    with torch.no_grad():
        ours.codebook.copy_(theirs.codevectors[0])
    ours.logits.load_state_dict(theirs.weight_proj.state_dict())
    return ours, theirs


def test_codes_in_evaluation():
    ours, theirs = (module.eval() for module in quantisers())
    x = torch.randn(3, 40, IN_DIM)
    keys = torch.arange(120)
    codes = ours(x.flatten(0, 1), keys)
    vectors, their_perplexity = theirs(x)
    torch.testing.assert_close(codes.vectors, vectors.flatten(0, 1), atol=1e-6, rtol=1e-6)
    used = torch.bincount(codes.ids, minlength=CODES) / 120
    torch.testing.assert_close(perplexity(used[None]), their_perplexity, atol=1e-3, rtol=1e-3)


def test_codes_and_gradients_in_training(monkeypatch):
    """Their noise is replaced by ours."""
    ours, theirs = (module.train() for module in quantisers())
    keys = step_keys(sample_keys(torch.Generator().manual_seed(1), 1), torch.arange(60))
    noise = gumbel(keys, CODES)

    def with_noise(logits, tau, hard):
        soft = ((logits + noise) / tau).softmax(-1)
        one = F.one_hot(soft.argmax(-1), CODES).to(soft.dtype)
        return one - soft.detach() + soft

    monkeypatch.setattr(outside.nn.functional, "gumbel_softmax", with_noise)
    x, direction = torch.randn(1, 60, IN_DIM), torch.randn(60, WIDTH)
    codes = ours(x[0], keys)
    vectors, their_perplexity = theirs(x)
    torch.testing.assert_close(codes.vectors, vectors[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(perplexity(codes.probabilities), their_perplexity, atol=1e-3, rtol=1e-4)
    for vector, spread in (
        (codes.vectors, diversity_loss(codes.probabilities)),
        (vectors[0], (CODES - their_perplexity) / CODES),
    ):
        ((vector * direction).mean() + spread).backward()
    torch.testing.assert_close(ours.logits.weight.grad, theirs.weight_proj.weight.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(ours.codebook.grad, theirs.codevectors.grad[0], atol=1e-6, rtol=1e-5)


def test_the_contrastive_loss():
    torch.manual_seed(0)
    counts = torch.tensor([20, 20])
    ids = torch.randint(0, 6, (2, 20))
    context, target = torch.randn(2, 20, WIDTH), torch.randn(6, WIDTH)[ids]
    others = distractors(sample_keys(torch.Generator().manual_seed(1), 2), counts, 20, 9).long()
    loss, _ = contrastive(context, target, ids, counts, others)
    negatives = torch.stack([target[row][others[row]] for row in range(2)]).permute(2, 0, 1, 3)
    logits = outside.Wav2Vec2ForPreTraining.compute_contrastive_logits(target[None], negatives, context, 0.1)
    logits[1:][(target == negatives).all(-1)] = float("-inf")
    logits = logits.permute(1, 2, 0).flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(40, dtype=torch.int64)), atol=1e-5, rtol=1e-5)
