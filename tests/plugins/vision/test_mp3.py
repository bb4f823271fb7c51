"""MP3: the context set, what it may change, and what tells it from two common mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskwright.core.encoder import Tokens
from maskwright.core.encoder.blocks import Attention, Block
from maskwright.core.errors import ConfigError
from maskwright.core.masking import BlockMasking, Mask, RandomMasking
from maskwright.core.masking.hide import take
from maskwright.core.trainer.method import Progress
from maskwright.plugins.vision.methods.mp3 import Mp3, soft_places
from maskwright.testing import check_encoder, check_method, made_up_batch
from tests.plugins.vision.helpers import batch_of, gradients, images, keys, make

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}


def small(**options):
    return make(Mp3, **{**SMALL, **options})


def of(method, count=4):
    """Tokens and mask of a batch of images."""
    tokens = method.encoder.tokenize(images(count))
    return tokens, method.mask(tokens, keys(count))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": 1.0, "qkv_bias": "qv"},
        {"positions": "learned", "masking": BlockMasking(0.5)},
        {"dims": "C T", "patch_size": 4, "in_chans": 5},
        {"dims": "C D H W", "img_size": 16, "patch_size": 8, "in_chans": 1},
    ],
)
def test_the_contract(options):
    batch = made_up_batch(small(**options).inputs, 4, options.get("img_size", 32))
    check_method(lambda: small(**options), batch)
    check_encoder(lambda: small(**options).encoder, batch)


# context ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "ratio"), [(32, 0.75), (56, 0.5), (40, 0.3), (24, 0.9), (24, 0.99)])
def test_the_context_has_the_rounded_size_and_differs_between_samples(size, ratio):
    method = small(img_size=size, masking=RandomMasking(ratio))
    tokens = method.encoder.tokenize(images(4, size))
    mask = method.mask(tokens, keys())
    count = (size // 8) ** 2
    assert mask.visible.shape[1] == max(1, round((1 - ratio) * count))
    if mask.visible.shape[1] > 1:
        assert len({tuple(sorted(row)) for row in mask.visible.tolist()}) > 1


def test_every_layer_has_the_same_context():
    method, got = small(), []
    tokens, mask = of(method)
    for block in method.encoder.blocks:
        block.register_forward_pre_hook(lambda block, inputs, named: got.append(named["context"]), with_kwargs=True)
    method.logits(tokens, mask)
    assert len(got) == 4
    assert all(torch.equal(context, mask.visible) for context in got)


def test_permuted_tokens_give_permuted_logits():
    method = small().eval()
    tokens, mask = of(method)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    permuted = Tokens(tokens.values[:, order], tokens.grid)
    moved = Mask(place[mask.visible], place[mask.masked], mask.restore)
    torch.testing.assert_close(
        method.logits(permuted, moved), method.logits(tokens, mask)[:, order], atol=1e-5, rtol=1e-5
    )


def test_other_tokens_change_through_context_only():
    method = small().eval()
    tokens, mask = of(method, 1)
    before = method.logits(tokens, mask)[0]
    other, context = int(mask.masked[0, 0]), int(mask.visible[0, 0])
    for changed in (other, context):
        values = tokens.values.clone()
        values[0, changed] += 1
        after = method.logits(Tokens(values, tokens.grid), mask)[0]
        rest = torch.arange(16) != changed
        same = (after[rest] == before[rest]).all(1)
        assert bool(same.all()) if changed == other else not bool(same.any())
        assert not torch.equal(after[changed], before[changed])


def test_gradients_between_tokens_that_are_no_context_are_zero():
    method = small()
    tokens, mask = of(method, 1)
    values = tokens.values.clone().requires_grad_()
    logits = method.logits(Tokens(values, tokens.grid), mask)
    for token in mask.masked[0, :3].tolist():
        (gradient,) = torch.autograd.grad(logits[0, token].square().sum(), values, retain_graph=True)
        touched = set(gradient[0].abs().sum(1).nonzero()[:, 0].tolist())
        assert touched == {token, *mask.visible[0].tolist()}  # one set in all layers: nothing else leaks in


def dense(method, tokens, mask, fixed=False):
    """All keys, with the columns of others than context at -inf; `fixed` takes keys from the first states alone."""
    x = first = method.encoder.patch_embed(tokens.values)
    bias = torch.where(mask.hidden[:, None, None], float("-inf"), 0.0)
    for block in method.encoder.blocks:
        if fixed:
            parts = block.attn.qkv(block.norm1(x)), block.attn.qkv(block.norm1(first))
            q = parts[0].chunk(3, -1)[0]
            k, v = parts[1].chunk(3, -1)[1:]
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
            x = x + block.attn.proj(attended)
            x = x + block.mlp(block.norm2(x))
        else:
            x = block(x, bias)
    return method.head(method.encoder.norm(x))


@pytest.mark.parametrize("bias", [True, "qv", False])
def test_it_is_full_attention_with_hidden_columns_and_not_a_fixed_context(bias):
    method = small(qkv_bias=bias).eval()
    with torch.no_grad():  # so that layers do something
        for parameter in method.encoder.blocks.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens, mask = of(method)
    found = method.logits(tokens, mask).detach()
    torch.testing.assert_close(found, dense(method, tokens, mask).detach(), atol=1e-4, rtol=1e-4)
    if bias != "qv":
        assert float((found - dense(method, tokens, mask, fixed=True).detach()).abs().max()) > 0.05


def test_context_of_all_tokens_is_a_plain_forward_pass():
    method = small(masking=RandomMasking(0.0)).eval()
    tokens, mask = of(method)
    assert mask.visible.shape[1] == 16
    torch.testing.assert_close(method.features(tokens, mask), method.encoder(tokens), atol=1e-5, rtol=1e-5)


def test_cost_of_keys_shrinks_with_the_ratio_and_nothing_else_does():
    attention, x = Attention(64, 4), torch.randn(2, 100, 64)
    block = Block(64, 4)

    def flops(module, count):
        context = torch.arange(count).expand(2, -1)
        # the counter knows the products that attention is made of, not the fused CPU kernel
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            module(x, context=context)
        return counter.get_total_flops()

    always = 2 * 2 * 100 * 64 * 64 * 2  # query and output projections of two samples
    per_key = 2 * 2 * (2 * 64 * 64 + 2 * 100 * 64)  # key and value projections, scores, weighted sum
    for count in (10, 25, 50, 100):
        assert flops(attention, count) == always + per_key * count
        assert flops(block, count) - flops(attention, count) == 2 * 2 * 100 * 64 * 256 * 2


# loss ---------------------------------------------------------------------------------------------------------------


def test_the_loss_covers_all_tokens():
    method = small().eval()
    tokens, mask = of(method)
    logits = method.logits(tokens, mask)
    each = torch.stack([-logits[:, place].log_softmax(-1)[:, place] for place in range(16)])
    step = method(images(), keys())
    torch.testing.assert_close(step.loss, each.mean())
    right = (logits.argmax(-1) == torch.arange(16)).float()
    torch.testing.assert_close(step.terms["accuracy"], right.mean())
    torch.testing.assert_close(step.terms["hidden_accuracy"], right[mask.hidden].mean())


def test_the_loss_begins_near_the_logarithm_of_the_number_of_places():
    method = make(Mp3, img_size=32, patch_size=4, embed_dim=192, depth=4, num_heads=3)
    loss = float(method(images(8), keys(8)).loss.detach())
    assert loss == pytest.approx(math.log(64), abs=0.25)


def test_no_gradient_reaches_a_position():
    method = small(positions="learned")
    assert not method.encoder.positions.table.requires_grad
    found = gradients(method(images(), keys()).loss, method)
    assert all(gradient is not None and gradient.any() for gradient in found.values())
    assert method.encoder.cls_token is None


def test_it_learns_places_that_contents_tell():
    """Patches of one colour each, the same in every image: chance is 1 of 16."""
    colours = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = batch_of(3, 32, 32)
    batch.tensors["image"] = colours.repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.1 * batch["image"]
    method = small()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(40):
        loss = method(batch, keys(4, step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(method(batch, keys(4, 99)).terms["hidden_accuracy"]) > 0.9


# soft targets -------------------------------------------------------------------------------------------------------


def test_soft_targets_are_symmetric_and_sum_to_one():
    grid = small().encoder.grid
    target = soft_places(grid.coordinates(), 1.0)
    torch.testing.assert_close(target.sum(1), torch.ones(16))  # in each row, border rows included
    weight = math.exp(-1)
    corner = 1 + 2 * weight + math.exp(-2) + 2 * math.exp(-4) + 2 * math.exp(-5) + math.exp(-8)
    corner += 2 * math.exp(-9) + 2 * math.exp(-10) + 2 * math.exp(-13) + math.exp(-18)
    assert float(target[0, 0]) == pytest.approx(1 / corner, rel=1e-4)
    assert float(target[0, 1]) == pytest.approx(weight / corner, rel=1e-4)
    assert float(soft_places(grid.coordinates(), 0.05).diagonal().min()) == pytest.approx(1)


def test_sigma_falls_to_zero():
    soft, hard = small(sigma=2.0), small()
    hard.load_state_dict(soft.state_dict())
    at = {}
    for step in (0, 50, 100):
        soft.start_step(Progress(step, 100))
        at[step] = float(soft(images(), keys()).loss.detach())
    tokens, mask = of(soft)
    logits = soft.logits(tokens, mask).detach()
    for step, sigma in ((0, 2.0), (50, 1.0)):
        target = soft_places(tokens.grid.coordinates(), sigma)
        expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
        assert at[step] == pytest.approx(float(expected), rel=1e-4)
    assert at[100] == pytest.approx(float(hard(images(), keys()).loss.detach()))


# pictures, options ----------------------------------------------------------------------------------------------------


def test_hidden_places_show_context_patches():
    method = small()
    panel = method.preview(images(), keys())["image"]
    tokens, mask = of(method)
    drawn = method.encoder.tokens_of(method.encoder.normalizers["image"](panel.reconstruction)).values
    for row in range(4):
        shown = drawn[row, mask.masked[row]]
        context = tokens.values[row, mask.visible[row]]
        assert bool((shown[:, None] - context[None]).abs().amax(-1).amin(1).lt(1e-5).all())
    torch.testing.assert_close(take(drawn, mask.visible), take(tokens.values, mask.visible))


@pytest.mark.parametrize(
    ("options", "message"), [({"sigma": -1.0}, "0 or more patches"), ({"block": "crate"}, "method.block=transformer")]
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"4 x 4 places, and this input has 6 x 6\. Set method\.img_size"):
        small()(images(4, 48), keys())
