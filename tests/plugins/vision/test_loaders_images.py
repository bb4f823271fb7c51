"""Kinds of images: formats, depths, channels, alpha; and files that are broken, cut short or lie about their size."""

import builtins
import contextlib
import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.data import generator_for
from maskwright.plugins.vision.images import kind_of
from maskwright.plugins.vision.loaders import ImageLoader
from tests.plugins.vision.image_files import deep_png, encoded, png, smooth, write


def stored(path, **options) -> np.ndarray:
    """(H, W, C) as the loader reads a file without resizing it."""
    return ImageLoader(path, resize="none", **options).read(0)["image"].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("kind", "ending", "options", "worst"),
    [
        ("PNG", "png", {}, 0),
        ("JPEG", "jpg", {"quality": 98}, 10),
        ("JPEG", "JPEG", {"quality": 98, "progressive": True}, 10),
        ("WEBP", "webp", {"lossless": True}, 0),
        ("BMP", "bmp", {}, 0),
        ("TIFF", "tif", {}, 0),
        ("TIFF", "tiff", {"compression": "tiff_lzw"}, 0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_of_8_bits(tmp_path, kind, ending, options, worst, channels):
    values = smooth(30, 41, channels)
    path = write(tmp_path / f"a.{ending}", encoded(values, kind, **options))
    found = stored(path)
    if kind == "WEBP" and channels == 1:  # WebP has no grey
        values = np.repeat(values, 3, axis=2)
    assert found.shape == values.shape
    assert np.abs(found - values).max() <= worst
    assert ImageLoader(path).spec["image"].unit == "0 to 255"
    assert ImageLoader(path).spec["image"].channel_count == values.shape[2]


def test_names_do_not_decide_what_a_file_is(tmp_path):
    values = smooth(8, 8)
    assert np.array_equal(stored(write(tmp_path / "a.jpg", encoded(values))), values)
    assert kind_of(b"GIF89a") == "GIF"
    assert kind_of(b"%!PS-Adobe") is None


def test_the_first_frame_of_a_gif(tmp_path):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (stored(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_palettes_and_single_bits(tmp_path):
    values = smooth(12, 10) // 64 * 64
    Image.fromarray(values).quantize(256, dither=Image.Dither.NONE).save(tmp_path / "palette.png")
    wanted = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))
    assert np.array_equal(stored(tmp_path / "palette.png"), wanted)
    bits = smooth(12, 10, 1)[..., 0] > 128
    for ending in ("png", "bmp", "tif"):
        Image.fromarray(bits).save(tmp_path / f"bits.{ending}")
        assert np.array_equal(stored(tmp_path / f"bits.{ending}", channels="grey")[..., 0], bits * 255.0)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("LAB", "tif")])
def test_other_colour_spaces_become_rgb(tmp_path, mode, ending):
    colour = {"CMYK": (0, 255, 255, 0), "YCbCr": (76, 85, 255), "LAB": (136, 208, 195)}[mode]
    options = {"quality": 98} if ending == "jpg" else {}
    Image.new(mode, (16, 16), colour).save(tmp_path / f"a.{ending}", **options)
    red, green, blue = stored(tmp_path / f"a.{ending}").mean((0, 1))
    assert red > 230
    assert max(green, blue) < 40
    assert ImageLoader(tmp_path / f"a.{ending}").spec["image"].channels == ("red", "green", "blue")


