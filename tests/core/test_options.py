"""Options of a constructor, and of those that it hands the rest on to."""

from typing import Any, Literal

import pytest

from maskwright.core.errors import ConfigError
from maskwright.core.options import check_options, describe_options, fail_if_any, option_types, takes


class Base:
    """A base.

    Args:
        width: how wide.
        depth: how deep.
        masking: not an option.
    """

    def __init__(self, width: int = 8, depth: int = 2, masking: object = None) -> None:
        self.width, self.depth = width, depth


class Middle(Base):
    """Adds a kind, and has another depth.

    Args:
        kind: which.
    """

    def __init__(self, kind: Literal["a", "b"] = "a", depth: int = 4, **base: Any) -> None:
        super().__init__(depth=depth, **base)
        self.kind = kind


class Leaf(Middle):
    """Adds nothing."""


class Closed(Middle):
    """Hands nothing on.

    Args:
        size: of it.
    """

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()


def test_what_is_handed_on_counts_and_the_nearest_default_wins():
    assert option_types(Middle) == {"kind": (Literal["a", "b"], "a"), "depth": (int, 4), "width": (int, 8)}
    assert option_types(Leaf) == option_types(Middle)
    assert option_types(Base) == {"width": (int, 8), "depth": (int, 2)}
    assert option_types(Closed) == {"size": (float, 1.0)}


def test_arguments_that_are_no_options_are_handed_on_too():
    assert takes(Leaf, "masking")
    assert takes(Leaf, "kind")
    assert not takes(Closed, "masking")
    assert not takes(Leaf, "base")


def test_descriptions_come_from_every_class():
    rows = {name: (default, text) for name, _, default, text in describe_options(Leaf)}
    assert rows == {"kind": ("'a'", "which."), "depth": ("4", "how deep."), "width": ("8", "how wide.")}


def test_options_are_checked_as_one():
    problems: list[str] = []
    assert check_options("method", Leaf, {"width": "16", "kind": "b"}, problems) == {
        "kind": "b",
        "depth": 4,
        "width": 16,
    }
    assert not problems
    check_options("method", Leaf, {"dept": 3, "kind": "c"}, problems)
    with pytest.raises(ConfigError, match=r"dept.*Did you mean"):
        fail_if_any(problems)
