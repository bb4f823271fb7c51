import numpy as np
import torch

from maskwright.core.sample import BadFile, Sample
from maskwright.core.trainer.data import Plan, SampleReader, StepSampler, derive_seed, make_dataloader
from tests.toy_plugin import NpyLoader

PLAN = Plan(length=10, batch=2, world=1, accumulate=1, steps=15)


def test_each_epoch_is_another_permutation_of_all_samples():
    batches = list(StepSampler(PLAN, seed=0))
    assert len(batches) == 15
    epochs = [[index for batch in batches[e * 5 : e * 5 + 5] for _, index in batch] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [epoch for epoch, _ in batches[7]] == [1, 1]


def test_a_later_start_continues_the_same_sequence():
    whole = list(StepSampler(PLAN, seed=3))
    for start in (1, 4, 5, 14, 15):
        assert list(StepSampler(PLAN, seed=3, start=start)) == whole[start:]
    assert whole != list(StepSampler(PLAN, seed=4))


def test_processes_share_out_each_global_batch():
    alone = list(StepSampler(Plan(10, 4, 1, 1, 6), seed=0))
    shared = [list(StepSampler(Plan(10, 2, 2, 1, 6), seed=0, rank=rank)) for rank in (0, 1)]
    for whole, first, second in zip(alone, *shared, strict=True):
        assert whole[0::2] == first
        assert whole[1::2] == second


def test_a_plan_drops_the_rest_of_an_epoch_but_never_has_none():
    assert Plan(10, 4, 1, 1, 1).micro_per_epoch == 2
    assert Plan(3, 8, 1, 1, 1).micro_per_epoch == 1
    assert Plan(10, 2, 1, accumulate=2, steps=9).epoch_of(5) == 2


def test_seeds_differ_in_every_part():
    seeds = {derive_seed(*parts) for parts in ((0, 0), (0, 1), (1, 0), (0, 0, 0), (2**63, 1), (-1, 1))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)


def test_reader_gives_the_same_sample_whatever_the_number_of_workers(images):
    loader = NpyLoader(images, crop=12)
    plan = Plan(len(loader), 4, 1, 1, 6)
    runs = []
    for workers in (0, 2):
        batches = make_dataloader(loader, plan, seed=1, start=0, rank=0, workers=workers, pin=False)
        runs.append([(batch["image"], [meta.index for meta in batch.metas]) for batch in batches])
    for (a, indices_a), (b, indices_b) in zip(*runs, strict=True):
        assert indices_a == indices_b
        assert torch.equal(a, b)
    first, again = (runs[0][i][0] for i in (0, 3))
    assert first.shape == (4, 1, 12, 12)
    assert not torch.equal(first, again)


def test_crops_differ_between_epochs(images):
    reader = SampleReader(NpyLoader(images, crop=8), seed=0)
    assert torch.equal(reader[0, 3]["image"], reader[0, 3]["image"])
    assert any(not torch.equal(reader[0, i]["image"], reader[1, i]["image"]) for i in range(6))


def test_broken_and_non_finite_files_are_named_not_replaced(images):
    files = sorted(images.glob("*.npy"))
    files[2].write_bytes(b"\x93NUMPY broken")
    values = np.load(files[5])
    values[0, 3, 3] = np.nan
    np.save(files[5], values)
    reader = SampleReader(NpyLoader(images), seed=0)
    assert isinstance(reader[0, 0], Sample)
    broken, nan = reader[0, 2], reader[0, 5]
    assert isinstance(broken, BadFile)
    assert broken.path == str(files[2])
    assert isinstance(nan, BadFile)
    assert "NaN or Inf in 0.4% of its values" in nan.reason


def test_buckets_never_mix_and_every_sample_has_its_turn():
    bucket_of = np.array([0] * 7 + [1] * 4 + [2])
    plan = Plan(12, batch=2, world=1, accumulate=1, steps=18, buckets=(7, 4, 1))
    assert plan.micro_per_epoch == 3 + 2 + 1
    batches = list(StepSampler(plan, seed=3, bucket_of=bucket_of))
    assert len(batches) == 18
    epochs = [batches[at : at + 6] for at in (0, 6, 12)]
    for number, epoch in enumerate(epochs):
        seen = [index for batch in epoch for _, index in batch]
        assert len(set(seen)) == len(seen) == 6 + 4 + 1
        assert {e for batch in epoch for e, _ in batch} == {number}
        assert all(len(set(bucket_of[[index for _, index in batch]])) == 1 for batch in epoch)
    assert epochs[0] != epochs[1]
    kinds = [[bucket_of[batch[0][1]] for batch in epoch] for epoch in epochs]
    assert kinds[0] != kinds[1] or kinds[1] != kinds[2]  # buckets take turns in no fixed order
    assert list(StepSampler(plan, seed=3, start=7, bucket_of=bucket_of)) == batches[7:]  # as a resumed run does
    shared = Plan(12, batch=1, world=2, accumulate=1, steps=18, buckets=(7, 4, 1))
    parts = [list(StepSampler(shared, 3, rank=rank, bucket_of=bucket_of)) for rank in (0, 1)]
    assert shared.micro_per_epoch == 3 + 2  # one sample cannot be shared by two processes
    assert len(parts[0]) == len(parts[1]) == 18
    assert all(len(a) == len(b) == 1 for a, b in zip(*parts, strict=True))
