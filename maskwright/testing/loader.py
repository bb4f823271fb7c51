"""The contract of a loader."""

from __future__ import annotations

import tempfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskwright.core.loader import Loader
from maskwright.core.sample import Sample, TensorSpec
from maskwright.testing.require import require, same_bits


def check_loader(loader: Loader, samples: int = 3) -> None:
    """Check a loader that was opened on at least one good file.

    What it reads is what `spec` announces (names, dimensions, channel counts) and finite; reading is deterministic
    without a generator and with equally seeded ones; statistics and pictures have the documented shapes; groups and
    sources are named; an index beyond the end raises IndexError; an empty folder or a text file is not accepted; it can
    be sent to worker processes.

    Args:
        samples: how many samples are read, spread evenly.

    Raises:
        AssertionError: what does not hold, and where.
    """
    name = type(loader).__name__
    require(isinstance(loader, Loader), f"{name} is no maskwright.core.loader.Loader.")
    require(len(loader) > 0, f"{name} holds no sample; open it on at least one good file. Bad: {loader.bad_files[:3]}")
    _check_spec(loader, name)
    for index in sorted({round(i) for i in np.linspace(0, len(loader) - 1, samples)}):
        _check_sample(loader, index, f"{name}.read({index})")
    for index in (len(loader), len(loader) + 1000):
        _check_beyond(loader, index, name)
    _check_statistics(loader, name)
    _check_pictures(loader, name)
    _check_refusals(loader, name)
    require(loader.bytes_per_sample() > 0, f"{name}.bytes_per_sample() must be positive.")
    try:
        ForkingPickler.dumps(loader)
    except Exception as error:
        raise AssertionError(
            f"{name} cannot be sent to worker processes ({type(error).__name__}: {error}). Keep no open file in it: open "
            f"files in read(), or leave them out in __getstate__."
        ) from error


def _check_spec(loader: Loader, name: str) -> None:
    require(bool(loader.spec), f"{name}.spec is empty; it must name each tensor of a sample.")
    for key, spec in loader.spec.items():
        require(isinstance(spec, TensorSpec), f'{name}.spec["{key}"] is {type(spec).__name__}, not a TensorSpec.')
    require(isinstance(loader.bad_files, list), f"{name}.bad_files must be a list of BadFile.")
    for bad in loader.bad_files:
        require(bool(bad.path and bad.reason), f"{name}.bad_files: {bad} must name a file and a reason.")


def _check_sample(loader: Loader, index: int, where: str) -> None:
    sample = loader.read(index)
    require(isinstance(sample, Sample), f"{where} gave {type(sample).__name__}, not a Sample.")
    given, wanted = sorted(sample.tensors), sorted(loader.spec)
    needed = {key for key, spec in loader.spec.items() if not spec.optional}
    announced = bool(given) and needed <= set(given) <= set(wanted)
    require(announced, f"{where} holds {given}, but the loader's spec announces {wanted}.")
    for key in given:
        tensor, spec = sample[key], loader.spec[key]
        dims = spec.dims.split()
        shape = tuple(tensor.shape)
        require(len(shape) == len(dims), f'{where}["{key}"] has shape {shape}, but its spec says ({spec.dims}).')
        if "C" in dims and spec.channel_count is not None:
            channels = shape[dims.index("C")]
            same = channels == spec.channel_count
            require(same, f'{where}["{key}"] has {channels} channels, but its spec says {spec.channel_count}.')
        require(tensor.is_floating_point(), f'{where}["{key}"] has type {tensor.dtype}; give floating point numbers.')
        require(
            bool(tensor.isfinite().all()), f'{where}["{key}"] holds NaN or infinity. Fill them, or raise DataError.'
        )
    _check_meta(loader, index, sample, where)
    _check_same(sample, loader.read(index), f"{where} twice, without a generator,")
    first, second = (loader.read(index, torch.Generator().manual_seed(5)) for _ in range(2))
    _check_same(first, second, f"{where} with equally seeded generators")


