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


PLUGIN_PAGE = ROOT / "docs" / "write-a-plugin.md"
SINGLE_FILE = "maskwright_plugin_rows"


def test_code_about_plugins_is_a_passage_of_the_template():
    from maskwright.core.template import TEMPLATE, template_files

    texts = {path: (TEMPLATE / path).read_text() for path in template_files()}
    found = [block for language in ("python", "toml") for block in blocks(PLUGIN_PAGE, language)]
    passages = [block for block in found if SINGLE_FILE not in block]
    whole_lines = {path: f"\n{text}" for path, text in texts.items()}
    for block in passages:
        assert any(f"\n{block}" in text for text in whole_lines.values()), block
    explained = {path.name for path, text in whole_lines.items() if any(f"\n{block}" in text for block in passages)}
    written = {path.name for path, text in texts.items() if path.suffix in (".py", ".toml") and text.strip()}
    assert explained == written


def test_the_layout_of_the_template_is_as_drawn():
    from maskwright.core.template import TEMPLATE

    (tree,) = blocks(PLUGIN_PAGE, "text")
    drawn = [line.split()[0] for line in tree.splitlines()[1:]]
    assert all((TEMPLATE / path).exists() for path in drawn)
    assert len(drawn) == 8


def test_the_single_file_plugin_of_the_docs_keeps_its_contract(tmp_path):
    (plugin,) = (block for block in blocks(PLUGIN_PAGE, "python") if SINGLE_FILE in block)
    (tmp_path / "rows.py").write_text(plugin)
    done = subprocess.run(
        [sys.executable, "-c", "from maskwright.testing import check_plugin; print(check_plugin('rows'))"],
        env={**os.environ, "MASKWRIGHT_PLUGINS": str(tmp_path / "rows.py")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "['masking rows: keeps its contract']\n"


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
                # the template's own command exists where the template is installed
                assert command in known | {"example-plugin"}, f"{page.name}: maskwright {command}"
