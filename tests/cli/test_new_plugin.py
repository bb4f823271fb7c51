"""`maskwright new-plugin`: names, folders, and what to do next. What it writes is run in tests/e2e."""

import os
import sys
import tomllib

import pytest
import typer

from maskwright.cli import main, new_plugin
from maskwright.core import template
from maskwright.core.errors import ConfigError


@pytest.fixture(autouse=True)
def _mounted(monkeypatch, tmp_path):
    """The command line with this command, in an empty folder."""
    if all(command.name != "new-plugin" for command in main.app.registered_commands):
        app = typer.Typer(cls=main.MainGroup)
        app.registered_commands = list(main.app.registered_commands)
        new_plugin.add_commands(app)
        monkeypatch.setattr(main, "app", app)
    monkeypatch.chdir(tmp_path)


def run(*words):
    return main.run(["new-plugin", *map(str, words)])


def test_it_writes_a_package_and_says_what_comes_next(tmp_path, capsys):
    assert run("Bird_Songs") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "Wrote bird-songs. What comes next:",
        "  pip install -e ./bird-songs pytest",
        "  maskwright plugins",
        "  python -m pytest bird-songs",
    ]
    package = tmp_path / "bird-songs"
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["name"] == "bird-songs"
    assert project["project"]["entry-points"] == {"maskwright": {"bird-songs": "bird_songs.plugin"}}
    assert project["tool"]["setuptools"]["packages"] == ["bird_songs"]
    written = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert written == {str(path).replace("example_plugin", "bird_songs") for path in template.template_files()}
    assert 'check_plugin("bird-songs"' in (package / "tests" / "test_contract.py").read_text()
    for path in package.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bird-songs"]


def test_a_folder_with_spaces_is_quoted(tmp_path, capsys):
    assert run("birds", "--out", tmp_path / "my birds") == 0
    assert f"  python -m pytest '{tmp_path}/my birds'" in capsys.readouterr().out


def test_an_empty_folder_is_filled_in_place(tmp_path):
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    assert run("birds", "--out", ".") == 0
    assert os.path.samefile(tmp_path / "here", ".")
    assert (tmp_path / "here" / "birds" / "plugin.py").is_file()


def test_a_folder_that_holds_anything_is_left_alone(tmp_path, capsys):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for words in (("birds",), ("birds", "--out", "file")):
        assert run(*words) == 2
        assert "is not empty. Choose another folder with --out" in capsys.readouterr().err
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "birds",
        "birds/notes.txt",
        "file",
    ]


def test_nothing_is_left_of_a_package_that_could_not_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("birds", "--out", "file/package") == 2
    assert "file/package cannot be written: Not a directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b", "is no name of a package"),
        ("birds-", "is no name of a package"),
        ("", "is no name of a package"),
        ("vögel", "is no name of a package"),
        ("1st-birds", "module name 1st_birds, which Python cannot import"),
        ("class", "which Python cannot import"),
        ("json", "There is already a module json"),
        ("torch", "There is already a module torch"),
        ("tests", "There is already a module tests"),
        ("scikit-learn", "There is already a package scikit-learn"),
        ("remote-sensing", 'There is already a plugin "remote-sensing"'),
        ("toy-plugin", 'There is already a plugin "toy-plugin"'),
        ("core", 'There is already a plugin "core"'),
    ],
)
def test_names_that_cannot_be_used(name, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        template.new_plugin(name)
    assert not list(tmp_path.iterdir())


def test_a_name_of_our_own_commands(capsys):
    assert run("preview") == 2
    assert '"preview" is a command of maskwright' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "names"),
    [("Bird_Songs", ("bird-songs", "bird_songs")), ("a.b--c", ("a-b-c", "a_b_c")), ("x1", ("x1", "x1"))],
)
def test_spellings(name, names):
    assert template.names_of(name) == names


def test_what_an_installation_leaves_in_the_template_is_not_copied(tmp_path, monkeypatch):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(template.TEMPLATE, copy)
    (copy / "build").mkdir(exist_ok=True)
    for name in ("build/x.py", "example_plugin/x.pyc", "example_plugin.egg-info", "setup.cfg"):
        (copy / name).touch()
    monkeypatch.setattr(template, "TEMPLATE", copy)
    names = {path.name for path in template.template_files()}
    assert not names & {"x.py", "x.pyc", "setup.cfg", "example_plugin.egg-info"}
    assert {"plugin.py", "pyproject.toml", "README.md"} <= names


def test_nothing_heavy_is_imported():
    import subprocess

    code = "import sys; from maskwright.core.template import names_of; names_of('birds'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
