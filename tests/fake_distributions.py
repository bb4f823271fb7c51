"""Real distributions of plugins, written into a folder that tests put on PYTHONPATH, and a way to run maskwright there."""

import os
import subprocess
import sys
from pathlib import Path

HEAD = "from maskwright.core.hookspecs import Component, hookimpl\n"

GOOD = (
    HEAD
    + """
@hookimpl
def register_maskings():
    return [Component("stripes", "maskwright.core.masking.strategies:RandomMasking", "Works.")]

@hookimpl
def register_commands(app):
    @app.command("greet")
    def greet():
        print("hello from a plugin")
"""
)


def write_distribution(
    folder: Path,
    name: str,
    code: str,
    requires: str = "maskwright>=0.1",
    plugin: str = "",
    summary: str = "A test plugin.",
) -> None:
    """A module with its .dist-info, as pip would leave them. The entry point has the distribution's name."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: {summary}\nRequires-Dist: {requires}\n"
    )
    info.joinpath("entry_points.txt").write_text(f"[maskwright]\n{plugin or name} = {module}\n")


def run_maskwright(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """`python -m maskwright WORDS` in a fresh process that sees the distributions in `folder`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MASKWRIGHT_")}
    inherited |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "maskwright", *words], capture_output=True, text=True, env=inherited, timeout=240
    )
