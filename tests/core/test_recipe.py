import pytest
import yaml

import maskwright as mw
from maskwright.core.build import build, open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.options import argument_docs, describe_options
from maskwright.core.recipe import load_recipe, make_recipe, parse_settings, recipe_schema, save_recipe, seconds_of
from maskwright.core.trainer import precision


def test_later_settings_win(images):
    recipe = make_recipe("toy-mae", images, "tiny")
    assert recipe.trainer.lr == 1e-3  # the preset's
    recipe = make_recipe("toy-mae", images, "tiny", ["trainer.lr=5e-4", "method.embed_dim=64"])
    assert recipe.trainer.lr == 5e-4
    built = build(recipe)
    assert built.method.encoder.embed_dim == 64
    assert built.recipe.method.options["depth"] == 2  # the constructor's
    assert built.recipe.method.options["in_chans"] == 1  # the data's


def test_all_problems_at_once_with_the_nearest_names(images):
    settings = [
        "method.embed_dmi=3",
        "trainer.epoch=4",
        "trainer.batch_size=-1",
        "masking.name=colour-noise",
        "masking.sigmas=3",
        "masking.colour=pink",
        "method.depth=two",
        "sed=1",
    ]
    with pytest.raises(ConfigError) as error:
        make_recipe("toy-mae", images, settings=settings)
    text = str(error.value)
    for part in (
        'method.embed_dmi: there is no such option. Did you mean "embed_dim"?',
        'trainer.epoch: there is no such option. Did you mean "epochs"?',
        "trainer.batch_size=-1",
        'masking.sigmas: there is no such option. Did you mean "sigma"?',
        "masking.colour='pink'",
        "method.depth='two'",
        'sed: there is no such option. Did you mean "seed"?',
    ):
        assert part in text
    assert text.count("\n") == 7


def test_unknown_names(images):
    with pytest.raises(ConfigError, match=r'no method "toy-mea".*Did you mean "toy-mae"'):
        make_recipe("toy-mea", images)
    with pytest.raises(ConfigError, match=r'no preset "tinny".*"tiny"'):
        make_recipe("toy-mae", images, "tinny")
    with pytest.raises(ConfigError, match='no masking "randm"'):
        make_recipe("toy-mae", images, settings=["masking.name=randm"])


def test_masking_keeps_the_methods_default_name(images):
    recipe = make_recipe("toy-mae", images, settings=["masking.ratio=0.5"])
    assert recipe.masking.name == "random"
    assert build(recipe).method.masking.ratio == 0.5
    other = make_recipe("toy-mae", images, settings=["masking.name=color_noise"])
    assert type(build(other).method.masking).__name__ == "ColourNoiseMasking"


def test_a_resolved_recipe_makes_the_same_run_again(images, tmp_path):
    run = mw.pretrain("toy-mae", data=images, run=tmp_path / "a", max_steps=2, batch_size=4, precision="32")
    again = mw.pretrain(run.path / "recipe.yaml", run=tmp_path / "b")
    assert run.recipe() == again.recipe()
    assert [row["loss"] for row in run.metrics()] == [row["loss"] for row in again.metrics()]


def test_recipes_survive_yaml(images, tmp_path):
    recipe = build(make_recipe("toy-mae", images, settings={"masking.ratio": 0.6})).recipe
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["trainer"]["betas"] == [0.9, 0.95]


