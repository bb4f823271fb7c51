"""Pictures of maskings on a user's own images: which are drawn, which options they take, and how they are laid out."""

import matplotlib.image
import numpy as np
import pytest
import torch

from maskwright.core import preview as module
from maskwright.core.errors import ConfigError, DataError, PluginError
from maskwright.core.evaluation import pictures
from maskwright.core.host import get_host
from maskwright.core.masking import BeitBlockMasking, GroupMasking, RandomMasking, UnitMasking
from maskwright.core.preview import preview_maskings
from maskwright.core.sample import Meta, Sample, TensorSpec
from tests.conftest import write_images


class Images:
    """In-memory images of one channel and any sizes."""

    spec = {"label": TensorSpec("T"), "image": TensorSpec("C H W", 1)}

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def read(self, index, generator=None):
        height, width = self.sizes[index]
        image = torch.arange(float(height * width)).view(1, height, width) / (height * width)
        return Sample({"label": torch.zeros(3), "image": image}, Meta("x", group=f"a folder/image number {index}"))

    def picture(self, name, tensor):
        return np.repeat((tensor[0] * 250).byte().numpy()[..., None], 3, axis=2)

    def upright(self, name, picture):
        return picture


@pytest.fixture
def drawn(monkeypatch):
    """Titles and maskings of each picture that is drawn."""
    calls = []
    original = module.mask_preview

    def record(loader, maskings, *args, **options):
        calls.append((maskings, args[1]))
        return original(loader, maskings, *args, **options)

    monkeypatch.setattr(module, "mask_preview", record)
    return calls


def test_all_maskings_and_all_colours_in_one_picture(images, tmp_path, drawn):
    preview_maskings([], images, tmp_path / "all.png", 4)
    labels = list(drawn[0][0])
    colours = [f"colour-noise, {colour}" for colour in ("red", "blue", "green", "purple")]
    assert [label for label in labels if label.startswith("colour-noise")] == colours
    plain = [name for name in get_host().components("masking") if name != "colour-noise"]
    assert sorted(labels) == sorted(plain + colours)
    assert (tmp_path / "all.png").is_file()
    assert list(tmp_path.glob(".*.tmp")) == []


def test_options_hold_for_the_maskings_that_have_them(images, tmp_path, drawn):
    settings = ["masking.ratio=0.4", "masking.unit=1", "masking.colour=red", "masking.visible=3"]
    preview_maskings(["random", "unit", "colour-noise", "block"], images, tmp_path / "x.png", 4, settings=settings)
    maskings = drawn[0][0]
    assert list(maskings) == ["random", "unit", "colour-noise", "block"]
    assert [masking.ratio for masking in maskings.values()] == [0.4] * 4
    assert (maskings["unit"].unit, maskings["colour-noise"].colour, maskings["random"].visible) == (1, "red", 3)


def test_options_that_none_has_and_values_that_do_not_fit(images, tmp_path):
    out = tmp_path / "x.png"
    with pytest.raises(ConfigError, match=r'masking\.colur: no masking of this picture has.*Did you mean "colour"'):
        preview_maskings(["unit", "colour-noise"], images, out, settings=["masking.colur=red"])
    with pytest.raises(ConfigError, match=r"masking\.colour: no masking of this picture"):
        preview_maskings(["unit"], images, out, settings=["masking.colour=red"])
    with pytest.raises(ConfigError, match=r"masking\.ratio='x'") as caught:
        preview_maskings(["unit", "random"], images, out, settings=["masking.ratio=x", "masking.unit=1.5"])
    assert str(caught.value).count("masking.ratio") == 1  # the same problem of two maskings is told once
    assert "masking.unit" in str(caught.value)
    with pytest.raises(ConfigError, match="Name the maskings to draw as arguments: `maskwright preview unit"):
        preview_maskings([], images, out, settings=["masking.name=unit"])
    assert not out.exists()


def test_a_method_is_drawn_with_its_own_masking_and_patch(images, tmp_path, drawn):
    preview_maskings(["toy-mae", "unit"], images, tmp_path / "x.png", settings=["masking.unit=1"])
    maskings, patch = drawn[0]
    assert list(maskings) == ["random (toy-mae)", "unit"]
    assert patch is None  # the toy method has no such option: what suits the images
    preview_maskings(["croma"], images, tmp_path / "y.png", 4)
    assert drawn[1][1] == 4


