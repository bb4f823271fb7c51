"""The run directory: everything about one pre-training, readable without maskwright."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maskwright.core.encoder.base import Encoder
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.host import get_host
from maskwright.core.options import check_options, fail_if_any
from maskwright.core.recipe import Recipe, load_recipe, save_recipe
from maskwright.core.sample import BadFile, InputSpec
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.files import write_text, write_with

if TYPE_CHECKING:
    from maskwright.core.trainer.method import Method

LIBRARIES = ("torch", "lightning", "numpy", "safetensors")
"""Libraries whose versions are written down, beside those that installed components require."""


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_environment(device: str = "cpu", precision: str = "32") -> dict[str, Any]:
    """Versions, machine and command line of this process, JSON-able."""
    versions = {}
    for library in (*LIBRARIES, *get_host().required_libraries()):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "maskwright": metadata.version("maskwright"),
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "python": platform.python_version(),
        **versions,
        "plugins": {r.name: f"{r.distribution} {r.version}".strip() for r in get_host().plugins},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precision": precision,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


class Run:
    """A run directory. Make one with `pretrain`, open one with `Run.open`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path) -> Run:
        """Make a run directory.

        Raises:
            ConfigError: the path exists and holds anything; says whether it is a run that could be resumed.
        """
        path = Path(path)
        if (path / "recipe.yaml").exists():
            raise ConfigError(
                f"{path} already holds a run. Continue it with `maskwright resume {path}`, or choose another folder "
                f"with --run."
            )
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ConfigError(f"{path} is not empty and holds no run. Choose another folder with --run.")
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run.

        Raises:
            DataError: no run is there.
        """
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            found = "there is no such folder" if not path.exists() else "holds no recipe.yaml"
            raise DataError(path, found, "a run directory made by `maskwright pretrain`")
        return cls(path)

    # what is in it -------------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.path / "recipe.yaml")

    def environment(self) -> dict[str, Any]:
        """Versions and machine of the (last) start."""
        path = self.path / "environment.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.csv; `step` and `epoch` as int, everything else as float."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {k: int(v) if k in ("step", "epoch") else float(v) for k, v in row.items() if k and v not in ("", None)}
            for row in rows
        ]

    def bad_files(self) -> list[dict[str, str]]:
        """Rows of bad_files.csv: path, reason, step."""
        path = self.path / "bad_files.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    # writing -------------------------------------------------------------------------------------------------------

    def write_recipe(self, recipe: Recipe) -> None:
        write_with(self.path / "recipe.yaml", lambda path: save_recipe(recipe, path))

    def write_environment(self, device: str, precision: str) -> None:
        write_text(self.path / "environment.json", json.dumps(describe_environment(device, precision), indent=1))

    def add_bad_files(self, files: list[BadFile], step: int) -> None:
        """Append to bad_files.csv what is not in it yet."""
        known = {row["path"] for row in self.bad_files()}
        fresh = [file for file in files if file.path not in known]
        if not fresh:
            return
        path = self.path / "bad_files.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["path", "reason", "step"])
            for bad in {bad.path: bad for bad in fresh}.values():
                writer.writerow([bad.path, " ".join(bad.reason.split()), step])

    def notes(self) -> list[str]:
        """What the method says that a reader must know; nothing before the run is finished."""
        path = self.path / "encoder.json"
        return json.loads(path.read_text()).get("notes", []) if path.is_file() else []

    def write_encoder(self, encoder: Encoder, inputs: InputSpec, recipe: Recipe, notes: Sequence[str] = ()) -> None:
        """Write encoder.safetensors and encoder.json.

        Args:
            inputs: names of the channels that the data had.
            notes: what a reader must know, see `Method.notes`.
        """
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in encoder.state_dict().items()}
        description = {
            "target": f"{type(encoder).__module__}:{type(encoder).__name__}",
            "options": encoder.options,
            "inputs": {
                name: {"dims": spec.dims, "channels": spec.channels, "unit": spec.unit}
                for name, spec in inputs.items()
                if name in encoder.inputs
            },
            "embed_dim": encoder.embed_dim,
            "method": recipe.method.name,
            "preset": recipe.method.preset,
            "notes": list(notes),
            "maskwright": metadata.version("maskwright"),
        }
        write_with(self.path / "encoder.safetensors", lambda path: save_file(tensors, str(path)))
        write_text(self.path / "encoder.json", json.dumps(description, indent=1))

    def load_encoder(self) -> Encoder:
        """The encoder, in evaluation mode. Every tensor of the file and of the encoder is accounted for.

        Raises:
            DataError: training has not finished, or the files do not fit each other.
        """
        return load_encoder(self.path)

    def load_method(self) -> Method:
        """The whole method with the weights of the newest checkpoint, in evaluation mode; the data need not be there.

        Raises:
            DataError: there is no checkpoint that can be read.
        """
        section = self.recipe().method
        newest, complaints = checkpoints.load_newest(self.checkpoints)
        if newest is None:
            said = f": {complaints[0]}" if complaints else ""
            raise DataError(self.path, f"holds no checkpoint{said}", mend=f"Train with `maskwright resume {self.path}`")
        method = get_host().component("method", section.name).load()(**section.options)
        method.load_state_dict(newest.part("method"))
        return method.eval()


def load_encoder(path: Path) -> Encoder:
    """Read `encoder.json` and `encoder.safetensors` in a folder. Only classes of installed plugins are built."""
    description_path, weights_path = path / "encoder.json", path / "encoder.safetensors"
    if not description_path.is_file() or not weights_path.is_file():
        raise DataError(
            path,
            "holds no finished encoder",
            "encoder.json and encoder.safetensors",
            f"If training was interrupted, run `maskwright resume {path}`",
        )
    return build_encoder(description_path, weights_path, f"Run `maskwright resume {path}`")


def build_encoder(description_path: Path, weights_path: Path, mend: str) -> Encoder:
    """The encoder that a JSON file describes (`target`, `options`) and a safetensors file fills, in evaluation mode.

    Only classes of installed plugins are built; every tensor of the file and of the encoder is accounted for.

    Args:
        mend: what the user can do if the description is damaged.

    Raises:
        DataError: a file that is damaged or does not fit the other. ConfigError: options that the class does not have.
    """
    try:
        description = json.loads(description_path.read_text())
    except (ValueError, OSError) as error:
        raise DataError(description_path, f"is no JSON ({error})", mend=mend) from error
    if not isinstance(description, dict) or not isinstance(description.get("options"), dict):
        raise DataError(description_path, "describes no encoder", "target and options", mend)
    encoder_class = registered_encoder(str(description.get("target", "")), description_path)
    problems: list[str] = []
    options = check_options(f"{description_path.name} options", encoder_class, description["options"], problems)
    fail_if_any(problems)
    encoder = encoder_class(**options)
    try:
        encoder.load_state_dict(load_file(str(weights_path)))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise DataError(weights_path, f"does not fit the encoder: {' '.join(str(error).split())[:300]}") from error
    return encoder.eval()


def check_channels(folder: Path, given: InputSpec, data: object) -> None:
    """Refuse channels that are known by name and are not those of training: their number alone says too little.

    Args:
        folder: holds the encoder's encoder.json, which says what it was trained on.
        given: what the data hold.
        data: where they are, for the message.

    Raises:
        ConfigError: the same names in another order, or some of them replaced.
    """
    described = json.loads((folder / "encoder.json").read_text()).get("inputs", {})
    for name, spec in given.items():
        trained = described.get(name, {}).get("channels")
        if not isinstance(trained, list) or not isinstance(spec.channels, tuple):
            continue
        if set(trained) & set(spec.channels) and trained != list(spec.channels):
            raise ConfigError(
                f'The encoder was trained on "{name}" with the channels {", ".join(trained)}, but {data} gives '
                f"{', '.join(spec.channels)}. Choose and order them with the loader's options (`maskwright inspect`)."
            )


def registered_encoder(target: str, source: Path) -> type[Encoder]:
    """The class that a description names, if it is a registered encoder. Nothing else is imported."""
    for component in get_host().components("encoder").values():
        if component.target == target:
            return component.load()
    known = ", ".join(component.target for component in get_host().components("encoder").values())
    raise DataError(
        source,
        f'names the encoder "{target}", which no installed plugin registers',
        f"one of {known}",
        "Install the plugin it was made with",
    )
