"""Point-CMAE: the numbers of the paper, two branches that share one encoder, and what the losses look at."""

import pytest
import torch

from maskwright.core.encoder import Tokens
from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask
from maskwright.core.masking.base import mask_from_scores
from maskwright.core.masking.hide import take
from maskwright.core.sample import TensorSpec
from maskwright.pointcloud.encoders import PointTransformer
from maskwright.pointcloud.methods.point_cmae import PointCmae, consistency_loss, scale_and_shift
from maskwright.testing import check_encoder
from tests.pointcloud.helpers import SMALL, batch_of, clouds, keys, make, size

UNUSED_PROJECTION = 384 * 256 + 256 + 2 * 256 + 256 * 256 + 256


def small(**options):
    return make(PointCmae, **{**SMALL, "drop_path": 0.0, **options})


def test_published_sizes():
    method = PointCmae()
    assert size(method.encoder.patch_embed) == 494_464
    assert size(method.encoder.blocks[0]) == 1_773_312
    decoder = method.decoders[0]
    assert size(decoder.blocks) + size(decoder.norm) == 7_094_016
    assert size(method) + UNUSED_PROJECTION == 36_354_240
    classes = 15
    mlp = 768 * 256 + 256 + 512 + 256 * 256 + 256 + 512 + 256 * classes + classes
    assert size(method.encoder) + mlp == 22_093_327
    assert size(method.encoder) + 768 * classes + classes == 21_837_327
    assert method.encoder.embed_dim == 768


def test_visible_tokens_alone_reach_the_encoder():
    method = PointCmae(embed_dim=48, depth=2, num_heads=4, decoder_depth=1)
    seen = []
    method.encoder.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    method(batch_of(clouds(2, 1024)), keys(2))
    assert seen == [27, 27]
    tokens = method.encoder.tokenize(batch_of(clouds(2, 1024)))
    for mask in method.masks(tokens, keys(2)):
        assert (mask.visible.shape[1], mask.masked.shape[1]) == (26, 38)


def test_the_two_masks_are_independent():
    method = small()
    tokens = method.encoder.tokenize(batch_of(clouds(64)))
    first, second = method.masks(tokens, keys(64))
    assert not torch.equal(first.hidden, second.hidden)
    both = (first.hidden & second.hidden).sum(1).float()
    hidden = first.masked.shape[1]
    assert float(both.min()) >= 2 * hidden - 16
    assert float(both.mean()) == pytest.approx(hidden**2 / 16, abs=0.7)


def test_a_patch_hidden_in_one_branch_changes_the_other_alone():
    method = small().eval()
    tokens = method.encoder.tokenize(batch_of(clouds(2)))
    first, second = method.masks(tokens, keys(2))
    chosen = first.hidden & ~second.hidden
    assert bool(chosen.any(1).all())
    changed = Tokens(torch.where(chosen[..., None], tokens.values + 1.0, tokens.values), tokens.grid)

    def encoded(given, mask):
        return method.encoder.transform(method.encoder.embed_patches(given), given.grid, mask)

    assert torch.equal(encoded(tokens, first), encoded(changed, first))
    assert not torch.equal(encoded(tokens, second), encoded(changed, second))


@pytest.mark.parametrize("kind", ["diagonal", "official"])
def test_consistency_looks_at_patches_that_are_hidden_twice(kind):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 8, 5, generator=generator).requires_grad_() for _ in range(2))
    both = torch.zeros(2, 8, dtype=torch.bool)
    both[0, 1:4] = both[1, 6] = True
    a, b = torch.autograd.grad(consistency_loss(first, second, both, kind), (first, second))
    assert torch.equal(a.abs().sum(-1) > 0, both)
    assert torch.equal(b.abs().sum(-1) > 0, both if kind == "diagonal" else torch.ones_like(both))


def test_official_consistency_is_the_released_sum():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 8, 5, generator=generator) for _ in range(2))
    both = torch.rand(2, 8, generator=generator) < 0.4
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (first, second)]
    cosines = unit[0] @ unit[1].transpose(1, 2)
    total = sum(1 - float(cosines[b, i, j]) for b in range(2) for i in range(8) for j in range(8) if bool(both[b, i]))
    found = consistency_loss(first, second, both, "official")
    assert float(found) == pytest.approx(total / (int(both.sum()) * 8), rel=1e-5)
    nothing = consistency_loss(first, second, torch.zeros_like(both))
    assert float(nothing) == 0


