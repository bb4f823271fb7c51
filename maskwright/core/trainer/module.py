"""The Lightning module around a method: one optimiser step, with its guards."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from maskwright.core.encoder.teacher import EMATeacher
from maskwright.core.errors import ConfigError, TrainingStopped
from maskwright.core.loader import Loader
from maskwright.core.recipe import TrainerSection
from maskwright.core.sample import Batch
from maskwright.core.trainer import checkpoint as checkpoints
from maskwright.core.trainer.buffers import BufferMemory
from maskwright.core.trainer.data import FORWARD, KEYS, Plan, derive_seed, make_dataloader
from maskwright.core.trainer.guard import bad_file_problem, stop_for, write_diagnosis
from maskwright.core.trainer.method import Method, Progress
from maskwright.core.trainer.optim import lr_at, make_optimizer, weight_decay_at
from maskwright.core.trainer.run import Run
from maskwright.core.trainer.sharding import shard, whole, whole_state


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
        self.bad_paths = {file.path for file in loader.bad_files}
        self.restored: checkpoints.Checkpoint | None = None
        self.terms: dict[str, Tensor] = {}  # sums over the forward passes of an optimiser step
        self._passes = 0
        self.samples_seen = 0
        self._micro_batches: list[Batch] = []
        self._bad_loss = False
        self._forward_buffers = BufferMemory()
        self.last_lr = self.last_norm = 0.0
        self._sharded = False
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

    def configure_model(self) -> None:
        if self.settings.strategy == "fsdp" and self.device_mesh is not None and not self._sharded:
            shard(self.method, self.device_mesh["data_parallel"])
            self._sharded = True

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
        self.bad_paths |= set(checkpoint.state.get("bad_paths", []))
        self.restored = checkpoint

    def checkpoint(self, state: dict[str, Any]) -> checkpoints.Checkpoint:
        """State after the present step. All processes must call it: shards are gathered."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        tensors = {f"method.{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in checkpoints.optimizer_tensors(optimizer).items()}
        tensors = whole_state(tensors)
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        own = {
            "bad_steps": self.bad_steps,
            "bad_paths": sorted(self.bad_paths),
            "samples": self.plan.length,
        }
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
        """Terms of the last optimiser step, averaged over its forward passes and over processes.

        Empty if no file of it could be read.
        """
        if not self.terms:
            return {}
        values = torch.stack([term.float() for term in self.terms.values()]) / self._passes
        if self.trainer.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values = values / self.trainer.world_size
        return dict(zip(self.terms, values.tolist(), strict=True))

    def keys(self, batch: Batch, epoch: int) -> Tensor:
        """One key a sample, from (seed, epoch, index): masks do not depend on batches, workers or processes."""
        keys = [derive_seed(self.seed, KEYS, epoch, meta.index) for meta in batch.metas]
        return torch.tensor(keys, dtype=torch.int64, device=self.device)

    def training_step(self, batch: Batch | ConfigError, batch_index: int) -> None:
        if isinstance(batch, ConfigError):
            raise batch
        micro = self.step * self.plan.accumulate + len(self._micro_batches)
        if not self._micro_batches:
            self.terms, self._passes = {}, 0
            self.method.start_step(self.progress)
            self._forward_buffers.keep(self.method)
        if self._usable(batch):
            torch.manual_seed(derive_seed(self.seed, FORWARD, micro, self.global_rank))
            result = self.method(batch, self.keys(batch, micro // self.plan.micro_per_epoch))
            terms = {"loss": result.loss.detach(), **result.terms}
            self.terms |= {name: self.terms.get(name, 0) + term for name, term in terms.items()}
            self._passes += 1
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
        norm = whole(self._clip(parameters))
        bad_loss = self.any_process(self._bad_loss)
        if bad_loss or self.any_process(not bool(norm.isfinite())):
            optimizer.zero_grad()
            self._refuse_step("loss" if bad_loss else "gradient")
        else:
            self.last_lr, self.last_norm = self.lr, norm.item()
            for group in optimizer.param_groups:
                group["lr"] = self.lr * group["lr_scale"]
                group["weight_decay"] = self.weight_decay * group["decays"]
            optimizer.step()
            optimizer.zero_grad()
            self.bad_steps = 0
            self.method.after_step(self.step, self.plan.steps)
            if self.ema is not None:
                self.ema.update(self.method.encoder)
        self.step += 1

    def _clip(self, parameters: list[torch.nn.Parameter]) -> Tensor:
        """Clip gradients; the norm of all of them before."""
        limit = self.settings.clip_grad or float("inf")
        if not self.settings.clip_tensors:
            return torch.nn.utils.clip_grad_norm_(parameters, limit)
        norms = [torch.nn.utils.clip_grad_norm_([parameter], limit) for parameter in parameters]
        return torch.linalg.vector_norm(torch.stack(norms))

    @property
    def weight_decay(self) -> float:
        """Weight decay of the present step."""
        start, end = self.settings.weight_decay, self.settings.weight_decay_end
        return weight_decay_at(self.step, self.plan.steps, start, end)

    @property
    def lr(self) -> float:
        """Learning rate of the present step."""
        return lr_at(self.step, self.plan.steps, self.warmup, self.peak_lr, self.settings.min_lr_ratio)

    @property
    def progress(self) -> Progress:
        """Where the run is before the present step."""
        each = self.plan.micro_per_epoch
        last = max(self.plan.steps * self.plan.accumulate - 1, 0)
        return Progress(self.step, self.plan.steps, self.step * self.plan.accumulate // each, last // each + 1)

    def _refuse_step(self, stage: str) -> None:
        self._forward_buffers.put_back()
        self.bad_steps += 1
        batches = [batch for batch in self._micro_batches if len(batch)]
        terms = {name: value.item() / self._passes for name, value in self.terms.items()}
        folder = self.run.path / "diagnosis"
        diagnosis = write_diagnosis(folder, self.step, stage, batches, terms, self.global_rank)
        if self.bad_steps > self.settings.max_bad_steps:
            raise stop_for(stage, self.step, diagnosis, batches, self.run.path)

    def _usable(self, batch: Batch) -> bool:
        """Whether every process has something to train on. Bad files are listed; too many of them end the run."""
        problem = None
        if batch.bad:
            self.run.add_bad_files(batch.bad, self.step)
            self.bad_paths |= {file.path for file in batch.bad}
            samples = len(self.loader) + len(self.loader.bad_files)
            table = self.run.path / "bad_files.csv"
            problem = bad_file_problem(self.bad_paths, batch.bad[-1], samples, self.settings, table)
        if not self.any_process(problem is not None or len(batch) == 0):
            return True
        if self.any_process(problem is not None):  # all stop together: one that waits for a dead one waits for ever
            raise TrainingStopped(problem or "Another process stopped for its bad files; its message says why.")
        return False