def _check_meta(loader: Loader, index: int, sample: Sample, where: str) -> None:
    meta = sample.meta
    require(bool(meta.source), f"{where}: meta.source is empty; it must name the file.")
    require(meta.index == index, f"{where}: meta.index is {meta.index}, not {index}.")
    group = loader.group(index)
    require(isinstance(group, str) and bool(group), f"{where}: group({index}) is {group!r}; splits need a name.")
    require(meta.group == group, f"{where}: meta.group is {meta.group!r}, but group({index}) is {group!r}.")
    sources = loader.sources(index)
    named = bool(sources) and all(isinstance(source, str) and source for source in sources)
    require(named, f"{where}: sources({index}) is {sources!r}; it must name every file of the sample.")


def _check_same(a: Sample, b: Sample, where: str) -> None:
    for key in a.tensors:
        require(same_bits(a[key], b[key]), f'{where} gives different "{key}". Draw from the generator alone.')
    require(a.meta == b.meta, f"{where} gives different meta: {a.meta} and {b.meta}.")


def _check_beyond(loader: Loader, index: int, name: str) -> None:
    try:
        loader.read(index)
    except IndexError:
        return
    except Exception as error:
        raise AssertionError(
            f"{name}.read({index}) of {len(loader)} raised {error!r}; IndexError was expected."
        ) from error
    raise AssertionError(f"{name}.read({index}) of {len(loader)} samples gave one; IndexError was expected.")


def _check_statistics(loader: Loader, name: str) -> None:
    statistics = loader.statistics()
    given, wanted = sorted(statistics), sorted(loader.spec)
    require(given == wanted, f"{name}.statistics() are of {given}, but the spec announces {wanted}.")
    for key, spec in loader.spec.items():
        found = statistics[key]
        lists = np.array([found.minimum, found.mean, found.maximum, found.std], dtype=float)
        where = f'{name}.statistics()["{key}"]'
        channels = spec.channel_count or lists.shape[1]
        require(lists.shape == (4, channels), f"{where}: lists of {lists.shape[1]}, but there are {channels} channels.")
        require(bool(np.isfinite(lists).all()), f"{where}: holds NaN or infinity: {found}.")
        low, mean, high, std = lists
        slack = 1e-4 * (np.abs(lists[:3]).max(0) + 1e-6)  # sums of float32
        ordered = bool(((low <= mean + slack) & (mean <= high + slack)).all())
        require(ordered, f"{where}: a mean does not lie between minimum and maximum: {found}.")
        require(bool((std >= 0).all()), f"{where}: a standard deviation is negative: {found}.")
        require(found.count > 0, f"{where}: count is {found.count}; it must say how many values were seen.")


def _check_pictures(loader: Loader, name: str) -> None:
    sample = loader.read(0)
    for key, tensor in sample.tensors.items():
        picture = loader.picture(key, tensor)
        shape, dtype = getattr(picture, "shape", None), getattr(picture, "dtype", type(picture))
        fits = shape is not None and len(shape) == 3 and shape[2] == 3 and min(shape) > 0 and dtype == np.uint8
        require(fits, f'{name}.picture("{key}", ...) is {shape} of {dtype}; an RGB image (H, W, 3) of uint8 is wanted.')
        _check_places(loader, key, tensor, name)


def _check_places(loader: Loader, key: str, tensor: Tensor, name: str) -> None:
    """A bright quarter of an image or volume is the bright quarter of its picture: masks are laid over it."""
    low, high = tensor.float().amin(), tensor.float().amax()
    if loader.spec[key].dims not in ("C H W", "C D H W") or low == high or min(tensor.shape[-2:]) < 2:
        return
    height, width = (size // 2 for size in tensor.shape[-2:])
    marked = torch.full_like(tensor.float(), low.item())
    marked[..., :height, :width] = high
    grey = loader.picture(key, marked).mean(2)
    require(grey.shape == tensor.shape[-2:], f'{name}.picture("{key}", ...) has other rows or columns than the tensor.')
    quarter, rest = grey[:height, :width], np.concatenate([grey[height:].ravel(), grey[:height, width:].ravel()])
    fits = quarter.mean() > rest.mean()
    require(fits, f'{name}.picture("{key}", ...) moves rows or columns; turn a finished picture in `upright` instead.')


def _check_refusals(loader: Loader, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "notes") / "notes.md"
        require(not type(loader).accepts(Path(folder)), f"{name}.accepts an empty folder.")
        text.parent.mkdir()
        text.write_text("Not data.\n")
        require(not type(loader).accepts(text), f"{name}.accepts a text file named {text.name}.")
        require(not type(loader).accepts(text.parent), f"{name}.accepts a folder that holds only {text.name}.")
