from pathlib import Path

from maskwright.testing import check_plugin


def test_contract():
    check_plugin("example-plugin", Path(__file__).parent / "digits", {"task:one-class": {"positive": "eight"}})
