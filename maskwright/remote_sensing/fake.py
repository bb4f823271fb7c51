"""Made-up data in the true formats, for tests and first steps. Nothing here is an observation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

from maskwright.remote_sensing.bands import S1, S2_L1C, S2_L2A
from maskwright.remote_sensing.tasks import LAND_COVER
from maskwright.remote_sensing.writers import write_geotiff

CRS = "EPSG:32633"
COVER_OF_HEIGHT = (1, 4, 9, 2, 6)
"""Codes of `LAND_COVER` from the lowest fifth of a made-up landscape to the highest."""


def _landscape(generator: np.random.Generator, size: int) -> np.ndarray:
    """Smooth random field (size, size) in [0, 1] with structure at several scales."""
    spectrum = np.fft.fft2(generator.normal(size=(size, size)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    field = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / size) ** 1.5).real
    return (field - field.min()) / (np.ptp(field) + 1e-9)


def _optical(field: np.ndarray, generator: np.random.Generator, slopes: np.ndarray) -> np.ndarray:
    """Digital numbers (C, H, W) that rise or fall with the landscape by `slopes` (C,), plus noise."""
    values = 1700 + slopes[:, None, None] * field + generator.normal(scale=40, size=(len(slopes), *field.shape))
    return values.clip(1, 10000).astype(np.uint16)


def _radar(field: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """VV and VH in dB (2, H, W)."""
    speckle = generator.normal(scale=1.0, size=(2, *field.shape))
    return (np.array([-14.0, -21.0])[:, None, None] + 8 * field + speckle).astype(np.float32)


def _tile(number: int, size: int, seed: int) -> tuple[np.ndarray, tuple[float, ...], np.random.Generator]:
    """Landscape of a tile, its transform, and a generator for what sensors add: the same for every product of it."""
    generator = np.random.default_rng([seed, number])
    transform = (10.0, 0.0, 500000.0 + 10 * size * number, 0.0, -10.0, 5000000.0)
    return _landscape(generator, size), transform, generator


def fake_s1s2(path: str | Path, tiles: int = 3, size: int = 128, seed: int = 0, l1c: bool = False) -> Path:
    """Folders `S1` (VV, VH in dB, float32) and `S2` (12 bands, or 13 as L1C, uint16) of equally named GeoTIFFs.

    Both sensors see the same made-up landscape, so that there is something to learn.

    Args:
        tiles: number of pairs, side by side on the ground.
        size: side of a tile in pixels of 10 m.
        l1c: write the 13 bands of a top-of-atmosphere product.
    """
    path = Path(path)
    names = S2_L1C if l1c else S2_L2A
    slopes = np.random.default_rng(seed).uniform(-1500, 3000, len(names))
    for number in range(tiles):
        field, transform, generator = _tile(number, size, seed)
        optical, radar = _optical(field, generator, slopes), _radar(field, generator)
        write_geotiff(path / "S2" / f"tile_{number}.tif", optical, CRS, transform, band_names=names)
        write_geotiff(path / "S1" / f"tile_{number}.tif", radar, CRS, transform, band_names=S1)
    return path


def fake_land_cover(path: str | Path, tiles: int = 3, size: int = 128, seed: int = 0) -> Path:
    """Folder `LULC` of class codes (uint8) for the tiles that `fake_s1s2` makes of the same arguments."""
    path = Path(path)
    colours = {code: colour for code, (_, colour) in LAND_COVER.items()}
    for number in range(tiles):
        field, transform, _ = _tile(number, size, seed)
        levels = np.quantile(field, np.linspace(0, 1, len(COVER_OF_HEIGHT) + 1)[1:-1])
        codes = np.array(COVER_OF_HEIGHT, dtype=np.uint8)[np.searchsorted(levels, field)]
        write_geotiff(path / "LULC" / f"tile_{number}.tif", codes, CRS, transform, nodata=0, colormap=colours)
    return path


def fake_bigearthnet(path: str | Path, patches: int = 2, seed: int = 0) -> Path:
    """Folders `S1`, `S2` of patch folders with one file a band: 120 px at 10 m, 60 at 20 m, 20 at 60 m; `pairs.csv`."""
    path = Path(path)
    slopes = np.random.default_rng(seed).uniform(-1500, 3000, len(S2_L2A))
    side = dict.fromkeys(("B2", "B3", "B4", "B8"), 120) | {"B1": 20, "B9": 20}
    lines = ["s2_patch,s1_patch"]
    for number in range(patches):
        s2, s1 = f"S2A_MSIL2A_20170613T101031_{number}_48", f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number}_48"
        field, _, generator = _tile(number, 120, seed)
        optical, radar = _optical(field, generator, slopes), _radar(field, generator)
        for band, image in zip(S2_L2A, optical, strict=True):
            factor = 120 // side.get(band, 60)
            spelled = "B8A" if band == "B8A" else f"B{int(band[1:]):02d}"
            transform = (10.0 * factor, 0.0, 300000.0 + 1200 * number, 0.0, -10.0 * factor, 5300000.0)
            small = image[::factor, ::factor]
            write_geotiff(path / "S2" / s2 / f"{s2}_{spelled}.tif", small, CRS, transform)
        for band, image in zip(S1, radar, strict=True):
            transform = (10.0, 0.0, 300000.0 + 1200 * number, 0.0, -10.0, 5300000.0)
            write_geotiff(path / "S1" / s1 / f"{s1}_{band}.tif", image, CRS, transform)
        lines.append(f"{s2},{s1}")
    (path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return path


def fake_scene(
    path: str | Path,
    size: int = 1024,
    bands: int = 13,
    tile: int | None = 256,
    dtype: str = "uint16",
    nodata: float | None = None,
    seed: int = 0,
) -> Path:
    """One large GeoTIFF of `bands` x `size` x `size`, deflated, in tiles of `tile` pixels or in strips (None)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    profile = {
        "driver": "GTiff", "count": bands, "height": size, "width": size, "dtype": dtype, "crs": CRS,
        "transform": Affine(10, 0, 500000, 0, -10, 5000000), "compress": "deflate", "nodata": nodata,
    }  # fmt: skip
    profile |= {"tiled": True, "blockxsize": tile, "blockysize": tile} if tile else {"tiled": False}
    field = _landscape(generator, size)
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, size, 256):  # all bands of some rows at once, so that no block is written twice
            rows = np.arange(top, min(top + 256, size))
            values = np.stack([1000 + 2000 * field[(rows - 7 * number) % size] for number in range(bands)])
            values += generator.normal(scale=20, size=values.shape)
            file.write(values.clip(1, 60000).astype(dtype), window=Window(0, top, size, len(rows)))
    return path
