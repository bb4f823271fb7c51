"""Pictures before and after training: what maskings hide in the user's own data, and what a run makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.core import recipe as recipes
from maskwright.core.build import build, open_loader
from maskwright.core.errors import ConfigError, DataError, PluginError, nearest
from maskwright.core.evaluation.pictures import mask_preview, reconstruction_preview
from maskwright.core.host import get_host, normalise
from maskwright.core.masking import Masking
from maskwright.core.options import check_options, fail_if_any, option_types
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.run import Run


def preview_maskings(
    names: Sequence[str],
    data: str | Path,
    out: str | Path,
    patch_size: int | None = None,
    count: int = 4,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Path:
    """Write one PNG: a row a sample, a column a masking; of colour noise a column a colour.

    Args:
        names: maskings, or methods, whose own masking and patch size are then used; all maskings if empty. Of all,
            those that cannot be drawn on these data are left out with a warning.
        data: file or folder to read.
        out: PNG to write.
        patch_size: pixels along each side of a token; without it the method's, or what suits the size of the images.
        count: samples to draw.
        seed: of the masks.
        settings: ["masking.ratio=0.5", "data.size=120"]; an option of the masking holds for all that have it.

    Raises:
        ConfigError: an unknown name, an option that no masking has, or data that are no images.
        DataError: nothing can be read.
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
    if "name" in options:
        raise ConfigError(f"Name the maskings to draw as arguments: `maskwright preview {options['name']} ...`.")
    drawn: dict[str, tuple[type[Masking], dict[str, Any]]] = {}
    for name in names or host.components("masking"):
        if normalise(name) in map(normalise, host.components("method")):
            method_class = host.component("method", name).load()
            own = dict(method_class.default_masking)
            patch_size = patch_size or option_types(method_class).get("patch_size", (int, None))[1]
            masking_name = own.pop("name")
            drawn[f"{masking_name} ({name})"] = (host.component("masking", masking_name).load(), own)
            continue
        component = host.component("masking", name)
        try:
            masking_class = component.load()
        except PluginError as error:
            if names:
                raise
            warnings.warn(f"{component.name} is left out of the picture: {error}", stacklevel=2)
            continue
        variants = [each for each in masking_class.variants if not set(each) & set(options)]
        for variant in variants or [{}]:
            drawn[", ".join([component.name, *variant.values()])] = (masking_class, variant)
    maskings = _make(drawn, options)
    loader = open_loader(data, data_options.pop("loader", "auto"), **data_options)[1]
    return mask_preview(loader, maskings, Path(out), patch_size, count, seed, leave_out=not names)


def _make(drawn: dict[str, tuple[type[Masking], dict[str, Any]]], options: dict[str, Any]) -> dict[str, Masking]:
    """Construct maskings with their own options and those of `options` that each has.

    Raises:
        ConfigError: an option that none has, or a value that does not fit.
    """
    known = {option for masking_class, _ in drawn.values() for option in option_types(masking_class)}
    problems = [
        f"masking.{key}: no masking of this picture has such an option.{nearest(key, known)}"
        for key in options
        if key not in known
    ]
    checked = {}
    for label, (masking_class, own) in drawn.items():
        has = option_types(masking_class)
        given = {**own, **{key: value for key, value in options.items() if key in has}}
        checked[label] = check_options("masking", masking_class, given, problems)
    fail_if_any(list(dict.fromkeys(problems)))
    return {label: masking_class(**checked[label]) for label, (masking_class, _) in drawn.items()}


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
