"""The plugin host: order, names, isolation of hooks, and the contract page itself."""

import inspect
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
import typer

import maskwright
from maskwright.core import hookspecs
from maskwright.core.component import KINDS
from maskwright.core.discovery import plugin_names, version_problem
from maskwright.core.errors import ConfigError, PluginError
from maskwright.core.host import HOOKS, REGISTER_HOOKS, Host, normalise
from tests.fake_distributions import GOOD, HEAD, write_distribution

OURS = ["medical", "pointcloud", "remote-sensing", "speech", "vision"]
"""Domains that come with the package, in order of name."""

EVERYTHING = (
    HEAD
    + "".join(
        f"""
@hookimpl
def {hook}():
    return [Component("every-{kind}", "somewhere:Thing", "A {kind}.")]
"""
        for hook, kind in REGISTER_HOOKS.items()
    )
    + """
seen = []

@hookimpl
def register_commands(app):
    app.command("greet")(lambda: None)

@hookimpl
def diagnose():
    return {"engine": "warm"}

@hookimpl
def configure_trainer(recipe):
    return {"callbacks": [recipe], "loggers": []}

@hookimpl
def run_started(run):
    seen.append(("run_started", run))

@hookimpl
def step_finished(step, metrics):
    seen.append(("step_finished", step, metrics))

@hookimpl
def run_finished(run):
    seen.append(("run_finished", run))
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder on sys.path, and no single-file plugins."""
    monkeypatch.delenv("MASKWRIGHT_PLUGINS")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def by_name(host):
    return {record.name: record for record in host.plugins}


def test_ours_come_first_then_by_distribution(folder):
    for name in ("zebra", "ant"):
        write_distribution(folder, name, HEAD)
    assert [record.name for record in Host().plugins] == ["core", *OURS, "ant", "zebra"]
    assert list(plugin_names()) == [*OURS, "ant", "zebra"]


def test_version_of_the_package_is_that_of_the_distribution():
    assert maskwright.__version__ == metadata.version("maskwright")


@pytest.mark.parametrize("name", ["colour-noise", "colour_noise", "Color-Noise", "COLOR_NOISE", " color noise "])
def test_spelling_of_names(name):
    assert Host().component("masking", name).name == "colour-noise"


def test_normalise_changes_whole_words_only():
    assert normalise("Discolored_Color") == "discolored-colour"


def test_aliases_are_found_and_not_listed(folder):
    code = '@hookimpl\ndef register_providers():\n    return [Component("a", "m:T", "x", aliases=("b", "c_d"))]\n'
    write_distribution(folder, "aliased", HEAD + code)
    host = Host()
    assert host.component("provider", "b") is host.component("provider", "c-d") is host.component("provider", "a")
    assert list(host.components("provider")) == ["a"]


def test_unknown_names_suggest_the_nearest():
    host = Host()
    with pytest.raises(ConfigError, match=r'no masking "randm"\. Did you mean "random"\?'):
        host.component("masking", "randm")
    with pytest.raises(ConfigError, match=r'"maskin" is no kind of component\. Did you mean "masking"\?'):
        host.components("maskin")


def test_an_unknown_name_points_at_broken_plugins(folder):
    write_distribution(folder, "cracked", "1 / 0\n")
    with pytest.raises(ConfigError, match="Broken plugins: cracked"):
        Host().component("masking", "whirl")


def test_components_know_who_added_them(folder):
    write_distribution(folder, "works", GOOD)
    stripes = Host().component("masking", "stripes")
    assert (stripes.plugin, stripes.distribution) == ("works", "works")


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        ('Component("Two Words", "m:C", "x")', "is no name"),
        ('Component("fine", "m.C", "x")', "must read package.module:attribute"),
        ('Component("fine", "os;system:x", "x")', "must read package.module:attribute"),
        ('Component("fine", "m:C", None)', "not all text"),
        ('Component("fine", "m:C", "x", requires="rasterio")', "tuples of names"),
        ('Component("fine", "m:C", "x", aliases=None)', "TypeError"),
        ('"fine"', "must return a list of Component"),
    ],
)
def test_components_that_are_no_components(folder, component, reason):
    write_distribution(folder, "odd", HEAD + f"@hookimpl\ndef register_tasks():\n    return [{component}]\n")
    record = by_name(Host())["odd"]
    assert record.status == "broken"
    assert reason in record.reason


def test_nothing_of_a_broken_plugin_stays(folder):
    code = GOOD + "\n@hookimpl\ndef register_tasks():\n    raise RuntimeError\n"
    write_distribution(folder, "half", code)
    host = Host()
    assert by_name(host)["half"].components == []
    assert "stripes" not in host.components("masking")
    with pytest.raises(PluginError, match=r"half .* is broken: .*RuntimeError"):
        host.mount_commands("half", typer.Typer())


def test_hook_wrappers_are_refused(folder):
    write_distribution(folder, "wrapper", HEAD + "@hookimpl(wrapper=True)\ndef run_started(run):\n    yield\n")
    assert "is a hook wrapper" in by_name(Host())["wrapper"].reason


