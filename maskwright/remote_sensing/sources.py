"""Finding images in folders: GeoTIFFs, and folders of one file a band."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from maskwright.core.errors import DataError
from maskwright.core.sample import BadFile
from maskwright.remote_sensing import bands
from maskwright.remote_sensing.alignment import same_crs
from maskwright.remote_sensing.image import Source
from maskwright.remote_sensing.raster import SUFFIXES, Header, read_header


def raster_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Files in a folder that look like rasters, sorted."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())


def holds_rasters(folder: Path) -> bool:
    """Whether a folder, or one below it, holds a file that looks like a raster. Stops at the first."""
    return any(name.lower().endswith(SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def may_have_a_place(path: Path) -> bool:
    """Whether a file, or one in a folder, is of a kind that knows its place on earth; stops at the first.

    GeoTIFF and JPEG 2000 do; PNG and JPEG do with a world file beside them. Others are ordinary pictures.
    """
    own, world = (".tif", ".tiff", ".jp2"), (".pgw", ".jgw", ".wld")
    if path.is_file():
        return path.suffix.lower() in own or any(path.with_suffix(suffix).is_file() for suffix in world)
    return any(name.lower().endswith(own + world) for _, _, names in os.walk(path) for name in names)


def source_of_file(path: Path) -> Source:
    """One file with all its bands.

    Raises:
        DataError: it cannot be read.
    """
    header = read_header(path)
    names = bands.names_for(header.descriptions, header.count)
    listed = tuple((name, str(path), number) for number, name in enumerate(names, start=1))
    return Source(path.stem, header, listed, {str(path): (header.height, header.width)})


def is_band_folder(folder: Path) -> bool:
    """Whether a folder holds one image as one file a band (BigEarthNet's layout)."""
    named = [bands.canonical(path.stem) for path in raster_files(folder)]
    return len(named) >= 2 and all(named) and len(set(named)) == len(named)


def source_of_folder(folder: Path) -> Source:
    """One file a band; the finest gives the grid.

    Raises:
        DataError: files do not show the same place, or hold several bands each.
    """
    headers: dict[str, Header] = {}
    for path in raster_files(folder):
        name = bands.canonical(path.stem)
        if name is not None:
            headers[name] = read_header(path)
    if not headers:
        raise DataError(folder, "holds no band files", "names ending in _B02 ... _B12 or _VV, _VH")
    finest = max(headers.values(), key=lambda header: header.width * header.height)
    for name, header in headers.items():
        if header.count != 1:
            raise DataError(header.path, f"holds {header.count} bands", "one band a file in this layout")
        if not same_crs(header.crs, finest.crs) or not _same_extent(header, finest):
            raise DataError(
                header.path,
                f"band {name} does not cover the same place as {Path(finest.path).name} ({header.crs}, "
                f"{header.height} x {header.width})",
                f"the extent of {finest.crs}, {finest.height} x {finest.width}",
                "Take this folder out, or fetch it again",
            )
    ordered = sorted(headers, key=bands.KNOWN.index)
    listed = tuple((name, headers[name].path, 1) for name in ordered)
    shapes = {header.path: (header.height, header.width) for header in headers.values()}
    return Source(folder.name, finest, listed, shapes)


def _same_extent(a: Header, b: Header) -> bool:
    tolerance = 0.51 * max(abs(a.affine.a), abs(a.affine.b), abs(b.affine.a), abs(b.affine.b))
    for corner in ((0, 0), (1, 1)):
        ax, ay = a.affine * (corner[0] * a.width, corner[1] * a.height)
        bx, by = b.affine * (corner[0] * b.width, corner[1] * b.height)
        if not (abs(ax - bx) <= tolerance and abs(ay - by) <= tolerance):
            return False
    return True


def source_of(path: Path) -> Source:
    """The image in a file, or in a folder of one file a band."""
    return source_of_folder(path) if path.is_dir() else source_of_file(path)


def find_sources(path: Path, recursive: bool = True) -> tuple[list[Source], list[BadFile]]:
    """All images of a file or folder, and what could not be used.

    Raises:
        DataError: there is nothing at `path`, or the one file that was named cannot be used.
    """
    if not path.is_dir():
        return [source_of_file(path)], []
    good: list[Source] = []
    bad: list[BadFile] = []
    for item in find_images(path, recursive):
        try:
            good.append(source_of(item))
        except DataError as error:
            bad.append(BadFile(error.path, str(error)))
    return good, bad


def find_images(path: Path, recursive: bool = True) -> list[Path]:
    """Files, and folders of one file a band, that look like images, in the order of their names."""
    images: list[Path] = []
    for folder in sorted({file.parent for file in raster_files(path, recursive)}):
        items: Iterable[Path] = [folder] if is_band_folder(folder) else raster_files(folder)
        images += items
    return images


def check_same_bands(source: Source, first: Source) -> None:
    """Compare the bands of an image with those of the first one.

    Raises:
        DataError: they differ in number, or in known names.
    """
    known = set(source.names) | set(first.names) <= set(bands.KNOWN)
    if len(source.names) != len(first.names) or (known and source.names != first.names):
        raise DataError(
            source.header.path,
            f"has {len(source.names)} bands ({', '.join(source.names[:15])})",
            f"{len(first.names)} ({', '.join(first.names[:15])}), as {first.header.path}",
            "Keep images of one kind in a folder, or choose the bands that all have with data.bands",
        )
