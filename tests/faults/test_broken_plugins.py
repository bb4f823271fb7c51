"""Eleven ways in which a plugin can be at fault: each is named with its distribution and reason, and everything else works."""

import json
import os

import pytest

from tests.fake_distributions import GOOD, HEAD, run_maskwright, write_distribution

FAULTS = {
    # name: (code, status, words of the reason)
    "import-error": ("import a_library_that_is_not_there\n", "broken", "ModuleNotFoundError"),
    "syntax-error": ("def broken(:\n", "broken", "SyntaxError"),
    "sys-exit": ("import sys\nprint('noise on stdout')\nsys.exit(3)\n", "broken", "sys.exit(3)"),
    "wrong-arguments": (
        HEAD + "@hookimpl\ndef register_maskings(host):\n    return []\n",
        "broken",
        "register_maskings",
    ),
    "unknown-hook": (HEAD + "@hookimpl\ndef register_masking():\n    return []\n", "broken", '"register_maskings"'),
    "hook-raises": (
        HEAD + "@hookimpl\ndef register_tasks():\n    raise ValueError('out of cheese')\n",
        "broken",
        "register_tasks() failed: ValueError: out of cheese",
    ),
    "wrong-return": (
        HEAD + "@hookimpl\ndef register_loaders():\n    return {'a': 'b'}\n",
        "broken",
        "register_loaders() must return a list of Component",
    ),
    "duplicate-name": (
        HEAD
        + """
@hookimpl
def register_maskings():
    return [
        Component("random", "somewhere.else:Masking", "Taken."),
        Component("zigzag", "somewhere.else:Zigzag", "Free."),
    ]
""",
        "conflict",
        'masking "random" of duplicate-name (somewhere.else:Masking) refused: maskwright '
        "(maskwright.core.masking.strategies:RandomMasking)",
    ),
    "api-too-new": ("raise RuntimeError('must not be imported')\n", "broken", "it needs maskwright >=99"),
    "slow-import": ("import time\ntime.sleep(1.2)\n" + HEAD, "ready", "slow: its import takes"),
    "missing-extra": (
        HEAD
        + """
@hookimpl
def register_loaders():
    return [Component("exotic", "m:L", "Exotic.", extra="missing-extra[exotic]", requires=("a_library_not_there",))]
""",
        "missing extra",
        "a_library_not_there not installed",
    ),
}
MARK = "import pathlib\npathlib.Path(__file__).with_suffix('.imported').touch()\n"


def write_fault(folder, name):
    code = FAULTS[name][0]
    code = code if name == "syntax-error" else MARK + code
    write_distribution(folder, name, code, "maskwright>=99" if name == "api-too-new" else "maskwright>=0.1")


@pytest.fixture(scope="module")
def all_faults(tmp_path_factory):
    """All eleven side by side, and one plugin that works, whose name sorts after them."""
    folder = tmp_path_factory.mktemp("faults")
    for name in FAULTS:
        write_fault(folder, name)
    write_distribution(folder, "works", GOOD)
    return folder


def test_there_are_eleven():
    assert len(FAULTS) == 11


def test_help_names_all_and_imports_none(all_faults):
    done = run_maskwright(all_faults, "--help")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in FAULTS)
    assert not list(all_faults.glob("*.imported"))


@pytest.fixture(scope="module")
def listed(all_faults):
    done = run_maskwright(all_faults, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    return {record["name"]: record for record in json.loads(done.stdout)}


@pytest.mark.parametrize("name", FAULTS)
def test_plugins_names_distribution_and_reason(listed, name):
    _, status, reason = FAULTS[name]
    record = listed[name]
    assert record["distribution"] == name
    assert record["status"] == status
    assert reason in record["reason"]
    assert record["repair"] or name == "slow-import"
    kept = {"duplicate-name": ["zigzag"], "missing-extra": ["exotic"]}.get(name, [])
    assert [component["name"] for component in record["components"]] == kept


def test_others_work(listed, all_faults):
    assert listed["core"]["status"] == listed["remote-sensing"]["status"] == listed["works"]["status"] == "ready"
    assert not (all_faults / "api_too_new.imported").exists()
    done = run_maskwright(all_faults, "works", "greet")
    assert done.stdout == "hello from a plugin\n", done.stderr
    done = run_maskwright(all_faults, "info", "stripes")
    assert done.returncode == 0, done.stderr
    assert "works (works)" in done.stdout


def test_plugins_prints_reasons_for_people(all_faults):
    done = run_maskwright(all_faults, "plugins")
    assert done.returncode == 0, done.stderr
    for name, (_, status, reason) in FAULTS.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} ({name}), {status}: "))
        assert reason in line
    assert 'pip install "missing-extra[exotic]"' in done.stdout


