"""GMML's faithfulness checks on what is overwritten, where and with what."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from maskwright.core.errors import ConfigError
from maskwright.core.masking import RandomMasking, UnitMasking, normal
from maskwright.core.masking.groups import GroupMasking
from maskwright.plugins.vision.methods.gmml import Gmml, partners, shifted
from tests.plugins.vision.helpers import batch_of, make
from tests.plugins.vision.helpers import keys as _keys
from tests.plugins.vision.test_gmml import SMALL


def _method(**options):
    return make(Gmml, **{**SMALL, **options})


def _places(method, count=400, side=64, seed=0):
    """Clean, corrupted, mask, and which samples hold pixels of another one."""
    x = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, side, side).clone()
    corrupted, hidden = method.corrupt(x, _keys(count, seed))
    where = hidden[:, None]
    whole = torch.where(where, corrupted, x)
    foreign = (where & (corrupted == corrupted.round())).flatten(1).sum(1) == hidden.flatten(1).sum(1)
    return x, corrupted, hidden, whole, foreign


def test_shares_of_noise_and_alien_corruption():
    """Half of the samples each, never mixed: noise over U(0.5, 0.75) and a block, aliens over 0.3 and a block."""
    x, corrupted, hidden, _, alien = _places(_method(in_chans=1))
    assert torch.equal(x, torch.arange(400).float().view(-1, 1, 1, 1).expand(400, 1, 64, 64)), (
        "the input is not changed"
    )
    assert 0.42 < alien.float().mean() < 0.58
    share = hidden.flatten(1).float().mean(1)
    block = (18 / 64) ** 2
    assert share[~alien].min() >= 0.5
    assert share[~alien].max() < 0.75 + block
    assert 0.6 < share[~alien].mean() < 0.68
    assert share[alien].min() >= 0.3
    assert share[alien].max() < 0.3 + block
    for row in range(400):
        values = corrupted[row, 0][hidden[row]]
        assert torch.equal(corrupted[row, 0][~hidden[row]], x[row, 0][~hidden[row]])
        if alien[row]:
            assert values.unique().numel() == 1, "pixels of one other image"
        else:
            assert abs(values.mean()) < 0.1
            assert abs(values.std() - 1) < 0.1


def test_a_partner_is_never_the_image_itself():
    """A uniform draw over the batch, as in the released code, hides nothing in 1 of B alien images."""
    drawn = torch.stack([partners(_keys(4, seed)) for seed in range(600)])
    own = torch.arange(4)
    assert not (drawn == own).any()
    steps = (drawn - own) % 4
    assert torch.bincount(steps.flatten(), minlength=4)[1:].float().div(2400).sub(1 / 3).abs().max() < 0.04
    uniform = torch.randint(4, (600, 4), generator=torch.Generator().manual_seed(0))
    assert 0.2 < (uniform == own).float().mean() < 0.3
    assert partners(_keys(1)).tolist() == [0]
    _, corrupted, hidden, _, alien = _places(_method(in_chans=1), count=64)
    other = corrupted.flatten(1).gather(1, hidden.flatten(1).float().argmax(1, keepdim=True))[:, 0]
    assert (other[alien] != torch.arange(64)[alien]).all()


def test_alone_in_a_batch_it_is_noise():
    method = _method(in_chans=1)
    for seed in range(12):
        _, corrupted, hidden, _, alien = _places(method, count=1, seed=seed)
        assert not alien.any()
        assert corrupted[0, 0][hidden[0]].std() > 0.8


def test_kinds_of_fill():
    method = _method(in_chans=1, fills=("noise", "zeros", "copy"))
    x = (
        torch.arange(1.0, 32 * 32 + 1).view(1, 1, 32, 32).repeat(400, 1, 1, 1)
        + 5000 * torch.arange(400)[:, None, None, None]
    )
    corrupted, hidden = method.corrupt(x, _keys(400))
    kinds = dict.fromkeys(("zeros", "copy", "alien", "noise"), 0)
    for row in range(400):
        values = corrupted[row, 0][hidden[row]]
        own = (values > 5000 * row) & (values <= 5000 * row + 1024)
        kind = (
            "zeros" if (values == 0).all() else "copy" if own.all() else "alien" if (values % 1 == 0).all() else "noise"
        )
        kinds[kind] += 1
        if kind == "copy":
            assert (corrupted[row, 0] != x[row, 0])[hidden[row]].all(), "a shift by a whole cycle hides nothing"
    assert min(kinds.values()) > 60, f"a quarter each, not {kinds}"
    assert max(kinds.values()) < 140
    assert (_method(in_chans=1, alien_share=0).corrupt(x, _keys(400))[0] % 1 != 0).flatten(1).any(1).all()


def test_shift_is_a_cycle():
    x = torch.arange(2 * 2 * 3 * 5).float().view(2, 2, 3, 5)
    moved = shifted(x, _keys(2))
    for row in range(2):
        fits = [
            (a, b) for a in range(1, 3) for b in range(1, 5) if torch.equal(moved[row], x[row].roll((a, b), (1, 2)))
        ]
        assert len(fits) == 1


def test_noise_is_finite():
    """This key draws the largest of all uniform numbers, 1 - 2**-24; a batch of ImageNet holds several of them."""
    noise = normal(torch.tensor([-1363366138862247159]), 51_005)
    assert noise.isfinite().all()
    assert 5 < noise[0, -1] < 6


def test_corruption_belongs_to_the_key():
    method, x, keys = _method(alien_share=0), batch_of(count=5)["image"], _keys(5)
    corrupted, hidden = method.corrupt(x, keys)
    again, same = method.corrupt(x[2:3], keys[2:3])
    assert torch.equal(corrupted[2:3], again)
    assert torch.equal(hidden[2:3], same)


def test_groups_of_whole_tokens_are_connected():
    """At a share of 0.3 the mean component is far larger than that of single patches (published code: 13 to 2.3)."""
    aligned = _method(align=16, patch_size=16, share=0.3)
    hidden = aligned.groups((224, 224), _keys(200), torch.zeros(200, dtype=torch.bool))
    patches = hidden.view(200, 14, 16, 14, 16)
    assert torch.equal(patches.amin((2, 4)), patches.amax((2, 4))), "whole tokens"

    def mean_size(masks):
        return np.mean([np.bincount(label(mask)[0].ravel())[1:].mean() for mask in masks])

    groups = patches[:, :, 0, :, 0].numpy()
    random = np.random.default_rng(0).permuted(groups.reshape(200, -1), axis=1).reshape(groups.shape)
    assert mean_size(groups) > 9
    assert mean_size(random) < 3.5


def test_another_masking_says_what_is_overwritten():
    method = _method(masking=UnitMasking(0.5, unit=2))
    x, keys = batch_of()["image"], _keys()
    _, hidden = method.corrupt(x, keys)
    assert hidden.view(4, 2, 16, 2, 16).amin((2, 4)).sum((1, 2)).tolist() == [2] * 4
    assert not _method().by_masking
    assert not _method(masking=GroupMasking(0.75)).by_masking
    assert _method(masking=GroupMasking(0.5)).by_masking
    assert _method(corruption="masking").by_masking
    with pytest.raises(ConfigError, match=r"method\.corruption=masking"):
        _method(corruption="group", masking=RandomMasking(0.5))


def test_corruption_knows_no_global_generator():
    """The released loader seeds one anew inside of it."""
    method, found = _method(fills=("noise", "zeros", "copy")), []
    for seed in (5, 6):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(method.corrupt(batch_of()["image"], _keys()))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *found))