def test_a_recipe_file_of_a_users(images, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"method: toy-mae\ndata: {{path: {images}}}\nmasking: unit\ntrainer: {{precision: 32}}\n")
    recipe = make_recipe(path)
    assert recipe.method.name == "toy-mae"
    assert recipe.masking.name == "unit"
    assert recipe.trainer.precision == "32"
    for text, message in (
        ("- 1\n", "holds a list"),
        ("a: [", "is no YAML"),
        ("method: toy-mae\n", "data.path is required"),
    ):
        path.write_text(text)
        with pytest.raises((ConfigError, DataError), match=message):
            make_recipe(path)
    with pytest.raises(DataError, match="no such recipe file"):
        make_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masking: 3", "masking=3: must hold options"),
        ("masking: {name: 4}", "masking.name=4: must be a name"),
        ("method: {name: [1]}", r"method.name=\[1\]: must be a name"),
        ("method: {name: toy-mae, preset: 3}", "method.preset=3: must be a name"),
        ("masking: {ratio: .nan}", "masking.ratio=nan: Input should be a finite number"),
        ("trainer: {lr: .inf}", "trainer.lr=inf: Input should be a finite number"),
        ("trainer: {betas: [0.9, 3]}", "trainer.betas.1=3: Input should be less than 1"),
        ("trainer: null", "trainer=None: must hold options"),
        ("1: 2", "Keys should be strings"),
    ],
)
def test_what_makes_no_sense_in_a_recipe_file_is_one_sentence(images, tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    method = "" if text.startswith("method") else "method: toy-mae\n"
    path.write_text(f"{method}data: {{path: {images}}}\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        make_recipe(path)


def test_settings():
    assert parse_settings(["a.b=1", "a.c=[1, 2]", "d=x", "a.lr=1e-4", "a.n=null"]) == {
        "a": {"b": 1, "c": [1, 2], "lr": 1e-4, "n": None},
        "d": "x",
    }
    assert parse_settings(["a.b.c=1", "a.b.d.e=2", "a.f=3"]) == {"a": {"b": {"c": 1, "d": {"e": 2}}, "f": 3}}
    with pytest.raises(ConfigError, match=r'"a\.b\.c" and "a\.b" cannot both be set'):
        parse_settings(["a.b=1", "a.b.c=2"])
    for bad in ("a.b", "=1"):
        with pytest.raises(ConfigError, match="is no setting"):
            parse_settings([bad])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("01:30:05", 5405)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds
    with pytest.raises(ConfigError, match="is no duration"):
        make_recipe("toy-mae", ".", settings={"trainer.max_time": "soon"})


def test_no_loader_for_this_method_says_what_each_loader_found(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"(?s)no loader understands it.*\n.*s1s2: does not find its files"):
        open_loader(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_loader(tmp_path / "gone")


def test_channel_mismatch_names_both_sides(images):
    with pytest.raises(ConfigError, match=r'"toy-mae" was built for 3 channels of "image", but loader "npy" gives 1'):
        build(make_recipe("toy-mae", images, settings=["method.in_chans=3"]))


def test_options_are_described_from_signature_and_docstring():
    rows = {row[0]: row for row in describe_options(mw.component("masking", "colour-noise"))}
    assert rows["ratio"][1:3] == ("float", "0.75")
    assert "share of tokens to hide" in rows["ratio"][3]
    assert "red" in rows["colour"][1]
    assert argument_docs("x\n\nArgs:\n    a, b: one\n        two.\n    c: three\n\nReturns:\n    d: no\n") == {
        "a": "one two.",
        "b": "one two.",
        "c": "three",
    }


def test_schema_lists_every_section():
    schema = recipe_schema()
    assert set(schema["properties"]) == {"method", "masking", "data", "trainer", "seed"}
    trainer = schema["$defs"]["TrainerSection"]
    assert trainer["additionalProperties"] is False
    assert all("description" in option for option in trainer["properties"].values())


def test_precision_auto(monkeypatch):
    assert precision.resolve_precision("32", "cpu") == "32"
    monkeypatch.setattr(precision, "has_bf16_units", lambda: False)
    monkeypatch.setattr(precision, "bf16_gain", lambda: pytest.fail("measured on a CPU without bf16 units"))
    assert precision.resolve_precision("auto", "cpu") == "32"
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    monkeypatch.setattr(precision, "bf16_gain", lambda: 1.1)
    assert precision.resolve_precision("auto", "cpu") == "32"
    monkeypatch.setattr(precision, "bf16_gain", lambda: 1.7)
    assert precision.resolve_precision("auto", "cpu") == "bf16"
    monkeypatch.undo()
    assert precision.bf16_gain(64, 1) > 0
