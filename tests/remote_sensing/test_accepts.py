"""Which folders the rasters' loader takes by itself, and which it leaves to the loader of images."""

import numpy as np
import pytest
from PIL import Image

from maskwright.core.build import open_loader
from maskwright.remote_sensing.fake import fake_scene
from maskwright.remote_sensing.loaders import GeoTiffLoader


def _picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
    return path


def test_ordinary_pictures_are_left_to_the_loader_of_images(tmp_path):
    picture = _picture(tmp_path / "cats" / "a.png")
    assert not GeoTiffLoader.accepts(tmp_path)
    assert not GeoTiffLoader.accepts(picture)
    assert open_loader(tmp_path)[0] == "images"
    assert isinstance(open_loader(tmp_path, "geotiff")[1], GeoTiffLoader)  # who asks for it gets it


@pytest.mark.parametrize("ending", ["pgw", "wld"])
def test_a_world_file_gives_a_picture_its_place(tmp_path, ending):
    picture = _picture(tmp_path / "tiles" / "a.png")
    picture.with_suffix(f".{ending}").write_text("10\n0\n0\n-10\n500000\n4000000\n")
    assert GeoTiffLoader.accepts(picture)
    assert open_loader(tmp_path)[0] == "geotiff"


def test_geotiff_is_a_raster(tmp_path):
    fake_scene(tmp_path / "scene.tif")
    assert open_loader(tmp_path)[0] == "geotiff"
