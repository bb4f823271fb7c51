import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskwright.core import statistics
from maskwright.core.errors import DataError
from maskwright.core.statistics import cached, compute, spread
from maskwright.remote_sensing.fake import fake_s1s2
from maskwright.remote_sensing.loaders import PairLoader


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 0.5), st.floats(-1e4, 1e4), st.integers(0, 2**31))
def test_equal_to_all_values_at_once(samples, channels, missing, offset, seed):
    generator = np.random.default_rng(seed)
    data = generator.normal(offset, 3, (samples, channels, 6, 7)).astype(np.float32)
    data[generator.random(data.shape) < missing] = np.nan
    data[:, :, 0, 0] = offset
    found = compute(samples, lambda index: {"image": data[index]}, "x")["image"]
    flat = data.swapaxes(0, 1).reshape(channels, -1).astype(np.float64)
    np.testing.assert_allclose(found.mean, np.nanmean(flat, 1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, np.nanstd(flat, 1, ddof=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found.minimum, np.nanmin(flat, 1))
    np.testing.assert_array_equal(found.maximum, np.nanmax(flat, 1))
    assert found.count == np.isfinite(flat).sum(1).min()


def test_at_most_so_many_windows_from_first_to_last():
    seen = []

    def read(index):
        seen.append(index)
        return {"image": np.ones((1, 2, 2))}

    compute(10_000, read, "x")
    assert (len(seen), seen[0], seen[-1]) == (64, 0, 9999)
    assert spread(5, 64) == [0, 1, 2, 3, 4]
    assert spread(1, 8) == [0]


def test_unreadable_samples_are_left_out_unless_all_are():
    def read(index):
        if index != 1:
            raise DataError("a.tif", "is broken")
        return {"image": np.full((1, 2, 2), 5.0)}

    assert compute(3, read, "x")["image"].mean == [5.0]
    with pytest.raises(DataError, match=r"no sample could be read.*is broken"):
        compute(1, read, "x")
    with pytest.raises(DataError, match='channel 1 of "image" holds no data'):
        compute(1, lambda _: {"image": np.array([[[1.0]], [[np.nan]]])}, "x")


def test_computed_once_for_the_same_files_and_options(tmp_path, own_cache, monkeypatch):
    fake_s1s2(tmp_path / "a", tiles=2, size=32)
    first = PairLoader(tmp_path / "a", 32).statistics()
    files = list(own_cache.rglob("*.json"))
    assert [file.parent for file in files] == [own_cache / "statistics"]
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "Running", None)  # whoever computes now fails
        assert PairLoader(tmp_path / "a", 32).statistics() == first
    assert PairLoader(tmp_path / "a", 16).statistics() == PairLoader(tmp_path / "a", 16).statistics()
    assert len(list(own_cache.rglob("*.json"))) == 2, "another option is another entry"
    fake_s1s2(tmp_path / "a", tiles=2, size=32, seed=1)
    assert PairLoader(tmp_path / "a", 32).statistics() != first, "so are files written anew"


def without(entry, key):
    entry["optical"].pop(key)
    return entry


def with_nan(entry):
    entry["sar"]["mean"][0] = float("nan")
    return entry


def with_one_channel(entry):
    entry["sar"] = {name: value[:1] if isinstance(value, list) else value for name, value in entry["sar"].items()}
    return entry


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: "", lambda entry: "{", lambda entry: "[]", lambda entry: "{}", lambda entry: "\0\0",
        lambda entry: json.dumps(without(entry, "std")), lambda entry: json.dumps(with_nan(entry)),
        lambda entry: json.dumps(with_one_channel(entry)),
    ],
)  # fmt: skip
def test_damaged_cache_is_computed_anew(tmp_path, own_cache, damage):
    fake_s1s2(tmp_path / "a", tiles=1, size=32)
    first = PairLoader(tmp_path / "a", 32).statistics()
    (file,) = own_cache.rglob("*.json")
    file.write_text(damage(json.loads(file.read_text())))
    assert PairLoader(tmp_path / "a", 32).statistics() == first
    assert json.loads(file.read_text())["sar"]["mean"] == first["sar"].mean, "and mended"


def test_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(blocked))
    made = {"image": compute(1, lambda _: {"image": np.ones((1, 2, 2))}, "x")["image"]}
    assert cached("key", {"image": 1}, lambda: made) == made
