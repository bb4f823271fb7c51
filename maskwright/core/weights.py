"""Weights that others wrote, read without executing anything."""

from __future__ import annotations

import pickle
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
    except pickle.UnpicklingError as error:  # torch's own words name the unsafe way to load it
        raise DataError(
            path,
            "could not be read as weights: it holds more than tensors, or is damaged",
            f"{expected}, tensors alone",
            "Nothing was executed. If the file is whole, save its state_dict() alone",
        ) from error
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(path, f"could not be read as weights ({type(error).__name__}: {reason})", expected) from error
    if not isinstance(state, dict):
        raise DataError(path, f"holds a {type(state).__name__}", f"{expected}, a dict of tensors")
    return state
