"""Splits that keep groups together, and a leak check that finds what was planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.leaks import find_leaks, find_overlaps, fingerprint, shared_groups
from maskwright.core.evaluation.splits import (
    Fold,
    check_fractions,
    groups_of,
    join,
    keep_away,
    make_folds,
    take_fraction,
)
from maskwright.core.sample import Meta, Sample

UTM = "EPSG:32633"


def _meta(index, column=0, row=0, group="", size=64, crs=UTM, source="scene.tif"):
    transform = (10.0, 0.0, 499_200.0 + 10 * column, 0.0, -10.0, 5_000_000.0 - 10 * row)
    return Meta(source, group or f"g{index}", index, (row, column, size, size), crs, transform)


@pytest.mark.parametrize("labels", [None, "classes"])
def test_folds_test_each_sample_once_and_cut_no_group(labels):
    generator = np.random.default_rng(0)
    groups = [f"g{n}" for n in generator.integers(0, 23, 300)]
    y = generator.integers(0, 3, 300) if labels else None
    folds = make_folds(groups, y, 5, seed=1)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(300))
    for fold in folds:
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.test}
        assert len(fold.train) + len(fold.test) == 300
    again, other = make_folds(groups, y, 5, seed=1), make_folds(groups, y, 5, seed=2)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(folds, again, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(folds, other, strict=True))


def test_fewer_groups_than_folds_and_a_single_group():
    assert len(make_folds(["a", "a", "b", "c"], None, 5, 0)) == 3
    with pytest.raises(DataError, match="all 2 samples are of one group, a"):
        make_folds(["a", "a"], None, 5, 0)


def test_groups_by_loader_block_column_and_random(images, tmp_path):
    loader = mw.open_data(images, "npy")
    metas = [loader.read(i).meta for i in range(len(loader))]
    assert groups_of("group", loader, metas) == [f"image_{n:03d}" for n in range(12)]
    np.save(tmp_path / "site.npy", np.arange(12) // 4)
    assert groups_of(str(tmp_path / "site.npy"), loader, metas) == [str(n // 4) for n in range(12)]
    assert len(set(groups_of("random", loader, metas))) == 12
    with pytest.raises(ConfigError, match="block:SIZE"):
        groups_of("block:x", loader, metas)
    with pytest.raises(DataError, match="no window"):
        groups_of("block:10", loader, metas)
    placed = [_meta(n, column=64 * n, group="one") for n in range(8)]
    assert len(set(groups_of("block:1280", loader, placed))) == 4  # 64 pixels of 10 m, two a block of 1280 m
    pixels = [replace(meta, crs=None) for meta in placed]
    assert len(set(groups_of("block:256", loader, pixels))) == 2


def test_buffer_leaves_out_near_training_samples():
    metas = [_meta(n, column=64 * n) for n in range(6)]
    fold = Fold(np.array([0, 1, 2, 4, 5]), np.array([3]))
    assert keep_away(fold, metas, 0).train.tolist() == [0, 1, 2, 4, 5]
    assert keep_away(fold, metas, 641).train.tolist() == [0, 1, 5]


def test_smaller_fractions_are_subsets_and_hold_every_class():
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.zeros(90, int), np.ones(8, int), np.full(2, 2)])
    train = generator.permutation(100)[:80]
    few, more = take_fraction(train, labels, 0.05, 3), take_fraction(train, labels, 0.3, 3)
    assert set(few) <= set(more) <= set(train)
    assert set(labels[few]) == set(labels[train])
    assert len(take_fraction(train, None, 0.25, 3)) == 20
    assert take_fraction(train, labels, 1.0, 3) is train
    with pytest.raises(ConfigError, match="outside"):
        check_fractions([0.0])
    assert check_fractions([1.0, 0.1, 0.1]) == [0.1, 1.0]


def test_joined_groups():
    assert join(["a", "b", "c", "d"], [(0, 1), (1, 2)]) == ["a", "a", "a", "d"]


def _tiles(shared=True):
    """Real tiles of several scenes: windows of the shipped satellite images."""
    loader = mw.open_data("maskwright/remote_sensing/samples/terramesh", "s1s2", size=56)
    return [loader.read(i) for i in range(len(loader))]


def _altered(sample, how, seed):
    """What a near duplicate in an archive looks like: other calibration, noise, small shift, coarser sampling."""
    generator = torch.Generator().manual_seed(seed)
    image = sample["optical"]
    spread = image.flatten(1).std(1)[:, None, None]
    if how == "brighter":
        image = image * 1.15 + 80
    elif how == "noise":
        image = image + 0.1 * spread * torch.randn(image.shape, generator=generator)
    elif how == "resampled":
        image = F.interpolate(F.interpolate(image[None], scale_factor=0.5, mode="area"), image.shape[-2:])[0]
    elif how == "shifted":
        image = torch.roll(image, (1, 1), (1, 2))
    return Sample({**sample.tensors, "optical": image}, replace(sample.meta, group=f"copy of {sample.meta.group}"))


def test_planted_copies_are_all_found_and_others_are_not_accused():
    samples = [sample for sample in _tiles() if sample.meta.group != "609U_541L_3_0"]  # not the plain snow
    count = len(samples)
    metas = [replace(sample.meta, window=None) for sample in samples]  # by content alone
    groups = [f"window {n}" for n in range(count)]
    prints = [fingerprint(sample) for sample in samples]
    accused = {(leak.first, leak.second) for leak in find_leaks(prints, metas, groups)}
    assert len(accused) < 0.01 * count * (count - 1) / 2  # real windows that truly look alike: open water
    identical = find_leaks(prints + prints, metas + metas, groups + [f"{group} again" for group in groups])
    assert {(leak.first, leak.second) for leak in identical if leak.kind == "identical"} >= {
        (n, n + count) for n in range(count)
    }
    found = {}
    for how in ("brighter", "noise", "resampled", "shifted"):
        altered = [_altered(sample, how, n) for n, sample in enumerate(samples)]
        leaks = find_leaks(
            prints + [fingerprint(sample) for sample in altered], metas + metas, groups + [f"{g} {how}" for g in groups]
        )
        pairs = {(leak.first, leak.second) for leak in leaks}
        found[how] = sum((n, n + count) in pairs for n in range(count)) / count
    print(found, len(accused), count)
    assert np.mean(list(found.values())) >= 0.95, found
    assert min(found.values()) >= 0.9, found


def test_overlapping_windows_of_two_files_are_found_and_touching_ones_are_not():
    metas = [
        _meta(0, source="a.tif"),
        _meta(1, column=64, source="b.tif"),  # touches 0
        _meta(2, column=100, source="c.tif"),  # overlaps 1
        _meta(3, column=60, row=60, source="d.tif"),  # 0.4 % of 0, more of 1 and 2
        _meta(4, column=0, crs="EPSG:32634", source="e.tif"),  # elsewhere on Earth
        replace(_meta(5), crs=None, source="f.png"),
        replace(_meta(6, column=32), crs=None, source="f.png"),  # the same file
    ]
    prints = [fingerprint(Sample({"x": torch.randn(3)}, meta)) for meta in metas]
    leaks = find_leaks(prints, metas, [meta.group for meta in metas])
    assert {leak.kind for leak in leaks} == {"overlap"}
    assert {(leak.first, leak.second) for leak in leaks} == {(1, 2), (1, 3), (2, 3), (5, 6)}
    same = find_leaks(prints, metas, ["one group"] * len(metas))
    assert same == []


@pytest.mark.parametrize("what", ["patient 7", "speaker_3", "video.mp4", "scene A"])
def test_a_group_on_both_sides_of_a_given_split_is_named(what):
    train = [Meta("a", what), Meta("b", "other")]
    assert shared_groups(train, [Meta("c", what), Meta("d", "third")]) == [what]
    assert shared_groups(train, [Meta("d", "third")]) == []


def test_of_very_many_overlaps_enough_are_kept_to_join_all_groups():
    metas = [_meta(n, column=n % 40, source=f"{n}.tif") for n in range(400)]  # all on one spot
    sides = [meta.group for meta in metas]
    leaks = find_overlaps(metas, sides, limit=100)
    assert 100 <= len(leaks) <= 100 + 400
    assert set(join(sides, [(leak.first, leak.second) for leak in leaks])) == {"g0"}
    assert len(find_overlaps(metas, sides, limit=10**6)) == 400 * 399 / 2


def test_more_folds_than_samples_of_any_class():
    groups = [str(at // 2) for at in range(60)]
    folds = make_folds(groups, np.arange(60) // 2 % 3, 25, 0)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(60))
    assert all(not {groups[i] for i in fold.train} & {groups[i] for i in fold.test} for fold in folds)