def tied(method):
    """Both branches with the same weights."""
    method.decoders[1].load_state_dict(method.decoders[0].state_dict())
    with torch.no_grad():
        method.second_cls_token.copy_(method.encoder.cls_token)
        method.second_cls_position.copy_(method.encoder.cls_position_embed)
    return method


def agreement(method, kind):
    tokens = method.encoder.tokenize(batch_of(clouds()))
    mask, _ = method.masks(tokens, keys())
    features = method.encoder.embed_patches(tokens)
    decoded = [method.branch(number, features, tokens, mask)[1] for number in range(2)]
    return float(consistency_loss(*decoded, mask.hidden, kind).detach())


def test_equal_branches_agree_with_themselves_alone():
    method = tied(small())
    assert abs(agreement(method, "diagonal")) < 1e-6
    assert agreement(method, "official") > 0.01
    with torch.no_grad():
        method.second_cls_token.normal_()
    assert agreement(method, "diagonal") > 1e-5


def test_positions_go_into_every_block():
    method = small().eval()
    encoder, tokens = method.encoder, method.encoder.tokenize(batch_of(clouds(2)))
    before = encoder(tokens)
    inputs = []
    hooks = [block.register_forward_pre_hook(lambda module, args: inputs.append(args[0])) for block in encoder.blocks]
    outputs = []
    hooks += [block.register_forward_hook(lambda module, args, out: outputs.append(out)) for block in encoder.blocks]
    encoder(tokens)
    for hook in hooks:
        hook.remove()
    positions = encoder.position_embed(tokens.grid.positions)
    for number in range(1, len(encoder.blocks)):
        added = inputs[number] - outputs[number - 1]
        torch.testing.assert_close(added[:, 1:], positions, atol=1e-5, rtol=1e-5)
    # without them behind the first block the features are others
    x = outputs[0]
    for block in encoder.blocks[1:]:
        x = block(x)
    assert float((encoder.norm(x) - before).abs().max().detach()) > 1e-3


def test_decoder_features_come_back_in_the_order_of_patches():
    method = small().eval()
    tokens = method.encoder.tokenize(batch_of(clouds(2)))
    count = tokens.grid.count
    mask = mask_from_scores(torch.rand(2, count, generator=torch.Generator().manual_seed(3)), 9)
    method.decoders[0].blocks = torch.nn.ModuleList()
    visible = torch.randn(2, count - 9, 32)
    predicted, features = method.decoders[0](visible, mask, tokens.grid)
    assert torch.equal(take(features, mask.visible), visible)
    assert torch.equal(take(features, mask.masked)[0, 0], method.decoders[0].mask_token)
    assert predicted.shape == (2, 9, 24)


def test_the_loss_is_its_two_terms_and_both_options_train():
    for options in ({"consistency": "diagonal"}, {"consistency": "official"}, {"consistency_weight": 0.0}):
        method = small(**options)
        step = method(batch_of(clouds()), keys())
        weight = method.consistency_weight
        total = 1000 * step.terms["reconstruction"] + weight * step.terms["consistency"]
        torch.testing.assert_close(step.loss.detach(), total)
        step.loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())


