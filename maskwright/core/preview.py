"""Pictures before and after training: what maskings hide in the user's own data, and what a run makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskwright.core import recipe as recipes
from maskwright.core.build import build, build_masking, open_loader
from maskwright.core.errors import ConfigError, DataError
from maskwright.core.evaluation.pictures import mask_preview, reconstruction_preview
from maskwright.core.host import get_host, normalise
from maskwright.core.masking import Masking
from maskwright.core.options import option_types
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.run import Run

DEFAULT_PATCH = 8


def preview_maskings(
    names: Sequence[str],
    data: str | Path,
    out: str | Path,
    patch_size: int | None = None,
    count: int = 4,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Path:
    """Write one PNG: a row a sample, a column a masking.

    Args:
        names: maskings, or methods, whose own masking and patch size are then used; all maskings if empty.
        data: file or folder to read.
        out: PNG to write.
        patch_size: pixels along each side of a token; without it the method's, or 8.
        count: samples to draw.
        seed: of the masks.
        settings: ["masking.ratio=0.5", "data.size=120"]; options of the masking hold for all.

    Raises:
        ConfigError: an unknown name or option, or data that are no images. DataError: nothing can be read.
    """
    host = get_host()
    sections = recipes.parse_settings(settings)
    unknown = sorted(
        key for key, value in sections.items() if key not in ("masking", "data") or type(value) is not dict
    )
    if unknown:
        raise ConfigError(f"A preview takes settings of masking.OPTION and data.OPTION only, not {', '.join(unknown)}.")
    data_options = dict(sections.get("data", {}))
    options = dict(sections.get("masking", {}))
    maskings: dict[str, Masking] = {}
    for name in names or host.components("masking"):
        if normalise(name) in map(normalise, host.components("method")):
            method_class = host.component("method", name).load()
            section = {**method_class.default_masking, **options}
            patch_size = patch_size or option_types(method_class).get("patch_size", (int, DEFAULT_PATCH))[1]
            label = f"{section['name']} ({name})"
        else:
            section = {"name": host.component("masking", name).name, **options}
            label = section["name"]
        maskings[label] = build_masking(recipes.Component.model_validate(section))
    loader = open_loader(data, data_options.pop("loader", "auto"), **data_options)[1]
    return mask_preview(loader, maskings, Path(out), patch_size or DEFAULT_PATCH, count, seed)


def preview_run(
    run: str | Path | Run, out: str | Path, data: str | Path | None = None, count: int = 4, seed: int = 0
) -> list[Path]:
    """Write one PNG for each input into the folder `out`: original, what the encoder saw, what the run's method made.

    Args:
        run: a run directory with a checkpoint.
        data: file or folder to read; without it, what the run was trained on.

    Raises:
        DataError: no run, no checkpoint, or nothing to read.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    newest, _ = checkpoints.load_newest(run.checkpoints)
    if newest is None:
        raise DataError(run.path, "holds no checkpoint yet", mend=f"Train with `maskwright resume {run.path}`")
    recipe = run.recipe()
    if data is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(data)})})
    built = build(recipe)
    built.method.load_state_dict(newest.part("method"))
    return reconstruction_preview(built.method, built.loader, Path(out), count, seed)