def test_alpha_is_laid_on_the_background(tmp_path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[..., 0], values[:2, :, 3], values[2, :, 3] = 200, 255, 128
    path = write(tmp_path / "a.png", encoded(values))
    found = stored(path)
    assert (found[:2] == (200, 0, 0)).all()
    assert (found[3] == 255).all()
    assert np.abs(found[2] - (227.4, 127, 127)).max() <= 1
    assert (stored(path, background=(1, 2, 3))[3] == (1, 2, 3)).all()
    assert (stored(path, background=0)[3] == 0).all()
    assert (stored(path, channels="grey")[3] == 255).all()
    assert np.array_equal(stored(path, channels="all"), values)
    Image.fromarray(values[..., [0, 3]]).save(tmp_path / "b.png")
    assert np.array_equal(stored(tmp_path / "b.png")[..., 0][[0, 3]], [[200] * 4, [255] * 4])
    Image.new("P", (4, 4), 0).save(tmp_path / "c.png", transparency=0)
    assert (stored(tmp_path / "c.png") == 255).all()


# more than 8 bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_them(tmp_path, channels, interlaced):
    values = np.random.default_rng(channels).integers(0, 65536, (20, 13, channels)).astype(np.uint16)
    path = write(tmp_path / "a.png", deep_png(values, interlaced))
    loader = ImageLoader(path, size=8)
    assert loader.spec["image"].unit == "0 to 65535"
    assert np.array_equal(stored(path, channels="all"), values)
    colours = values[..., : 1 if channels < 3 else 3].astype(float)
    if channels in (2, 4):
        opaque = values[..., -1:] / 65535
        colours = colours * opaque + 65535 * (1 - opaque)
    np.testing.assert_allclose(stored(path), colours, atol=0.02)
    for generator in (None, generator_for(0)):
        image = loader.read(0, generator)["image"]
        assert image.shape == (colours.shape[2], 8, 8)
        assert image.amin() >= 0
        assert 255 < image.amax() <= 65535
    assert np.array_equal(loader.picture("image", image)[..., 0], (image[0] / 257).round().numpy())


def test_the_middle_of_16_bits_is_that_of_8(tmp_path):
    values = smooth(90, 70, 3)
    eight = ImageLoader(write(tmp_path / "8.png", encoded(values)), size=32)
    deep = ImageLoader(write(tmp_path / "16.png", deep_png(values.astype(np.uint16) * 257)), size=32)
    for seed in (None, 1, 2, 3):
        a, b = (x.read(0, None if seed is None else generator_for(seed)) for x in (eight, deep))
        assert a.meta.extra == b.meta.extra
        assert (a["image"] - b["image"] / 257).abs().max() < 1.5


def test_tiffs_of_many_channels_without_tifffile_are_refused(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 8, 3), np.uint16), photometric="rgb")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install tifffile"):
        ImageLoader(tmp_path / "a.tif").read(0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16", "float64", "uint32"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((20, 13), {}),
        ((20, 13, 3), {"photometric": "rgb"}),
        ((20, 13, 3), {"photometric": "rgb", "planarconfig": "separate"}),
        ((20, 13, 7), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((20, 13, 7), {"photometric": "minisblack", "planarconfig": "separate"}),
        ((20, 13, 5), {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16), "planarconfig": "contig"}),
        ((20, 13, 4), {"photometric": "minisblack"}),
        ((20, 13, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
def test_tiffs_give_what_they_hold(tmp_path, dtype, shape, options):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 120, shape).astype(dtype)
    if dtype == "float32":
        values += np.float32(0.25)
    order = values
    pages = options.get("planarconfig") == "separate" or (shape[2:] == (4,) and "planarconfig" not in options)
    if pages:
        order = np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", order, **options)
    loader = ImageLoader(tmp_path / "a.tif", resize="none")
    values = values if values.ndim == 3 else values[..., None]
    found = loader.read(0)["image"].permute(1, 2, 0).numpy()
    assert np.array_equal(found, values.astype(np.float32))
    assert loader.spec["image"].channel_count == values.shape[2]
    assert loader.spec["image"].unit == {"uint8": "0 to 255", "uint16": "0 to 65535"}.get(dtype, "as stored")
    small = ImageLoader(tmp_path / "a.tif", size=8)
    assert small.read(0, generator_for(0))["image"].shape == (values.shape[2], 8, 8)
    assert small.picture("image", small.read(0)["image"]).shape == (8, 8, 3)


def test_tiffs_that_are_no_single_image(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((6, 9, 8), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((6, 9, 8, 3), np.uint8), photometric="rgb")
    for name, axes in (("z", "ZYX"), ("t", "YXS")):
        with pytest.raises(DataError, match=rf"stack.*{axes}.*one image a file"):
            ImageLoader(tmp_path / f"{name}.tif").read(0)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 9, 8), np.uint16), imagej=True, metadata={"axes": "CYX"})
    assert ImageLoader(tmp_path / "c.tif", size=4).read(0)["image"].shape == (4, 4, 4)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((9, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="NaN"):
        ImageLoader(tmp_path / "nan.tif").read(0)
    tifffile.imwrite(tmp_path / "cut.tif", np.ones((99, 80, 5), np.uint16), photometric="minisblack", rowsperstrip=9)
    whole = (tmp_path / "cut.tif").read_bytes()
    with pytest.raises(DataError, match=r"truncated|cannot be read"):
        ImageLoader(write(tmp_path / "cut.tif", whole[: len(whole) // 2])).read(0)


def test_float_tiffs_of_pillow(tmp_path):
    values = smooth(20, 13, 1)[..., 0].astype(np.float32) / 100 - 1
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(stored(tmp_path / "a.tif")[..., 0], values)
    with pytest.raises(ConfigError, match=r"data\.jitter"):
        ImageLoader(tmp_path / "a.tif", jitter=(0.1, 0.1, 0.1, 0.1))
    picture = ImageLoader(tmp_path / "a.tif").picture("image", torch.from_numpy(values)[None])
    assert (picture.min(), picture.max()) == (0, 255)


# channels of a whole set -------------------------------------------------------------------------------------------


def test_channels_of_a_set(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.png", encoded(smooth(9, 9, 1, number)))
    assert ImageLoader(tmp_path).spec["image"].channels == ("grey",)
    assert ImageLoader(tmp_path, channels="rgb", size=8).read(0)["image"].shape == (3, 8, 8)
    colour = smooth(9, 9)
    write(tmp_path / "9.png", encoded(colour))
    loader = ImageLoader(tmp_path, resize="none")
    assert loader.spec["image"].channels == ("red", "green", "blue")
    assert (loader.read(0)["image"][0] == loader.read(0)["image"][2]).all()
    grey = ImageLoader(tmp_path, channels="grey", resize="none").read(3)["image"][0].numpy()
    assert np.abs(grey - colour @ np.array([0.299, 0.587, 0.114])).max() <= 1
    with pytest.raises(ConfigError, match=r"0\.png holds 1 channels.*9\.png holds 3 channels"):
        ImageLoader(tmp_path, channels="all")


def test_only_some_headers_are_looked_at(tmp_path):
    for number in range(130):
        write(tmp_path / f"{number:03d}.png", encoded(smooth(9, 9, 1)))
    write(tmp_path / "001.png", encoded(smooth(9, 9, 3)))
    loader = ImageLoader(tmp_path, size=8)
    assert loader.spec["image"].channel_count == 1
    assert loader.read(1)["image"].shape == (1, 8, 8)
    write(tmp_path / "003.png", deep_png(np.zeros((9, 9, 1), np.uint16)))
    with pytest.raises(DataError, match=r"003\.png: holds 16 bits; expected 8 bits"):
        ImageLoader(tmp_path).read(3)


def test_mixtures_name_both_sides(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    write(tmp_path / "a.png", encoded(smooth(9, 9)))
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ConfigError, match=r"a\.png holds 3 channels.*b\.tif holds 5 channels"):
        ImageLoader(tmp_path)
    with pytest.raises(DataError, match=r"b\.tif: has 5 channels; expected 3"):
        ImageLoader(tmp_path, channels="rgb").read(1)
    (tmp_path / "b.tif").unlink()
    write(tmp_path / "c.png", deep_png(np.zeros((9, 9, 3), np.uint16)))
    with pytest.raises(ConfigError, match=r"a\.png holds 8 bits.*c\.png holds 16 bits"):
        ImageLoader(tmp_path)


# files that are broken or lie --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
def test_truncated_images_are_errors(tmp_path, kind, share):
    content = encoded(np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8), kind)
    path = write(tmp_path / f"a.{kind.lower()}", content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"a\.\w+"):
        ImageLoader(path).read(0)


@pytest.mark.parametrize("lost", [1, 2, 500])
def test_a_jpeg_without_its_end_is_an_error(tmp_path, lost):
    content = encoded(smooth(60, 70), "JPEG")
    for end in (b"", bytes(lost)):  # cut, or room that was made for a download that never came
        path = write(tmp_path / "a.jpg", content[:-lost] + end)
        with pytest.raises(DataError, match="truncated JPEG"):
            ImageLoader(path).read(0)
    assert ImageLoader(write(tmp_path / "a.jpg", content + b"\0\0 more")).read(0)["image"].shape == (3, 224, 224)


BOMBS = {
    "png": png(60000, 60000, 8, 2, b"\0" * 100),
    "deep.png": png(60000, 60000, 16, 2, b"\0" * 100),
    "gif": b"GIF89a" + b"\x60\xea\x60\xea" + b"\0\0\0" + encoded(smooth(4, 4, 1), "GIF")[13:],
    "bmp": encoded(smooth(4, 4), "BMP")[:18] + b"\x60\xea\0\0\x60\xea\0\0" + encoded(smooth(4, 4), "BMP")[26:],
    "webp": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8),
    "jpg": encoded(smooth(4, 4), "JPEG").replace(b"\x08\x00\x04\x00\x04\x03", b"\x08\xea\x60\xea\x60\x03"),
    "tif": encoded(smooth(4, 4), "TIFF").replace(b"\x04\0\0\0", b"\x60\xea\0\0"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_go_off(tmp_path, name):
    path = write(tmp_path / f"a.{name}", BOMBS[name])
    ImageLoader(path)  # libraries are imported
    tracemalloc.start()
    with pytest.raises(DataError, match=r"declares \d+ x \d+"):
        ImageLoader(path).read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_the_limit_is_an_option(tmp_path):
    path = write(tmp_path / "a.png", encoded(smooth(30, 40)))
    assert ImageLoader(path, max_pixels=1200).read(0)["image"].shape == (3, 224, 224)
    with pytest.raises(DataError, match=r"40 x 30 pixels; expected at most 1,199.*data\.max_pixels"):
        ImageLoader(path, max_pixels=1199).read(0)
    path.write_bytes(path.read_bytes() + bytes(20000))
    with pytest.raises(DataError, match=r"bytes; expected at most"):
        ImageLoader(path, max_pixels=1200).read(0)


def many_channels() -> list[bytes]:
    import tifffile

    values, files = smooth(20, 24, 5), []
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16)}):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig="contig", **options)
        files.append(buffer.getvalue())
    return files


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about broken tags
def test_mutated_images_never_crash_or_give_wrong_shapes(tmp_path):
    generator = np.random.default_rng(7)
    originals = [
        encoded(smooth(40, 50, channels), kind)
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
        for channels in (1, 3)
    ]
    originals += [deep_png(smooth(20, 20, 3).astype(np.uint16)), deep_png(smooth(20, 20, 1).astype(np.uint16))]
    for mode in ("RGBA", "CMYK", "F"):
        buffer = io.BytesIO()
        Image.new(mode, (30, 20)).save(buffer, "PNG" if mode == "RGBA" else "TIFF")
        originals.append(buffer.getvalue())
    with contextlib.suppress(ImportError):  # else TIFFs of many channels are refused, which is tested too
        originals += many_channels()
    path, refused = tmp_path / "a.png", 0
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for number in range(500):
        content = bytearray(originals[number % len(originals)])
        if number % 5 == 4:
            content = content[: generator.integers(1, len(content))]
        # headers are where damage does most
        reach = len(content) if number % 2 else min(len(content), 150)
        for place in generator.integers(0, reach, generator.integers(1, 8)):
            content[place] = generator.integers(256)
        path.write_bytes(bytes(content))
        try:
            loader = ImageLoader(path, size=16, max_pixels=10**6)
            for seed in (None, number):
                image = loader.read(0, None if seed is None else generator_for(seed))["image"]
                assert image.shape == (loader.spec["image"].channel_count, 16, 16)
                assert image.isfinite().all()
        except DataError:
            refused += 1
    assert 100 < refused < 500
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
