import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.features import item_counts, merge_targets, pixel_counts
from maskwright.core.evaluation.labels import labels_of
from maskwright.core.evaluation.task import Classification, MultiLabel, Regression, Segmentation
from maskwright.core.evaluation.task_model import between_centres
from maskwright.core.masking import Grid
from maskwright.core.sample import Meta, Sample
from tests.conftest import write_images


@pytest.fixture
def loader(images):
    return mw.open_data(images, "npy")


def _table(path, header, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def test_labels_by_file_name_in_any_spelling_and_any_order(loader, tmp_path):
    names = [f"image_{n:03d}" for n in range(12)]
    wanted = [f"c{n % 3}" for n in range(12)]
    shuffled = list(zip(names, wanted, strict=True))[::-1]
    for suffix, prefix in (("", ""), (".npy", ""), (".npy", "images/"), (".npy", f"{tmp_path}/images/"), (".png", "")):
        table = _table(tmp_path / "t.csv", ("file", "kind"), [(f"{prefix}{n}{suffix}", c) for n, c in shuffled])
        assert labels_of(f"{table}:kind", loader) == wanted
    table = _table(tmp_path / "t.csv", ("scene", "kind"), shuffled)
    assert labels_of(f"{table}:kind", loader, key="scene") == wanted
    assert labels_of(f"{table}:kind", loader) == wanted[::-1]  # no column is known to name files: by order


def test_labels_from_parquet_arrays_and_folders(loader, tmp_path):
    values = np.arange(12) * 0.5
    np.save(tmp_path / "y.npy", values)
    np.savez(tmp_path / "y.npz", y=values)
    pq.write_table(pa.table({"name": [f"image_{n:03d}" for n in range(12)], "y": values}), tmp_path / "y.parquet")
    for spec in ("y.npy", "y.npz:y", "y.parquet:y"):
        assert labels_of(str(tmp_path / spec), loader) == values.tolist()
    assert set(labels_of("folder", loader)) == {"images"}


def test_whitespace_and_semicolon_tables(loader, tmp_path):
    for separator in (" ", ";", "\t"):
        table = _table(tmp_path / "t.txt", ("0", "1"), [(n, n % 2) for n in range(12)], separator)
        assert labels_of(f"{table}:1", loader) == [str(n % 2) for n in range(12)]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda p: p / "none.csv", DataError, "there is no such file"),
        (
            lambda p: _table(p / "a.csv", ("file", "kind"), [("image_000", 1)]),
            ConfigError,
            "say which holds the labels",
        ),
        (lambda p: f"{_table(p / 'a.csv', ('file', 'kind'), [('x', 1)])}:knid", ConfigError, 'Did you mean "kind"'),
        (lambda p: f"{_table(p / 'a.csv', ('file', 'kind'), [('x', 1)])}:kind", DataError, "names none of the files"),
        (lambda p: f"{_table(p / 'a.csv', ('a', 'kind'), [('x', 1)])}:kind", DataError, "holds 1 labels; expected 12"),
        (lambda p: f"{_table(p / 'a.csv', ('file', 'kind'), [('x', 1, 2)])}:kind", DataError, "3 fields in line 2"),
    ],
)
def test_wrong_labels_say_what_and_where(loader, tmp_path, make, kind, message):
    with pytest.raises(kind, match=message):
        labels_of(str(make(tmp_path)), loader)