def test_training_lowers_the_loss_and_repeats_itself():
    method, batch = small(), batch_of(clouds())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = method(batch, keys()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    again = small()
    assert again(batch, keys()).loss.item() == losses[0]


def test_augmentation_belongs_to_the_sample():
    points = clouds(3)
    moved = scale_and_shift(points, keys(3))
    assert torch.equal(moved[1:2], scale_and_shift(points[1:2], keys(3)[1:2]))
    scale = (moved.amax(1) - moved.amin(1)) / (points.amax(1) - points.amin(1))
    assert 2 / 3 <= float(scale.min()) < float(scale.max()) <= 3 / 2
    shift = moved.mean(1) - points.mean(1) * scale
    assert float(shift.abs().max()) <= 0.2 + 1e-5
    assert float(scale.std(1).min()) > 0


@pytest.mark.parametrize("pool", ["token-max", "max", "token"])
def test_the_encoder_keeps_its_contract(pool):
    options = {key: value for key, value in SMALL.items() if key != "decoder_depth"}
    check_encoder(lambda: PointTransformer(**options, pool=pool), batch_of(clouds()))


def test_the_pooled_embedding_is_class_token_and_maximum():
    encoder = make(PointTransformer, **{key: value for key, value in SMALL.items() if key != "decoder_depth"}).eval()
    batch = batch_of(clouds(2))
    x, found = encoder(encoder.tokenize(batch)), encoder.embed(batch)
    assert torch.equal(found.pooled, torch.cat([x[:, 0], x[:, 1:].amax(1)], dim=1))
    assert found.tokens.shape == (2, 16, 64)
    assert found.grid.positions.shape == (2, 16, 3)


def test_patches_embed_alike_with_any_neighbours_and_any_order():
    encoder = make(PointTransformer, **{key: value for key, value in SMALL.items() if key != "decoder_depth"}).eval()
    tokens = encoder.tokenize(batch_of(clouds(2)))
    whole = encoder.embed_patches(tokens)
    mixed = tokens.values.unflatten(2, (8, 3))[:, :, torch.randperm(8)].flatten(2)
    torch.testing.assert_close(encoder.embed_patches(Tokens(mixed, tokens.grid)), whole)
    some = Tokens(tokens.values[:, :5], Grid((5,), tokens.grid.positions[:, :5]))
    torch.testing.assert_close(encoder.embed_patches(some), whole[:, :5])


def test_patches_that_a_batch_brings_are_used():
    method = small().eval()
    batch = batch_of(clouds())
    settled = method.settled(batch)
    assert settled["patches"].shape == (4, 16, 8)
    assert torch.equal(method.encode(batch, keys()), method.encode(settled, keys()))
    turned = settled["patches"].flip(1)
    given = type(batch)({**batch.tensors, "patches": turned}, batch.metas)
    tokens = method.encoder.tokenize(given)
    assert torch.equal(tokens.values, method.encoder.tokenize(batch).values.flip(1))
    given.tensors["patches"] = turned[:, 1:]
    with pytest.raises(ConfigError, match="patches"):
        method.encoder.tokenize(given)


def test_hidden_points_change_nothing_that_is_seen():
    method = small().eval()
    batch = method.settled(batch_of(clouds(4, 160, 5)))
    panel = method.preview(batch, keys())["points"]
    assert panel.scattered
    assert panel.reconstruction.shape == (4, 16 * 8, 5)
    assert 0.05 < float(panel.hidden.float().mean()) < 0.8
    noisy = torch.where(panel.hidden[..., None], batch["points"] + 1.0, batch["points"])
    other = type(batch)({**batch.tensors, "points": noisy}, batch.metas)
    assert torch.equal(method.encode(batch, keys()), method.encode(other, keys()))
    assert torch.equal(panel.reconstruction, method.preview(other, keys())["points"].reconstruction)
    seen = torch.where(panel.hidden[..., None], batch["points"], batch["points"] + 0.1 * torch.rand(4, 160, 5))
    other = type(batch)({**batch.tensors, "points": seen}, batch.metas)
    assert not torch.equal(method.encode(batch, keys()), method.encode(other, keys()))


def test_a_sample_is_encoded_alike_alone_and_in_a_batch():
    method = small().eval()
    batch = batch_of(clouds())
    whole = method.encode(batch, keys())
    alone = method.encode(batch_of(clouds()[3:]), keys()[3:])
    torch.testing.assert_close(alone[0], whole[3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", list(PointCmae.presets))
def test_presets_can_be_built(preset):
    with torch.device("meta"):
        PointCmae(**PointCmae.presets[preset]["method"])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="consistency"):
        small(consistency="other")
    with pytest.raises(ConfigError, match=r"data.points"):
        small()(batch_of(clouds(2, 12)), keys(2))
    with pytest.raises(ConfigError, match="x, y and z"):
        small()(batch_of(clouds(2)[..., :2]), keys(2))
    assert PointCmae.options_for({"points": TensorSpec("N C", ("x", "y", "z", "red"))}) == {"input_name": "points"}
    with pytest.raises(ConfigError, match="N C"):
        PointCmae.options_for({"image": TensorSpec("C H W", 3)})
    assert isinstance(small().masks(small().encoder.tokenize(batch_of(clouds(2))), keys(2))[0], Mask)
