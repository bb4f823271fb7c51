"""The plugin template as a stranger meets it: in an environment of its own, through the command line alone."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from maskwright.core.template import TEMPLATE, new_plugin, template_files

ROOT = Path(__file__).parents[2]
ADDS = {"masking": "checkerboard", "loader": "pictures", "method": "picture-mae", "task": "one-class"}


class Environment:
    """A fresh virtual environment that sees the packages of this one beside its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = folder / "bin" / "python"
        (packages,) = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_paths()["purelib"]  # added as a site, so that an editable install there works too
        (packages / "beside.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        for name in ("sitecustomize", "usercustomize"):
            assert not (packages / f"{name}.py").exists()

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MASKWRIGHT_", "PYTHON"))}
        kept |= {"MASKWRIGHT_CACHE": os.environ["MASKWRIGHT_CACHE"], "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(self.python), "-m", *map(str, words)]
        return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=240)

    def maskwright(self, *words: object, cwd: Path | None = None) -> str:
        done = self.run("maskwright", *words, cwd=cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def install(self, package: Path) -> None:
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
        done = self.run("pip", "install", *options, package)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def plugins(self) -> dict[str, dict]:
        return {record["name"]: record for record in json.loads(self.maskwright("plugins", "--json"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An environment in which examples/plugin_template is installed, from a copy, as building writes beside it."""
    if any(importlib.util.find_spec(name) is None for name in ("setuptools", "pip")):
        pytest.skip('building a package offline needs its tools here: pip install "setuptools>=77" pip')
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(ROOT / "examples" / "plugin_template", folder / "source")
    environment = Environment(folder / "environment")
    environment.install(folder / "source")
    environment.source = folder / "source"
    return environment


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """60 handwritten digits of scikit-learn as PGM files, a folder for each class, and one file that is broken."""
    folder = tmp_path_factory.mktemp("digits")
    images, targets = load_digits(return_X_y=True)
    for number, (image, target) in enumerate(zip(images[:60].astype("uint8") * 15, targets, strict=False)):
        (folder / f"digit-{target}").mkdir(exist_ok=True)
        (folder / f"digit-{target}" / f"{number:03d}.pgm").write_bytes(b"P5\n8 8\n255\n" + image.tobytes())
    (folder / "digit-0" / "broken.pgm").write_bytes(b"P5\n8 8\n255\n123")
    return folder


def test_it_is_at_most_a_hundred_lines():
    lines = [line for path in TEMPLATE.rglob("*.py") for line in path.read_text().splitlines() if line.strip()]
    assert 50 < len(lines) <= 100


def test_its_only_test_is_one_line():
    (path,) = (TEMPLATE / "tests").glob("*.py")
    _, body = path.read_text().split("def test_contract():\n")
    assert len(body.splitlines()) == 1
    assert "check_plugin(" in body


def test_all_of_it_ships_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["maskwright"]
    shipped = {path for pattern in patterns for path in (ROOT / "maskwright").glob(pattern) if path.is_file()}
    missing = [str(path) for path in template_files() if TEMPLATE / path not in shipped]
    assert not missing, missing
    assert {path.suffix for path in template_files()} == {".py", ".toml", ".md", ".pgm"}


def test_plugins_lists_it_ready(home):
    record = home.plugins()["example-plugin"]
    assert (record["status"], record["distribution"], record["version"]) == ("ready", "example-plugin", "0.1.0")
    assert {component["kind"]: component["name"] for component in record["components"]} == ADDS


def test_list_and_info_show_what_it_adds(home):
    listed = json.loads(home.maskwright("list", "--json"))
    for kind, name in ADDS.items():
        assert name in [component["name"] for component in listed[kind]]
    shown = home.maskwright("info", "one-class")
    assert "example-plugin (example-plugin)" in shown
    assert "name of that class" in shown


def test_inspect_takes_its_loader_by_itself(home, digits):
    row, broken = json.loads(home.maskwright("inspect", digits, "--json"))
    assert Path(broken["file"]).name == "broken.pgm"
    assert broken["problem"]
    assert (row["tensor"], row["samples"], row["dimensions"], row["channels"]) == ("image", 61, "C H W", 1)
    (grey,) = row["statistics"]
    written = [np.frombuffer(file.read_bytes()[-64:], np.uint8) for file in digits.rglob("[0-9]*.pgm")]
    assert grey["channel"] == "grey"
    assert grey["minimum"] == 0
    assert grey["mean"] == pytest.approx(np.mean(written), abs=2)  # scaling up keeps the mean, about


def test_its_command_counts_the_classes(home, digits):
    wanted = Counter(file.parent.name for file in digits.rglob("*.pgm"))
    printed = home.maskwright("example-plugin", "summary", digits)
    assert printed == "".join(f"{label}: {count}\n" for label, count in sorted(wanted.items()))


@pytest.fixture(scope="module")
def trained(home, digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    settings = ["trainer.max_steps=8", "trainer.batch_size=16", "trainer.log_every=1", "masking.name=checkerboard"]
    words = [word for setting in settings for word in ("--set", setting)]
    home.maskwright("pretrain", "picture-mae", "--data", digits, "--preset", "tiny", "--run", run, *words)
    return run


def test_its_method_trains_with_its_masking_on_its_loader(trained):
    import maskwright as mw

    run = mw.Run.open(trained)
    losses = [row["loss"] for row in run.metrics()]
    assert len(losses) == 8
    assert 0 < losses[-1] < losses[0]
    assert (run.recipe().masking.name, run.recipe().data.loader) == ("checkerboard", "pictures")
    assert [Path(bad["path"]).name for bad in run.bad_files()] == ["broken.pgm"]
    assert (trained / "previews" / "image.png").stat().st_size > 1000
    assert mw.load(run).embed_dim == 48  # the encoder is the core's, and does not need the plugin


def test_its_task_is_evaluated(home, trained):
    few = ("--seeds", 1, "--folds", 2, "--protocol", "knn", "--baselines", "simple")
    words = ("evaluate", trained, "--task", "one-class", *few)
    printed = home.maskwright(*words, "--set", "task.positive=digit-0")
    assert "pre-trained" in printed
    assert (trained / "evaluations" / "one-class" / "report.html").is_file()
    refused = home.run("maskwright", *words, "--set", "task.positive=digt-0")
    assert refused.returncode == 2
    assert 'There is no class "digt-0". Did you mean "digit-0"?' in refused.stderr


@pytest.mark.slow
def test_its_own_test_passes(home):
    done = home.run("pytest", "-q", "-p", "no:cacheprovider", home.source)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_a_plugin_of_another_name_passes_the_same_test_and_goes_without_a_trace(home, tmp_path):
    source = new_plugin("Bird_Songs", tmp_path / "package")
    text = "".join(path.read_text() for path in source.rglob("*") if path.is_file())
    assert "example" not in text
    environment = Environment(tmp_path / "environment")
    environment.install(source)
    record = environment.plugins()["bird-songs"]
    assert record["status"] == "ready"
    assert {component["target"].split(".")[0] for component in record["components"]} == {"bird_songs"}
    assert (
        environment.maskwright("bird-songs", "summary", source / "tests" / "digits") == "eight: 3\nfive: 3\nthree: 3\n"
    )
    done = environment.run("pytest", "-q", "-p", "no:cacheprovider", source)
    assert done.returncode == 0, done.stdout[-3000:]
    assert environment.run("pip", "uninstall", "-y", "bird-songs").returncode == 0
    assert "bird-songs" not in environment.plugins()
    assert environment.run("maskwright", "info", "picture-mae").returncode == 2
