"""An evaluation from files to a report: real digits, a planted leak, and cases where pre-training must not win."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

import maskwright as mw
from maskwright.core.errors import ConfigError, DataError, TrainingStopped

FAST = {"seeds": 2, "folds": 3, "baselines": ("random-init", "simple")}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """300 real digits as .npy files in a folder a class, padded to 16 x 16, and a table of labels."""
    folder = tmp_path_factory.mktemp("digits")
    images, numbers = load_digits(return_X_y=True)
    rows = ["file,digit,writer,ink"]
    for at in range(300):
        image = np.kron(images[at].reshape(8, 8), np.ones((2, 2))).astype(np.float32)[None]
        np.save(folder / f"d{at:03d}.npy", image)
        rows.append(f"d{at:03d}.npy,{numbers[at]},w{at // 10},{image.mean():.4f}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return mw.pretrain(
        "toy-mae", digits, "tiny", path, {"data.loader": "npy"}, epochs=20, batch_size=50, precision="32", log_every=20
    )


def _scores(result, features, protocol, metric, fraction=1.0):
    return next(
        row
        for row in result.table.rows
        if (row.features, row.protocol, row.metric, row.fraction) == (features, protocol, metric, fraction)
    )


@pytest.fixture(scope="module")
def result(run, digits):
    return mw.evaluate(
        run,
        labels=f"{digits}/labels.csv:digit",
        protocols=["knn", "linear", "kmeans", "few-shot"],
        fractions=[0.1, 1.0],
        split=f"{digits}/labels.csv:writer",
        **FAST,
    )


def test_every_score_stands_beside_its_baselines(result):
    names = {row.features for row in result.table.rows}
    assert names == {"pre-trained", "random init", "channel statistics", "raw values"}
    for fraction in (0.1, 1.0):
        for protocol in ("kNN", "linear probe", "k-means", "few-shot"):
            for name in names:
                row = _scores(result, name, protocol, "accuracy", fraction)
                assert len(row.values) == 2
                assert all(0 <= value <= 1 for value in row.values)
    assert _scores(result, "raw values", "linear probe", "accuracy").mean > 0.8
    assert (
        _scores(result, "raw values", "linear probe", "accuracy").mean
        > _scores(result, "raw values", "linear probe", "accuracy", 0.1).mean + 0.1
    )
    assert _scores(result, "channel statistics", "linear probe", "accuracy").mean < 0.6


def test_pixels_of_digits_beat_a_tiny_encoder_and_the_report_says_so(result, run):
    """A case where it did not help: the verdict must not be kinder than the scores."""
    verdict = next(
        v for v in result.table.verdicts if (v.baseline, v.protocol, v.fraction) == ("raw values", "linear probe", 1.0)
    )
    difference = (
        _scores(result, "pre-trained", "linear probe", "balanced accuracy").mean
        - _scores(result, "raw values", "linear probe", "balanced accuracy").mean
    )
    assert verdict.difference == pytest.approx(difference)
    assert verdict.low <= verdict.difference <= verdict.high < 0
    assert verdict.words == "did not help, it did worse"
    assert result.headline.startswith("Pre-training did not help here: balanced accuracy")
    assert "raw values" in result.headline
    html = (result.path / "report.html").read_text()
    assert result.headline in html.replace("&#39;", "'")
    assert html.count("data:image/png;base64,") == 3  # beside baselines, label efficiency, confusion
    assert result.headline in mw.report(run).read_text()


def test_what_is_written(result):
    stored = json.loads((result.path / "scores.json").read_text())
    assert stored["headline"] == result.headline
    assert stored["facts"]["classes"] == [str(n) for n in range(10)]
    assert np.sum(stored["confusion"]) == pytest.approx(300)
    table = pq.read_table(result.path / "predictions.parquet").to_pydict()
    assert set(table) == {"index", "source", "group", "truth", "kNN", "linear probe", "k-means", "few-shot"}
    assert len(table["truth"]) == 300
    right = np.mean([a == b for a, b in zip(table["truth"], table["linear probe"], strict=True)])
    assert right == pytest.approx(_scores(result, "pre-trained", "linear probe", "accuracy").values[0])
    assert set(stored["facts"]["collapse"]) == {"pre-trained", "random init"}
    assert any("saw 300 of the 300 samples during pre-training" in note for note in result.table.notes)
    assert any("supervised" in note and "Left out" in note for note in result.table.notes)


def test_the_same_seeds_give_the_same_numbers(run, digits, tmp_path, result):
    again = mw.evaluate(
        run,
        labels=f"{digits}/labels.csv:digit",
        protocols=["knn"],
        split=f"{digits}/labels.csv:writer",
        out=tmp_path / "again",
        **FAST,
    )
    for row in again.table.rows:
        assert row.values == _scores(result, row.features, row.protocol, row.metric).values


def test_supervised_and_fine_tuned_have_the_same_budget(run, digits, tmp_path):
    result = mw.evaluate(
        run,
        labels=f"{digits}/labels.csv:digit",
        protocols=["finetune", "attentive", "mae-linear"],
        seeds=1,
        folds=2,
        settings=["finetune.steps=60", "attentive.steps=60", "mae-linear.epochs=20"],
        out=tmp_path / "out",
    )
    both = [_scores(result, name, "fine-tune", "accuracy").mean for name in ("pre-trained", "supervised from scratch")]
    assert min(both) > 0.3
    assert any("60 steps of 32 samples each" in note for note in result.table.notes)
    assert any(v.baseline == "supervised from scratch, fine-tune" for v in result.table.verdicts)


def test_regression_and_retrieval(run, digits, tmp_path):
    numbers = mw.evaluate(
        run,
        task="regression",
        labels=f"{digits}/labels.csv:ink",
        protocols=["linear", "knn"],
        out=tmp_path / "a",
        **FAST,
    )
    assert _scores(numbers, "channel statistics", "linear probe", "R2").mean > 0.99  # the mean is one of them
    assert numbers.headline.startswith("Pre-training did not help here: R2")
    found = mw.evaluate(
        run, task="retrieval", labels=f"{digits}/labels.csv:digit", protocols=[], out=tmp_path / "b", **FAST
    )
    assert _scores(found, "raw values", "retrieval by cosine", "precision at 1").mean > 0.85


def test_planted_copies_across_groups_are_named_and_kept_together(run, digits, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    rows = ["file,digit"]
    for at in range(60):
        image = np.load(digits / f"d{at:03d}.npy")
        np.save(folder / f"d{at:03d}.npy", image)
        rows.append(f"d{at:03d},{at % 2}")
    for at in range(6):
        np.save(folder / f"again{at}.npy", np.load(digits / f"d{at:03d}.npy"))
        rows.append(f"again{at},{at % 2}")
    (folder / "y.csv").write_text("\n".join(rows))
    result = mw.evaluate(
        run, folder, labels=f"{folder}/y.csv:digit", protocols=["knn"], out=tmp_path / "out", settings={"data.loader": "npy"}, **FAST
    )  # fmt: skip
    leaks = list(csv.DictReader((tmp_path / "out" / "leaks.csv").open()))
    pairs = {tuple(sorted((row["first"].rsplit("/")[-1], row["second"].rsplit("/")[-1]))) for row in leaks}
    assert {(f"again{at}.npy", f"d{at:03d}.npy") for at in range(6)} <= pairs
    note = next(note for note in result.table.notes if note.startswith("Leak check"))
    assert "6 identical" in note
    assert "6 groups were joined" in note
    assert "again0.npy" in (tmp_path / "out" / "report.html").read_text()
    random = mw.evaluate(
        run, folder, labels=f"{folder}/y.csv:digit", protocols=["knn"], split="random", out=tmp_path / "r",
        settings={"data.loader": "npy"}, **FAST,
    )  # fmt: skip
    assert any(note.startswith("RANDOM SPLIT") for note in random.table.notes)
    assert "RANDOM" in random.table.title
    assert not any("joined" in note for note in random.table.notes)


def test_given_test_data_and_a_group_on_both_sides(run, digits, tmp_path):
    parts = {"train": range(0, 200), "test": range(195, 300)}
    for name, members in parts.items():
        (tmp_path / name).mkdir()
        for at in members:
            np.save(tmp_path / name / f"d{at:03d}.npy", np.load(digits / f"d{at:03d}.npy"))
    result = mw.evaluate(
        run, tmp_path / "train", labels=f"{digits}/labels.csv:digit", test=tmp_path / "test", protocols=["linear"],
        out=tmp_path / "out", settings={"data.loader": "npy"}, **FAST,
    )  # fmt: skip
    assert result.facts["split"] == "given test data"
    assert np.sum(result.confusion) == pytest.approx(105)
    notes = " ".join(result.table.notes)
    assert "5 identical" in notes
    assert "5 groups are in training and test data both: d195" in notes


def test_unreadable_files_are_listed_and_too_many_stop(run, digits, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for at in range(100):
        np.save(folder / f"d{at:03d}.npy", np.load(digits / f"d{at:03d}.npy"))
    (folder / "d050.npy").write_bytes(b"no array")
    options = {"labels": f"{digits}/labels.csv:digit", "protocols": ["knn"], "settings": {"data.loader": "npy"}, **FAST}
    result = mw.evaluate(run, folder, out=tmp_path / "out", **options)
    (bad,) = csv.DictReader((tmp_path / "out" / "bad_files.csv").open())
    assert bad["path"].endswith("d050.npy")
    assert result.facts["samples"] == 99
    for at in range(10, 20):
        (folder / f"d{at:03d}.npy").write_bytes(b"")
    with pytest.raises(TrainingStopped, match=r"11 of 100 samples cannot be used, more than 5%"):
        mw.evaluate(run, folder, out=tmp_path / "out2", **options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"protocols": ["knnn"]}, ConfigError, 'Did you mean "knn"'),
        ({"settings": ["knn.kk=3"]}, ConfigError, "knn.kk: there is no such option"),
        ({"settings": ["linear.c=3"], "protocols": ["knn"]}, ConfigError, "linear: there is no such section"),
        ({"baselines": ["raw"]}, ConfigError, 'baselines: there is no "raw"'),
        ({"metric": "F2"}, ConfigError, "this classification has balanced accuracy"),
        ({"fractions": [1.5]}, ConfigError, "outside"),
        ({"task": "regression"}, DataError, "a number"),
        ({"task": "segmentation"}, DataError, "no such file"),
        ({"seeds": 0}, ConfigError, "at least one seed"),
        ({"encoder": "timm:resnet18"}, ConfigError, "not both"),
        ({"split": "block:8"}, DataError, "have no window"),
    ],
)
def test_impossible_requests_say_so_before_anything_is_computed(run, digits, tmp_path, options, kind, message):
    given = {"labels": f"{digits}/labels.csv:writer", "out": tmp_path / "out", **FAST, **options}
    with pytest.raises(kind, match=message):
        mw.evaluate(run, **given)
    assert not (tmp_path / "out").exists()


def test_a_perfect_encoder_helped(digits, tmp_path):
    """The verdict can also be good: an encoder that knows more than pixels and its random twin."""
    torch.manual_seed(0)
    result = mw.evaluate(
        encoder=_Oracle.trained(digits), data=digits, labels=f"{digits}/labels.csv:digit", protocols=["linear"],
        fractions=[0.1], settings={"data.loader": "npy"}, out=tmp_path / "out", **FAST,
    )  # fmt: skip
    assert result.headline.startswith("Pre-training helped: ")


class _Oracle(mw.Encoder):
    """A small network trained with labels on other digits, as a stand-in for a good encoder."""

    def __init__(self):
        super().__init__()
        from maskwright.core.sample import TensorSpec

        self.inputs = {"image": TensorSpec("C H W", 1)}
        self.embed_dim = 64
        self.add_normalizers("standard")
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)
        )

    @classmethod
    def trained(cls, digits):
        images, numbers = load_digits(return_X_y=True)
        x = torch.tensor(np.kron(images[300:].reshape(-1, 8, 8), np.ones((2, 2))), dtype=torch.float32)
        encoder = cls()
        encoder.fit_normalizers(mw.open_data(digits, "npy").statistics())
        head = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(64, 10))
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
        y = torch.tensor(numbers[300:])
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                head(encoder.body(encoder.normalizers["image"](x[:, None]))), y
            ).backward()
            optimizer.step()
        return encoder.eval()

    def tokenize(self, batch):
        return self.normalize(batch)["image"]

    def forward(self, tokens, mask=None):
        return self.body(tokens)

    def embed_batch(self, batch):
        from maskwright.core.encoder import Embedding
        from maskwright.core.masking import Grid

        pooled = self(self.tokenize(batch))
        return Embedding(pooled, pooled[:, None], Grid((1,)))


@pytest.mark.parametrize(("split", "moves"), [("group", True), ("block:560", False)])
def test_training_windows_never_move_into_a_test_block(tmp_path, monkeypatch, split, moves):
    """Moved at random, a window of a spatial block would show its network pixels of the next one."""
    import maskwright.core.evaluation.judge as judging

    asked = []

    def spy(encoder, targets, loader, indices, budget, seed, device, augment):
        asked.append(augment)
        return real(encoder, targets, loader, indices, budget, seed, device, augment=augment)

    real = judging.train_model
    monkeypatch.setattr(judging, "train_model", spy)
    samples = "maskwright/remote_sensing/samples/terramesh"
    mw.evaluate(
        encoder=_small_vit(), data=f"{samples}/S1", task="land-cover", labels=f"{samples}/LULC", protocols=["knn"], seeds=1,
        folds=2, split=split, settings={"data.loader": "geotiff", "data.size": 56, "finetune.steps": 2},
        baselines=["supervised"], out=tmp_path / "out",
    )  # fmt: skip
    assert asked == [moves, moves]


def _small_vit():
    from maskwright.core.encoder import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=56, patch_size=8, in_chans=2, embed_dim=16, depth=1, num_heads=2).eval()


def test_bands_in_another_order_than_the_run_was_trained_on_are_refused(tmp_path):
    samples = "maskwright/remote_sensing/samples/terramesh/S1"
    run = mw.pretrain(
        "mae", samples, "tiny", tmp_path / "run", {"data.loader": "geotiff", "data.size": 56, "method.img_size": 56},
        max_steps=1, batch_size=4, precision="32",
    )  # fmt: skip
    for call in (
        lambda **o: mw.evaluate(run, samples, task="land-cover", labels=f"{samples}/../LULC", out=tmp_path / "a", **o),
        lambda **o: mw.finetune(run, samples, task="land-cover", labels=f"{samples}/../LULC", out=tmp_path / "b", **o),
        lambda **o: mw.embed(run, samples, tmp_path / "c.parquet", **o),
    ):
        with pytest.raises(ConfigError, match=r"trained on .*VV, VH, but .* gives VH, VV"):
            call(settings={"data.bands": ["VH", "VV"]})
