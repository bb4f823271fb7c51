"""Does masking help on small real point sets? Point-CMAE, P2C and NeRF-MAE beside what needs no pre-training.

    python -m benchmarks.evidence.pointcloud --data FOLDER [--out FOLDER] [--seeds 3] [--only NAME ...] [--quick]

- shapes: 194 meshes of KayKit in 17 classes; a split by classes for each seed, two thirds to train on.
- ground: an airborne scan (autzen_trim.laz), ground and everything else; the west trains, strips of the east test.
- completion: walls of KayKit, each seen from one side, made whole by P2C; see pointcloud_completion.py.
- rooms: NeRF-MAE on KayKit shapes as volumes, a stand-in for radiance fields; see pointcloud_rooms.py.

FOLDER holds `kaykit_shapes` and `lidar_las`. Encoders see the training part without its labels. Whatever is done already
in --out is not done again; figures go to benchmarks/results/pointcloud.json, and `--page` puts them into
docs/pointcloud.md. A picture of completed objects is written to OUT/completion.png.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import maskwright as mw
from benchmarks.common import put_into_page
from benchmarks.evidence import pointcloud_completion as completion
from benchmarks.evidence import pointcloud_rooms as rooms
from benchmarks.evidence.command import parse, store_figures
from maskwright.core.trainer.data import derive_seed
from maskwright.core.trainer.files import write_text
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.mesh import sample_surface
from maskwright.pointcloud.writers import write_points

RESULT = Path(__file__).parents[1] / "results" / "pointcloud.json"
PAGE = Path(__file__).parents[2] / "docs" / "pointcloud.md"
START, END = "<!-- figures: python -m benchmarks.evidence.pointcloud --page -->", "<!-- end of figures -->"
OURS, RANDOM, SCRATCH = "pre-trained", "random init", "supervised from scratch"
METHODS: dict[str, list[str]] = {
    "Point-CMAE": ["method.consistency=diagonal"],
    "Point-CMAE, official": ["method.consistency=official"],
    "without agreement": ["method.consistency_weight=0"],
    "random, batch norms set": [],
}
"""Point-CMAE as the paper has it, as its code has it, and two Point-MAEs with one encoder. At last an encoder that learns
nothing but the means and deviations of its batch norms, which one at random does not have."""
STILL = {"steps": 20, "batch": 16, "lr": 1e-12}
SURFACE = 4096
"""Points that are stored of each mesh; samples are drawn from these."""
SHAPES = {"steps": 150, "batch": 16, "tuning": 60, "lr": 1e-3}
GROUND = {"steps": 60, "batch": 16, "tuning": 60, "lr": 1e-3}
ON_GROUND = ("Point-CMAE", "without agreement", "random, batch norms set")
TILE, STRIP = 20.0, 2
"""Metres of a tile, and columns of tiles of a strip."""
READ_GROUND = ["data.loader=scans", f"data.tile={TILE:g}", "data.points=512", "data.min_points=128"]
FOOT = 0.3048


# shapes -------------------------------------------------------------------------------------------------------------


def surfaces(data: Path, out: Path) -> Path:
    """Points of the surface of every mesh, once: OUT/CLASS/NAME.ply."""
    for number, file in enumerate(sorted((data / "kaykit_shapes").rglob("*.obj"))):
        target = out / file.parent.name / f"{file.stem}.ply"
        if not target.is_file():
            mesh = open_points(file).mesh()
            assert mesh is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            write_points(target, sample_surface(mesh, SURFACE, np.random.default_rng(number), file).xyz)
    return out


def split(source: Path, out: Path, seed: int, ending: str) -> tuple[Path, Path]:
    """Two thirds of the files of every class in OUT/train, the others in OUT/test; links to the files."""
    train, test = out / "train", out / "test"
    if (out / "done").is_file():
        return train, test
    shutil.rmtree(out, ignore_errors=True)
    for number, folder in enumerate(sorted(path for path in source.iterdir() if path.is_dir())):
        files = sorted(folder.glob(f"*{ending}"))
        order = np.random.default_rng(derive_seed(seed, number)).permutation(len(files))
        for place, index in enumerate(order):
            side = test if place < round(len(files) / 3) else train
            (side / folder.name).mkdir(parents=True, exist_ok=True)
            (side / folder.name / files[index].name).hardlink_to(files[index])
    (out / "done").touch()
    return train, test


def pretrain(data: Path, out: Path, seed: int, plan: dict[str, Any], settings: list[str]) -> mw.Run:
    if (out / "encoder.safetensors").is_file():
        return mw.Run.open(out)
    shutil.rmtree(out, ignore_errors=True)  # what an earlier call did not finish
    return mw.pretrain(
        "point-cmae", data, "tiny", out, [*settings, f"seed={seed}"],
        max_steps=plan["steps"], batch_size=plan["batch"], lr=plan["lr"], precision="32", log_every=25,
    )  # fmt: skip


def plan_of(method: str, plan: dict[str, Any]) -> dict[str, Any]:
    return {**plan, **STILL} if method == "random, batch norms set" else plan


def judge(run: mw.Run, name: str, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Rows of an evaluation: features, protocol, metric and values, from the file of an earlier call if there is one."""
    done = out / f"{name}.json"
    if done.is_file():
        return json.loads(done.read_text())
    evaluation = mw.evaluate(run, out=out / name, device="cpu", **options)
    rows = [
        {"features": row.features, "protocol": row.protocol, "metric": row.metric, "values": list(row.values)}
        for row in evaluation.table.rows
    ]
    write_text(done, json.dumps(rows, indent=1))
    return rows


