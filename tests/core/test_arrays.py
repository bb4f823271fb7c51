"""The loader of arrays and tables."""

import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from maskwright.core import array_files
from maskwright.core.arrays import ArrayLoader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.data import SampleReader
from maskwright.testing import check_loader

NUMBERS = np.random.default_rng(0).normal(size=(20, 6, 5)).astype(np.float32)


def _npy(tmp_path, values, name="data.npy"):
    np.save(tmp_path / name, values)
    return tmp_path / name


def _text(tmp_path, text, name="table.csv"):
    (tmp_path / name).write_bytes(text.encode())
    return tmp_path / name


# axes and columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes", "dims", "given", "name"),
    [
        ((7,), "", "C T", (1, 7), "series"),
        ((6, 5), "", "C H W", (1, 6, 5), "image"),
        ((6, 5), "T C", "C T", (5, 6), "series"),
        ((3, 6, 5), "", "C H W", (3, 6, 5), "image"),
        ((6, 5, 3), "H W C", "C H W", (3, 6, 5), "image"),
        ((6, 5, 3), "W H C", "C H W", (3, 5, 6), "image"),
        ((6, 5, 4), "D H W", "C D H W", (1, 6, 5, 4), "volume"),
        ((2, 6, 5, 4), "", "C D H W", (2, 6, 5, 4), "volume"),
        ((6, 5, 4, 2), "D H W C", "C D H W", (2, 6, 5, 4), "volume"),
    ],
)
def test_axes(tmp_path, shape, axes, dims, given, name):
    values = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    loader = ArrayLoader(_npy(tmp_path, values), axes=axes)
    assert loader.spec[name].dims == dims
    assert loader.spec[name].channels == given[0]
    assert tuple(loader.read(2)[name].shape) == given
    letters = {"C T": "ct", "C H W": "chw", "C D H W": "cdhw"}[dims]
    stored = "".join(axes.split()).lower() or letters[-len(shape) :]
    expected = np.einsum(f"{stored}->{''.join(letter for letter in letters if letter in stored)}", values[2])
    assert np.array_equal(loader.read(2)[name].numpy(), expected.reshape(given))


def test_axes_that_cannot_be_or_would_be_guessed(tmp_path):
    path = _npy(tmp_path, np.zeros((4, 28, 28, 3)))
    with pytest.raises(ConfigError, match=r'data\.axes="H W C" if last'):
        ArrayLoader(path)
    for axes in ("H H C", "H W Q", "H", "C", "H W T"):
        with pytest.raises(ConfigError, match=r"is no layout of a sample"):
            ArrayLoader(path, axes=axes)
    with pytest.raises(ConfigError, match=r"names 2 axes, but samples of .* have shape \(28, 28, 3\)"):
        ArrayLoader(path, axes="H W")
    with pytest.raises(ConfigError, match=r"names 2 channels, but a sample of .* has 3"):
        ArrayLoader(path, axes="H W C", channels=["red", "green"])
    with pytest.raises(ConfigError, match="one to four axes"):
        ArrayLoader(_npy(tmp_path, np.zeros((2, 2, 2, 2, 2, 2)), "six.npy"))


def test_rows_of_a_table_become_images(tmp_path):
    """Pixel-major rows as Statlog has them: the bands of the first pixel, then those of the second."""
    values = np.arange(3 * 36).reshape(3, 36)
    rows = np.column_stack([values, [1, 2, 1]])
    np.savetxt(tmp_path / "rows.txt", rows, fmt="%d")
    for path in (tmp_path / "rows.txt", _npy(tmp_path, rows)):
        loader = ArrayLoader(path, columns="0:36", shape=[3, 3, 4], axes="H W C", channels=list("abcd"))
        image = loader.read(1)["image"]
        assert tuple(image.shape) == (4, 3, 3)
        assert image[:, 0, 1].tolist() == [36 + 4, 36 + 5, 36 + 6, 36 + 7]
        assert loader.spec["image"].channels == ("a", "b", "c", "d")
        check_loader(loader)
    with pytest.raises(ConfigError, match=r"data.shape=\[3, 3, 5\] does not hold the 36 numbers"):
        ArrayLoader(path, columns="0:36", shape=[3, 3, 5])


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [(None, [0, 1, 2, 3]), ("1:3", [1, 2]), (":-1", [0, 1, 2]), ("2:", [2, 3]), (["c", "a"], [2, 0]), ("b, d", [1, 3]),
     ([3, "a"], [3, 0]), ("d", [3])],
)  # fmt: skip
def test_columns(tmp_path, columns, chosen):
    path = _text(tmp_path, "a,b,c,d\n1,2,3,4\n5,6,7,8\n")
    assert ArrayLoader(path, columns=columns).read(1)["series"].tolist() == [[[5, 6, 7, 8][at] for at in chosen]]


