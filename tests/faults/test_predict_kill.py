"""Prediction under kill -9 at random moments: what has its final name is whole, and going on gives the same files."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import rasterio

from maskwright.core.predict import predict
from maskwright.remote_sensing.loaders import GeoTiffLoader
from tests.task_models import patch_local_model, random_scene, same_folder

IMAGES, SIDE, KILLS = 12, 256, 20

# Forks a child that predicts, once for each line it reads, so that libraries are imported only once.
CHILD = """
import os, sys, torch
torch.set_num_threads(1)
import rasterio, pyarrow.parquet
from maskwright.core.predict import predict
import maskwright.core.predict_maps, maskwright.remote_sensing.loaders, maskwright.core.encoder.vit
from maskwright.core.host import get_host
get_host()
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        try:
            predict(*sys.argv[1:4], probabilities=True, batch_size=16)
        finally:
            os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # until then its number is nobody else's, even if it has ended
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_random_moments_never_leaves_a_half_map(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for number in range(IMAGES):
        random_scene(data / f"image_{number:02d}.tif", SIDE, SIDE, seed=number)
    model = patch_local_model(tmp_path / "model", GeoTiffLoader(data, size=64), size=64)
    started = time.perf_counter()
    predict(model, data, tmp_path / "whole", probabilities=True, batch_size=16)
    seconds = time.perf_counter() - started

    moment = random.Random(0)
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(model.path), str(data), str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    among = kills = 0
    try:
        while kills < KILLS or (among < KILLS // 4 and kills < 5 * KILLS):  # a busy machine shifts all moments
            parent.stdin.write("go\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            time.sleep(moment.uniform(0, 4 * seconds / KILLS))
            with_maps = len(list(out.glob("image_*.tif"))) if out.is_dir() else 0
            os.kill(child, signal.SIGKILL)
            kills += 1
            parent.stdin.write("wait\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "ended\n"
            for path in out.glob("image_*.tif"):
                with rasterio.open(path) as file, rasterio.open(tmp_path / "whole" / path.name) as expected:
                    assert (file.read() == expected.read()).all(), path
            among += 0 < with_maps < 2 * IMAGES
            if with_maps == 2 * IMAGES:  # all was done: begin again, so that every kill falls into work
                for path in out.glob("image_*.tif"):
                    path.unlink()
    finally:
        parent.stdin.close()
        parent.wait(timeout=60)
    predict(model, data, out, probabilities=True, batch_size=16)
    assert same_folder(tmp_path / "whole", out)
    assert among >= 1  # kills fell between the first map and the last
