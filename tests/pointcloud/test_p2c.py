"""P2C: the numbers of the paper, three roles of patches, and which term trains what."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Progress
from maskwright.pointcloud.encoders import PointSetEncoder
from maskwright.pointcloud.methods.p2c import P2c, mirrored
from maskwright.pointcloud.patches import PATCHES
from maskwright.testing import check_encoder
from tests.pointcloud.helpers import batch_of, clouds, keys, make, size

SMALL = {
    "num_groups": 16,
    "group_size": 8,
    "roles": (5, 9, 2),
    "embed_dim": 32,
    "generator_width": 48,
    "output_points": 96,
    "normal_neighbours": 6,
    "normal_points": 10,
}


def small(**options):
    return make(P2c, **{**SMALL, **options})


def test_published_sizes():
    method = P2c()
    assert size(method.encoder) == 822_784
    assert size(method.generator) == 23_080_960
    assert size(method) == 23_903_744
    assert method.region == 64


@pytest.mark.parametrize("partition", ["batch", "sample"])
def test_roles_are_disjoint_and_together_all(partition):
    method = P2c(embed_dim=32, generator_width=32, partition=partition)
    mask, roles = method.deal(64, keys(6))
    assert [index.shape for index in roles] == [(6, 20), (6, 40), (6, 4)]
    assert torch.equal(torch.cat(roles, dim=1).sort(1)[0], torch.arange(64).expand(6, 64))
    assert torch.equal(mask.visible, roles[0])
    same = bool((roles[0] == roles[0][:1]).all())
    assert same == (partition == "batch")


def test_one_permutation_a_step_and_seed():
    method = small()
    first = method.deal(16, keys())[1][0]
    assert torch.equal(first, method.deal(16, keys(seed=9))[1][0])
    method.start_step(Progress(1, 10, 0, 10))
    assert not torch.equal(first, method.deal(16, keys())[1][0])
    method.prepare(None, torch.Generator().manual_seed(3))
    other = method.deal(16, keys())[1][0]
    again = small()
    again.load_state_dict(method.state_dict())
    again.start_step(Progress(1, 10, 0, 10))
    assert torch.equal(other, again.deal(16, keys())[1][0])


def test_points_outside_of_the_first_role_do_not_change_what_is_made():
    method = small().eval()
    batch = method.settled(batch_of(clouds()))
    panel = method.preview(batch, keys())["points"]
    known = batch[PATCHES][:, method.deal(16, keys())[1][0][0]].flatten(1)
    assert not bool(panel.hidden.gather(1, known).any())
    assert bool(panel.hidden.any(1).all())
    noisy = torch.where(panel.hidden[..., None], batch["points"] + 1.0, batch["points"])
    other = Batch({**batch.tensors, "points": noisy}, batch.metas)
    assert torch.equal(method.encode(batch, keys()), method.encode(other, keys()))
    assert torch.equal(panel.reconstruction, method.preview(other, keys())["points"].reconstruction)
    assert panel.reconstruction.shape == (4, 96, 3)
    seen = Batch({**batch.tensors, "points": batch["points"] * 1.1}, batch.metas)
    assert not torch.equal(method.encode(batch, keys()), method.encode(seen, keys()))


def terms_of(method, weights):
    method.weights |= weights
    loss = method(batch_of(clouds()), keys()).loss
    return {
        name: gradient
        for (name, _), gradient in zip(
            method.named_parameters(),
            torch.autograd.grad(loss, list(method.parameters()), allow_unused=True),
            strict=True,
        )
    }


NOTHING = {"reconstruction": 0.0, "completion": 0.0, "feature": 0.0, "normal": 0.0}


def reached(gradients, part):
    return [float(g.abs().sum()) > 0 for name, g in gradients.items() if name.startswith(part) and g is not None]


def test_the_feature_term_trains_the_encoder_alone():
    gradients = terms_of(small(), {**NOTHING, "feature": 1.0})
    assert not any(reached(gradients, "generator"))
    assert any(reached(gradients, "encoder"))


@pytest.mark.parametrize("term", ["reconstruction", "completion", "normal"])
def test_the_other_terms_train_both(term):
    gradients = terms_of(small(), {**NOTHING, term: 1.0})
    assert any(reached(gradients, "generator"))
    assert any(reached(gradients, "encoder"))


def test_the_loss_is_the_weighted_sum():
    method = small(reconstruction_weight=2.0, completion_weight=3.0, feature_weight=5.0, normal_weight=7.0)
    step = method(batch_of(clouds()), keys())
    terms = step.terms
    total = 2 * terms["reconstruction"] + 3 * terms["completion"] + 5 * terms["feature"] + 7 * terms["normal"]
    torch.testing.assert_close(step.loss.detach(), total)
    assert "normal" not in small(normal_weight=0.0)(batch_of(clouds()), keys()).terms


def test_regions_far_from_all_patches_cost_nothing():
    method = small()
    tokens = method.encoder.tokenize(batch_of(clouds()))
    roles = method.deal(16, keys())[1]
    generator = torch.Generator().manual_seed(1)
    made = clouds(4, 95, seed=4) + 0.01 * torch.randn(4, 95, 3, generator=generator)
    here, there = (torch.cat([made, torch.full((4, 1, 3), at)], dim=1) for at in (30.0, 50.0))
    for role in roles[:2]:
        assert torch.equal(method.region_distance(here, tokens, role), method.region_distance(there, tokens, role))


def test_batch_norms_forget_more_slowly_from_epoch_to_epoch():
    method = small()
    expected = {0: 0.9, 21: 0.45, 42: 0.225, 300: 0.01}
    for epoch, momentum in expected.items():
        method.start_step(Progress(0, 1, epoch, 301))
        found = {m.momentum for m in method.encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)}
        assert list(found) == pytest.approx([momentum])


def test_mirrors_turn_two_axes_in_four_ways():
    points = clouds(400, 2)
    ways = (mirrored(points, keys(400)) / points).round()[:, 0]
    counts = {
        tuple(way): int((ways == torch.tensor(way)).all(1).sum())
        for way in ((-1, 1, -1), (-1, 1, 1), (1, 1, -1), (1, 1, 1))
    }
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 70
    assert torch.equal(mirrored(points[7:8], keys(400)[7:8]), mirrored(points, keys(400))[7:8])


def test_completion_gives_a_whole_cloud_and_keeps_the_mode():
    method = small().train()
    cloud = clouds(2, 200, 5)
    whole = method.complete(cloud)
    assert whole.shape == (2, 96, 3)
    assert method.training
    assert not whole.requires_grad
    assert torch.equal(whole, method.complete(cloud[:, torch.randperm(200)]))


def test_training_learns_what_the_patches_do_not_show():
    """Half-spheres cut in random directions: points in the missing half come near the sphere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 400, 3, generator=generator)
    x = x / x.norm(dim=2, keepdim=True)
    direction = torch.randn(64, 3, generator=generator)
    side = (x @ direction[:, :, None])[..., 0]
    partial = x.gather(1, side.argsort(1)[:, :160, None].expand(-1, -1, 3))
    method = small(generator_width=96)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        method.start_step(Progress(step, 60, 0, 1))
        rows = torch.randperm(64, generator=generator)[:16]
        loss = method(batch_of(partial[rows]), keys(16, step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        radius = method.complete(partial).norm(dim=2).mean()
    assert 0.6 < float(radius) < 1.2


def test_the_encoder_keeps_its_contract():
    check_encoder(lambda: PointSetEncoder(32, 16, 8), batch_of(clouds()))


@pytest.mark.parametrize("preset", list(P2c.presets))
def test_presets_can_be_built(preset):
    with torch.device("meta"):
        P2c(**P2c.presets[preset]["method"])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="roles"):
        small(roles=(5, 9, 3))
    with pytest.raises(ConfigError, match="partition"):
        small(partition="epoch")
    with pytest.raises(ConfigError, match="output_points"):
        small(output_points=12)
    with pytest.raises(ConfigError, match="Weights"):
        small(reconstruction_weight=0.0, completion_weight=0.0)
