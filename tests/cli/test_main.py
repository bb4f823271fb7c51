"""The command line as a whole: help, errors as sentences, exit codes, lightness, completion."""

import json
import subprocess
import sys
import warnings

import pytest

import maskwright
from maskwright.cli import main as command_line
from maskwright.cli.main import run
from maskwright.core.errors import ConfigError, DataError, MaskwrightError, PluginError, TrainingStopped
from maskwright.core.trainer.keeper import Interrupted
from tests.fake_distributions import GOOD, HEAD, run_maskwright, write_distribution

COMMANDS = ["pretrain", "resume", "demo", "inspect", "preview", "plugins", "list", "info", "doctor", "completion"]


def test_help_lists_all_commands_and_plugins(capsys):
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f" {command} " in out for command in [*COMMANDS, "remote-sensing"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    assert run([command, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_without_a_command_help_is_shown(capsys):
    assert run([]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"maskwright {maskwright.__version__}\n"


LIGHT = """
import sys
from maskwright.cli.main import run
assert run({words!r}) == 0
heavy = {{"torch", "lightning", "rasterio", "numpy", "matplotlib", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
if {words!r} == ["--help"]:  # nor any plugin; newer typers parse options with pydantic, so it is not forbidden above
    assert not [name for name in sys.modules if name.startswith(("maskwright.remote_sensing", "pydantic"))]
"""


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["list", "masking"], ["doctor", "--quick"]])
def test_light_commands_import_nothing_heavy(monkeypatch, words):
    monkeypatch.delenv("MASKWRIGHT_PLUGINS")
    code = LIGHT.format(words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_plugins_command_imports_that_plugin_alone(tmp_path):
    touch = "import pathlib\npathlib.Path(__file__).with_suffix('.imported').touch()\n"
    write_distribution(tmp_path, "works", touch + GOOD)
    write_distribution(tmp_path, "other", touch + GOOD)
    assert run_maskwright(tmp_path, "works", "greet").stdout == "hello from a plugin\n"
    assert [path.name for path in tmp_path.glob("*.imported")] == ["works.imported"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("two problems"), 2, "Error: two problems"),
        (DataError("a.tif", "is empty", "bands", "Fill it"), 3, "Error: a.tif: is empty; expected bands. Fill it."),
        (PluginError("p is broken"), 4, "Error: p is broken"),
        (TrainingStopped("loss is NaN"), 5, "Error: loss is NaN"),
        (MaskwrightError("[red]odd[/nothing]"), 1, "Error: [red]odd[/nothing]"),
        (Interrupted("resume it", 143), 143, "resume it"),
        (Interrupted("time is up", 0), 0, "time is up"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("by\nzero"), 1, "Error: unexpected ZeroDivisionError: by zero. This may be a bug"),
    ],
)
def test_errors_are_sentences_with_exit_codes(capsys, monkeypatch, error, code, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("maskwright.core.inspection.inspect_data", fail)
    assert run(["inspect", "somewhere"]) == code
    err = capsys.readouterr().err
    assert err.startswith(text)
    assert "Traceback" not in err
    if code != 130:
        assert run(["inspect", "somewhere"], debug=True) == code
        assert "Traceback" in capsys.readouterr().err


def test_only_an_unexpected_error_advertises_debug(capsys, monkeypatch):
    def fail(*_):
        raise OSError("strange")

    monkeypatch.setattr("maskwright.core.inspection.inspect_data", fail)
    run(["inspect", "somewhere"])
    assert "--debug" in capsys.readouterr().err
    run(["inspect", "somewhere"], debug=True)
    assert "--debug" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "No such command 'nonsense'. See `maskwright --help`."),
        (["plugin"], "Did you mean 'plugins'"),
        (["pretrain"], "See `maskwright pretrain --help`."),
        (["demo", "--seeds", "0"], "--seeds"),
        (["list", "maskin"], 'Did you mean "masking"?'),
        (["info"], "Name a component"),
        (["info", "colour-nose"], 'Did you mean "colour-noise"?'),
        (["demo", "remote-sensin"], 'Did you mean "remote-sensing"?'),
        (["preview"], "--data PATH"),
        (["completion", "tcsh"], "tcsh"),
    ],
)
def test_wrong_words_exit_2_and_say_what_mends_them(capsys, words, text):
    assert run(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert text in err


def test_global_flags_may_stand_anywhere(tmp_path):
    write_distribution(tmp_path, "cracked", "1 / 0\n")
    done = run_maskwright(tmp_path, "plugins", "--json", "--strict")
    assert done.returncode == 4
    done = run_maskwright(tmp_path, "info", "crma", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_warnings_are_one_line(tmp_path):
    code = HEAD + "import warnings\nwarnings.warn('old [format]')\n"
    write_distribution(tmp_path, "warning", code)
    done = run_maskwright(tmp_path, "plugins")
    assert done.stderr == "Warning: old [format]\n"


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["list", "nonsense"])
    assert stopped.value.code == 2


def test_a_closed_pipe_is_no_error(tmp_path):
    script = f"{sys.executable} -m maskwright info --schema | head -c 10"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert len(done.stdout) == 10
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(capsys, shell):
    assert run(["completion", shell]) == 0
    assert "_MASKWRIGHT_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("maskwright pl", "1", "plugins"),
        ("maskwright pretrain crom", "2", "croma"),
        ("maskwright list ma", "2", "masking"),
    ],
)
def test_completions(tmp_path, words, position, expected):
    asked = {"_MASKWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
    assert run_maskwright(tmp_path, **asked).stdout.split() == [expected]


def test_schema_is_json(capsys):
    assert run(["info", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"method", "data", "trainer"} <= set(schema["properties"])