def judged(
    run: mw.Run, out: Path, first: bool, plan: dict[str, Any], where: dict[str, Any]
) -> dict[tuple[str, str, str], float]:
    """Means by features, protocol and metric. With `first` also of the baselines, and trained with labels."""
    baselines = ("random-init", "simple") if first else ()
    rows = judge(run, "frozen", out, protocols=["knn", "linear"], baselines=baselines, seeds=3 if first else 1, **where)
    if first:
        tuning = [
            f"finetune.steps={plan['tuning']}",
            f"finetune.batch_size={plan['batch']}",
            f"finetune.lr={plan['lr']}",
        ]
        tuned = {**where, "settings": [*where["settings"], *tuning]}
        rows = rows + judge(run, "tuned", out, protocols=["finetune"], baselines=("supervised",), seeds=1, **tuned)
    return {(row["features"], row["protocol"], row["metric"]): float(np.mean(row["values"])) for row in rows}


def gather(found: list[tuple[str, dict[tuple[str, str, str], float]]], metric: str) -> list[dict[str, Any]]:
    """One row for each method or baseline and protocol, with a value a seed."""
    rows: dict[tuple[str, str], list[float]] = {}
    for method, values in found:
        for (features, protocol, which), value in values.items():
            if which == metric:
                rows.setdefault((method if features == OURS else features, protocol), []).append(value)
    return [{"features": key[0], "protocol": key[1], "values": values} for key, values in rows.items()]


def run_shapes(data: Path, out: Path, seeds: int, share: float) -> dict[str, Any]:
    plan = scaled(SHAPES, share)
    source, found = surfaces(data, out / "surfaces"), []
    train = test = source
    for seed in range(seeds):
        train, test = split(source, out / f"split{seed}", seed, ".ply")
        where = {"data": train, "labels": "folder", "test": test, "settings": ["data.points=1024"]}
        for method, settings in METHODS.items():
            place = out / f"{method.replace(' ', '-').replace(',', '')}-seed{seed}"
            run = pretrain(
                train, place, seed, plan_of(method, plan), ["data.loader=points", "data.points=1024", *settings]
            )
            found.append((method, judged(run, place / "judged", method == "Point-CMAE", plan, where)))
            print("shapes", seed, method, {key[1]: round(x, 3) for key, x in found[-1][1].items() if key[0] == OURS and key[2] == "balanced accuracy"}, flush=True)  # fmt: skip
    about = {"train": count(train), "test": count(test), "classes": len(list(train.iterdir())), **plan}
    return {"about": about, "metric": "balanced accuracy", "rows": gather(found, "balanced accuracy")}


def count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


# ground -------------------------------------------------------------------------------------------------------------


