"""The image loader: sizes, crops, augmentations, statistics, folders."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms

from maskwright.core.build import open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.masking import Grid
from maskwright.core.sample import collate
from maskwright.core.trainer.data import Plan, generator_for, make_dataloader, read_batches
from maskwright.plugins.vision.loaders import ImageLoader
from maskwright.testing import check_loader
from tests.plugins.vision.image_files import encoded, smooth, write, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


def test_the_contract(folder):
    check_loader(ImageLoader(folder, size=32))
    check_loader(ImageLoader(folder, size=(24, 40), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=1, blur=1))


def test_a_folder_in_order_with_labels_groups_and_bad_files(folder):
    write(folder / "cat" / "empty.png", b"")
    for hidden in (".hidden/x.jpg", "cat/.y.jpg"):
        write(folder / hidden, encoded(smooth(8, 8)))
    (folder / "cat" / "again").symlink_to(folder)
    loader = ImageLoader(folder)
    assert [loader.group(index) for index in range(6)] == [
        *(f"cat/{number}.jpg" for number in (0, 2, 4)),
        *(f"dog/{number}.jpg" for number in (1, 3, 5)),
    ]
    assert [loader.label(index) for index in range(6)] == ["cat"] * 3 + ["dog"] * 3
    assert [(bad.path, bad.reason) for bad in loader.bad_files] == [(str(folder / "cat" / "empty.png"), "is empty")]
    meta = loader.read(4).meta
    assert (meta.source, meta.label, meta.index) == (str(folder / "dog" / "3.jpg"), "dog", 4)
    assert loader.sources(4) == [meta.source]
    assert (meta.extra["width"], meta.extra["height"]) == (57, 43)


def test_a_single_image_and_what_is_no_image(folder, tmp_path):
    loader = ImageLoader(folder / "dog" / "1.jpg", size=16)
    assert (len(loader), loader.group(0), loader.label(0)) == (1, "1.jpg", None)
    assert ImageLoader.accepts(folder)
    assert ImageLoader.accepts(folder / "dog" / "1.jpg")
    assert not ImageLoader.accepts(write(tmp_path / "notes" / "a.txt", b"text").parent)
    with pytest.raises(DataError, match="no such file"):
        ImageLoader(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(61, 47), (47, 61), (300, 421), (64, 64), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_reading_without_a_generator_is_resize_and_centre_crop(tmp_path, shape, interpolation):
    content = encoded(smooth(*shape, seed=3))
    loader = ImageLoader(write(tmp_path / "a.png", content), size=56, interpolation=interpolation)
    usual = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(56),
            transforms.PILToTensor(),
        ]
    )
    wanted = usual(Image.open(io.BytesIO(content))).float()
    found = loader.read(0)["image"]
    assert found.dtype == torch.float32
    # the filter's whole-number weights may round otherwise; large images are averaged down first
    assert (found - wanted).abs().max() <= (1 if max(shape) < 100 else 3)


def test_squash_and_as_stored(tmp_path):
    values = smooth(30, 50)
    path = write(tmp_path / "a" / "a.png", encoded(values))
    stored = ImageLoader(path, resize="none")
    assert torch.equal(stored.read(0)["image"], torch.from_numpy(values.transpose(2, 0, 1)).float())
    assert "crop" not in stored.read(0, generator_for(0)).meta.extra
    squashed = ImageLoader(path, size=(16, 20), resize="squash").read(0)["image"]
    wanted = np.asarray(Image.fromarray(values).resize((20, 16), Image.BICUBIC)).transpose(2, 0, 1)
    assert torch.equal(squashed, torch.from_numpy(wanted.copy()).float())
    write(path.with_name("b.png"), encoded(smooth(31, 50)))
    both = ImageLoader(path.parent, resize="none")
    with pytest.raises(ConfigError, match=r"shape \(3, 31, 50\)"):
        collate([both.read(0), both.read(1)])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path, orientation, kind):
    image = Image.fromarray(smooth(40, 24))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{kind.lower()}"
    image.save(path, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    seen = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sample = ImageLoader(path, resize="none").read(0)
    wanted = torch.from_numpy(np.asarray(seen).transpose(2, 0, 1).copy()).float()
    assert torch.equal(sample["image"], wanted)
    assert (sample.meta.extra["width"], sample.meta.extra["height"]) == seen.size
    # a random crop lies where its meta says, in the image as it is seen
    loader = ImageLoader(path, size=12, flip=0)
    cropped = loader.read(0, generator_for(orientation))
    top, left, height, width = cropped.meta.extra["crop"]
    box = (left, top, left + width, top + height)
    direct = np.asarray(seen.resize((12, 12), Image.BICUBIC, box)).transpose(2, 0, 1)
    assert (cropped["image"].numpy() - direct).__abs__().max() <= (
        5 if kind == "JPEG" else 2
    )  # large JPEGs are decoded smaller


def test_random_crops_have_the_areas_and_shapes_asked_for(folder):
    loader = ImageLoader(folder, size=8, crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    areas, ratios, tops = [], [], []
    for number in range(300):
        meta = loader.read(0, generator_for(1, number)).meta
        top, left, height, width = meta.extra["crop"]
        assert 0 <= top <= 40 - height
        assert 0 <= left <= 60 - width
        areas.append(height * width / 2400)
        ratios.append(width / height)
        tops.append(top)
    assert 0.17 < min(areas) < 0.23
    assert 0.45 < max(areas) < 0.52
    assert 0.45 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.2
    assert abs(np.log(ratios).mean()) < 0.08
    assert len(set(tops)) > 10


def test_flips_come_half_of_the_time_and_mirror(folder):
    still, always, sometimes = (ImageLoader(folder, size=16, flip=flip) for flip in (0.0, 1.0, 0.5))
    mirrored = 0
    for number in range(200):
        generator = lambda number=number: generator_for(2, number)  # noqa: E731
        plain, found = still.read(1, generator())["image"], sometimes.read(1, generator())["image"]
        if number < 5:
            assert torch.equal(always.read(1, generator())["image"], plain.flip(-1))
        mirrored += torch.equal(found, plain.flip(-1))
        assert torch.equal(found, plain) or torch.equal(found, plain.flip(-1))
    assert 70 < mirrored < 130


def test_augment_off_reads_as_evaluation_does(folder):
    loader = ImageLoader(folder, size=16, augment=False, blur=1.0)
    assert torch.equal(loader.read(2, generator_for(1))["image"], loader.read(2)["image"])
    random = ImageLoader(folder, size=16)
    assert not torch.equal(random.read(2, generator_for(1))["image"], random.read(2, generator_for(2))["image"])


def test_one_augmentation_leaves_the_others_as_they_are(folder):
    plain, blurred = ImageLoader(folder, size=16), ImageLoader(folder, size=16, blur=1.0)
    a, b = (loader.read(0, generator_for(3)) for loader in (plain, blurred))
    assert a.meta == b.meta
    assert not torch.equal(a["image"], b["image"])
    assert a["image"].std() > b["image"].std()
    share = [
        torch.equal(plain.read(0, generator_for(4, n))["image"], light.read(0, generator_for(4, n))["image"])
        for light in [ImageLoader(folder, size=16, jitter=(0.1, 0.1, 0.1, 0.01), jitter_probability=0.3)]
        for n in range(200)
    ]
    assert 0.6 < np.mean(share) < 0.8


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path):
    values = smooth(900, 1300, seed=5)
    jpeg = ImageLoader(write(tmp_path / "a.jpg", encoded(values, "JPEG", quality=98)), size=64)
    png = ImageLoader(write(tmp_path / "a.png", encoded(values)), size=64)
    for generator in (None, 1, 2, 3):
        a, b = (x.read(0, None if generator is None else generator_for(generator)) for x in (jpeg, png))
        assert a.meta.extra == b.meta.extra
        assert (a["image"] - b["image"]).abs().max() < 4
    assert jpeg.read(0).meta.extra["width"] == 1300


def test_workers_give_the_same_batches(folder):
    loader = ImageLoader(folder, size=16, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)
    plan = Plan(len(loader), 2, 1, 1, 4)
    alone, helped = (list(make_dataloader(loader, plan, 7, 0, 0, workers, pin=False)) for workers in (0, 2))
    assert len(alone) == len(helped) == 4
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a.metas == b.metas


def test_statistics_are_those_of_what_is_read(folder):
    loader = ImageLoader(folder, size=16)
    write(folder / "cat" / "broken.jpg", b"\xff\xd8\xff nothing")
    together = torch.cat([sample["image"].flatten(1) for sample in map(loader.read, range(6))], dim=1).double()
    for found in (loader.statistics()["image"], ImageLoader(folder, size=16).statistics()["image"]):
        np.testing.assert_allclose(found.mean, together.mean(1), rtol=1e-6)
        np.testing.assert_allclose(found.std, together.std(1), rtol=1e-6)
        assert found.maximum == together.amax(1).tolist()
    assert loader.statistics() is loader.statistics()
    for file in folder.rglob("*.jpg"):
        file.write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(DataError, match="none of 7 images looked at"):
        ImageLoader(folder).statistics()


def test_pictures_and_simple_features(folder, tmp_path):
    loader = ImageLoader(folder, size=32)
    sample = loader.read(0)
    picture = loader.picture("image", sample["image"])
    assert np.array_equal(picture, sample["image"].permute(1, 2, 0).byte().numpy())
    features = loader.simple_features(sample)
    assert set(features) == {"channel statistics", "raw values", "colour histogram"}
    assert features["raw values"].shape == (3 * 18 * 18,)
    histogram = features["colour histogram"]
    assert histogram.shape == (64,)
    assert histogram.sum().item() == pytest.approx(1)
    assert set(loader.simple_features(sample, Grid((4, 4)))) == {"channel statistics", "raw values"}
    red = ImageLoader(write(tmp_path / "red.png", encoded(np.full((8, 8, 3), (255, 0, 0), np.uint8))), size=8)
    assert red.simple_features(red.read(0))["colour histogram"].argmax() == 3 * 16


def test_the_pixels_of_arrays_go_to_the_core(tmp_path):
    for name, shape in (("grey", (5, 28, 28)), ("colour", (5, 28, 28, 3))):
        path = tmp_path / f"{name}.npz"
        np.savez(path, train_images=np.zeros(shape, np.uint8), train_labels=np.zeros((5, 1), np.uint8))
        assert not ImageLoader.accepts(path)
        axes = {"axes": "H W C"} if name == "colour" else {}
        loader = open_loader(path, "arrays", array="train_images", **axes)[1]
        assert loader.read(0)["image"].shape == (3 if name == "colour" else 1, 28, 28)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": 0}, "data.size"),
        ({"crop_share": 1.5}, "data.crop_share"),
        ({"crop_scale": (0.5, 0.2)}, "data.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "data.crop_ratio"),
        ({"flip": 2}, "data.flip"),
        ({"blur": -1}, "data.blur"),
        ({"jitter_probability": 7}, "data.jitter_probability"),
        ({"jitter": (0.1, 0.1, 0.1, 0.9)}, "data.jitter"),
        ({"background": 300}, "data.background"),
        ({"max_pixels": 0}, "data.max_pixels"),
    ],
)
def test_options_out_of_range(folder, options, problem):
    with pytest.raises(ConfigError, match=problem):
        ImageLoader(folder, **options)


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_photos_with_the_labels_of_their_folders(shared_data, split):
    folder = shared_data / "image" / "grocery_store" / split
    loader = ImageLoader(folder, size=64)
    assert len(loader) == {"train": 280, "test": 150}[split]
    labels = [loader.label(index) for index in range(len(loader))]
    assert len(set(labels)) == 10
    assert "Fruit__Banana" in labels
    assert loader.bad_files == []
    for batch in read_batches(loader, 50):
        assert batch.bad == []
        assert batch["image"].shape == (50 if len(batch) == 50 else len(batch), 3, 64, 64)
        assert [meta.label for meta in batch.metas] == [labels[meta.index] for meta in batch.metas]
    mean = np.array(loader.statistics()["image"].mean)
    assert ((mean > 40) & (mean < 200)).all()