def test_columns_that_are_not_there(tmp_path):
    path = _text(tmp_path, "alpha,beta\n1,2\n3,4\n")
    for columns, message in (
        (["alhpa"], 'no column "alhpa".*Did you mean "alpha"'),
        ([2], "no column 2; positions go from 0 to 1"),
        ("0:3", "has 2 columns"),
        ("2:", "has 2 columns"),
        ([0, "alpha"], "each once"),
        (96, "quote a slice"),
    ):
        with pytest.raises(ConfigError, match=message):
            ArrayLoader(path, columns=columns)
    with pytest.raises(ConfigError, match="rows of one axis"):
        ArrayLoader(_npy(tmp_path, NUMBERS), columns="0:2")
    with pytest.raises(ConfigError, match="have no names"):
        ArrayLoader(_npy(tmp_path, NUMBERS[0]), columns=["a"])


# text tables --------------------------------------------------------------------------------------------------------

COUNTED = " ".join(map(str, range(1, 11)))
TEN = " ".join("7" * 10)


@pytest.mark.parametrize(
    ("text", "rows", "fields"),
    [
        ("1,2\n3,4\n", 2, 2),
        ("a,b\n1,2\n3,4\n", 2, 2),
        ("\ufeffa;b\r\n1;2\r\n3;4\r\n", 2, 2),
        ("# a comment\n1\t2\n\n3\t4\n\n", 2, 2),
        (f"{COUNTED}\n{TEN}\n{TEN}\n", 2, 10),
        (f"{COUNTED.replace('5 6', '6 6')}\n{TEN}\n{TEN}\n", 2, 10),  # a slip in the count
        ("1 2 3\n4 5 6\n7 8 9\n", 3, 3),  # too short to be told from data
        (f"{COUNTED}\n{COUNTED.replace('10', '11')}\n{TEN}\n", 3, 10),  # counting goes on below: a ramp
        ("0,1,2\n4.5,5.5,6.5\n7.5,8.5,9.5\n", 2, 3),  # unless the rest are decimals
        (",0,1,2\n0,4.5,5.5,6.5\n1,7.5,8.5,9.5\n", 2, 4),  # an index without a name
        ("  1.5   2e-3\n -3   .5\n", 2, 2),
        ("?,2\n3,4\n5,6\n", 3, 2),  # a gap is no name
        ('"1","2"\n"3","4"\n', 2, 2),
    ],
)
def test_layouts_are_found_out(tmp_path, text, rows, fields):
    path = _text(tmp_path, text, "table.trn")
    loader = ArrayLoader(path)
    assert (len(loader), loader.read(rows - 1)["series"].shape[1]) == (rows, fields)
    assert ArrayLoader.accepts(path)


def test_the_user_decides_about_the_first_line(tmp_path):
    path = _text(tmp_path, "1 2 3\n4 5 6\n7 8 9\n")
    assert [len(ArrayLoader(path, header=header)) for header in (None, False, True)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("1,2\n3,4\n5\n", 3, "has 1 fields; expected 2"),
        ("1,2\n" * 50 + "1,2,3\n", 51, "has 3 fields"),
        ("a,b\n1,2\n\n3,4\n5,x\n", 5, 'column "b" holds "x"; expected a number'),
        ("1 2\n1_000 3\n", 2, r"column 0 \(counted from 0\) holds \"1_000\""),
    ],
)
def test_bad_lines_are_named(tmp_path, text, line, message):
    path = _text(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        ArrayLoader(path)
    assert caught.value.path == f"{path}, line {line}"
    assert caught.value.mend


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"just words\n", b"one\ntwo\n", b"\0\1\2\3" * 50, "1,2\n3,é\n".encode("latin-1"), b"1,2\n"],
)
def test_no_table_at_all(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"table\.csv"):
        ArrayLoader(path)
    assert not ArrayLoader.accepts(path)


