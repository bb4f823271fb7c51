"""The check-up asks child processes, which may crash, hang, or chatter."""

from maskwright.core import doctor
from maskwright.core.component import Component
from maskwright.core.discovery import PluginRecord


def test_a_child_may_print_other_things(tmp_path, monkeypatch):
    (tmp_path / "chatty_library.py").write_text("print('hello')\n__version__ = '7.1'\nprint('bye', end='')\nprint()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.ask_child("describe_library", "chatty_library") == {"version": "7.1"}


def test_a_child_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "hanging_library.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "CHILD_SECONDS", 1)
    assert doctor.ask_child("describe_library", "hanging_library") == "still not imported after 1 s"


def test_quick_looks_without_importing():
    component = Component("x", "m:X", "x", extra="pack[x]", requires=("not_there_at_all", "json.tool"))
    record = PluginRecord("p", "pack", "1.0", "m", components=[("task", component)])
    plugin, absent, present = doctor.examine_plugin(record, quick=True)
    assert (plugin.state, absent.state, present.state) == ("ok", "note", "ok")
    assert absent.mend == 'pip install "pack[x]"'


def test_a_broken_plugin_is_not_asked_further():
    record = PluginRecord("p", "pack", "1.0", "m")
    record.break_off("it cracked")
    [finding] = doctor.examine_plugin(record, quick=False)
    assert finding.state == "fault"
    assert "it cracked" in finding.text
    assert "pip install --upgrade --force-reinstall pack" in finding.mend


def test_low_disk_space_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1e30)
    disk = next(finding for finding in doctor.examine_machine() if finding.what == "disk space here")
    assert disk.state == "note"
    assert disk.mend
