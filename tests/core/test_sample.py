"""Samples, batches, and what a loader gives against what a method needs."""

import pytest
import torch

from maskwright.core.errors import ConfigError
from maskwright.core.evaluation.features import samples_of
from maskwright.core.sample import BadFile, Batch, Meta, Sample, TensorSpec, check_inputs, collate


def _sample(name="a.tif", **shapes):
    shapes = shapes or {"image": (3, 4, 4)}
    return Sample({key: torch.zeros(shape) for key, shape in shapes.items()}, Meta(name))


def test_collate_stacks_and_keeps_metas():
    batch = collate([_sample("a"), _sample("b")])
    assert batch["image"].shape == (2, 3, 4, 4)
    assert [meta.source for meta in batch.metas] == ["a", "b"]
    assert len(batch) == 2
    assert batch.device.type == "cpu"
    assert batch.bad == []


def test_bad_files_are_set_aside_and_never_replaced():
    batch = collate([BadFile("x", "torn"), _sample("a"), BadFile("y", "empty")])
    assert len(batch) == 1
    assert [bad.path for bad in batch.bad] == ["x", "y"]
    nothing = collate([BadFile("x", "torn")])
    assert len(nothing) == 0
    assert nothing.tensors == {}


def test_unlike_samples_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"b holds \['other'\], but a holds \['image'\]"):
        collate([_sample("a"), _sample("b", other=(3, 4, 4))])
    with pytest.raises(ConfigError, match=r'"image" of b has shape \(3, 4, 5\).*of a has \(3, 4, 4\).*data\.size'):
        collate([_sample("a"), _sample("b", image=(3, 4, 5))])


def test_moving_a_batch_keeps_metas_and_bad_files():
    batch = Batch({"image": torch.zeros(1, 2)}, [Meta("a")], [BadFile("x", "torn")])
    moved = batch.to("meta")
    assert moved.device.type == "meta"
    assert moved.metas == batch.metas
    assert moved.bad == batch.bad
    assert batch.device.type == "cpu"


GIVEN = {"optical": TensorSpec("C H W", ("B2", "B3", "B4")), "sar": TensorSpec("C H W", 2)}


@pytest.mark.parametrize(
    "wanted",
    [
        {"optical": TensorSpec("C H W", 3)},
        {"optical": TensorSpec("C H W")},
        {"optical": TensorSpec("C H W", ("red", "green", "blue")), "sar": TensorSpec("C H W", ("VV", "VH"))},
        {},
    ],
)
def test_inputs_that_fit(wanted):
    check_inputs(GIVEN, wanted, "loader", "method")


def test_all_mismatches_are_named_at_once():
    wanted = {
        "optical": TensorSpec("C H W", 12),
        "sar": TensorSpec("C D H W", 2),
        "thermal": TensorSpec("C H W", 1),
    }
    with pytest.raises(ConfigError) as error:
        check_inputs(GIVEN, wanted, 'loader "geotiff"', 'method "croma"')
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert 'built for 12 channels of "optical", but loader "geotiff" gives 3 (B2, B3, B4)' in lines[0]
    assert 'needs "sar" with dimensions (C D H W), but loader "geotiff" gives (C H W)' in lines[1]
    assert 'method "croma" needs "thermal"' in lines[2]


def test_channel_counts():
    assert TensorSpec("C H W", ("a", "b")).channel_count == 2
    assert TensorSpec("C H W", 5).channel_count == 5
    assert TensorSpec("T").channel_count is None


def test_samples_of_various_lengths_are_filled_up_and_lengths_are_kept():
    parts = [Sample({"frames": torch.ones(2, size)}, Meta(str(size)), frozenset({"frames"})) for size in (3, 5, 1)]
    batch = collate(parts)
    assert batch["frames"].shape == (3, 2, 5)
    assert batch.lengths["frames"].tolist() == [3, 5, 1]
    assert batch["frames"][0].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert batch["frames"].sum() == 2 * 9
    moved = batch.to("cpu")
    assert moved.lengths["frames"].tolist() == [3, 5, 1]
    assert [sample["frames"].shape[1] for sample in samples_of(batch)] == [3, 5, 1]
    assert all(sample.variable == {"frames"} for sample in samples_of(batch))
    other = Sample({"frames": torch.ones(3, 3)}, Meta("b"), frozenset({"frames"}))
    with pytest.raises(ConfigError, match="has shape"):
        collate([parts[0], other])


def test_various_lengths_need_a_method_that_heeds_them():
    given = {"frames": TensorSpec("C T", 80, variable=True)}
    check_inputs(given, given, "loader", "method")
    check_inputs({"frames": TensorSpec("C T", 80)}, given, "loader", "method")
    with pytest.raises(ConfigError, match="of one length"):
        check_inputs(given, {"frames": TensorSpec("C T", 80)}, "loader", "method")