def test_a_pickled_array_is_refused(loader, tmp_path):
    np.save(tmp_path / "y.npy", np.array([{"a": 1}] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as an array"):
        labels_of(str(tmp_path / "y.npy"), loader)


def test_classification_numbers_classes_in_natural_order_and_leaves_out_the_unlabelled(loader, tmp_path):
    rows = [(f"image_{n:03d}", ["10", "9", "", "nan"][n % 4]) for n in range(12)]
    targets = Classification(f"{_table(tmp_path / 't.csv', ('file', 'y'), rows)}:y").targets(loader)
    assert targets.classes == ("9", "10")
    assert targets.values[:4].tolist() == [1, 0, -1, -1]
    assert targets.labelled(12).tolist() == [n for n in range(12) if n % 4 < 2]
    rows = [(name, 1) for name, _ in rows]
    with pytest.raises(DataError, match="gives 1 class: 1"):
        Classification(f"{_table(tmp_path / 't.csv', ('file', 'y'), rows)}:y").targets(loader)


def test_numbers_are_no_classes(tmp_path):
    loader = mw.open_data(write_images(tmp_path / "many", 60), "npy")
    np.save(tmp_path / "y.npy", np.linspace(0, 1, 60))
    with pytest.raises(ConfigError, match="--task regression"):
        Classification(str(tmp_path / "y.npy")).targets(loader)
    assert Regression(str(tmp_path / "y.npy")).targets(loader).values.shape == (60, 1)


def test_multilabel_and_several_columns(loader, tmp_path):
    rows = [(f"image_{n:03d}", ["a;b", "b", "", "c"][n % 4], n, -n) for n in range(12)]
    table = _table(tmp_path / "t.csv", ("file", "tags", "x", "y"), rows)
    targets = MultiLabel(f"{table}:tags").targets(loader)
    assert targets.classes == ("a", "b", "c")
    assert targets.values[0].tolist() == [1, 1, 0]
    assert np.isnan(targets.values[2]).all()
    assert len(targets.labelled(12)) == 9
    numbers = Regression(f"{table}:x,y").targets(loader)
    assert numbers.classes == ("x", "y")
    assert numbers.values[3].tolist() == [3, -3]
    with pytest.raises(DataError, match="a number"):
        Regression(f"{table}:tags").targets(loader)


def test_segmentation_follows_windows_and_ignores_unnamed_codes():
    samples = "maskwright/remote_sensing/samples/terramesh"
    loader = mw.open_data(samples, "s1s2", size=64)
    task = Segmentation(f"{samples}/LULC", classes={1: "water", 3: "flooded", 9: "rangeland"}, ignore=[9])
    targets = task.targets(loader)
    assert targets.classes == ("water", "flooded")
    index = next(i for i in range(len(loader)) if loader.group(i) == "433D_629L_3_1")
    sample = loader.read(index)
    found = targets.read(sample)
    import rasterio

    with rasterio.open(f"{samples}/LULC/433D_629L_3_1.tif") as file:
        row, column, height, width = sample.meta.window
        codes = file.read(1)[row : row + height, column : column + width]
    assert np.array_equal(found == 0, codes == 1)
    assert np.array_equal(found == 1, codes == 3)
    assert np.array_equal(found == -1, ~np.isin(codes, (1, 3)))


def test_label_rasters_on_another_grid_are_resampled_by_place(tmp_path):
    import rasterio

    samples = "maskwright/remote_sensing/samples/terramesh"
    source = f"{samples}/LULC/433D_629L_3_1.tif"
    with rasterio.open(source) as file:
        profile, codes = file.profile, file.read(1)
    profile.update(height=100, width=100, transform=profile["transform"] * rasterio.Affine.translation(40, 60))
    with rasterio.open(tmp_path / "433D_629L_3_1.tif", "w", **profile) as file:
        file.write(codes[60:160, 40:140], 1)
    loader = mw.open_data(samples, "s1s2", size=None)
    sample = next(loader.read(i) for i in range(len(loader)) if loader.group(i) == "433D_629L_3_1")
    found = loader.read_labels(tmp_path, sample)
    assert np.array_equal(found[60:160, 40:140], codes[60:160, 40:140])
    outside = np.ones_like(found, bool)
    outside[60:160, 40:140] = False
    assert (found[outside] == -1).all()
    with pytest.raises(DataError, match='no label raster for "282D'):
        loader.read_labels(tmp_path, loader.read(0))


def test_pixels_of_cells():
    labels = np.array([[0, 0, 1, 1], [0, -1, 1, 2]])
    assert pixel_counts(labels, (1, 2), 3).tolist() == [[3, 0, 0], [0, 3, 1]]
    assert pixel_counts(labels, (2, 4), 3).sum() == 7
    assert pixel_counts(labels[:, :3], (2, 2), 3).sum() == 5  # cells that do not divide the pixels


def test_merged_targets_share_classes(loader, tmp_path):
    for name, classes in (("a", ["x", "z"]), ("b", ["y", "z"])):
        _table(tmp_path / f"{name}.csv", ("i", "y"), [(n, classes[n % 2]) for n in range(12)])
    first, second = (Classification(f"{tmp_path}/{name}.csv:y").targets(loader) for name in "ab")
    both = merge_targets(first, second, (12, 12))
    assert both.classes == ("x", "z", "y")
    assert both.values[[0, 1, 12, 13]].tolist() == [0, 1, 2, 1]


def test_points_belong_to_the_nearest_centre():
    centres = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    points = torch.tensor([[1.0, 0, 0, 7], [9, 1, 0, 7], [4, 0, 0, 7], [11, 0, 3, 7], [0, 0, 1, 7]])
    sample = Sample({"points": points}, Meta("a"))
    labels = np.array([0, 1, 1, 1, -1])
    assert item_counts(labels, sample, Grid((2,), centres), 2).tolist() == [[1, 1], [0, 2]]


def test_values_between_scattered_centres():
    """At a centre its own value; midway between two the mean; and inverse square distances, written out."""
    centres = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 50, 0], [0, 0, 90]]])
    values = torch.tensor([[[1.0, 3, 5, 100]]])
    points = torch.tensor([[[0.0, 0, 0, 8], [2, 0, 0, 8], [1, 0, 0, 8], [0.5, 0, 0, 8]]])
    found = between_centres(values, centres, points)[0, 0]
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 3.0, 2.0]), atol=2e-3, rtol=0)
    weights = 1 / torch.tensor([0.25, 2.25, 2500.25])
    torch.testing.assert_close(found[3], (weights * values[0, 0, :3]).sum() / weights.sum())
