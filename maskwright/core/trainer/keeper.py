"""What happens around the steps: the log, the progress bar, checkpoints, signals and the clock."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L

from maskwright.core.errors import MaskwrightError
from maskwright.core.host import get_host
from maskwright.core.recipe import seconds_of
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.files import DiskFullError
from maskwright.core.trainer.guard import effective_rank, uniformity
from maskwright.core.trainer.metrics import MetricsFile
from maskwright.core.trainer.module import PretrainModule

SAVE_ATTEMPTS = 3
"""Checkpoints in a row that a full disk may prevent before training stops."""


class Interrupted(MaskwrightError):
    """Training was stopped by a signal (exit code 128 + its number) or by `max_time` (exit code 0), with a checkpoint."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class SignalWatch:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def stop(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = signal.Signals(number)


class Keeper(L.Callback):
    """Keeps a run's log and checkpoints, and stops it in good order.

    Args:
        say: prints a line for people.
        bar: whether to draw a progress bar instead of lines.
    """

    def __init__(self, say: Callable[[str], None], bar: bool) -> None:
        self.say, self.bar = say, bar
        self.signals = SignalWatch()
        self.stopped: Interrupted | None = None
        self._losses: list[float] = []
        self._failed_saves = 0
        self._progress: Any = None

    def on_train_start(self, trainer: L.Trainer, module: PretrainModule) -> None:  # type: ignore[override]
        self.signals.start()
        self.started = self.saved_at = self.logged_at = time.monotonic()
        self.logged_samples = 0
        settings = module.settings
        self.deadline = self.started + seconds_of(settings.max_time) if settings.max_time else None
        self.best = float(module.restored.state.get("best", "inf")) if module.restored else float("inf")
        if trainer.is_global_zero:
            self.metrics = MetricsFile(module.run.path / "metrics.csv", module.step)
            if self.bar:
                self._progress = _make_bar()
                self._progress.start()
                self._task = self._progress.add_task("", total=module.plan.steps, completed=module.step, note="")
        get_host().call("run_started", run=module.run)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: PretrainModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        if module._micro_batches:  # inside an optimiser step
            return
        settings, step = module.settings, module.step
        last = step >= module.plan.steps
        if step % settings.log_every == 0 or last:
            self._log(trainer, module)
        stop = module.any_process(self.signals.received is not None)
        out_of_time = module.any_process(self.deadline is not None and time.monotonic() > self.deadline)
        due = time.monotonic() - self.saved_at > 60 * settings.checkpoint_minutes
        due = module.any_process(due) or (
            settings.checkpoint_steps is not None and step % settings.checkpoint_steps == 0
        )
        if due or stop or out_of_time or last:
            self._save(trainer, module)
        if (stop or out_of_time) and not last:
            where = f"step {step} of {module.plan.steps}; continue with `maskwright resume {module.run.path}`"
            if stop:
                received = self.signals.received or signal.SIGTERM
                self.stopped = Interrupted(f"Stopped by {received.name} after {where}.", 128 + received)
            else:
                self.stopped = Interrupted(f"max_time={settings.max_time} is over after {where}.", 0)
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: PretrainModule) -> None:  # type: ignore[override]
        self._close(trainer)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._close(trainer)

    def _close(self, trainer: L.Trainer) -> None:
        self.signals.stop()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if trainer.is_global_zero and hasattr(self, "metrics"):
            self.metrics.close()

    def _log(self, trainer: L.Trainer, module: PretrainModule) -> None:
        now = time.monotonic()
        values = module.mean_terms()
        loss = values.get("loss", math.nan)
        if math.isfinite(loss):  # a step that was left out says nothing about which checkpoint is best
            self._losses.append(loss)
        speed = (module.samples_seen - self.logged_samples) / max(now - self.logged_at, 1e-9)
        row = {
            "step": module.step,
            "epoch": module.plan.epoch_of(module.step - 1),
            "loss": loss,
            **values,
            "lr": module.last_lr,
            "gradient_norm": module.last_norm,
            **self._collapse(module),
            "samples_per_second": round(speed, 2),
            "seconds": round(self.metrics.seconds + now - self.started, 2) if trainer.is_global_zero else 0.0,
        }
        self.logged_at, self.logged_samples = now, module.samples_seen
        if not trainer.is_global_zero:
            return
        self.metrics.add(row)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k not in ("step", "seconds")}, step=module.step)
        note = f"loss {loss:.4f}  {speed:.0f} samples/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=module.step, note=note)
        else:
            self.say(f"step {module.step}/{module.plan.steps}  {note}")
        get_host().call("step_finished", run=module.run, step=module.step, metrics=row)

    def _collapse(self, module: PretrainModule) -> dict[str, float]:
        """Collapse monitors of the last batch's embedding. Measured rarely, they cost a forward pass."""
        every = max(1, module.plan.steps // 20 // module.settings.log_every) * module.settings.log_every
        unknown = {"effective_rank": math.nan, "uniformity": math.nan}
        if module.settings.strategy == "fsdp":  # an encoder alone cannot gather its shards
            return unknown
        if module.last_batch is None or len(module.last_batch) < 2:
            return unknown
        if module.step % every and module.step < module.plan.steps:
            return getattr(self, "_last_collapse", unknown)
        pooled = module.method.encoder.embed(module.last_batch).pooled
        self._last_collapse = {"effective_rank": effective_rank(pooled), "uniformity": uniformity(pooled)}
        return self._last_collapse

    def _save(self, trainer: L.Trainer, module: PretrainModule) -> None:
        mean = sum(self._losses) / len(self._losses) if self._losses else float("inf")
        best = mean < self.best
        state = {"best": min(mean, self.best)}
        checkpoint = module.checkpoint(state)
        if trainer.is_global_zero:
            try:
                checkpoints.save(module.run.checkpoints, checkpoint, best)
                self.best, self._losses, self._failed_saves = state["best"], [], 0
            except DiskFullError as error:
                self._failed_saves += 1
                size = sum(p.numel() * p.element_size() for p in module.parameters()) * 3 / 1e6
                text = f"{error} A checkpoint needs about {size:.0f} MB."
                if self._failed_saves >= SAVE_ATTEMPTS or module.step >= module.plan.steps:
                    raise DiskFullError(text) from error
                self.say(f"Warning: {text} Training goes on and tries again.")
        self.saved_at = time.monotonic()


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("pre-training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        transient=False,
    )
