"""Folders in the layout of the Hugging Face hub: config.json, model.safetensors, preprocessor_config.json.

Written and read here alone, without their library; nothing is uploaded.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import DataError
from maskwright.core.model_card import Facts, inputs_of
from maskwright.core.trainer.files import write_text, write_with
from maskwright.core.trainer.run import build_encoder

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
MEND = "Export or download it again"


def write_huggingface(facts: Facts, folder: Path) -> None:
    """Write the three files into a folder."""
    encoder, inputs = facts.encoder, inputs_of(facts)
    config: dict[str, Any] = {
        "architectures": [type(encoder).__name__],
        "model_type": "maskwright",
        "library_name": "maskwright",
        "maskwright_version": metadata.version("maskwright"),
        "target": f"{type(encoder).__module__}:{type(encoder).__name__}",
        "options": encoder.options,
        "inputs": inputs,
        "hidden_size": encoder.embed_dim,
        "method": facts.method,
        "preset": facts.preset,
    }
    # a tensor may stand under two names; the file keeps a copy for each
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in encoder.state_dict().items()}
    write_with(folder / WEIGHTS, lambda path: save_file(tensors, str(path), metadata={"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=1))
    scaling = {name: spec["normalization"] for name, spec in inputs.items()}
    preprocessor = {
        "do_normalize": False,  # the encoder scales its inputs itself
        "do_resize": False,
        "do_rescale": False,
        "inputs": inputs,
        "normalization_inside_the_model": scaling,
    }
    write_text(folder / PREPROCESSOR, json.dumps(preprocessor, indent=1))


def is_huggingface(folder: Path) -> bool:
    """Whether a folder has this layout and not that of a run."""
    return (folder / CONFIG).is_file() and not (folder / "encoder.json").is_file()


def load_huggingface(folder: Path) -> Encoder:
    """The encoder of such a folder, in evaluation mode. Only classes of installed plugins are built.

    Raises:
        DataError: not written by maskwright, or files that do not fit each other.
    """
    source, weights = folder / CONFIG, folder / WEIGHTS
    try:
        config = json.loads(source.read_text())
    except (ValueError, OSError) as error:
        raise DataError(source, f"is no JSON ({error})", mend=MEND) from error
    if not isinstance(config, dict) or config.get("model_type") != "maskwright":
        raise DataError(source, "describes no encoder of maskwright", 'model_type "maskwright"')
    if not weights.is_file():
        raise DataError(weights, "there is no such file", "the weights beside config.json")
    return build_encoder(source, weights, MEND)
