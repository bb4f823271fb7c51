"""Finding images and pairs."""

import shutil

import numpy as np
import pytest

from maskwright.core.errors import ConfigError, DataError
from maskwright.remote_sensing.fake import fake_bigearthnet, fake_s1s2
from maskwright.remote_sensing.loaders import GeoTiffLoader, PairLoader
from maskwright.remote_sensing.pairs import find_pairs, may_hold_pairs
from maskwright.remote_sensing.sources import find_images, source_of_folder
from maskwright.remote_sensing.writers import write_geotiff


def names(found):
    return [(name, optical.name, radar.name) for name, optical, radar in found]


def test_pairs_by_equal_names(tmp_path):
    fake_s1s2(tmp_path, tiles=2, size=32)
    good, bad = find_pairs(tmp_path)
    assert names(good) == [("tile_0", "tile_0.tif", "tile_0.tif"), ("tile_1", "tile_1.tif", "tile_1.tif")]
    assert bad == []


def test_images_without_a_partner_are_listed(tmp_path):
    fake_s1s2(tmp_path, tiles=3, size=32)
    (tmp_path / "S1" / "tile_1.tif").unlink()
    (tmp_path / "S2" / "tile_2.tif").unlink()
    good, bad = find_pairs(tmp_path)
    assert [name for name, *_ in good] == ["tile_0"]
    assert [(item.path, "no partner" in item.reason) for item in bad] == [
        (str(tmp_path / "S2" / "tile_1.tif"), True),
        (str(tmp_path / "S1" / "tile_2.tif"), True),
    ]


def test_no_names_match(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=32)
    (tmp_path / "S1" / "tile_0.tif").rename(tmp_path / "S1" / "other.tif")
    with pytest.raises(DataError, match=r"tile_0.*other.*data\.pairs"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("folder", ["S2L2A", "sentinel_s2", "my-S2-tiles"])
def test_folders_named_after_the_sensor(tmp_path, folder):
    fake_s1s2(tmp_path, tiles=1, size=32)
    (tmp_path / "S2").rename(tmp_path / folder)
    (tmp_path / "S1").rename(tmp_path / "S1RTC")
    (tmp_path / "results2").mkdir()
    assert may_hold_pairs(tmp_path)
    assert len(PairLoader(tmp_path, 32)) == 1


def test_several_folders_want_a_choice(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=32, l1c=True)
    (tmp_path / "S2").rename(tmp_path / "S2L1C")
    shutil.copytree(tmp_path / "S2L1C", tmp_path / "S2other")
    with pytest.raises(ConfigError, match=r"S2L1C, S2other.*data\.s2=S2other"):
        PairLoader(tmp_path, 32)
    assert may_hold_pairs(tmp_path), "else another loader would take the folder, and the choice never be offered"
    assert PairLoader(tmp_path, 32, s2="S2L1C").spec["optical"].channel_count == 12
    with pytest.raises(DataError, match=r"nowhere.*data\.s2"):
        PairLoader(tmp_path, 32, s2="nowhere")


def test_bigearthnet_by_table_and_by_metadata(tmp_path):
    fake_bigearthnet(tmp_path, patches=2)
    by_table, _ = find_pairs(tmp_path)
    (tmp_path / "pairs.csv").unlink()
    with pytest.raises(DataError, match="equal file names"):
        find_pairs(tmp_path)
    for _, optical, radar in by_table:
        (radar / f"{radar.name}_labels_metadata.json").write_text(f'{{"corresponding_s2_patch": "{optical.name}"}}')
    by_metadata, bad = find_pairs(tmp_path)
    assert (by_metadata, bad) == (by_table, [])


def test_table_elsewhere_with_paths_and_other_headings(tmp_path):
    fake_s1s2(tmp_path / "data", tiles=2, size=32)
    table = tmp_path / "list.csv"
    table.write_text("\ufeffid,SAR file,optical file\n1,S1/tile_0.tif,S2/tile_0.tif\n2,S1/tile_1.tif,S2/gone.tif\n")
    loader = PairLoader(tmp_path / "data", 32, pairs=str(table))
    assert len(loader) == 1
    assert [(item.path, "gone.tif" in item.reason) for item in loader.bad_files] == [(f"{table}:3", True)]
    with pytest.raises(DataError, match=r"no such file.*data\.pairs"):
        PairLoader(tmp_path / "data", 32, pairs="nothing.csv")


def test_what_the_pair_loader_takes(tmp_path):
    fake_bigearthnet(tmp_path / "ben", patches=1)
    assert PairLoader.accepts(tmp_path / "ben")
    assert PairLoader.accepts(tmp_path / "ben" / "pairs.csv")
    assert not PairLoader.accepts(tmp_path / "ben" / "S2")
    other = tmp_path / "table.csv"
    other.write_text("age,income\n1,2\n")
    assert not PairLoader.accepts(other)
    assert not GeoTiffLoader.accepts(other)
    assert GeoTiffLoader.accepts(tmp_path / "ben")


def test_folder_of_bands_is_one_image(tmp_path):
    fake_bigearthnet(tmp_path, patches=2)
    images = find_images(tmp_path / "S2")
    assert [image.is_dir() for image in images] == [True, True]
    source = source_of_folder(images[0])
    assert source.names == ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
    assert (source.header.height, source.header.width) == (120, 120), "the finest gives the grid"


def test_bands_of_different_places_are_refused(tmp_path):
    for number, (name, left) in enumerate((("x_B02.tif", 0.0), ("x_B03.tif", 5000.0))):
        values = np.full((1, 32, 32), number, np.uint16)
        write_geotiff(tmp_path / "x" / name, values, "EPSG:32633", (10, 0, left, 0, -10, 0))
    with pytest.raises(DataError, match="does not cover the same place"):
        source_of_folder(tmp_path / "x")


def test_sub_folders_are_optional(tmp_path):
    fake_s1s2(tmp_path, tiles=1, size=32)
    assert len(GeoTiffLoader(tmp_path / "S2", 32, recursive=False)) == 1
    with pytest.raises(DataError, match="no file ends in"):
        GeoTiffLoader(tmp_path, 32, recursive=False)
