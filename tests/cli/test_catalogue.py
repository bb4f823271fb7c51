"""`maskwright plugins`, `list` and `info`."""

import json

import pytest

from maskwright.cli.main import run
from maskwright.core.component import KINDS


def output(capsys, *words):
    assert run(list(words)) == 0
    return capsys.readouterr().out


def test_plugins_table_and_json_agree(capsys):
    table = output(capsys, "plugins")
    records = json.loads(output(capsys, "plugins", "--json"))
    names = [record["name"] for record in records]
    assert names[0] == "core"
    assert {"remote-sensing", "medical", "vision"} <= set(names)
    for record in records:
        line = next(line for line in table.splitlines() if line.startswith(f"{record['name']} "))
        assert record["version"] in line
        assert line.split()[-1] == "ready"


@pytest.mark.parametrize("kind", ["masking", "maskings", "Masking"])
def test_list_takes_plurals(capsys, kind):
    out = output(capsys, "list", kind)
    assert all(name in out for name in ("random", "unit", "block", "colour-noise", "guided"))


def test_list_without_a_kind_shows_all(capsys):
    found = json.loads(output(capsys, "list", "--json"))
    assert set(found) <= set(KINDS)
    assert {"masking", "encoder", "objective", "method", "loader", "demo"} <= set(found)


def test_list_of_a_kind_that_nobody_adds(capsys):
    assert output(capsys, "list", "provider") == "No installed plugin adds a provider.\n"


def test_info_of_a_masking(capsys):
    out = output(capsys, "info", "color_noise")
    assert out.startswith("colour-noise (masking)\n")
    assert "reference: ColorMAE, 2024" in out
    ratio = next(line.split() for line in out.splitlines() if line.startswith("ratio "))
    assert ratio[:3] == ["ratio", "float", "0.75"]


def test_info_of_a_method_has_options_inputs_and_presets(capsys):
    out = output(capsys, "info", "croma")
    assert "croma (method)" in out
    assert "croma (encoder)" in out
    lines = out.splitlines()
    assert any(line.startswith("patch_size ") and " int " in line for line in lines)
    assert any(line.startswith("sar ") and line.endswith("dB") for line in lines)
    assert any(line.startswith("tiny ") for line in lines)


def test_info_of_an_objective(capsys):
    assert "objective" in output(capsys, "info", "info-nce")
