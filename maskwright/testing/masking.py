"""The contract of a masking."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking import Grid, Mask, Masking, fold, sample_keys, uniform
from maskwright.testing.require import require, require_refusal

LATTICES = {1: Grid((24,)), 2: Grid((8, 12)), 3: Grid((4, 8, 12))}
"""Grids that are tried, by number of axes; divisible by units of 1, 2 and 4 tokens, not square."""
MANY = 4096
"""Masks that the share of a token is counted over."""


def check_masking(masking: Masking | type[Masking], grids: Sequence[Grid] | None = None) -> None:
    """Check a masking on every grid that it says it has a meaning on, and that it refuses the others.

    Exact and equal counts; `visible` and `masked` are a permutation that `restore` undoes; the same keys give the same
    masks; a sample's mask does not depend on its neighbours in the batch, nor on torch's global random state; nothing
    that was passed in is changed; tokens are hidden equally often where `uniform_marginals` promises it; ratio 0 hides
    nothing; a ratio that leaves one token at most gives a mask with a visible token, or ConfigError.

    Args:
        masking: a masking, or a class whose options all have defaults.
        grids: grids to try instead of (24,), (8, 12), (4, 8, 12) and 24 scattered tokens.

    Raises:
        AssertionError: what does not hold, and where.
    """
    if isinstance(masking, type):
        masking = masking()
    require(isinstance(masking, Masking), f"{masking!r} is no maskwright.core.masking.Masking.")
    name = type(masking).__name__
    dims = type(masking).grid_dims
    require(set(dims) <= {1, 2, 3}, f"{name}.grid_dims={dims} must hold numbers of axes from 1 to 3.")
    positions = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    if grids is None:
        grids = [LATTICES[ndim] for ndim in dims] + ([Grid((24,), positions)] if masking.scattered else [])
    for grid in grids:
        _check_on(masking, grid, f"{name} on a grid of {grid.shape}{' scattered' if grid.scattered else ''} tokens")
    for ndim in {1, 2, 3} - set(dims):
        require_refusal(lambda ndim=ndim: _make(masking, LATTICES[ndim], _keys(2)), f"{name} on a grid of {ndim} axes")
    if not masking.scattered:
        require_refusal(lambda: _make(masking, Grid((24,), positions), _keys(2)), f"{name} on scattered tokens")
    _check_options(masking, name)


def _keys(count: int) -> Tensor:
    return sample_keys(torch.Generator().manual_seed(7), count)


def _guide(masking: Masking, grid: Grid, keys: Tensor) -> Tensor | None:
    return uniform(fold(keys, 1_000_003), grid.count) if masking.needs_guide else None


def _make(masking: Masking, grid: Grid, keys: Tensor) -> Mask:
    return masking(grid, keys, _guide(masking, grid, keys))


def _check_on(masking: Masking, grid: Grid, where: str) -> None:
    keys = _keys(6)
    mask = _make(masking, grid, keys)
    _check_mask(mask, grid, len(keys), masking.hidden_count(grid), where)

    again = _make(masking, grid, keys)
    require(torch.equal(mask.restore, again.restore), f"{where}: the same keys gave another mask the second time.")
    _check_neighbours(masking, grid, keys, mask, where)
    _check_side_effects(masking, grid, keys, mask, where)
    if masking.uniform_marginals:
        _check_marginals(masking, grid, where)
    _check_ratios(masking, grid, keys, where)
    if masking.needs_guide:
        require_refusal(lambda: masking(grid, keys), f"{where}, without the guide that it needs")
        wrong = torch.zeros(len(keys), grid.count + 1)
        require_refusal(lambda: masking(grid, keys, wrong), f"{where}, with a guide of one token too many")


def _check_mask(mask: Mask, grid: Grid, batch: int, hidden_count: int, where: str) -> None:
    require(isinstance(mask, Mask), f"{where}: gave {type(mask).__name__}, not a Mask.")
    count = grid.count
    shapes = (tuple(mask.visible.shape), tuple(mask.masked.shape), tuple(mask.restore.shape))
    wanted = ((batch, count - hidden_count), (batch, hidden_count), (batch, count))
    require(shapes == wanted, f"{where}: visible, masked and restore have shapes {shapes}; {wanted} were expected.")
    for name in ("visible", "masked", "restore"):
        dtype = getattr(mask, name).dtype
        require(dtype == torch.int64, f"{where}: `{name}` has type {dtype}; indices must be torch.int64.")
    order = torch.cat([mask.visible, mask.masked], dim=1)
    every = torch.arange(count).expand(batch, count)
    complete = torch.equal(order.sort(dim=1).values, every)
    require(complete, f"{where}: visible and masked together do not hold every token exactly once.")
    require(torch.equal(order.gather(1, mask.restore), every), f"{where}: `restore` does not undo [visible, masked].")
    hidden = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, mask.masked, True)
    require(torch.equal(mask.hidden, hidden), f"{where}: `hidden` is not True at exactly the tokens in `masked`.")


def _check_neighbours(masking: Masking, grid: Grid, keys: Tensor, mask: Mask, where: str) -> None:
    """Samples may have coordinates of their own only in the author's grids; these are shared."""
    if grid.positions is not None and grid.positions.ndim == 3:
        return
    for row in range(len(keys)):
        alone = _make(masking, grid, keys[row : row + 1])
        same = torch.equal(alone.restore[0], mask.restore[row])
        require(same, f"{where}: sample {row} gets another mask alone than in a batch. Draw from its own key only.")
    turned = _make(masking, grid, keys.flip(0))
    same = torch.equal(turned.restore.flip(0), mask.restore)
    require(same, f"{where}: masks depend on the order of the samples in the batch. Draw from each sample's own key.")