def test_what_cannot_be_drawn_is_left_out_with_a_warning(images, tmp_path, monkeypatch, drawn):
    """Of all maskings; a named one raises."""
    refuse = "masking.unit"
    with pytest.warns(UserWarning, match=r"unit is left out of the picture: .*does not divide into units of 3"):
        preview_maskings([], images, tmp_path / "x.png", 4, settings=[f"{refuse}=3"])
    with pytest.raises(ConfigError, match="does not divide into units of 3"):
        preview_maskings(["unit"], images, tmp_path / "x.png", 4, settings=[f"{refuse}=3"])

    component = type(get_host().component("masking", "block"))
    load = component.load

    def broken(self):
        if self.name == "block":
            raise PluginError("a library is missing")
        return load(self)

    monkeypatch.setattr(component, "load", broken)
    with pytest.warns(UserWarning, match="block is left out of the picture: a library is missing"):
        preview_maskings([], images, tmp_path / "x.png", 4)
    assert "block" not in drawn[-1][0]
    with pytest.raises(PluginError):
        preview_maskings(["block"], images, tmp_path / "x.png", 4)


def test_images_of_different_sizes(tmp_path):
    maskings = {"beit-block": BeitBlockMasking(), "group": GroupMasking(0.5)}
    out = pictures.mask_preview(Images((40, 64), (64, 40), (48, 48)), maskings, tmp_path / "x.png")
    assert matplotlib.image.imread(out).shape[0] > 500


@pytest.mark.parametrize(("longest", "patch"), [(14, 1), (32, 2), (64, 8), (120, 8), (256, 8), (512, 32), (4000, 250)])
def test_tokens_that_can_be_seen(longest, patch):
    assert pictures._fitting_patch(longest) == patch


def test_large_images_are_drawn_small(monkeypatch, tmp_path):
    seen = []
    original = pictures._grid_figure
    monkeypatch.setattr(pictures, "_grid_figure", lambda rows, *a, **k: seen.append(rows) or original(rows, *a, **k))
    pictures.mask_preview(Images((1504, 3008)), {"random": RandomMasking(0.5)}, tmp_path / "x.png", None)
    picture, masked = seen[0][0]
    assert max(picture.shape) <= pictures.SEEN
    assert picture.shape == masked.shape
    assert picture.shape[1] == 2 * picture.shape[0]
    hidden = (masked == pictures.HIDDEN).all(-1)
    assert hidden.mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(masked[~hidden], picture[~hidden])


def test_what_is_no_image_or_too_small(tmp_path):
    class Sequences(Images):
        spec = {"waveform": TensorSpec("T")}

    maskings = {"random": RandomMasking()}
    with pytest.raises(ConfigError, match=r'"waveform" has dimensions \(T\)'):
        pictures.mask_preview(Sequences((8, 8)), maskings, tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"6 x 20 pixels is smaller than a token of 8 x 8\. Give a patch size of 6"):
        pictures.mask_preview(Images((6, 20)), maskings, tmp_path / "x.png")
    with (
        pytest.warns(UserWarning, match="unit is left out"),
        pytest.raises(ConfigError, match="No masking can be drawn"),
    ):
        pictures.mask_preview(Images((8, 8)), {"unit": UnitMasking(unit=3)}, tmp_path / "x.png", 4, leave_out=True)
    with pytest.raises(DataError):
        preview_maskings([], tmp_path / "nothing", tmp_path / "x.png")


# layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "per_band", "lengths"), [(3, 0, [3]), (7, 6, [7]), (8, 6, [5, 4]), (14, 6, [6, 6, 4]), (1, 6, [1])]
)
def test_bands(count, per_band, lengths):
    bands = pictures._bands(count, per_band)
    assert [len(band) for band in bands] == lengths
    assert all(band[0] == 0 for band in bands)
    assert [column for band in bands for column in band[1:]] == list(range(1, count))


@pytest.mark.parametrize("shape", [(20, 20), (12, 40), (40, 12)])
def test_letters_neither_overlap_nor_leave_the_picture(shape):
    """Twelve maskings with long titles on square, wide and tall images, measured as they are drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = np.zeros((*shape, 3), dtype=np.uint8)
    titles = ["original"] + [f"colour-noise, purple (method-{number})\n75% hidden" for number in range(12)]
    names = ["S2A_MSIL2A_20240101T10302", "a street/with a long name"]
    figure = pictures._grid_figure([[picture] * 13] * 2, titles, names, per_band=6)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = canvas.get_renderer()
    boxes = [axis.get_tightbbox(drawn) for axis in figure.axes]
    assert len(boxes) == 2 * 14
    width, height = figure.get_size_inches() * figure.dpi
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        for other in boxes[number + 1 :]:
            apart_x = box.x1 <= other.x0 + 1.5 or other.x1 <= box.x0 + 1.5
            apart_y = box.y1 <= other.y0 + 1.5 or other.y1 <= box.y0 + 1.5
            assert apart_x or apart_y


def test_seven_maskings_are_two_bands_of_a_screens_width(tmp_path):
    """Of four samples each, so higher than wide."""
    folder = write_images(tmp_path / "images", 4, size=64)
    out = preview_maskings(["random", "unit", "block", "colour-noise"], folder, tmp_path / "x.png", 8)
    height, width = matplotlib.image.imread(out).shape[:2]
    assert 1200 < width < 2400
    assert height > width