@pytest.mark.parametrize("gap", ["", "NaN", "?", "NA", "inf", "1e300"])
def test_rows_with_gaps_are_refused_one_by_one(tmp_path, gap):
    path = _text(tmp_path, f"a,b\n1,2\n3,{gap}\n5,6\n")
    loader = ArrayLoader(path)
    with pytest.raises(DataError, match=r"1 of 2 numbers are missing, NaN or infinite.*data\.columns") as caught:
        loader.read(1)
    assert caught.value.path == f"{path}, line 3"
    assert loader.read(2)["series"].tolist() == [[5, 6]]
    assert loader.statistics()["series"].maximum == [6], "and count for nothing"
    reader = SampleReader(loader, 0)
    assert reader[(0, 1)].path != reader[(0, 0)].meta.source, "the trainer counts rows, not the file"


# arrays on disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_number_types_and_orders(tmp_path, kind, order):
    values = np.asarray((NUMBERS * 10).astype(kind), order=order)
    np.savez_compressed(tmp_path / "data.npz", one=values)
    for path in (_npy(tmp_path, values), tmp_path / "data.npz"):
        loader = ArrayLoader(path)
        assert loader.read(7)["image"].dtype == torch.float32
        assert np.array_equal(loader.read(7)["image"][0].numpy(), values[7].astype(np.float32))


def test_npy_is_mapped_and_npz_travels_without_its_numbers(tmp_path):
    loader = ArrayLoader(_npy(tmp_path, np.zeros((1000, 64, 64), np.float32)))
    loader.read(0)
    assert isinstance(loader._rows(), np.memmap)
    np.savez(tmp_path / "data.npz", x=NUMBERS)
    other = ArrayLoader(tmp_path / "data.npz", group="")
    other.read(3)
    for each, index in ((loader, 5), (other, 5)):
        sent = pickle.dumps(each)
        assert len(sent) < 5000
        there = pickle.loads(sent)  # noqa: S301, as loader processes do
        assert torch.equal(there.read(index)["image"], each.read(index)["image"])


def test_several_arrays(tmp_path):
    site = np.array(["a", "b"] * 10)
    np.savez(tmp_path / "set.npz", x=NUMBERS, y=np.arange(20), site=site)
    (tmp_path / "folder").mkdir()
    for name, values in (("x", NUMBERS), ("y", np.arange(20)), ("site", site)):
        np.save(tmp_path / "folder" / f"{name}.npy", values)
    (tmp_path / "folder" / "README.md").write_text("About the arrays.\n")
    for path in (tmp_path / "set.npz", tmp_path / "folder"):
        loader = ArrayLoader(path, axes="T C", group="site")  # x is the only one that can be meant
        assert tuple(loader.read(0)["series"].shape) == (5, 6)
        assert [loader.group(index) for index in (0, 1, 19)] == ["a", "b", "b"]
        assert ArrayLoader(path, array="x", group="y").group(3) == "3"
        assert ArrayLoader.accepts(path)
        check_loader(loader)
        with pytest.raises(ConfigError, match='"z"'):
            ArrayLoader(path, array="z")
        with pytest.raises(DataError, match="one number a sample"):
            ArrayLoader(path, array="y")
        with pytest.raises(DataError, match="real numbers"):
            ArrayLoader(path, array="site")
        with pytest.raises(ConfigError, match=r'data.group="sit".*Did you mean "site"'):
            ArrayLoader(path, group="sit")
        rows = ArrayLoader.inspect(path)
        assert {row["array"]: row["of"] for row in rows} == {"x": [6, 5], "y": "one value", "site": "one value"}
    np.save(tmp_path / "folder" / "z.npy", NUMBERS[:, 0])
    with pytest.raises(ConfigError, match=r"several arrays: .*Choose one with data.array=NAME"):
        ArrayLoader(tmp_path / "folder")