def strips(data: Path, out: Path) -> tuple[Path, Path]:
    """The scan in strips of whole columns of tiles: the west in OUT/train, the east in OUT/test, and a column between
    them in neither."""
    import laspy

    train, test = out / "train", out / "test"
    if (out / "done").is_file():
        return train, test
    shutil.rmtree(out, ignore_errors=True)
    scan = laspy.read(data / "lidar_las" / "autzen_trim.laz")  # in feet
    column = np.floor(np.asarray(scan.x) / (TILE / FOOT)).astype(int)
    column -= column.min()
    middle = int(np.median(column))
    for side, where in ((train, column < middle), (test, column > middle)):
        side.mkdir(parents=True)
        for number in np.unique(column[where] // STRIP):
            part = laspy.LasData(scan.header)
            part.points = scan.points[where & (column // STRIP == number)]
            part.write(side / f"strip{number:02d}.laz")
    (out / "done").touch()
    return train, test


def run_ground(data: Path, out: Path, seeds: int, share: float) -> dict[str, Any]:
    plan = scaled(GROUND, share)
    train, test = strips(data, out / "strips")
    where = {
        "data": train, "task": "segmentation", "labels": str(train), "test": test, "test_labels": str(test),
        "settings": READ_GROUND,
    }  # fmt: skip
    found = []
    for seed in range(seeds):
        for method in ON_GROUND:
            place = out / f"{method.replace(' ', '-')}-seed{seed}"
            run = pretrain(train, place, seed, plan_of(method, plan), [*READ_GROUND, *METHODS[method]])
            found.append((method, judged(run, place / "judged", method == "Point-CMAE", plan, where)))
            print("ground", seed, method, {key[1]: round(x, 3) for key, x in found[-1][1].items() if key[0] == OURS and key[2] == "mean IoU"}, flush=True)  # fmt: skip
    options = {"tile": TILE, "points": 512, "min_points": 128}
    tiles = {side.name: len(mw.open_data(side, "scans", **options)) for side in (train, test)}
    return {
        "about": {**tiles, "test strips": count(test), **plan},
        "metric": "mean IoU",
        "rows": gather(found, "mean IoU"),
    }


# rooms --------------------------------------------------------------------------------------------------------------


def run_rooms(data: Path, out: Path, seeds: int, share: float) -> dict[str, Any]:
    volumes = rooms.prepare(data / "kaykit_shapes", out / "volumes")
    steps = max(2, round(rooms.STEPS * share))
    rows: dict[str, dict[str, list[float]]] = {}
    train = test = volumes
    for seed in range(seeds):
        train, test = split(volumes, out / f"split{seed}", seed, ".npz")
        for name, values in rooms.run_seed(train, test, out / f"seed{seed}", seed, steps).items():
            for key, value in values.items():
                rows.setdefault(name, {}).setdefault(key, []).append(round(value, 5))
        print("rooms", seed, {name: {k: round(x[-1], 3) for k, x in values.items()} for name, values in rows.items()}, flush=True)  # fmt: skip
    about = {"train": count(train), "test": count(test), "steps": steps, "batch": rooms.BATCH}
    return {"about": about, "rows": rows}


# all of it ----------------------------------------------------------------------------------------------------------


def scaled(plan: dict[str, Any], share: float) -> dict[str, Any]:
    """A plan with fewer steps."""
    return {**plan, **{key: max(2, round(plan[key] * share)) for key in ("steps", "tuning")}}


RUNS = {"shapes": run_shapes, "ground": run_ground, "completion": completion.run, "rooms": run_rooms}


def judged_table(name: str, stored: dict[str, Any]) -> list[str]:
    """Shapes and ground: what was pre-trained first."""
    about, protocols = stored["about"], ("kNN", "linear probe", "fine-tune")
    cells: dict[str, dict[str, str]] = {}
    for row in stored["rows"]:
        spread = f" ± {np.std(row['values'], ddof=1):.3f}" if len(row["values"]) > 1 else ""
        cells.setdefault(row["features"], {})[row["protocol"]] = f"{np.mean(row['values']):.3f}{spread}"
    order = [*(key for key in METHODS if key in cells), *(key for key in cells if key not in METHODS)]
    said = (
        f"{about['train']} meshes to train on, {about['test']} to test, {about['classes']} classes, another split for each seed"
        if name == "shapes"
        else f"{about['train']} tiles in the west to train on, {about['test']} in {about['test strips']} strips in the east to test"
    )
    lines = [
        f"### {name}",
        "",
        f"{stored['metric'][0].upper() + stored['metric'][1:]}; {said}; {about['steps']} steps of {about['batch']}.",
        "",
    ]
    lines += [f"| features | {' | '.join(protocols)} |", "|---" * 4 + "|"]
    return lines + [f"| {key} | {' | '.join(cells[key].get(one, '') for one in protocols)} |" for key in order] + [""]


def tables() -> str:
    """The stored figures as Markdown."""
    stored = json.loads(RESULT.read_text())
    parts: list[str] = []
    for name in RUNS:
        if name in stored:
            made = {"completion": completion.table, "rooms": rooms.table}.get(name)
            parts += made(stored[name]) if made else judged_table(name, stored[name])
    return "\n".join(parts)


def write_page() -> None:
    """Put the stored figures into the page."""
    put_into_page(PAGE, START, END, tables())


def main() -> None:
    arguments = parse(__doc__, "pointcloud", RUNS, write_page)
    if arguments is None:
        return
    for name in arguments.only:
        found = RUNS[name](arguments.data, arguments.out / name, arguments.seeds, arguments.share)
        if not arguments.quick:
            store_figures(RESULT, name, found)


if __name__ == "__main__":
    main()
