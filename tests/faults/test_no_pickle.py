"""No load path executes what it reads: a rule over the source, and hostile files."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
import yaml

import maskwright
from maskwright.core.errors import MaskwrightError
from maskwright.core.recipe import load_recipe, make_recipe
from maskwright.core.trainer import checkpoint
from maskwright.core.trainer.run import load_encoder
from maskwright.remote_sensing.methods.croma_published import load_published
from tests.conftest import write_images

SOURCES = sorted(Path(maskwright.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _violations(tree: ast.AST) -> list[str]:
    """Imports of unpickling modules, and loads without the argument that makes them safe."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call == "torch.load" and keywords.get("weights_only") != "True":
                found.append(ast.unparse(node))
            if call in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                found.append(ast.unparse(node))
            if call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_source(source):
    assert _violations(ast.parse(source.read_text())) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "yaml.load(t)", "eval(x)"],
)
def test_the_rule_finds_what_it_should(line):
    assert _violations(ast.parse(line))


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_hostile_weights_and_checkpoints(tmp_path, mark):
    torch.save({"s1_encoder": Bomb(mark)}, tmp_path / "bomb.pt")
    with pytest.raises(MaskwrightError, match="could not be read as weights"):
        load_published(tmp_path / "bomb.pt")
    for name in ("last.safetensors", "encoder.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(MaskwrightError):
        checkpoint.read(tmp_path / "last.safetensors")
    target = "maskwright.core.encoder.vit:VisionTransformer"
    (tmp_path / "encoder.json").write_text(f'{{"target": "{target}", "options": {{"img_size": 32, "depth": 1}}}}')
    with pytest.raises(MaskwrightError, match="does not fit"):
        load_encoder(tmp_path)


def test_hostile_yaml(tmp_path, mark):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: !!python/object/apply:os.mkdir [{mark}]\n")
    for read in (load_recipe, lambda path: make_recipe(path, tmp_path)):
        with pytest.raises(MaskwrightError, match="is no YAML"):
            read(recipe)
    with pytest.raises(MaskwrightError, match="cannot be read as YAML"):
        make_recipe("toy-mae", tmp_path, settings=[f"seed=!!python/object/apply:os.mkdir [{mark}]"])
    yaml.unsafe_load(recipe.read_text().replace(str(mark), str(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()  # the file is hostile indeed


def test_hostile_array(tmp_path, mark):
    import numpy as np

    from tests.toy_plugin import NpyLoader

    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.float32))
    np.save(tmp_path / "b.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(MaskwrightError, match="cannot be read"):
        NpyLoader(tmp_path).read(1)


def test_hostile_labels(tmp_path, mark):
    import numpy as np

    import maskwright as mw

    np.save(tmp_path / "labels.npy", np.array([Bomb(mark)] * 12, dtype=object), allow_pickle=True)
    images = write_images(tmp_path / "images")
    task = mw.component("task", "classification")(labels=str(tmp_path / "labels.npy"))
    with pytest.raises(MaskwrightError, match=r"labels\.npy"):
        task.targets(mw.open_data(images))