def test_doctor_reports_all(all_faults):
    done = run_maskwright(all_faults, "doctor", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    findings = {f["section"]: f for f in json.loads(done.stdout) if f["what"] == "plugin"}
    for name, (_, status, reason) in FAULTS.items():
        assert reason in findings[name]["text"]
        assert findings[name]["state"] == ("fault" if status in ("broken", "conflict") else "note")
    assert findings["works"]["state"] == "ok"


def test_commands_of_a_broken_plugin_say_why(all_faults):
    done = run_maskwright(all_faults, "sys-exit", "anything")
    assert done.returncode == 4
    assert "sys.exit(3)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_strict_makes_each_an_error(tmp_path, name):
    write_fault(tmp_path, name)
    done = run_maskwright(tmp_path, "plugins", "--strict")
    assert done.returncode == 4, done.stdout
    assert f"{name} ({name}), {FAULTS[name][1]}: " in done.stderr
    assert FAULTS[name][2] in done.stderr
    assert "Traceback" not in done.stderr


def test_strict_by_environment_passes_without_faults(tmp_path):
    write_distribution(tmp_path, "works", GOOD)
    assert run_maskwright(tmp_path, "plugins", MASKWRIGHT_STRICT="1").returncode == 0


LIBRARIES = {
    "lib_crashes": "import os\nos.abort()\n",
    "lib_exits": "import sys\nsys.exit(7)\n",
    "lib_kills": "import os\nos._exit(9)\n",
    "lib_raises": "raise OSError('libfoo.so.1: cannot open shared object file')\n",
}


def write_fragile(folder, *libraries):
    """A plugin with a loader for each of these libraries, none of which can be imported."""
    for library in libraries:
        (folder / f"{library}.py").write_text(LIBRARIES[library])
    code = f"""
@hookimpl
def register_loaders():
    names = {libraries}
    return [Component(name.replace("_", "-"), f"{{name}}:Loader", "x", extra="fragile", requires=(name,)) for name in names]
"""
    write_distribution(folder, "fragile", HEAD + code)


def test_doctor_survives_libraries_that_crash(tmp_path):
    write_fragile(tmp_path, *LIBRARIES)
    done = run_maskwright(tmp_path, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in findings if finding["section"] == "fragile"}
    assert "SIGABRT" in found["lib_crashes"]["text"]
    assert "sys.exit(7)" in found["lib_exits"]["text"]
    assert "exit code 9" in found["lib_kills"]["text"]
    assert "libfoo.so.1" in found["lib_raises"]["text"]
    assert all(found[name]["mend"] == 'pip install --force-reinstall "fragile"' for name in found if name != "plugin")
    assert {"torch", "device", "precision auto takes"} <= {f["what"] for f in findings if f["section"] == "torch"}
    assert {f["state"] for f in findings if f["section"] == "remote-sensing"} <= {"ok", "note"}


@pytest.mark.parametrize(("loader", "reason"), [("lib-raises", "libfoo.so.1"), ("lib-exits", "SystemExit: 7")])
def test_a_library_that_breaks_a_component_is_one_sentence(tmp_path, loader, reason):
    write_fragile(tmp_path, "lib_exits", "lib_raises")
    done = run_maskwright(tmp_path, "inspect", str(tmp_path), "--loader", loader)
    assert done.returncode == 4
    assert reason in done.stderr
    assert "fragile" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_library_leaves_other_loaders_alone(tmp_path, images):
    write_fragile(tmp_path, "lib_exits", "lib_raises")
    done = run_maskwright(tmp_path, "inspect", str(images), MASKWRIGHT_PLUGINS=os.environ["MASKWRIGHT_PLUGINS"])
    assert done.returncode == 0, done.stderr
    assert "C H W" in done.stdout


def test_markup_in_a_summary_does_not_break_help(tmp_path):
    write_distribution(tmp_path, "odd", GOOD, summary="Reads [/odd] files [red].")
    done = run_maskwright(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "[/odd]" in done.stdout


def test_metadata_without_a_name_is_left_out(tmp_path):
    write_distribution(tmp_path, "works", GOOD)
    broken = tmp_path / "nameless-1.0.dist-info"
    broken.mkdir()
    broken.joinpath("entry_points.txt").write_text("[maskwright]\nnameless = works\n")
    done = run_maskwright(tmp_path, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    assert {"core", "remote-sensing", "works"} <= {record["name"] for record in json.loads(done.stdout)}


def test_our_commands_win_over_a_plugins_name(tmp_path):
    write_distribution(tmp_path, "impostor", MARK + GOOD, plugin="doctor")
    done = run_maskwright(tmp_path, "doctor", "--help")
    assert done.returncode == 0, done.stderr
    assert "greet" not in done.stdout
    assert not list(tmp_path.glob("*.imported"))
