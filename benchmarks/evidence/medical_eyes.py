"""Uni4Eye on a photograph and a volume in turns: what it rebuilds of parts that it never saw.

- Pictures: tiles of 32 x 32 pixels of the fundus photograph that ships with scikit-image; the left of it is trained on,
  the right of it tested, 64 pixels between are left out. So are tiles that touch the black frame: it is no tissue,
  and its edge runs the other way on the right.
- Volumes: crops of 16^3 voxels of the small MR volume that ships with nibabel; front and back, 4 voxels between.

Hidden patches, 75 %, are predicted by the pixel decoder and by the gradient decoder, by the mean of what is visible, and
by the means of visible patches weighted with one over the squared distance. All errors are squares in units of
the training data's deviation; gradient maps go from 0 to 1.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import maskwright as mw
from maskwright.core.build import build
from maskwright.core.encoder import patchify, unpatchify
from maskwright.core.evaluation.scores import paired_difference
from maskwright.core.masking import Mask, sample_keys
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import generator_for, read_batches

TILE, CROP, PATCH = 32, 16, 4
LEFT, RIGHT = 832, 896
"""Columns of the photograph: training tiles end at the first, test tiles begin at the second."""
DARK = 40
"""Mean of red, green and blue below which a pixel belongs to the black frame."""
STEPS, BATCH, LR = 1000, 16, 1e-3
DRAWS = 2
"""Masks for each test sample."""
VARIANTS = {"both decoders": 1.0, "pixel decoder only": 0.0}


def prepare(data: Path, out: Path) -> Path:
    """OUT/data/eyes/{train,test}/{tiles/*.png,crops/*.nii}, unless they are there."""
    import nibabel
    import skimage

    folder = out / "data" / "eyes"
    if (folder / "done").is_file():
        return folder
    photograph = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "retina.jpg").convert("RGB"))
    for row in range(0, photograph.shape[0] - TILE + 1, TILE):
        for column in range(0, photograph.shape[1] - TILE + 1, TILE):
            part = "train" if column + TILE <= LEFT else "test" if column >= RIGHT else ""
            tile = photograph[row : row + TILE, column : column + TILE]
            if part and tile.mean(2).min() >= DARK:
                target = folder / part / "tiles" / f"{column:04d}-{row:04d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(tile).save(target)
    volume: Any = nibabel.load(data / "dicom_nifti_readers" / "anatomical.nii")
    values = np.asarray(volume.dataobj).astype(np.float32)
    x, y, z = (length - CROP + 1 for length in values.shape)
    places = {"train": (range(0, x, 2), range(0, 6), range(0, z)), "test": (range(0, x, 8), [y - 1], range(0, z, 3))}
    for part, (columns, rows, slices) in places.items():
        (folder / part / "crops").mkdir(parents=True, exist_ok=True)
        for i, j, k in np.stack(np.meshgrid(columns, rows, slices, indexing="ij"), -1).reshape(-1, 3):
            crop = nibabel.Nifti1Image(values[i : i + CROP, j : j + CROP, k : k + CROP], volume.affine)  # type: ignore[attr-defined]
            nibabel.save(crop, folder / part / "crops" / f"{i:02d}-{j:02d}-{k:02d}.nii")  # type: ignore[attr-defined]
    (folder / "done").touch()
    return folder


def pretrain(folder: Path, out: Path, gradient_weight: float, seed: int, steps: int) -> mw.Run:
    if (out / "encoder.safetensors").is_file():
        return mw.Run.open(out)
    shutil.rmtree(out, ignore_errors=True)
    settings = {
        "data.loader": "mixed",
        "data.parts": {
            "images": {"path": "tiles", "size": TILE, "resize": "none", "augment": False},
            "volumes": {"path": "crops", "size": CROP},
        },
        "method.patch_size": PATCH,
        "method.embed_dim": 128,
        "method.gradient_weight": gradient_weight,
        "seed": seed,
    }
    return mw.pretrain(
        "uni4eye",
        folder,
        "tiny",
        out,
        settings,
        max_steps=steps,
        batch_size=BATCH,
        lr=LR,
        precision="32",
        log_every=25,
    )


# what can be said of hidden patches without a network ----------------------------------------------------------------


def guesses(image: Tensor, mask: Mask, grid: Any, patch: tuple[int, ...]) -> dict[str, Tensor]:
    """Predictions (B, C, *size) from visible patches alone, one value a channel and patch."""
    channels = image.shape[1]
    means = patchify(image, patch).unflatten(2, (channels, -1)).mean(3)  # (B, N, C)
    visible = (~mask.hidden).float()
    whole = (means * visible[..., None]).sum(1, keepdim=True) / visible.sum(1)[:, None, None]
    axes = [torch.arange(length, dtype=torch.float32) for length in grid.shape]
    places = torch.cartesian_prod(*axes)
    weights = torch.cdist(places, places).pow(2).clamp_min(1e-6).reciprocal()[None] * visible[:, None]
    near = weights @ means / weights.sum(2, keepdim=True)
    size = len(patchify(image[:1], patch)[0, 0]) // channels
    return {
        name: unpatchify(filled[..., None].expand(-1, grid.count, -1, size).flatten(2), grid, patch, channels)
        for name, filled in (("visible mean", whole), ("near visible patches", near))
    }


@torch.no_grad()
def held_out(run: mw.Run, folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Errors of hidden patches by kind, target and predictor; one number a column of tiles, or a crop."""
    recipe = run.recipe()
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(folder / "test")})})
    built = build(recipe)
    newest, _ = checkpoints.load_newest(run.checkpoints)
    assert newest is not None
    method: Any = built.method
    method.load_state_dict(newest.part("method"))
    method.eval()
    kinds = built.loader.buckets()
    assert kinds is not None
    errors: dict[str, dict[str, dict[str, list[float]]]] = {}
    for kind, name in enumerate(("image", "volume")):
        rows: dict[tuple[str, str], list[Tensor]] = {}
        names: list[str] = []
        indices = np.flatnonzero(kinds == kind).tolist()
        for number, batch in enumerate(read_batches(built.loader, 64, indices)):
            names += [Path(meta.source).stem.split("-")[0] if name == "image" else meta.source for meta in batch.metas]
            for draw in range(DRAWS):
                tokens = method.encoder.tokenize(batch)
                mask = method.masking(tokens.grid, sample_keys(generator_for(0, number, draw), len(batch)))
                for key, error in errors_of(method, tokens, mask).items():
                    rows.setdefault(key, []).append(error)
        merged = {key: _mean_of_draws(found) for key, found in rows.items()}
        groups, of = np.unique(names, return_inverse=True)
        for (target, predictor), values in merged.items():
            by_group = [float(values[of == group].mean()) for group in range(len(groups))]
            errors.setdefault(name, {}).setdefault(target, {})[predictor] = by_group
    return errors


def _mean_of_draws(found: list[Tensor]) -> np.ndarray:
    """Errors (n,) of samples from those of DRAWS masks, batch after batch."""
    return np.concatenate([torch.stack(found[at : at + DRAWS]).mean(0).numpy() for at in range(0, len(found), DRAWS)])


def errors_of(method: Any, tokens: Any, mask: Mask) -> dict[tuple[str, str], Tensor]:
    """Mean squared error of hidden patches, (B,) for each target and predictor."""
    patch = method.encoder.patch(tokens.grid)
    latent = method.encoder(tokens, mask)
    channels = method.encoder.chans["image" if tokens.grid.ndim == 2 else "volume"]
    truth = {"pixels": tokens.values, "gradient": method.gradients(tokens)}
    found = {}
    for target, wanted in truth.items():
        chans = channels if target == "pixels" else 1
        image = unpatchify(wanted, tokens.grid, patch, chans)
        said = {name: patchify(x, patch) for name, x in guesses(image, mask, tokens.grid, patch).items()}
        if target in method.decoders:
            said["network"] = method.decode(target, latent, mask, tokens.grid)
        for name, values in said.items():
            error = ((values - wanted) ** 2).mean(2) * mask.hidden
            found[target, name] = error.sum(1) / mask.hidden.sum(1)
    return found


# all of it ----------------------------------------------------------------------------------------------------------


def run(data: Path, out: Path, seeds: int, share: float) -> dict[str, Any]:
    folder = prepare(data, out)
    counts = {
        f"{part} {kind}": len(list((folder / part / kind).iterdir()))
        for part in ("train", "test")
        for kind in ("tiles", "crops")
    }
    steps = max(2, round(STEPS * share))
    errors: dict[str, list[dict[str, Any]]] = {}
    for variant, weight in VARIANTS.items():
        for seed in range(seeds):
            place = out / "eyes" / f"{variant.replace(' ', '-')}-{seed}"
            trained = pretrain(folder / "train", place, weight, seed, steps)
            errors.setdefault(variant, []).append(held_out(trained, folder))
    found: dict[str, Any] = {"about": counts, "steps": steps, "batch": BATCH, "rows": [], "verdicts": []}
    for kind in ("image", "volume"):
        for target in ("pixels", "gradient"):
            found["rows"] += _rows(kind, target, errors)
        found["verdicts"] += _verdicts(kind, errors)
    for row in found["rows"]:
        print("eyes", row, flush=True)
    print("\n".join(found["verdicts"]), flush=True)
    return found


def _rows(kind: str, target: str, errors: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    first = errors["both decoders"][0][kind][target]
    rows = [
        {"kind": kind, "target": target, "predictor": name, "values": [float(np.mean(first[name]))]}
        for name in ("visible mean", "near visible patches")
    ]
    for variant, of_seeds in errors.items():
        if "network" in of_seeds[0][kind][target]:
            values = [float(np.mean(one[kind][target]["network"])) for one in of_seeds]
            rows.append({"kind": kind, "target": target, "predictor": variant, "values": values})
    return rows


def _verdicts(kind: str, errors: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Differences with intervals over seeds and columns of tiles, or crops."""
    both, alone = errors["both decoders"], errors["pixel decoder only"]
    pairs = [
        ("pixels", "visible mean", both, "visible mean"),
        ("pixels", "near visible patches", both, "near visible patches"),
        ("pixels", "the pixel decoder only", alone, "network"),
        ("gradient", "visible mean", both, "visible mean"),
        ("gradient", "near visible patches", both, "near visible patches"),
    ]
    lines = []
    for target, name, others, predictor in pairs:
        ours = [one[kind][target]["network"] for one in both]
        theirs = [one[kind][target][predictor] for one in others]
        difference, low, high = paired_difference(ours, theirs)
        words = "less error" if high < 0 else "more error" if low > 0 else "cannot tell"
        lines.append(f"{kind}, {target}, against {name}: {words} ({difference:+.4f}, 95 % {low:+.4f} to {high:+.4f}).")
    return lines


def table(stored: dict[str, Any]) -> list[str]:
    """The stored figures as lines of Markdown."""
    predictors = list(dict.fromkeys(row["predictor"] for row in stored["rows"]))
    lines = [
        "### eyes",
        "",
        f"| error of hidden patches | {' | '.join(predictors)} |",
        "|---" * (1 + len(predictors)) + "|",
    ]
    for kind, target in dict.fromkeys((row["kind"], row["target"]) for row in stored["rows"]):
        cells = {
            row["predictor"]: f"{np.mean(row['values']):.4f}"
            + (f" ± {np.std(row['values'], ddof=1):.4f}" if len(row["values"]) > 1 else "")
            for row in stored["rows"]
            if (row["kind"], row["target"]) == (kind, target)
        }
        lines.append(f"| {kind}, {target} | {' | '.join(cells.get(name, '') for name in predictors)} |")
    rough = (
        "Intervals are over seeds and columns of tiles of one photograph, or overlapping crops of one volume: they say "
        "nothing about other eyes or heads."
    )
    return [*lines, "", *[f"- {verdict}" for verdict in stored["verdicts"]], "", rough, ""]
