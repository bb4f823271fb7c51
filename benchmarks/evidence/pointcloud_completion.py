"""Shapes completed from single partial clouds: P2C beside what reproduces its input, on walls of KayKit.

Every object is seen once: 40 to 60 % of it is cut away by a plane of random direction. Whole objects are never trained
on; those that are tested are other objects. Clouds lie in the frame of the whole object (about its centroid, its largest
distance 1), as in 3D-EPN and PCN, except where a row says that each lies about its own centroid, which is what the
loader `points` gives.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch, Meta
from maskwright.core.trainer.data import FORWARD, KEYS, ORDER, derive_seed, generator_for
from maskwright.core.trainer.files import write_with
from maskwright.core.trainer.method import Progress, Step
from maskwright.pointcloud.formats import open_points
from maskwright.pointcloud.mesh import sample_surface
from maskwright.pointcloud.methods.p2c import P2c, mirrored
from maskwright.pointcloud.ops import chamfer

CLASS = "wall"
DENSE, WHOLE, PARTIAL = 8192, 1024, 512
"""Points that are drawn from a surface, of a whole cloud, and of a partial one."""
HELD_OUT = 9
STEPS, BATCH, LR = 250, 8, 1e-3
SIZES: dict[str, Any] = {
    "num_groups": 32,
    "group_size": 16,
    "roles": (10, 20, 2),
    "embed_dim": 256,
    "generator_width": 256,
    "output_points": 512,
}
PLAIN, ALONE, FULL, OWN = (
    "plain autoencoder",
    "P2C without group 2",
    "P2C",
    "P2C, each cloud about its own centroid",
)
TRAINED = (PLAIN, ALONE, FULL, OWN)
OTHER = "P2C of another object"
"""What was made of the next test object: as good as P2C itself if it makes the same of everything."""
INPUT, MIRROR, ALL = "input itself", "input and its mirror image", "all training clouds together"


class PlainAutoencoder(P2c):
    """The same networks; all that is made is compared with all of the partial cloud."""

    def forward(self, batch: Batch, keys: Tensor) -> Step:
        points = mirrored(batch["points"], keys)
        made = self.generator(self.encoder.encode_points(points)).float()
        distance = chamfer(made, points, "l1")
        return Step(distance, {"reconstruction": distance.detach()})


# clouds -------------------------------------------------------------------------------------------------------------


def whole_clouds(data: Path) -> list[np.ndarray]:
    """Surfaces of all objects of the class, (8192, 3) each, about their centroid and of radius 1; y is up."""
    clouds = []
    for number, file in enumerate(sorted((data / "kaykit_shapes" / CLASS).glob("*.obj"))):
        mesh = open_points(file).mesh()
        assert mesh is not None
        xyz = sample_surface(mesh, DENSE, np.random.default_rng(number), file).xyz
        xyz = xyz - xyz.mean(0)
        clouds.append((xyz / np.linalg.norm(xyz, axis=1).max()).astype(np.float32))
    return clouds


def cut(whole: np.ndarray, seed: int) -> np.ndarray:
    """What is left of a cloud on one side of a plane of random direction, 512 points; 40 to 60 % are cut away."""
    generator = np.random.default_rng(seed)
    direction = generator.normal(size=3)
    along = whole @ (direction / np.linalg.norm(direction))
    left = whole[along <= np.quantile(along, 1 - generator.uniform(0.4, 0.6))]
    return left[generator.choice(len(left), PARTIAL, replace=False)]


def clouds_of(wholes: list[np.ndarray], seed: int) -> dict[str, Tensor]:
    """Partial clouds to train on and to test, with the whole ones of the latter."""
    order = np.random.default_rng(derive_seed(seed, 1)).permutation(len(wholes))
    partial = np.stack([cut(whole, derive_seed(seed, 2, number)) for number, whole in enumerate(wholes)])
    truth = np.stack([np.random.default_rng(number).choice(whole, WHOLE, False) for number, whole in enumerate(wholes)])
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    return {
        name: torch.from_numpy(x)
        for name, x in (("train", partial[train]), ("test", partial[test]), ("truth", truth[test]))
    }


# training -----------------------------------------------------------------------------------------------------------


def method_of(name: str, seed: int) -> P2c:
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, 3))
        if name == PLAIN:
            return PlainAutoencoder(**SIZES)
        return P2c(**SIZES, completion_weight=0.0 if name == ALONE else 1000.0)


def train(name: str, points: Tensor, seed: int, steps: int = STEPS) -> P2c:
    """AdamW with a cosine from `LR` to a fiftieth of it; clouds (n, 512, 3) in another order in each epoch."""
    method = method_of(name, seed).train()
    method.prepare(None, generator_for(seed, 4))  # type: ignore[arg-type]  # P2C looks at no data
    optimizer = torch.optim.AdamW(method.parameters(), lr=LR, weight_decay=1e-4)
    batch = min(BATCH, len(points))
    per_epoch = max(1, len(points) // batch)
    metas = [Meta(str(number), str(number), number) for number in range(batch)]
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, FORWARD))
        for step in range(steps):
            epoch, at = divmod(step, per_epoch)
            order = torch.randperm(len(points), generator=generator_for(seed, ORDER, epoch))
            chosen = points[order[at * batch : (at + 1) * batch]]
            keys = sample_keys(generator_for(seed, KEYS, step), batch)
            method.start_step(Progress(step, steps, epoch, -(-steps // per_epoch)))
            for group in optimizer.param_groups:
                group["lr"] = LR * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
            optimizer.zero_grad()
            method(Batch({"points": chosen}, metas), keys).loss.backward()
            optimizer.step()
    return method.eval()


def distances(made: Tensor, truth: Tensor) -> list[float]:
    """CD-L2 times 10,000 of each object: the sum of the two mean squared distances."""
    return [float(chamfer(one[None], whole[None])) * 1e4 for one, whole in zip(made, truth, strict=True)]


def completed(name: str, clouds: dict[str, Tensor], seed: int, steps: int) -> Tensor:
    """What a trained variant makes of the test clouds, in the frame of the whole."""
    own = name == OWN
    middle = {side: clouds[side].mean(1, keepdim=True) * own for side in ("train", "test")}
    method = train(FULL if own else name, clouds["train"] - middle["train"], seed, steps)
    return method.complete(clouds["test"] - middle["test"]) + middle["test"]


def untrained(clouds: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """What needs no network; 1,024 points each, or those of the input."""
    together = clouds["train"].flatten(0, 1)
    chosen = torch.randperm(len(together), generator=generator_for(seed, 5))[:WHOLE]
    turned = clouds["test"] * torch.tensor([-1.0, 1.0, 1.0])
    return {
        INPUT: clouds["test"],
        MIRROR: torch.cat([clouds["test"], turned], 1),
        ALL: together[chosen].expand(len(clouds["test"]), -1, -1),
    }


def run_seed(wholes: list[np.ndarray], out: Path, seed: int, steps: int) -> dict[str, np.ndarray]:
    """Clouds of every row and what they are compared with, from the file of an earlier call where there is one."""
    path = out / f"completion-seed{seed}-steps{steps}.npz"
    if not path.is_file():
        clouds = clouds_of(wholes, seed)
        made = untrained(clouds, seed)
        for name in TRAINED:
            made[name] = completed(name, clouds, seed, steps)
        arrays = {name: x.numpy() for name, x in {**made, "truth": clouds["truth"]}.items()}

        def save(place: Path) -> None:
            with place.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        path.parent.mkdir(parents=True, exist_ok=True)
        write_with(path, save)
    return dict(np.load(path).items())


def run(data: Path, out: Path, seeds: int, share: float = 1.0) -> dict[str, Any]:
    """All seeds, and a picture of three objects in OUT."""
    wholes = whole_clouds(data)
    steps = max(2, round(STEPS * share))
    rows: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        found = {name: torch.from_numpy(x) for name, x in run_seed(wholes, out, seed, steps).items()}
        found[OTHER] = found[FULL].roll(1, 0)
        for name in (INPUT, MIRROR, ALL, *TRAINED, OTHER):
            rows.setdefault(name, []).append(distances(found[name], found["truth"]))
        print("completion", seed, {name: round(float(np.mean(values[-1])), 1) for name, values in rows.items()}, flush=True)  # fmt: skip
        if seed == 0:
            picture({name: x.numpy() for name, x in found.items()}, out / "completion.png")
    return {
        "about": {"class": CLASS, "objects": len(wholes), "held out": HELD_OUT, "steps": steps, "batch": BATCH},
        "rows": [{"name": name, "values": [[round(x, 3) for x in one] for one in values]} for name, values in rows.items()],
        "differences": {name: interval(rows[FULL], rows[name]) for name in rows if name != FULL},
    }  # fmt: skip


def interval(ours: list[list[float]], other: list[list[float]]) -> dict[str, float]:
    """Mean of ours less other over objects of all seeds, with a 95 % bootstrap interval over them."""
    gain = np.concatenate(ours) - np.concatenate(other)
    draws = np.random.default_rng(0).integers(0, len(gain), (2000, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), [0.025, 0.975])
    return {"mean": float(gain.mean()), "low": float(low), "high": float(high), "better in": float((gain < 0).mean())}


def picture(found: dict[str, np.ndarray], path: Path, columns: tuple[str, ...] = (INPUT, PLAIN, FULL, "truth")) -> None:
    """Three objects, a row each: what is seen, what is made of it, and the truth; seen from the front and a little above."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(columns), figsize=(1.55 * len(columns), 4.3), dpi=90)
    turn, tilt = np.radians(30), np.radians(20)
    for row in range(3):
        for axis, name in zip(axes[row], columns, strict=True):
            x, y, z = found[name][row].T
            across, depth = x * np.cos(turn) + z * np.sin(turn), z * np.cos(turn) - x * np.sin(turn)
            up = y * np.cos(tilt) - depth * np.sin(tilt)
            nearness = depth * np.cos(tilt) + y * np.sin(tilt)
            order = np.argsort(nearness)
            axis.scatter(across[order], up[order], s=1.2, c=nearness[order], cmap="viridis", vmin=-1, vmax=1, lw=0)
            axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            axis.axis("off")
            if row == 0:
                axis.set_title({INPUT: "partial"}.get(name, name), fontsize=8)
    figure.subplots_adjust(0, 0, 1, 0.94, 0.01, 0.01)
    figure.savefig(path)
    plt.close(figure)


def table(stored: dict[str, Any]) -> list[str]:
    """The stored figures as lines of Markdown."""
    about = stored["about"]
    lines = [
        "### completion",
        "",
        f"CD-L2 × 10,000 to the whole object, lower is better; {about['objects']} objects of the class {about['class']}, "
        f"{about['held out']} held out; mean and deviation over {len(stored['rows'][0]['values'])} seeds.",
        "",
        "| completed by | CD-L2 | P2C less this (95 % interval) | P2C better in |",
        "|---|---|---|---|",
    ]
    for row in stored["rows"]:
        means = [float(np.mean(values)) for values in row["values"]]
        spread = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
        gap = stored["differences"].get(row["name"])
        cells = (f"{gap['mean']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})", f"{gap['better in']:.0%}") if gap else ("", "")  # fmt: skip
        lines.append(f"| {row['name']} | {np.mean(means):.1f}{spread} | {cells[0]} | {cells[1]} |")
    return [*lines, ""]
