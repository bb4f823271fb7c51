"""The check-up behind `maskwright doctor`: what is installed, what works, and the command that mends what does not.

Libraries are tried in processes of their own, so that one that crashes or hangs takes nothing with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from maskwright.core.discovery import OWN, PluginRecord, describe
from maskwright.core.host import Host

CHILD_SECONDS = 120
"""Time a library has to import before it counts as hanging."""
LOW_DISK_BYTES = 5e9
MARK = "maskwright-doctor:"
"""Begins the line of a child process that holds its answer; libraries may print other lines."""


@dataclass(frozen=True)
class Finding:
    """One line of the check-up.

    Args:
        section: such as "machine" or the name of a plugin.
        what: what was looked at.
        state: "ok", "note" (works, but worth knowing) or "fault".
        text: what was found.
        mend: command or advice that mends it.
    """

    section: str
    what: str
    state: Literal["ok", "note", "fault"]
    text: str
    mend: str = ""


def examine(quick: bool = False) -> list[Finding]:
    """Look at Python, torch, the device, disk space, and every plugin with its libraries. Works in strict mode, too.

    Args:
        quick: import no library; only look whether it is there.
    """
    findings = examine_machine()
    findings += examine_torch(quick)
    for record in Host().plugins:
        findings += examine_plugin(record, quick)
    return findings


def examine_machine() -> list[Finding]:
    """Python, versions, processor and disk."""
    free = shutil.disk_usage(Path.cwd()).free
    low = free < LOW_DISK_BYTES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("machine", "Python", "ok", f"{platform.python_version()} ({sys.executable})"),
        Finding("machine", OWN, "ok", metadata.version(OWN)),
        Finding("machine", "system", "ok", platform.platform()),
        Finding("machine", "CPU cores", "ok", f"{cores} of {os.cpu_count()} usable"),
        Finding(
            "machine",
            "disk space here",
            "note" if low else "ok",
            f"{free / 1e9:.1f} GB free in {Path.cwd()}",
            "write runs elsewhere with --run, or free some space" if low else "",
        ),
    ]


def examine_torch(quick: bool) -> list[Finding]:
    """torch, its device, threads, and the precision that `auto` would take."""
    if quick:
        return [_installed("torch", name) for name in ("torch", "lightning")]
    answer = ask_child("describe_torch")
    if isinstance(answer, str):
        return [Finding("torch", "torch", "fault", answer, "pip install --force-reinstall torch")]
    return [Finding("torch", what, "ok", text) for what, text in answer.items()]


def examine_plugin(record: PluginRecord, quick: bool) -> list[Finding]:
    """One plugin: its status, each of its libraries, and what it says about itself."""
    state: Literal["ok", "note", "fault"] = "fault" if record.status in ("broken", "conflict") else "ok"
    if record.status == "missing extra" or (state == "ok" and record.slow):
        state = "note"
    text = f"{record.status}, {record.distribution} {record.version}".rstrip()
    if record.reason:
        text += f": {record.reason}"
    findings = [Finding(record.name, "plugin", state, text, record.repair)]
    if record.status == "broken":
        return findings
    extras: dict[str, str] = {}
    for _, component in record.components:
        extras.update(dict.fromkeys(component.requires, component.extra))
    if quick:
        return findings + [_installed(record.name, library, extra) for library, extra in extras.items()]
    for library, extra in extras.items():
        answer = ask_child("describe_library", library)
        if isinstance(answer, str):
            mend = f'pip install --force-reinstall "{extra or library}"'
            findings.append(Finding(record.name, library, "fault", answer, mend))
        else:
            findings.append(Finding(record.name, library, "ok", answer["version"]))
    if any(finding.state == "fault" for finding in findings) or "diagnose" not in dir(record.module):
        return findings
    answer = ask_child("describe_plugin", record.name)
    if isinstance(answer, str):
        return [*findings, Finding(record.name, "diagnose", "fault", answer, record.reinstall)]
    return findings + [Finding(record.name, what, "ok", text) for what, text in answer.items()]


def _installed(section: str, library: str, extra: str = "") -> Finding:
    if importlib.util.find_spec(library.partition(".")[0]) is None:
        return Finding(section, library, "note", "not installed", f'pip install "{extra or library}"')
    return Finding(section, library, "ok", "installed, not tried")


# child processes ---------------------------------------------------------------------------------------------------


def ask_child(function: str, *arguments: str) -> dict[str, str] | str:
    """The answer of a function of this module run in a process of its own, or a sentence on why there is none."""
    command = [sys.executable, "-m", "maskwright.core.doctor", function, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"still not imported after {CHILD_SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    if done.returncode < 0:
        return f"its import crashes with {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines()
    return f"its import ends the process (exit code {done.returncode}): {lines[-1] if lines else 'no message'}"


def describe_torch() -> dict[str, str]:
    """Versions, device, threads and precision, as text. Imports torch and lightning."""
    import lightning
    import torch

    from maskwright.core.trainer.precision import resolve_accelerator, resolve_precision

    accelerator = resolve_accelerator("auto")
    device = "CPU"
    if accelerator == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {memory:.0f} GB"
    return {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "device": device,
        "threads": str(torch.get_num_threads()),
        "precision auto takes": resolve_precision("auto", accelerator),
    }


def describe_library(name: str) -> dict[str, str]:
    """The version of a library. Imports it."""
    module = importlib.import_module(name)
    version = getattr(module, "__version__", None)
    return {"version": str(version) if version else "installed"}


def describe_plugin(name: str) -> dict[str, str]:
    """What a plugin's hook `diagnose` says."""
    host = Host(only=name)
    facts: dict[str, str] = {}
    for record, answer in host.call("diagnose"):
        if record.name == name:
            facts.update({str(what): str(text) for what, text in answer.items()})
    return facts


def answer_parent(words: Sequence[str]) -> None:
    """Run one of the functions above and print its answer for `ask_child`; a failure is an answer, too."""
    functions: dict[str, Any] = {
        function.__name__: function for function in (describe_torch, describe_library, describe_plugin)
    }
    answer: dict[str, str] | str
    try:
        answer = functions[words[0]](*words[1:])
    except BaseException as error:  # sys.exit at import included
        answer = f"its import failed: {describe(error)}"
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    answer_parent(sys.argv[1:])