def test_groups(tmp_path):
    path = _text(tmp_path, "site,a,b\nnorth,1,2\nsouth,3,4\nnorth,5,6\n")
    loader = ArrayLoader(path, group="site")
    assert [loader.group(index) for index in range(3)] == ["north", "south", "north"]
    assert loader.read(1)["series"].tolist() == [[3, 4]], "a column of groups is no input"
    check_loader(loader)
    plain = _npy(tmp_path, NUMBERS)
    assert ArrayLoader(plain).group(4) == "data.npy row 4", "rows of two files are not one group"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    groups = _npy(elsewhere, np.arange(20) // 2 + 0.5, "groups.npy")
    assert ArrayLoader(plain, group=str(groups)).group(5) == "2.5"
    for values in (np.arange(19), np.zeros((20, 2)), np.zeros(20, complex)):
        with pytest.raises(DataError, match="one text or number for each of 20 samples"):
            ArrayLoader(plain, group=str(_npy(elsewhere, values, "bad.npy")))
    for values in (np.array(["a"] * 19 + [""]), np.array([1.0] * 19 + [np.nan])):
        with pytest.raises(DataError, match="names no group for sample 19"):
            ArrayLoader(plain, group=str(_npy(elsewhere, values, "bad.npy")))


def test_statistics_are_those_of_all_values(tmp_path, monkeypatch):
    monkeypatch.setattr("maskwright.core.array_statistics.BLOCK_VALUES", 70)
    values = NUMBERS.copy() + 1000
    values[3, 0, 0] = np.nan
    loader = ArrayLoader(_npy(tmp_path, values), axes="T C")
    found = loader.statistics()["series"]
    flat = np.delete(values, 3, axis=0).astype(np.float64).reshape(-1, 5)
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, flat.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(found.minimum, flat.min(0))
    np.testing.assert_array_equal(found.maximum, flat.max(0))
    assert found.count == 19 * 6
    with pytest.raises(DataError, match="none of 4 rows looked at holds finite numbers"):
        ArrayLoader(_npy(tmp_path, np.full((4, 3), np.nan), "none.npy")).statistics()


def test_pictures(tmp_path):
    shapes = {
        (1, 12): (8, 12, 3),
        (18, 3): (18, 3, 3),
        (1, 6, 5): (6, 5, 3),
        (4, 6, 5): (6, 5, 3),
        (2, 3, 6, 5): (6, 5, 3),
    }
    for shape, expected in shapes.items():
        loader = ArrayLoader(_npy(tmp_path, NUMBERS))
        picture = loader.picture("image", torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        assert (picture.shape, picture.dtype) == (expected, np.uint8)
        assert picture.max() == 255
        assert picture.min() == 0


# what it refuses ----------------------------------------------------------------------------------------------------


def test_what_it_does_not_take(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):  # one image a file is another layout
        np.save(images / f"{number}.npy", np.zeros((3, 8, 8)))
    assert not ArrayLoader.accepts(images)
    rasters = tmp_path / "rasters"
    rasters.mkdir()
    np.save(rasters / "x.npy", NUMBERS)
    np.save(rasters / "y.npy", np.arange(20))
    assert ArrayLoader.accepts(rasters)
    (rasters / "tile.tif").write_bytes(b"II*\0")
    assert not ArrayLoader.accepts(rasters)
    assert not ArrayLoader.accepts(_text(tmp_path, "s1,s2\na.tif,b.tif\nc.tif,d.tif\n", "pairs.csv"))
    assert not ArrayLoader.accepts(_text(tmp_path, "1\n2\n3\n", "labels.txt"))


def test_objects_texts_and_complex_numbers(tmp_path):
    np.save(tmp_path / "object.npy", np.array([[{}, 1]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, which are never loaded"):
        ArrayLoader(tmp_path / "object.npy")
    for values in (
        np.array([["a", "b"]]),
        np.zeros((2, 2), complex),
        np.zeros((2, 2), "M8[s]"),
        np.zeros(2, [("a", "f4")]),
    ):
        with pytest.raises(DataError, match="real numbers"):
            ArrayLoader(_npy(tmp_path, values))
    with pytest.raises(DataError, match="is empty"):
        ArrayLoader(_npy(tmp_path, np.zeros((0, 3))))
    with pytest.raises(DataError, match="one number a sample"):
        ArrayLoader(_npy(tmp_path, np.zeros(())))


def _with_header(path, shape, payload=b"\0" * 64):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(payload)
    return path


@pytest.mark.parametrize("shape", [(4, 5), (3, 5), (2**40, 2**40), (2**62, 4), (2**33, 2**31), (-1, 4), (True, 4)])
def test_headers_that_lie(tmp_path, shape):
    path = _with_header(tmp_path / "lie.npy", shape)
    with pytest.raises(DataError, match=r"lie\.npy"):
        ArrayLoader(path)
    archive = tmp_path / "lie.npz"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "x.npy")
    with pytest.raises((DataError, ConfigError), match=r"lie\.npz"):
        ArrayLoader(archive).read(0)


def test_archives_that_lie(tmp_path, monkeypatch):
    """One member larger than the limit, sizes that compression cannot reach, and a checksum that is wrong."""
    path = tmp_path / "large.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)))
    with monkeypatch.context() as patch:
        patch.setattr(array_files, "MAX_MEMBER_BYTES", 2**20)
        with pytest.raises(DataError, match=r"declares 0\.0 GB.*Save it as \.npy"):
            ArrayLoader(path).read(0)
    with monkeypatch.context() as patch:
        patch.setattr(array_files, "MAX_RATIO", 100)
        with pytest.raises(DataError, match="which cannot be"):
            ArrayLoader(path).read(0)
    assert ArrayLoader(path).read(0)["series"].shape == (1, 1000)
    np.savez(tmp_path / "sum.npz", x=NUMBERS)
    data = bytearray((tmp_path / "sum.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "sum.npz").write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        ArrayLoader(tmp_path / "sum.npz").read(0)


def test_a_file_that_shrinks_in_use_is_an_error_and_no_crash(tmp_path):
    path = _npy(tmp_path, np.zeros((1000, 1000), np.float32))
    loader = ArrayLoader(path)
    loader.read(0)
    with path.open("rb+") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match="changed while it was in use"):
        loader.read(999)


# real data ----------------------------------------------------------------------------------------------------------


def test_statlog(shared_data):
    path = shared_data / "remote_sensing" / "statlog_landsat_mss" / "sat.trn"
    loader = ArrayLoader(path, columns="0:36", shape=[3, 3, 4], axes="H W C")
    assert len(loader) == 4435, "the line that counts the columns is no data"
    first = [int(field) for field in path.read_text().splitlines()[1].split()[:36]]
    assert loader.read(0)["image"].permute(1, 2, 0).flatten().tolist() == first
    assert ArrayLoader.accepts(path)
    check_loader(loader)


def test_fuel_moisture(shared_data):
    folder = shared_data / "remote_sensing" / "s1s2_fuel_moisture_timeseries"
    loader = ArrayLoader(folder, array="s1_s2_era5_srtm", axes="T C", group="site")
    assert tuple(loader.read(0)["series"].shape) == (18, 3)
    assert len({loader.group(index) for index in range(len(loader))}) == 112
    assert ArrayLoader.accepts(folder)
    check_loader(loader)


def test_folders_of_images_are_left_to_others(shared_data):
    folder = shared_data / "remote_sensing"
    for name in ("terramesh_s1s2", "bigearthnet_pairs", "naip_chips", "landsat8_crop", "modis_samples"):
        assert not ArrayLoader.accepts(folder / name), name
    assert not ArrayLoader.accepts(folder / "bigearthnet_pairs" / "pairs.csv")


def test_the_script_of_the_page_runs(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "arrays.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    script += "\nassert z.shape == (1, 96), z.shape\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
