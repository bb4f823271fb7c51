"""Embedding archives: what is in the table, and that shards, resumed and undisturbed work give the same rows."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import maskwright as mw
from maskwright.core import embed_work
from maskwright.core.embed import embed, embed_archive
from maskwright.core.embed_shards import merge_shards
from maskwright.core.encoder import VisionTransformer
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.parts import KEY, Parts, parse_shard
from maskwright.core.sample import Meta
from maskwright.core.trainer.files import DiskFullError
from maskwright.core.trainer.lock import held
from tests.conftest import write_images


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer(16, 4, in_chans=1, embed_dim=8, depth=1, num_heads=2, normalization="none").eval()


def vectors(path):
    return np.stack(pq.read_table(path)["embedding"].to_pylist()).astype(np.float32)


def test_rows_are_the_encoders_own_vectors_in_order(images, tmp_path, encoder):
    out = embed(encoder, images, tmp_path / "e.parquet", batch_size=5)
    table = pq.read_table(out)
    loader = mw.open_data(images)
    expected = torch.cat([encoder.embed(loader.read(i)).pooled for i in range(len(loader))])
    np.testing.assert_allclose(vectors(out), expected.numpy(), atol=1e-6)
    assert table["index"].to_pylist() == list(range(12))
    assert table["source"].to_pylist() == [loader.read(i).meta.source for i in range(12)]
    assert table["group"].to_pylist() == [loader.group(i) for i in range(12)]
    assert table["x"].null_count == 12
    assert "geometry" not in table.column_names
    assert b"geo" not in table.schema.metadata
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["e.parquet"], "nothing is left over"


def test_what_made_the_file_is_written_in_it(images, tmp_path, encoder):
    notes = json.loads(pq.read_schema(embed(encoder, images, tmp_path / "e.parquet")).metadata[KEY])
    assert notes["environment"]["torch"] == str(torch.__version__).partition("+")[0] or notes["environment"]["torch"]
    assert notes["environment"]["command"]
    assert (notes["samples"], notes["rows"], notes["bad"]) == (12, 12, 0)
    assert notes["plan"]["data"]["samples"] == 12
    other = VisionTransformer(16, 4, in_chans=1, embed_dim=8, depth=1, num_heads=2, normalization="none").eval()
    changed = json.loads(pq.read_schema(embed(other, images, tmp_path / "o.parquet")).metadata[KEY])
    assert notes["plan"]["encoder"] != changed["plan"]["encoder"], "the hash follows the weights"


def test_a_run_is_embedded_with_its_own_data_and_settings(images, tmp_path):
    settings = ["data.crop=12"]
    run = mw.pretrain("toy-mae", images, run=tmp_path / "run", settings=settings, max_steps=1, batch_size=4)
    out = embed(run, None, tmp_path / "e.parquet")
    sample = mw.open_data(images, crop=12).read(3)
    np.testing.assert_allclose(vectors(out)[3], mw.load(run).embed(sample).pooled[0].numpy(), atol=1e-5)
    assert json.loads(pq.read_schema(out).metadata[KEY])["method"] == "toy-mae"


def test_tokens_are_rows_with_their_place(images, tmp_path, encoder):
    table = pq.read_table(embed(encoder, images, tmp_path / "t.parquet", level="tokens", batch_size=5))
    assert len(table) == 12 * 16
    at = 12 * 3 - 36 + 16 * 3 + 6  # token 6 of sample 3
    row = table.slice(at, 1).to_pylist()[0]
    assert (row["index"], row["token"], row["token_row"], row["token_column"]) == (3, 6, 1, 2)
    expected = encoder.embed(mw.open_data(images).read(3)).tokens[0, 6]
    np.testing.assert_allclose(row["embedding"], expected.numpy(), atol=1e-6)


def test_half_is_the_nearest_float16(images, tmp_path, encoder):
    full = vectors(embed(encoder, images, tmp_path / "full.parquet"))
    out = embed(encoder, images, tmp_path / "half.parquet", half=True)
    assert pq.read_schema(out).field("embedding").type == pa.list_(pa.float16(), 8)
    assert np.array_equal(vectors(out), full.astype(np.float16).astype(np.float32))


def test_numbers_beyond_float16_are_refused(images, tmp_path, encoder):
    encoder.norm.weight.data.fill_(1e6)
    with pytest.raises(ConfigError, match="beyond float16"):
        embed(encoder, images, tmp_path / "half.parquet", half=True)


def test_labels_and_identifiers_have_columns_and_nothing_is_lost(images, tmp_path, encoder, monkeypatch):
    loader_class, read = mw.component("loader", "npy"), None
    read = loader_class.read

    def with_extras(self, index, generator=None):
        sample = read(self, index, generator)
        extra = {
            "patient": f"p{index // 4}",
            "tokenizer": "none",
            "age": index if index else 0.5,
            "spacing": [1.0, 2.0],
        }
        extra |= {"odd": "text" if index == 11 else 3}  # no one type fits
        return type(sample)(sample.tensors, Meta(sample.meta.source, "g", index, label=index % 3, extra=extra))

    monkeypatch.setattr(loader_class, "read", with_extras)
    rows = pq.read_table(embed(encoder, images, tmp_path / "e.parquet")).to_pylist()
    assert [row["label"] for row in rows] == [index % 3 for index in range(12)]
    assert [row["patient"] for row in rows] == [f"p{index // 4}" for index in range(12)]
    assert [row["age"] for row in rows] == [0.5, *range(1, 12)]
    assert json.loads(rows[11]["extra"]) == {"spacing": [1.0, 2.0], "odd": "text"}


# shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_all_shares_together_are_the_whole_bit_by_bit(tmp_path, encoder, workers):
    images = write_images(tmp_path / "images", 23)
    sorted(images.glob("*.npy"))[17].write_bytes(b"broken")
    common = {"batch_size": 3, "part_samples": 6, "max_bad": 0.5}
    whole = embed(encoder, images, tmp_path / "whole.parquet", **common)
    for number in (1, 2, 3):
        embed(encoder, images, tmp_path / "s.parquet", shard=f"{number}/3", workers=workers, **common)
    files = [tmp_path / f"s-{number}-of-3.parquet" for number in (1, 2, 3)]
    together = pa.concat_tables([pq.read_table(path) for path in files])
    assert together.replace_schema_metadata().equals(pq.read_table(whole).replace_schema_metadata())
    assert len(together) == 22
    merged = merge_shards(tmp_path / "s.parquet", 3)
    assert (merged.samples, merged.bad) == (22, 1)
    assert pq.read_table(merged.path).replace_schema_metadata().equals(pq.read_table(whole).replace_schema_metadata())
    assert merged.bad_list.read_text() == (tmp_path / "whole.parquet.bad.csv").read_text()


def test_shares_that_do_not_belong_together(images, tmp_path, encoder):
    embed(encoder, images, tmp_path / "s.parquet", shard=(1, 2), part_samples=4, batch_size=4)
    with pytest.raises(DataError, match=r"s-2-of-2\.parquet: is not there yet"):
        merge_shards(tmp_path / "s.parquet", 2)
    embed(encoder, images, tmp_path / "s.parquet", shard=(2, 2), part_samples=4, batch_size=4, half=True)
    with pytest.raises(ConfigError, match="do not belong together: other half"):
        merge_shards(tmp_path / "s.parquet", 2)
    with pytest.raises(ConfigError, match="too few for 9 shares"):
        embed(encoder, images, tmp_path / "s.parquet", shard=(1, 9), part_samples=4, batch_size=4)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/-2"])
def test_shares_that_are_none(text):
    with pytest.raises(ConfigError, match="shard"):
        parse_shard(text)


# going on ----------------------------------------------------------------------------------------------------------


def test_going_on_computes_only_what_is_missing(images, tmp_path, encoder, monkeypatch):
    common = {"batch_size": 2, "part_samples": 4}
    whole = pq.read_table(embed(encoder, images, tmp_path / "whole.parquet", **common))
    calls, rows = [], embed_work.Work._rows

    def failing(self, layout, good, batch):
        calls.append(good)
        if len(calls) == 4:  # in the second of three parts
            raise KeyboardInterrupt
        return rows(self, layout, good, batch)

    monkeypatch.setattr(embed_work.Work, "_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, images, tmp_path / "e.parquet", **common)
    assert not (tmp_path / "e.parquet").exists()
    assert not (tmp_path / "e.parquet.lock").exists()
    assert [p.name for p in sorted((tmp_path / "e.parquet.parts").iterdir())] == ["part-000000.parquet", "plan.json"]
    done = embed_archive(encoder, images, tmp_path / "e.parquet", **common)
    assert (done.computed, done.samples) == (8, 12)
    assert [good for call in calls[4:] for good in call] == list(range(4, 12))
    assert pq.read_table(done.path).replace_schema_metadata().equals(whole.replace_schema_metadata())
    again = embed_archive(encoder, images, tmp_path / "e.parquet", **common)
    assert (again.computed, again.samples) == (0, 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "tokens"}, r'other level \("pooled" there, "tokens" now\)'),
        ({"half": True}, "other half"),
        ({"batch_size": 3}, r"other batch_size \(2 there, 3 now\)"),
        ({"settings": ["data.crop=8"]}, "other data.settings"),
        ({"encoder": 1}, "other encoder"),
        ({"data": 1}, "other data.content"),
    ],
)
def test_parts_made_otherwise_are_refused_and_what_differs_is_named(images, tmp_path, encoder, changes, words):
    common = {"batch_size": 2, "part_samples": 4}
    out, stop = tmp_path / "e.parquet", []

    def interrupt(*_):
        stop.append(1)
        if len(stop) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(encoder, images, out, progress=interrupt, **common)
    changes = dict(changes)
    if changes.pop("encoder", 0):
        encoder.norm.weight.data[0] += 1
    if changes.pop("data", 0):
        os.utime(sorted(images.glob("*.npy"))[5], (1, 1))
    with pytest.raises(ConfigError, match=f"holds parts, made with {words}"):
        embed(encoder, images, out, **{**common, **changes})
    assert len(list((tmp_path / "e.parquet.parts").glob("part-*"))) == 1, "the parts are whole"


def test_a_file_in_the_way_is_never_overwritten(images, tmp_path, encoder):
    out = embed(encoder, images, tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match="exists, made with other half"):
        embed(encoder, images, out, half=True)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(ConfigError, match="was not made by this command"):
        embed(encoder, images, tmp_path / "mine.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match="no whole Parquet file"):
        embed(encoder, images, tmp_path / "text.parquet")
    with pytest.raises(ConfigError, match=r"ends in \.parquet"):
        embed(encoder, images, tmp_path / "e.csv")


def test_a_second_process_is_refused_and_the_first_unharmed(images, tmp_path, encoder):
    out = tmp_path / "e.parquet"
    with held(tmp_path / "e.parquet.lock", out), pytest.raises(ConfigError, match=r"e\.parquet is in use by process"):
        embed(encoder, images, out)
    assert not (tmp_path / "e.parquet.parts").exists()
    (tmp_path / "e.parquet.lock").write_text('{"pid": 999999999, "born": 1}')  # left by a killed process
    assert embed(encoder, images, out) == out


def test_a_damaged_part_says_how_to_mend_it(images, tmp_path, encoder):
    parts = Parts(tmp_path / "e.parquet", {})
    parts.folder.mkdir()
    table = pa.table({"a": [1, 2]})
    parts.write(0, table, {})
    parts.write(1, table, {})
    data = bytearray(parts.path(1).read_bytes())
    data[4:60] = bytes(56)
    parts.path(1).write_bytes(data)
    with pytest.raises(DataError, match=r"part-000001\.parquet: is damaged.*Remove it"):
        parts.merge([0, 1], {})
    assert not parts.out.exists()


# what cannot be used -----------------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_never_replaced(tmp_path, encoder):
    images = write_images(tmp_path / "images", 40)
    bad = sorted(images.glob("*.npy"))[7]
    bad.write_bytes(b"broken")
    done = embed_archive(encoder, images, tmp_path / "e.parquet", batch_size=4)
    assert (done.samples, done.bad) == (39, 1)
    assert pq.read_table(done.path)["index"].to_pylist() == [i for i in range(40) if i != 7]
    header, line = done.bad_list.read_text().splitlines()
    assert header == "index,path,reason"
    assert line.startswith(f"7,{bad},")
    assert "cannot be read" in line


def test_too_many_bad_files_stop_but_keep_what_was_done(tmp_path, encoder):
    images = write_images(tmp_path / "images", 40)
    for path in sorted(images.glob("*.npy"))[16:20]:
        np.save(path, np.full((1, 16, 16), np.nan, np.float32))
    common = {"batch_size": 4, "part_samples": 8}
    with pytest.raises(
        embed_work.EmbeddingStopped, match=r"4 of 40 samples could not be used.*--max-bad 0\.05"
    ) as error:
        embed(encoder, images, tmp_path / "e.parquet", **common)
    assert error.value.exit_code == 5
    assert "holds NaN or Inf" in str(error.value)
    assert (tmp_path / "e.parquet.bad.csv").read_text().count("\n") == 5
    done = embed_archive(encoder, images, tmp_path / "e.parquet", max_bad=0.2, **common)
    assert (done.samples, done.bad, done.computed) == (36, 4, 16), "three parts were there already"


def test_a_vector_that_is_no_number_is_a_bad_sample(images, tmp_path, encoder):
    np.save(sorted(images.glob("*.npy"))[2], np.full((1, 16, 16), 3e38, np.float32))
    done = embed_archive(encoder, images, tmp_path / "e.parquet", max_bad=0.1)
    assert done.samples == 11
    assert "output for it holds NaN or Inf" in done.bad_list.read_text()


def test_nothing_readable_is_an_error(images, tmp_path, encoder):
    for path in images.glob("*.npy"):
        np.save(path, np.full((1, 16, 16), np.inf, np.float32))
    with pytest.raises(DataError, match="like all other samples"):
        embed(encoder, images, tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "token"}, "neither pooled nor tokens"),
        ({"part": "optical"}, 'no part "optical"'),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_bad": 2}, "max_bad=2"),
        ({"settings": ["trainer.epochs=2"]}, "only data.OPTION"),
        ({"settings": ["data.crpo=2"]}, "crop"),
    ],
)
def test_options_that_do_not_fit(images, tmp_path, encoder, options, words):
    with pytest.raises(ConfigError, match=words):
        embed(encoder, images, tmp_path / "e.parquet", **options)
    assert not (tmp_path / "e.parquet.parts").exists()


def test_too_little_room_is_said_before_anything_is_computed(images, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(embed_work.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100})())
    with pytest.raises(DiskFullError, match=r"needs about 0\.0 MB while it is made, and 0\.0 MB of disk are free"):
        embed(encoder, images, tmp_path / "e.parquet")
