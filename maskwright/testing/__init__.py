"""Contract checks for authors of plugins: plain functions that raise AssertionError and say what to mend.

    from maskwright.testing import check_plugin

    def test_contract(tmp_path):
        check_plugin("my-plugin", data={"npy": make_images(tmp_path)})

Each works in a script as well as in a test: none needs pytest, none depends on `assert` being switched on.
"""

from maskwright.testing.data import made_up_batch, statistics_of
from maskwright.testing.encoder import check_encoder
from maskwright.testing.loader import check_loader
from maskwright.testing.masking import check_masking
from maskwright.testing.method import check_method
from maskwright.testing.plugin import check_plugin
from maskwright.testing.task import check_task

__all__ = [
    "check_encoder",
    "check_loader",
    "check_masking",
    "check_method",
    "check_plugin",
    "check_task",
    "made_up_batch",
    "statistics_of",
]
