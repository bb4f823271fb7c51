"""The Lightning module around a method: one optimiser step, with its guards."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from maskwright.core.encoder.teacher import EMATeacher
from maskwright.core.errors import TrainingStopped
from maskwright.core.loader import Loader
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import BadFile, Batch
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.data import FORWARD, KEYS, Plan, derive_seed, make_dataloader
from maskwright.core.trainer.guard import stop_for, write_diagnosis
from maskwright.core.trainer.method import Method
from maskwright.core.trainer.optim import lr_at, make_optimizer
from maskwright.core.trainer.run import Run


class PretrainModule(L.LightningModule):
    """Runs a method over a plan. `step` counts optimiser steps over the whole run, resumed or not."""

    def __init__(
        self, method: Method, loader: Loader, run: Run, settings: TrainerSection, plan: Plan, peak_lr: float, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method = method
        self.ema = EMATeacher(method.encoder, settings.ema_decay) if settings.ema_decay is not None else None
        self.loader, self.run, self.settings, self.plan = loader, run, settings, plan
        self.peak_lr, self.seed = peak_lr, seed
        self.warmup = round(settings.warmup * plan.steps)
        self.step = 0
        self.bad_steps = 0
        self.bad_paths: set[str] = set()
        self.restored: checkpoints.Checkpoint | None = None
        self.terms: dict[str, Tensor] = {}
        self.samples_seen = 0
        self._micro_batches: list[Batch] = []
        self._bad_loss = False
        self.last_lr = self.last_norm = 0.0
        self.last_batch: Batch | None = None

    # data and optimiser --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        return make_dataloader(
            self.loader,
            self.plan,
            self.seed,
            start=self.step * self.plan.accumulate,
            rank=self.global_rank,
            workers=self.settings.workers,
            pin=self.device.type == "cuda",
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.method, self.settings)
        if self.restored is not None:
            checkpoints.restore_optimizer(optimizer, self.restored.part("optimizer"))
        return optimizer

    # checkpoints ---------------------------------------------------------------------------------------------------

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Take up a run where a checkpoint left it. To be called before training starts."""
        self.method.load_state_dict(checkpoint.part("method"))
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.part("ema"))
        self.step = checkpoint.step
        self.bad_steps = checkpoint.state.get("bad_steps", 0)
        self.bad_paths = set(checkpoint.state.get("bad_paths", []))
        self.restored = checkpoint

    def checkpoint(self, state: dict[str, Any]) -> checkpoints.Checkpoint:
        """State after the present step."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        tensors = {f"method.{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in checkpoints.optimizer_tensors(optimizer).items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        own = {"bad_steps": self.bad_steps, "bad_paths": sorted(self.bad_paths)}
        return checkpoints.Checkpoint(self.step, tensors, {**own, **state})

    # one forward pass ----------------------------------------------------------------------------------------------

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all of them get the same answer."""
        if self.trainer.world_size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def mean_terms(self) -> dict[str, float]:
        """Terms of the last optimiser step, averaged over its forward passes and over processes."""
        values = torch.stack([term.float() for term in self.terms.values()]) if self.terms else torch.zeros(0)
        if self.trainer.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values = values / self.trainer.world_size
        return dict(zip(self.terms, values.tolist(), strict=True))

    def keys(self, batch: Batch, epoch: int) -> Tensor:
        """One key a sample, from (seed, epoch, index): masks do not depend on batches, workers or processes."""
        keys = [derive_seed(self.seed, KEYS, epoch, meta.index) for meta in batch.metas]
        return torch.tensor(keys, dtype=torch.int64, device=self.device)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        micro = self.step * self.plan.accumulate + len(self._micro_batches)
        self._set_aside(batch.bad)
        empty = self.any_process(len(batch) == 0)
        if not empty:
            torch.manual_seed(derive_seed(self.seed, FORWARD, micro, self.global_rank))
            result = self.method(batch, self.keys(batch, micro // self.plan.micro_per_epoch))
            terms = {"loss": result.loss.detach(), **result.terms}
            before = self.terms if self._micro_batches else {}
            self.terms = {name: before.get(name, 0) + term / self.plan.accumulate for name, term in terms.items()}
            self._bad_loss |= not bool(result.loss.isfinite())
            self.manual_backward(result.loss / self.plan.accumulate)
            self.samples_seen += len(batch) * self.trainer.world_size
            self.last_batch = batch
        self._micro_batches.append(batch)
        if len(self._micro_batches) == self.plan.accumulate:
            try:
                self._finish_step()
            finally:
                self._micro_batches, self._bad_loss = [], False

    def _finish_step(self) -> None:
        optimizer: Any = self.optimizers()
        parameters = [p for p in self.method.parameters() if p.grad is not None]
        if not parameters:  # every file of this step was bad
            self.step += 1
            return
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_grad or float("inf"))
        bad_loss = self.any_process(self._bad_loss)
        if bad_loss or self.any_process(not bool(norm.isfinite())):
            optimizer.zero_grad()
            self._refuse_step("loss" if bad_loss else "gradient")
        else:
            self.last_lr, self.last_norm = self.lr, norm.item()
            for group in optimizer.param_groups:
                group["lr"] = self.lr * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad()
            self.bad_steps = 0
            self.method.after_step(self.step, self.plan.steps)
            if self.ema is not None:
                self.ema.update(self.method.encoder)
        self.step += 1

    @property
    def lr(self) -> float:
        """Learning rate of the present step."""
        return lr_at(self.step, self.plan.steps, self.warmup, self.peak_lr, self.settings.min_lr_ratio)

    def _refuse_step(self, stage: str) -> None:
        self.bad_steps += 1
        batches = [batch for batch in self._micro_batches if len(batch)]
        terms = {name: value.item() for name, value in self.terms.items()}
        diagnosis = write_diagnosis(self.run.path / "diagnosis", self.step, stage, batches, terms)
        if self.bad_steps > self.settings.max_bad_steps:
            raise stop_for(stage, self.step, diagnosis, batches, self.run.path)

    def _set_aside(self, bad: list[BadFile]) -> None:
        if not bad:
            return
        self.run.add_bad_files(bad, self.step)
        self.bad_paths |= {file.path for file in bad}
        if self.settings.on_bad_file == "raise":
            raise TrainingStopped(
                f"{bad[0].reason} Training stops because trainer.on_bad_file=raise; with skip it goes on without such "
                f"files."
            )
        limit = self.settings.max_bad_fraction * len(self.loader)
        if len(self.bad_paths) > max(limit, 1):
            raise TrainingStopped(
                f"{len(self.bad_paths)} files of {len(self.loader)} samples could not be read, more than "
                f"trainer.max_bad_fraction={self.settings.max_bad_fraction} allows. The last: {bad[-1].reason} All of "
                f"them: {self.run.path / 'bad_files.csv'}"
            )
