"""Small public functions of `import maskwright as mw`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwright.core.host import PluginRecord, get_host

if TYPE_CHECKING:
    from maskwright.core.encoder import Encoder
    from maskwright.core.loader import Loader
    from maskwright.core.trainer.run import Run


def plugins() -> list[PluginRecord]:
    """All plugins with their status, and what they add."""
    return get_host().plugins


def component(kind: str, name: str) -> Any:
    """The class or function behind a component's name: `component("masking", "colour-noise")`.

    Raises:
        ConfigError: unknown kind or name. PluginError: a library of it is missing.
    """
    return get_host().component(kind, name).load()


def open_data(path: str | Path, loader: str = "auto", **options: Any) -> Loader:
    """A loader on a file or folder: `open_data("tiles/", size=120).read(0)`.

    Raises:
        DataError: nothing is there, or no loader understands it. ConfigError: an option that the loader does not have.
    """
    from maskwright.core.build import open_loader

    return open_loader(path, loader, **options)[1]


def load(run: Run | str | Path, trust: bool = False) -> Encoder:
    """The encoder of a run or of an exported folder, or an outside one (`timm:NAME`), in evaluation mode.

    Args:
        trust: import the torch module of yours that a folder names.

    Raises:
        DataError: no run, or no finished encoder in it.
    """
    from maskwright.core.encoder.outside import open_encoder

    return open_encoder(run, trust=trust)


def report(run: Run | str | Path) -> Path:
    """Write a run's report anew, with the evaluations that were added since. Returns its path.

    Raises:
        DataError: no run is there.
    """
    from maskwright.core.evaluation.report import write_report
    from maskwright.core.trainer.run import Run

    return write_report(run if isinstance(run, Run) else Run.open(run))
