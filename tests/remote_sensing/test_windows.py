import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine

from maskwright.core.errors import DataError
from maskwright.remote_sensing.raster import Header
from maskwright.remote_sensing.windows import Windows, flips, jitter, scaled, window_transform


def header(height: int, width: int, block: tuple[int, int] = (1, 10**6), path: str = "x.tif") -> Header:
    transform = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
    return Header(path, "GTiff", width, height, 1, "uint16", "EPSG:32633", transform, None, (None,), block)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), min_size=1, max_size=4))
def test_windows_cover_every_pixel_and_stay_inside(size, shapes):
    windows = Windows(size)
    shapes = [(height + size - 1, width + size - 1) for height, width in shapes]
    for height, width in shapes:
        windows.add(header(height, width))
    seen = [np.zeros(shape, dtype=bool) for shape in shapes]
    for index in range(len(windows)):
        image, (row, column, height, width) = windows[index]
        assert (height, width) == (size, size)
        assert 0 <= row <= shapes[image][0] - size
        assert 0 <= column <= shapes[image][1] - size
        seen[image][row : row + size, column : column + size] = True
    assert all(cover.all() for cover in seen)
    with pytest.raises(IndexError):
        windows[len(windows)]
    with pytest.raises(IndexError):
        windows[-1]


def test_whole_images_and_images_that_are_too_small():
    windows = Windows(None)
    windows.add(header(30, 50))
    assert (len(windows), windows[0]) == (1, (0, (0, 0, 30, 50)))
    with pytest.raises(DataError, match=r"30 x 50 pixels.*40 x 40"):
        Windows(40).add(header(30, 50))


def test_a_continent_costs_nothing_to_index():
    windows = Windows(224)
    windows.add(header(10**9, 10**9))
    assert windows[len(windows) - 1] == (0, (10**9 - 224, 10**9 - 224, 224, 224))


@given(st.integers(0, 10**6), st.integers(300, 900), st.integers(300, 900), st.sampled_from([(256, 256), (1, 10**6)]))
def test_moved_windows_stay_inside_and_inside_their_tile(seed, height, width, block):
    file = header(height, width, block)
    windows = Windows(200)
    windows.add(file)
    for index in range(len(windows)):
        _, box = windows[index]
        row, column, *_ = jitter(box, file, seeded(seed), aligned=False)
        assert 0 <= row <= height - 200
        assert 0 <= column <= width - 200
        assert abs(row - box[0]) <= 100
        assert abs(column - box[1]) <= 100
        row, column, *_ = jitter(box, file, seeded(seed), aligned=True)
        assert 0 <= row <= height - 200
        assert 0 <= column <= width - 200
        if file.tiled:
            for start, length in ((row, height), (column, width)):
                tile = start // 256 * 256
                whole = min(tile + 256, length) - tile >= 200
                assert not whole or start + 200 <= tile + 256


def test_moved_windows_reach_every_place():
    file = header(512, 512, (256, 256))
    rows = {jitter((0, 0, 200, 200), file, seeded(seed), aligned=True)[0] for seed in range(2000)}
    assert rows == set(range(57))


@given(st.integers(0, 10**6), st.integers(120, 400), st.integers(8, 200), st.integers(0, 200))
def test_random_squares_have_sides_in_their_range(seed, length, low, more):
    file = header(length, length + 30)
    row, column, height, width = scaled((0, 0, 120, 120), file, (low, low + more), seeded(seed))
    assert height == width
    assert min(low, length) <= height <= low + more
    assert 0 <= row <= length - height
    assert 0 <= column <= length + 30 - width


def test_flips_keep_each_pixel_at_its_place():
    values = np.arange(12.0).reshape(1, 3, 4)
    transform = (10.0, 0.0, 100.0, 0.0, -10.0, 500.0)
    place = {
        values[0, row, column]: Affine(*transform) * (column + 0.5, row + 0.5)
        for row in range(3)
        for column in range(4)
    }
    seen = set()
    for seed in range(12):
        flipped, moved = flips({"a": values, "b": values[:, :, :]}, transform, seeded(seed))
        assert (flipped["a"] == flipped["b"]).all()
        seen.add(flipped["a"][0, 0, 0])
        for row in range(3):
            for column in range(4):
                assert Affine(*moved) * (column + 0.5, row + 0.5) == place[flipped["a"][0, row, column]]
    assert seen == {0.0, 3.0, 8.0, 11.0}, "all four of them come"


def test_transform_of_a_resampled_window():
    moved = Affine(*window_transform(header(400, 400), (100, 50, 60, 60), (120, 120)))
    assert moved * (0, 0) == (5e5 + 500, 5e6 - 1000)
    assert moved * (120, 120) == (5e5 + 1100, 5e6 - 1600)


def test_gdal_keeps_decoded_blocks_between_windows():
    """Its cache is set in bytes; a number meant as megabytes leaves it empty and every window decodes anew."""
    import rasterio
    from rasterio.env import get_gdal_config

    from maskwright.remote_sensing import raster

    with rasterio.Env(**raster._ENVIRONMENT):
        assert get_gdal_config("GDAL_CACHEMAX") >= 64 * 2**20
