"""Did pre-training help? Three real tasks, judged as a user would judge them.

    python -m benchmarks.evidence.did_it_help --data FOLDER [--seeds 5] [--out FOLDER] [--quick]

- Statlog Landsat: classes of pixels from 3 x 3 neighbourhoods of 4 bands, official split.
- Fuel moisture: moisture of living plants from three months of radar, optical and weather series, folds by site.
- TerraMesh: land cover from Sentinel-1 and 2, by tile; the tiles ship with the package.

FOLDER holds `statlog_landsat_mss` and `s1s2_fuel_moisture_timeseries`, as docs/did-it-help.md describes them. Each
encoder is pre-trained on the inputs of the task without their labels, then judged. Everything is printed; scores go to
benchmarks/results/did_it_help.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import maskwright as mw
from benchmarks.common import put_into_page
from maskwright.core.evaluation.conclusion import Evaluation
from maskwright.core.evaluation.report import score_rows

RESULT = Path(__file__).parents[1] / "results" / "did_it_help.json"
PAGE = Path(__file__).parents[2] / "docs" / "did-it-help.md"
PLACES = ("encoder", "data", "test", "labels")
"""Facts that name files of one machine."""
START, END = "<!-- figures: python -m benchmarks.evidence.did_it_help --page -->", "<!-- end of figures -->"


def statlog(data: Path, out: Path, seeds: int, share: float) -> Evaluation:
    """Classes of Landsat pixels, official split."""
    folder = data / "statlog_landsat_mss"
    train, test = folder / "sat.trn", folder / "sat.tst"
    rows = {"data.loader": "arrays", "data.columns": "0:36", "data.shape": [3, 3, 4], "data.axes": "H W C"}
    run = mw.pretrain(
        "mae",
        train,
        "tiny",
        out / "statlog",
        {**rows, "method.img_size": 3, "method.patch_size": 1},
        max_steps=round(3000 * share),
        batch_size=128,
        lr=1e-3,
    )
    return mw.evaluate(
        run,
        labels=f"{train}:37",
        test=test,
        test_labels=f"{test}:37",
        protocols=["knn", "linear", "finetune"],
        fractions=[0.01, 0.1, 1.0],
        seeds=seeds,
        settings={"finetune.steps": round(1000 * share)},
    )


def fuel_moisture(data: Path, out: Path, seeds: int, share: float) -> Evaluation:
    """Live fuel moisture in percent, folds by site."""
    folder = data / "s1s2_fuel_moisture_timeseries"
    run = mw.pretrain(
        "mae",
        folder / "s1_s2_era5_srtm.npy",
        "tiny",
        out / "fuel-moisture",
        {
            "data.loader": "arrays",
            "data.axes": "T C",
            "data.group": str(folder / "site.npy"),
            "method.img_size": 3,
            "method.patch_size": 1,
            "masking.ratio": 0.34,
        },
        max_steps=round(3000 * share),
        batch_size=128,
        lr=1e-3,
    )
    return mw.evaluate(
        run,
        task="regression",
        labels=str(folder / "target.npy"),
        protocols=["knn", "linear", "finetune"],
        fractions=[0.1, 1.0],
        seeds=seeds,
        settings={"finetune.steps": round(500 * share)},
    )


def land_cover(data: Path, out: Path, seeds: int, share: float) -> Evaluation:
    """Land cover of the shipped tiles, one tile held out at a time."""
    with resources.as_file(resources.files("maskwright.remote_sensing").joinpath("samples/terramesh")) as tiles:
        run = mw.pretrain(
            "croma",
            tiles,
            "tiny",
            out / "land-cover",
            {"data.size": 56},
            max_steps=round(300 * share),
            batch_size=32,
            lr=1e-3,
        )
        return mw.evaluate(
            run,
            task="land-cover",
            labels=str(tiles / "LULC"),
            protocols=["knn", "linear"],
            seeds=seeds,
            settings={"finetune.steps": round(200 * share), "finetune.batch_size": 8},
        )


TASKS: dict[str, Callable[[Path, Path, int, float], Evaluation]] = {
    "Statlog Landsat": statlog,
    "fuel moisture": fuel_moisture,
    "TerraMesh land cover": land_cover,
}


def tables() -> str:
    """The stored figures as Markdown: the metric that decides, by features, protocol and share of the labels."""
    parts = []
    for name, stored in json.loads(RESULT.read_text()).items():
        metric, fractions = stored["facts"]["metric"], stored["facts"]["fractions"]
        cells: dict[tuple[str, str], dict[float, str]] = {}
        for row in stored["rows"]:
            if row["metric"] == metric:
                shown = f"{row['mean']:.3f} ± {row['std']:.3f}"
                cells.setdefault((row["features"], row["protocol"]), {})[row["fraction"]] = shown
        heads = [f"{share:.0%} of the labels" for share in fractions]
        parts += [f"### {name}", "", f"**{stored['headline']}**", "", stored["title"], ""]
        parts += [f"| features | protocol | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
        parts += [
            f"| {features} | {protocol} | {' | '.join(by_share.get(share, '') for share in fractions)} |"
            for (features, protocol), by_share in cells.items()
        ]
        notes = [note for note in stored["notes"] if "saw" in note or note.startswith(("Only", "From scratch"))]
        parts += ["", f"{metric}, mean ± standard deviation over seeds. {' '.join(notes)}", ""]
    return "\n".join(parts)


def write_page() -> None:
    """Put the stored figures into the page."""
    put_into_page(PAGE, START, END, tables())


def take_picture(report: Path) -> None:
    """The top of a report as the browser shows it, for the page; needs chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no picture was taken: there is no chromium here")
        return
    picture = PAGE.parent / "images" / "did-it-help.png"
    words = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=900,1250", f"--screenshot={picture}"]
    subprocess.run([browser, *words, report.resolve().as_uri()], check=True, capture_output=True, timeout=120)
    print("wrote", picture.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--page", action="store_true", help="only put the stored figures into docs/did-it-help.md")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the runs here; must be new")
    parser.add_argument("--task", choices=TASKS, help="one of them only; the stored figures of the others stay")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, one seed; nothing is written")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    if arguments.data is None:
        parser.error("--data is needed")
    seeds, share = (1, 0.05) if arguments.quick else (arguments.seeds, 1.0)
    out = arguments.out or Path(tempfile.mkdtemp())
    stored = json.loads(RESULT.read_text()) if arguments.task is not None and RESULT.is_file() else {}
    for name, judge in TASKS.items():
        if arguments.task not in (None, name):
            continue
        started = time.perf_counter()
        result = judge(arguments.data, out, seeds, share)
        print(f"\n{name}: {result.headline}")
        for fraction in reversed(result.facts["fractions"]):
            columns, rows = score_rows(result.table, fraction)
            print(f"with {fraction:.3g} of the labels: {'; '.join(columns)}")
            for features, cells in rows:
                print(f"  {features:25s} {'  '.join(cells)}")
        for note in result.table.notes:
            print(f"  {note}")
        seconds = time.perf_counter() - started
        print(f"  {seconds:.0f} s")
        stored[name] = {**result.table.as_dict(), "headline": result.headline, "seconds": round(seconds)}
        stored[name]["notes"] = [note.replace(f"{arguments.data}/", "") for note in result.table.notes]
        stored[name]["facts"] = {
            k: v for k, v in result.facts.items() if k not in ("encoder", "data", "test", "labels")
        }
    if not arguments.quick:
        RESULT.write_text(json.dumps(stored, indent=1, default=str) + "\n")
        print("wrote", RESULT.name)
        write_page()
        if result.path is not None:
            take_picture(result.path / "report.html")
    if arguments.out is None:
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