def test_a_keyboard_interrupt_at_import_is_not_swallowed(folder):
    write_distribution(folder, "interrupting", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Host()


def test_a_failing_hook_is_blamed_once_and_the_others_go_on(folder):
    bad = HEAD + "@hookimpl\ndef run_started(run):\n    raise ZeroDivisionError('no')\n"
    write_distribution(folder, "bad-hook", bad)
    write_distribution(folder, "everything", EVERYTHING)
    host = Host()
    text = r"Plugin bad-hook \(bad-hook\): its hook run_started failed: ZeroDivisionError: no"
    with pytest.warns(UserWarning, match=text):
        results = host.call("run_started", run="first")
    assert [record.name for record, _ in results] == ["everything"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.call("run_started", run="second")
    assert by_name(host)["everything"].module.seen == [("run_started", "first"), ("run_started", "second")]


def test_strict_raises_at_a_failing_hook(folder):
    write_distribution(folder, "bad-hook", HEAD + "@hookimpl\ndef run_finished():\n    raise SystemExit(3)\n")
    with pytest.raises(PluginError, match=r"bad-hook \(bad-hook\): its hook run_finished failed: sys.exit\(3\)"):
        Host(strict=True).call("run_finished", run=None)


@pytest.mark.parametrize("value", ["None", "[]", '{"callbacks": None}', '{"callback": []}'])
def test_configure_trainer_must_return_what_its_spec_says(folder, value):
    write_distribution(folder, "odd", HEAD + f"@hookimpl\ndef configure_trainer():\n    return {value}\n")
    with pytest.warns(UserWarning, match="odd.*configure_trainer.*must return"):
        assert Host().call("configure_trainer", recipe=None) == []


def test_every_hook_is_documented_and_works(folder):
    write_distribution(folder, "everything", EVERYTHING)
    host = Host(only="everything")
    worked = set()
    for hook, kind in REGISTER_HOOKS.items():
        assert host.component(kind, f"every-{kind}").summary == f"A {kind}."
        worked.add(hook)
    app = typer.Typer()
    host.mount_commands("everything", app)
    assert [command.name for command in app.registered_commands] == ["greet"]
    [(_, extra)] = host.call("configure_trainer", recipe="recipe")
    assert extra == {"callbacks": ["recipe"], "loggers": []}
    assert {"engine": "warm"} in [answer for _, answer in host.call("diagnose")]
    host.call("run_started", run="run")
    host.call("step_finished", run="run", step=3, metrics={"loss": 0.5})
    host.call("run_finished", run="run")
    seen = by_name(host)["everything"].module.seen
    assert seen == [("run_started", "run"), ("step_finished", 3, {"loss": 0.5}), ("run_finished", "run")]
    worked |= {"register_commands", "configure_trainer", "diagnose", *(name for name, *_ in seen)}
    assert worked == HOOKS
    assert set(REGISTER_HOOKS.values()) == set(KINDS)
    for hook in HOOKS:
        assert "Since 0." in inspect.getdoc(getattr(hookspecs, hook)), hook


def test_single_files(tmp_path, monkeypatch):
    (tmp_path / "my-own.py").write_text(
        HEAD
        + "class Thing: ...\n"
        + '@hookimpl\ndef register_tasks():\n    return [Component("mine", f"{__name__}:Thing", "Mine.")]\n'
    )
    (tmp_path / "cracked.py").write_text("import sys\nsys.exit()\n")
    paths = [tmp_path / "my-own.py", tmp_path / "cracked.py", tmp_path / "absent.py", tmp_path / "my-own.py"]
    monkeypatch.setenv("MASKWRIGHT_PLUGINS", ":".join(map(str, paths)))
    host = Host()
    records = by_name(host)
    assert records["my-own"].status == "ready"
    assert host.component("task", "mine").load().__name__ == "Thing"
    assert "sys.exit() was called" in records["cracked"].reason
    assert "take it out of MASKWRIGHT_PLUGINS" in records["cracked"].repair
    assert "which is no file" in records["absent"].reason
    assert len(host.plugins) == 1 + len(OURS) + 3


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("maskwright", ""),
        ("maskwright>=0.0.1,<99", ""),
        ("Maskwright>=99", "it needs maskwright >=99"),
        ("maskwright[remote-sensing]<0.0.1", "it needs maskwright <0.0.1"),
        ('maskwright>=99; extra == "future"', ""),
        ("other>=99", ""),
    ],
)
def test_version_is_checked_from_metadata(folder, requirement, problem):
    write_distribution(folder, "wanting", HEAD, requirement)
    found = version_problem(metadata.distribution("wanting"))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


LIGHT = """
import sys
import maskwright
from maskwright.core.host import get_host
assert len(get_host().plugins) == 6
assert "pretrain" in dir(maskwright)
heavy = {"torch", "lightning", "pydantic", "rasterio", "numpy", "matplotlib", "sklearn", "typer"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_package_and_the_host_import_nothing_heavy(monkeypatch):
    monkeypatch.delenv("MASKWRIGHT_PLUGINS")
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    for name in dir(maskwright):
        assert getattr(maskwright, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        maskwright.nonsense  # noqa: B018
