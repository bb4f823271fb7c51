"""FolderLoader: one file a sample."""

import numpy as np
import pytest
import torch

from maskwright.core.errors import DataError
from maskwright.core.folder import FolderLoader
from maskwright.core.sample import TensorSpec
from maskwright.testing import check_loader


class TextSeries(FolderLoader):
    """Two rows of numbers a file: a series (C, T) of two channels."""

    suffixes = (".series",)
    spec = {"series": TensorSpec("C T", ("a", "b"), "V")}

    def read_file(self, file):
        return {"series": torch.from_numpy(np.loadtxt(file, dtype=np.float32, ndmin=2))}


@pytest.fixture
def folder(tmp_path):
    """Six series of growing length in two folders, and what must be left out or set aside."""
    generator = np.random.default_rng(0)
    for number in range(6):
        place = tmp_path / "data" / ("left", "right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = generator.normal(1e4, (1, 10), (20 + number, 2)).T
        np.savetxt(place / f"{number}.series", values)
    (tmp_path / "data" / "left" / "empty.series").touch()
    (tmp_path / "data" / ".hidden").mkdir()
    for name in (".hidden/x.series", "left/.y.series", "notes.txt"):
        (tmp_path / "data" / name).write_text("1 2\n3 4\n")
    return tmp_path / "data"


def test_the_contract(folder):
    check_loader(TextSeries(folder))


def test_files_in_order_with_labels_groups_and_bad_files(folder):
    loader = TextSeries(folder)
    groups = [loader.group(index) for index in range(len(loader))]
    assert groups == [f"left/{n}.series" for n in (0, 2, 4)] + [f"right/{n}.series" for n in (1, 3, 5)]
    assert [loader.read(index).meta.label for index in range(6)] == ["left"] * 3 + ["right"] * 3
    assert loader.sources(1) == [str(folder / "left" / "2.series")]
    assert [(bad.path, bad.reason) for bad in loader.bad_files] == [(str(folder / "left" / "empty.series"), "is empty")]


def test_a_single_file(folder):
    loader = TextSeries(folder / "right" / "1.series")
    assert (len(loader), loader.group(0), loader.label(0)) == (1, "1.series", None)
    assert TextSeries.accepts(folder / "right" / "1.series")
    assert not TextSeries.accepts(folder / "notes.txt")
    assert not TextSeries.accepts(folder / ".hidden" / "nothing")


def test_statistics_are_those_of_all_values_together(folder):
    values = np.concatenate([np.loadtxt(file) for file in sorted(folder.glob("[lr]*/[0-9].series"))], axis=1)
    found = TextSeries(folder).statistics()["series"]
    values = values.astype(np.float32).astype(np.float64)
    assert found.count == values.shape[1]
    np.testing.assert_allclose(found.mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(1, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal([found.minimum, found.maximum], [values.min(1), values.max(1)])


@pytest.mark.parametrize("content", ["1 2\n3\n", "one two\n", "1 2\n3 4\n5 6\n"])
def test_a_broken_file_is_named_and_set_aside_from_statistics(folder, content):
    before = TextSeries(folder).statistics()
    (folder / "left" / "6.series").write_text(content)
    loader = TextSeries(folder)
    with pytest.raises(DataError, match=r"left/6\.series: (cannot be read|gives .* of shape \(3, 2\))"):
        loader.read(3)
    assert loader.statistics() == before


def test_nothing_that_can_be_read(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder"):
        TextSeries(tmp_path / "nowhere")
    (tmp_path / "a.series").write_text("x\n")
    with pytest.raises(DataError, match=r"none of 1 files looked at can be used: .*a\.series"):
        TextSeries(tmp_path).statistics()


@pytest.mark.parametrize(
    ("shape", "drawn"), [((2, 5), (2, 5)), ((1, 4, 5), (4, 5)), ((6, 4, 5), (4, 5)), ((1, 3, 4, 5), (4, 5))]
)
def test_pictures_of_series_images_and_volumes(folder, shape, drawn):
    picture = TextSeries(folder).picture("series", torch.arange(float(np.prod(shape))).view(shape))
    assert (picture.shape, picture.dtype) == ((*drawn, 3), np.uint8)
    assert picture.min() == 0
    assert picture.max() == 255