def _check_side_effects(masking: Masking, grid: Grid, keys: Tensor, mask: Mask, where: str) -> None:
    guide = _guide(masking, grid, keys)
    passed = [keys, *(t for t in (guide, grid.positions) if t is not None)]
    before = [tensor.clone() for tensor in passed]
    state = torch.get_rng_state()
    torch.manual_seed(int(state[0]) + 1)
    other = torch.get_rng_state()
    again = masking(grid, keys, guide)
    untouched = torch.equal(other, torch.get_rng_state())
    torch.set_rng_state(state)
    require(
        untouched, f"{where}: draws from torch's global random state. Use maskwright.core.masking.uniform(keys, ...)."
    )
    require(torch.equal(again.restore, mask.restore), f"{where}: masks depend on torch's global random state.")
    for tensor, kept in zip(passed, before, strict=True):
        require(
            torch.equal(tensor, kept), f"{where}: changes the keys, the guide or the positions that were passed in."
        )


def _check_marginals(masking: Masking, grid: Grid, where: str) -> None:
    """Each token's share of hidden masks lies within five standard deviations of the ratio."""
    mask = _make(masking, grid, _keys(MANY))
    share = mask.hidden.float().mean(0)
    deviation = (mask.ratio * (1 - mask.ratio) / MANY) ** 0.5
    worst = int((share - mask.ratio).abs().argmax())
    require(
        abs(float(share[worst]) - mask.ratio) <= 5 * deviation + 1e-9,
        f"{where}: promises uniform_marginals, but token {worst} is hidden in {float(share[worst]):.3f} of {MANY} masks, "
        f"and {mask.ratio:.3f} were expected. Set uniform_marginals=False, or mend the score.",
    )


def _check_ratios(masking: Masking, grid: Grid, keys: Tensor, where: str) -> None:
    masking = copy.copy(masking)
    masking.ratio = 0.0
    hidden = _make(masking, grid, keys).masked.shape[1]
    require(hidden == 0, f"{where}: ratio 0 hides {hidden} tokens; it must hide none.")
    masking.ratio = 1 - 1 / grid.count
    try:
        mask = _make(masking, grid, keys)
    except ConfigError:
        return
    _check_mask(mask, grid, len(keys), masking.hidden_count(grid), f"{where} at ratio {masking.ratio:.3f}")
    require(mask.visible.shape[1] > 0, f"{where}: leaves no visible token at ratio {masking.ratio:.3f}.")


def _check_options(masking: Masking, name: str) -> None:
    parameters = inspect.signature(type(masking)).parameters
    if "ratio" not in parameters or any(p.default is p.empty for p in parameters.values()):
        return
    for ratio in (-0.1, 1.0, float("nan")):
        require_refusal(lambda ratio=ratio: type(masking)(ratio=ratio), f"{name}(ratio={ratio})")
