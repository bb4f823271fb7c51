"""The contract of a method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskwright.core.errors import ConfigError
from maskwright.core.masking import sample_keys
from maskwright.core.sample import Batch
from maskwright.core.trainer.method import Method, Panel, Progress, Step
from maskwright.testing.data import BatchLoader, rows
from maskwright.testing.encoder import require_inputs, round_trip
from maskwright.testing.require import by_name, require, same_bits


def check_method(
    factory: Callable[[], Method], batch: Batch, steps: int = 20, lr: float = 1e-3, tolerance: float = 1e-4
) -> None:
    """Check a method on a batch that suits it.

    A finite scalar loss, the same for the same keys; hidden input does not change one bit of what the encoder makes of
    visible tokens, nor of the picture; a sample is encoded alike alone and in any batch; a batch of one works or is
    refused with ConfigError; every trainable parameter moves; `steps` steps on the one batch lower its loss; weights
    survive safetensors; every preset can be built.

    Args:
        factory: builds a new method; small ones keep the check quick.
        batch: at least two samples, in physical units.
        steps, lr: length and AdamW learning rate of the training that must lower the loss.
        tolerance: by how much features may differ alone and in a batch, relative to their largest value.

    Raises:
        AssertionError: what does not hold, and where.
    """
    require(len(batch) >= 2, f"check_method needs a batch of two samples or more, not {len(batch)}.")
    torch.manual_seed(0)
    method = factory()
    name = type(method).__name__
    require(isinstance(method, Method), f"{name} is no maskwright.core.trainer.method.Method.")
    require_inputs(method.inputs, batch, name)
    method.prepare(BatchLoader(batch, method.inputs), torch.Generator().manual_seed(5))
    method.start_step(Progress(0, steps, 0, steps))
    keys = sample_keys(torch.Generator().manual_seed(11), len(batch))
    _check_forward(method, batch, keys, name)
    batch = method.settled(batch)
    panels = _check_preview(method, batch, keys, name)
    _check_hidden(method, batch, keys, panels, name)
    _check_neighbours(method, batch, keys, tolerance, name)
    _check_training(method, batch, keys, steps, lr, name)
    _check_weights(method, factory, batch, keys, name)
    _check_presets(method, name)


def _step(method: Method, batch: Batch, keys: Tensor) -> Step:
    torch.manual_seed(1)  # the trainer seeds every forward pass
    return method(batch, keys)


def _check_forward(method: Method, batch: Batch, keys: Tensor, name: str) -> None:
    method.train()
    step = _step(method, batch, keys)
    require(isinstance(step, Step), f"{name}.forward gave {type(step).__name__}, not a Step.")
    require(step.loss.ndim == 0, f"{name}.forward: the loss has shape {tuple(step.loss.shape)}; it must be a scalar.")
    require(bool(step.loss.isfinite()), f"{name}.forward: the loss is {step.loss.item()}.")
    require(step.loss.requires_grad, f"{name}.forward: the loss carries no gradient.")
    for term, value in step.terms.items():
        plain = value.ndim == 0 and not value.requires_grad and bool(value.isfinite())
        require(plain, f'{name}.forward: the term "{term}" must be a finite detached scalar, not {value!r}.')
    again = _step(method, batch, keys)
    require(same_bits(step.loss.detach(), again.loss.detach()), f"{name}.forward: the same keys gave another loss.")
    try:
        alone = _step(method, rows(batch, [0]), keys[:1])
    except ConfigError:
        return
    require(bool(alone.loss.isfinite()), f"{name}.forward: the loss of one sample alone is {alone.loss.item()}.")


def _check_preview(method: Method, batch: Batch, keys: Tensor, name: str) -> dict[str, Panel]:
    method.train()
    panels = method.preview(batch, keys)
    require(method.training, f"{name}.preview leaves the method in evaluation mode; it must put the mode back.")
    method.eval()
    panels = method.preview(batch, keys)
    require(bool(panels), f"{name}.preview gives no panel.")
    for key, panel in panels.items():
        where = f'{name}.preview()["{key}"]'
        require(key in batch.tensors, f"{where}: panels are named after inputs, which are {', '.join(batch.tensors)}.")
        shape = tuple(batch[key].shape)
        require(torch.equal(panel.original, batch[key]), f"{where}: `original` is not the input in physical units.")
        wanted = shape[:2] if panel.scattered else (shape[0], *shape[2:])
        fits = panel.hidden.dtype == torch.bool and tuple(panel.hidden.shape) == wanted
        require(fits, f"{where}: `hidden` is {panel.hidden.dtype} {tuple(panel.hidden.shape)}, not bool {wanted}.")
        mixed = bool(panel.hidden.any()) and not bool(panel.hidden.all())
        require(mixed, f"{where}: `hidden` must be True somewhere (hidden) and False somewhere (visible).")
        found = tuple(panel.reconstruction.shape)
        fits = (found[0], *found[2:]) == (shape[0], *shape[2:]) if panel.scattered else found == shape
        require(fits, f"{where}: `reconstruction` has shape {found}; {shape} was expected.")
        require(bool(panel.reconstruction.isfinite().all()), f"{where}: `reconstruction` holds NaN or infinity.")
        require(not panel.reconstruction.requires_grad, f"{where}: carries a gradient; use torch.no_grad().")
    return panels


def _disturb(batch: Batch, panels: dict[str, Panel], hidden: bool) -> Batch:
    """The batch with noise added to what is hidden, or to what is visible, in all panels."""
    tensors = dict(batch.tensors)
    for number, (key, panel) in enumerate(panels.items()):
        x = tensors[key]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number)) * x.std().clamp_min(1e-6)
        where = (panel.hidden if hidden else ~panel.hidden).unsqueeze(2 if panel.scattered else 1)
        tensors[key] = torch.where(where, x + noise, x)
    return Batch(tensors, batch.metas, lengths=batch.lengths)


def _encode(method: Method, batch: Batch, keys: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return by_name(method.encode(batch, keys))


def _check_hidden(method: Method, batch: Batch, keys: Tensor, panels: dict[str, Panel], name: str) -> None:
    before, changed = _encode(method, batch, keys), _disturb(batch, panels, hidden=True)
    after = _encode(method, changed, keys)
    for key, value in before.items():
        require(bool(value.isfinite().all()), f"{name}.encode: {key} holds NaN or infinity.")
        require(same_bits(value, after[key]), f"{name}.encode: hidden input changes the {key} of visible tokens.")
    seen = _encode(method, _disturb(batch, panels, hidden=False), keys)
    moved = any(not same_bits(value, seen[key]) for key, value in before.items())
    require(moved, f"{name}.encode: visible input does not change it; `hidden` of preview may be the wrong way round.")
    again = method.preview(changed, keys)
    for key, panel in panels.items():
        made, remade = panel.reconstruction, again[key].reconstruction
        if not panel.scattered:  # all of a set of points is made from what was seen
            where = panel.hidden.unsqueeze(1).expand_as(made)
            made, remade = made[where], remade[where]
        clean = same_bits(made, remade)
        require(clean, f'{name}.preview()["{key}"]: the reconstruction of hidden input was made with a look at it.')


def _check_neighbours(method: Method, batch: Batch, keys: Tensor, tolerance: float, name: str) -> None:
    whole = _encode(method, batch, keys)
    last = len(batch) - 1
    alone = _encode(method, rows(batch, [last]), keys[last:])
    for key, value in whole.items():
        far = float((alone[key][0] - value[last]).abs().max() / value.abs().max().clamp_min(1e-12))
        close = far <= tolerance
        require(close, f"{name}.encode: {key} of a sample differs by {far:.1e} alone and in a batch (same key).")


def _check_training(method: Method, batch: Batch, keys: Tensor, steps: int, lr: float, name: str) -> None:
    method.train()
    trainable = {key: p for key, p in method.named_parameters() if p.requires_grad}
    start = {key: p.detach().clone() for key, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps + 1):
        method.start_step(Progress(step, steps, step, steps))
        loss = _step(method, batch, keys).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            idle = [key for key, p in trainable.items() if p.grad is None]
            require(not idle, f"{name}: no gradient reaches {', '.join(idle[:5])}. Use them, or freeze them.")
        for key, p in trainable.items():
            finite = p.grad is None or bool(p.grad.isfinite().all())
            require(finite, f"{name}: the gradient of {key} is not finite in step {step}.")
        if step < steps:
            optimizer.step()
            method.after_step(step, steps)
    still = [key for key, p in trainable.items() if torch.equal(p, start[key])]
    require(not still, f"{name}: {steps} steps did not move {', '.join(still[:5])}: their gradient is exactly zero.")
    lower = losses[-1] < losses[0]
    require(lower, f"{name}: {steps} steps on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g}.")


def _check_weights(method: Method, factory: Callable[[], Method], batch: Batch, keys: Tensor, name: str) -> None:
    torch.manual_seed(2)
    other = factory()
    other.load_state_dict(round_trip(method))
    other.start_step(method.progress)
    method.train(), other.train()
    same = same_bits(_step(method, batch, keys).loss.detach(), _step(other, batch, keys).loss.detach())
    require(same, f"{name}: weights loaded into a new method give another loss. Register state as buffers.")


def _check_presets(method: Method, name: str) -> None:
    for preset, sections in type(method).presets.items():
        unknown = sorted(set(sections) - {"method", "trainer"})
        require(not unknown, f'{name}.presets["{preset}"] has sections {unknown}; only method and trainer exist.')
        try:
            with torch.device("meta"):  # sizes without memory
                type(method)(**sections.get("method", {}))
        except (TypeError, ConfigError) as error:
            raise AssertionError(f'{name}.presets["{preset}"] cannot be built: {error}') from error
