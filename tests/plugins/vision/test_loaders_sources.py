"""Lists and tar shards of images."""

import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from maskwright.core.arrays import ArrayLoader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.trainer.data import Plan, make_dataloader
from maskwright.plugins.vision.loaders import ImageLoader
from maskwright.testing import check_loader
from tests.plugins.vision.image_files import encoded, smooth, write, write_folder, write_tar


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data")


def write_list(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_a_list_with_labels_and_groups(folder, ending, between):
    rows = [("age", "Filename", "Class", "patient"), ("3", "dog/1.jpg", "wolf", "p7"), ("4", "cat/0.jpg", "", "")]
    rows += [("5", "cat/9.jpg", "x", "p8"), ("6", "", "x", "p8"), ("7", "cat", "x", "p8")]
    path = write_list(folder / f"list.{ending}", "\n".join(between.join(row) for row in rows) + "\n\n")
    write(folder / "empty.png", b"")
    assert ImageLoader.accepts(path)
    loader = ImageLoader(path, size=16)
    check_loader(loader)
    assert [loader.label(index) for index in range(2)] == ["wolf", None]
    assert [loader.group(index) for index in range(2)] == ["p7", "cat/0.jpg"]
    assert loader.read(0).meta.source == loader.sources(0)[0] == str(folder / "dog" / "1.jpg")
    reasons = [bad.reason for bad in loader.bad_files]
    assert reasons == [
        f"there is no such file (list.{ending}, line 4)",
        f"is named nowhere (list.{ending}, line 5)",
        f"is a folder (list.{ending}, line 6)",
    ]
    assert loader.bad_files[0].path == str(folder / "cat" / "9.jpg")
    whole = ImageLoader(folder, size=16)
    assert torch.equal(loader.read(0)["image"], whole.read(3)["image"])


def test_columns_by_option_and_their_wrong_names(folder):
    text = "left,right,kind\ncat/0.jpg,dog/1.jpg,a\ncat/2.jpg,dog/3.jpg,b\n"
    path = write_list(folder / "pairs.csv", text)
    assert ImageLoader.accepts(path)
    with pytest.raises(ConfigError, match=r"left, right all do.*data\.path_column"):
        ImageLoader(path)
    loader = ImageLoader(path, path_column="right", label_column="kind", group_column="left")
    assert [(loader.group(i), loader.label(i)) for i in range(2)] == [("cat/0.jpg", "a"), ("cat/2.jpg", "b")]
    assert loader.sources(1) == [str(folder / "dog" / "3.jpg")]
    for option, near in (("path_column", "right"), ("label_column", "kind"), ("group_column", "left")):
        with pytest.raises(ConfigError, match=rf'data\.{option}="{near}s".*Did you mean "{near}"'):
            ImageLoader(path, **{"path_column": "right", option: f"{near}s"})


def test_a_list_without_names(folder):
    path = write_list(folder / "list.csv", "cat/0.jpg,x\n" + str(folder / "dog" / "1.jpg") + ",y\ncat/2.jpg,x,1\n")
    loader = ImageLoader(path, label_column="1")
    assert [loader.label(index) for index in range(len(loader))] == ["x", "y"]
    assert [(bad.path, bad.reason) for bad in loader.bad_files] == [(f"{path}, line 3", "has 3 fields, not 2")]


def test_tables_of_other_things_are_left_to_others(tmp_path):
    numbers = write_list(tmp_path / "numbers.csv", "file,b\n1,2\n3,4\n")
    names = write_list(tmp_path / "names.csv", "path,label\nsound/a.wav,x\nsound/b.wav,y\n")
    for path in (numbers, names, write_list(tmp_path / "empty.csv", "")):
        assert not ImageLoader.accepts(path)
    assert not ImageLoader.accepts(write(tmp_path / "binary.csv", bytes(range(256)) * 4))
    assert ArrayLoader.accepts(numbers)
    images = write_list(tmp_path / "images.csv", "image\na.png\nb.png\n")
    assert ImageLoader.accepts(images)
    assert len(ImageLoader(images)) == 0
    assert len(ImageLoader(images).bad_files) == 2


def test_the_list_beside_real_photos(shared_data):
    loader = ImageLoader(shared_data / "image" / "grocery_store" / "labels.csv", size=32, group_column="split")
    assert len(loader) == 430
    assert [loader.label(0), loader.group(0), loader.group(429)] == ["Golden-Delicious", "train", "test"]


# shards ------------------------------------------------------------------------------------------------------------


def sample_files(count, first=0):
    members = []
    for number in range(first, first + count):
        key = f"part/{number:06d}"
        members.append((f"{key}.cls", str(number % 3).encode()))
        members.append((f"{key}.jpg", encoded(smooth(30 + number, 40, seed=number), "JPEG")))
        members.append((f"{key}.json", json.dumps({"label": "unused", "Patient": f"p{number // 2}"}).encode()))
    return members


@pytest.fixture
def shards(tmp_path):
    write_tar(tmp_path / "shards" / "a-000.tar", sample_files(4))
    write_tar(tmp_path / "shards" / "a-001.tar", sample_files(3, 4))
    return tmp_path / "shards"


def test_shards_with_labels_and_groups(shards):
    assert ImageLoader.accepts(shards)
    assert ImageLoader.accepts(shards / "a-000.tar")
    loader = ImageLoader(shards, size=16)
    check_loader(loader, samples=7)
    assert len(loader) == 7
    assert loader.bad_files == []
    assert [loader.label(index) for index in range(7)] == [str(number % 3) for number in range(7)]
    assert [loader.group(index) for index in range(7)] == [f"p{number // 2}" for number in range(7)]
    sample = loader.read(5)
    assert sample.meta.source == str(shards / "a-001.tar" / "part/000005.jpg")
    assert loader.sources(5) == [str(shards / "a-001.tar")]
    assert (sample.meta.extra["height"], sample.meta.extra["width"]) == (35, 40)
    direct = ImageLoader(write(shards.parent / "5.jpg", sample_files(1, 5)[1][1]), size=16)
    assert torch.equal(sample["image"], direct.read(0)["image"])
    assert sorted(os.listdir(shards)) == ["a-000.tar", "a-001.tar"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_kind_of_tar(tmp_path, form):
    long = "/".join(["folder" * 12] * (1 if form == tarfile.USTAR_FORMAT else 4)) + "/ü.png"
    path = write_tar(tmp_path / "a.tar", [(long, encoded(smooth(9, 9))), ("b.png", encoded(smooth(8, 8)))], format=form)
    loader = ImageLoader(path, size=8)
    assert [loader.group(0), loader.group(1)] == [f"a.tar/{long}", "a.tar/b.png"]
    assert [loader.read(index).meta.extra["width"] for index in range(2)] == [9, 8]


def test_what_lies_beside_an_image(tmp_path):
    image, other = encoded(smooth(9, 9)), encoded(smooth(7, 7))
    members = [
        ("a.depth.png", other), ("a.jpg", image), ("a.txt", b"caption " * 50),
        ("b.seg.png", other), ("b.txt", b" tree \n"),
        ("c.json", b'{"class": 4, "scene": "s"}'), ("c.png", image), ("c.jpg", other), ("c.txt", b"x"),
        ("d.json", b"{broken"), ("d.png", image),
        ("e.txt", b"no image"), ("notes.md", b"text"),
    ]  # fmt: skip
    loader = ImageLoader(write_tar(tmp_path / "a.tar", members), size=8)
    assert [loader.read(index).meta.source.rpartition("/")[2] for index in range(4)] == [
        "a.jpg", "b.seg.png", "c.png", "d.png",
    ]  # fmt: skip
    assert [loader.label(index) for index in range(4)] == [None, "tree", "4", None]
    assert loader.group(2) == "s"
    assert [(bad.path.rpartition("/")[2], bad.reason) for bad in loader.bad_files] == [
        ("c.jpg", 'is a second image of the sample "c"')
    ]


def test_an_index_takes_little_memory(tmp_path):
    image, count = encoded(np.zeros((1, 1, 3), np.uint8)), 3000
    members = [(f"{n:08d}.{ending}", body) for n in range(count) for ending, body in (("png", image), ("cls", b"1"))]
    loader = ImageLoader(write_tar(tmp_path / "a.tar", members), size=8)
    assert len(loader) == count
    empty = ImageLoader(write_tar(tmp_path / "b.tar", members[:2]), size=8)
    assert (len(pickle.dumps(loader)) - len(pickle.dumps(empty))) / count < 100
    assert loader.label(2999) == "1"
    assert loader.group(2999) == "a.tar/00002999.png"


def test_shards_in_worker_processes(shards):
    loader = ImageLoader(shards, size=16)
    loader.read(0)  # its open file must not be shared
    plan = Plan(7, 2, 1, 1, 6)
    alone, helped = (list(make_dataloader(loader, plan, 3, 0, 0, workers, pin=False)) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert a.bad == b.bad == []
        assert torch.equal(a["image"], b["image"])
        assert a.metas == b.metas
    assert len({meta.index for batch in alone for meta in batch.metas}) == 7


def test_compressed_shards_are_refused(tmp_path):
    for mode, name in (("w:gz", "a.tar.gz"), ("w:xz", "a.tar.xz"), ("w:bz2", "named-plain.tar")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(write(tmp_path / "a.png", encoded(smooth(9, 9))), "a.png")
        assert ImageLoader.accepts(tmp_path / name)
        with pytest.raises(DataError, match=r"is compressed \(\w+\).*plain tar"):
            ImageLoader(tmp_path / name)


@pytest.mark.parametrize("lost", [1024, 9000, 10300, 20000])
def test_truncated_shards_give_what_is_whole(tmp_path, lost):
    members = [
        (f"{n}.png", encoded(np.random.default_rng(n).integers(0, 256, (30, 40, 3), np.uint8))) for n in range(9)
    ]
    path = write_tar(tmp_path / "a.tar", members)
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[:-lost])
    loader = ImageLoader(path, resize="none")
    assert 3 <= len(loader) < 9
    assert any("a.tar" in bad.path for bad in loader.bad_files)
    for index in range(len(loader)):
        assert loader.read(index)["image"].shape == (3, 30, 40)


def test_a_tar_without_end_mark_or_with_a_damaged_header_is_reported(tmp_path):
    members = [(f"{n}.png", encoded(smooth(9, 9))) for n in range(4)]
    path = write_tar(tmp_path / "a.tar", members)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar.getmembers()]
    content[places[2] : places[2] + 100] = b"\xff" * 100
    loader = ImageLoader(write(path, bytes(content)))
    assert len(loader) == 2
    assert "no end mark" in loader.bad_files[0].reason


def test_members_that_cannot_be_used(tmp_path):
    image = encoded(smooth(9, 9))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("empty.png"))
        tar.add(write(tmp_path / "x", image), "good.png")
        tar.add(write(tmp_path / "x", b"no image"), "false.png")
    loader = ImageLoader(tmp_path / "a.tar", size=8)
    assert [bad.reason for bad in loader.bad_files] == ["is a link, not a file", "is empty"]
    assert len(loader) == 2
    with pytest.raises(DataError, match=r"a\.tar/false\.png: is no image"):
        loader.read(1)
    # a header that promises more than there is
    info = tarfile.TarInfo("big.png")
    info.size = 10**12
    write(tmp_path / "b.tar", info.tobuf(tarfile.GNU_FORMAT) + image)
    loader = ImageLoader(tmp_path / "b.tar")
    assert len(loader) == 0
    assert "beyond the end" in loader.bad_files[0].reason


def test_a_shard_that_was_cut_after_it_was_opened(shards):
    loader = ImageLoader(shards, size=8)
    os.truncate(shards / "a-001.tar", 1500)
    with pytest.raises(DataError, match=r"gives \d+ bytes; expected \d+"):
        loader.read(6)
    assert loader.read(0)["image"].shape == (3, 8, 8)


def test_tars_of_other_things_are_left_to_others(tmp_path):
    assert not ImageLoader.accepts(write_tar(tmp_path / "a.tar", [("a.wav", b"x"), ("a.txt", b"y")]))
    assert not ImageLoader.accepts(write(tmp_path / "b.tar", b"no tar at all"))
    with pytest.raises(DataError, match="no such file"):
        ImageLoader(tmp_path / "c.tar")
