"""Runs on sound files, and the units that a run of w2v-BERT gives a corpus."""

import csv

import pytest

import maskwright
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.host import get_host
from maskwright.speech.fake import fake_corpus
from maskwright.speech.units import units

SMALL = {
    "w2v-bert": ["method.embed_dim=32", "method.depth=2", "method.contrastive_depth=1"],
    "tera": ["method.embed_dim=32", "method.depth=2"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    fake_corpus(folder)
    return folder


def train(name, corpus, run):
    return maskwright.pretrain(
        name, corpus, "tiny", run, [*SMALL[name], "data.mels=40"], max_steps=2, batch_size=4, precision="32"
    )


def test_units_of_a_run(corpus, tmp_path):
    run = train("w2v-bert", corpus, tmp_path / "run")
    with units(run, tmp_path / "units.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    loader = get_host().component("loader", "speech").load()(corpus, mels=40)
    assert [int(row["index"]) for row in rows] == list(range(len(loader)))
    for row in rows:
        sample = loader.read(int(row["index"]))
        found = [int(unit) for unit in row["units"].split()]
        assert row["source"] == sample.meta.source
        assert len(found) == sample["frames"].shape[1] // int(row["frames_per_unit"])
        assert set(found) <= set(range(64))
    with units(run, tmp_path / "merged.tsv", merge=True).open() as file:
        for row, whole in zip(csv.DictReader(file, delimiter="\t"), rows, strict=True):
            long = whole["units"].split()
            assert row["units"].split() == [u for at, u in enumerate(long) if at == 0 or u != long[at - 1]]


def test_tera_trains_on_utterances_of_various_lengths_and_embeds_them(corpus, tmp_path):
    run = train("tera", corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="has no units"):
        units(run, tmp_path / "units.tsv")
    sample = get_host().component("loader", "speech").load()(corpus, mels=40).read(0)
    embedding = maskwright.load(run.path).embed(sample)
    assert embedding.pooled.shape == (1, 32)
    assert embedding.tokens.shape == (1, sample["frames"].shape[1], 32)


def test_units_need_a_run(tmp_path):
    with pytest.raises(DataError):
        units(tmp_path, tmp_path / "units.tsv")
