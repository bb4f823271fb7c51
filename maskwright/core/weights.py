"""Weights that others wrote, read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from maskwright.core.errors import DataError


def read_state(path: Path, expected: str, mend: str = "") -> dict[str, Any]:
    """What a .safetensors file, or a .pt or .pth file of tensors alone, holds by name; dicts may be nested.

    Args:
        expected: what is looked for, for the messages.
        mend: what the user can do if there is no such file.

    Raises:
        DataError: missing, unreadable, no dict, or with anything in it that would have to be unpickled.
    """
    if not path.is_file():
        raise DataError(path, "there is no such file", expected, mend)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything; `weights_only` refuses all but tensors
        if type(error).__name__ == "UnpicklingError":  # torch's own words name the unsafe way to load it
            reason, mend = "it holds more than tensors, or is damaged", "If it is whole, save its state_dict() alone"
        else:
            reason, mend = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", ""
        raise DataError(path, f"could not be read as weights: {reason}", f"{expected}, tensors alone", mend) from error
    if not isinstance(state, dict):
        raise DataError(path, f"holds a {type(state).__name__}", f"{expected}, a dict of tensors")
    return state
