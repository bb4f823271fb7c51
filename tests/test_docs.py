"""Code in the README and the docs is run, and files they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_readme_script_runs(tmp_path):
    from maskwright.remote_sensing.fake import fake_s1s2

    fake_s1s2(tmp_path / "tiles", 2, 120)
    (script,) = blocks(ROOT / "README.md", "python")
    script += "\nassert z.shape == (1, 128), z.shape\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "runs").glob("croma-*/encoder.safetensors"))


def test_the_single_file_plugin_of_the_docs_keeps_its_contract(tmp_path):
    plugin, test = blocks(ROOT / "docs" / "write-a-plugin.md", "python")
    (tmp_path / "checkerboard.py").write_text(plugin)
    test = test.replace("my-maskings", "checkerboard") + "\ntest_contract()\n"
    done = subprocess.run(
        [sys.executable, "-c", test],
        env={**os.environ, "MASKWRIGHT_PLUGINS": str(tmp_path / "checkerboard.py")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    for name in named:
        assert (page.parent / name).exists(), name
    for name in re.findall(r"`((?:maskwright|tests|docs|benchmarks|examples)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_command_that_a_page_names_exists():
    done = subprocess.run([sys.executable, "-m", "maskwright", "--help"], capture_output=True, text=True, timeout=60)
    known = set(re.findall(r"│ ([a-z][a-z-]+) ", done.stdout))
    for page in PAGES:
        for block in blocks(page, "sh"):
            for command in re.findall(r"^(?:\$ )?maskwright (?:--\w+ )?([a-z-]+)", block, re.MULTILINE):
                assert command in known, f"{page.name}: maskwright {command}"
