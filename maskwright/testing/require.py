"""What the checks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from maskwright.core.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with `message` unless the condition holds, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def require_refusal(call: Callable[[], Any], what: str) -> None:
    """Require that `call` raises ConfigError; `what` says in words what was asked of whom."""
    try:
        call()
    except ConfigError as error:
        require(
            len(str(error)) > 20, f"{what}: the ConfigError says only {str(error)!r}. Say what, where and how to mend."
        )
    except Exception as error:
        raise AssertionError(f"{what}: raised {type(error).__name__}: {error}. Raise ConfigError instead.") from error
    else:
        raise AssertionError(f"{what}: was accepted. Raise ConfigError, and say how to mend it.")


def by_name(value: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Several tensors by name, from one or several."""
    return value if isinstance(value, dict) else {"features": value}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape, type and every value, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
