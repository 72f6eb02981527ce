"""One optimizer step: forward and backward passes over a batch, as a whole or in parts, and the change of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle.objectives import Forward
from mirabelle.objectives.forward import Shares
from mirabelle.task.batch import Batch, call
from mirabelle.training.data_parallel import Processes
from mirabelle.training.divergence import DivergedError
from mirabelle.training.execution import Execution, with_gradient
from mirabelle.training.memory import blocks_to_recompute, parts_of_batch, recomputing
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from mirabelle.model.taps import Taps
    from mirabelle.objectives.bound_objective import BoundObjective
    from mirabelle.task.loss import Loss
    from mirabelle.training.teacher import Teacher


class GradientStep:
    """Lowers the loss of a batch.

    Args:
        model: in training, laid out as the execution says.
        loss: bound to the model.
        taps: of the layers that the loss reads.
        optimizer: of both.
        training: settings.
        execution: precision and layout.
        micro_batch: most samples of a part.
        processes: that compute the training.
        of_task: the loss of the task, which says what it is a mean over.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BoundObjective,
        taps: Taps,
        optimizer: torch.optim.Optimizer,
        *,
        training: Training,
        execution: Execution,
        micro_batch: int,
        processes: Processes,
        of_task: Loss,
    ) -> None:
        if execution.compiled:
            torch.compiler.reset()  # a graph of another model of the class knows nothing of the hooks of this one
        self._of_task = of_task
        self._loss, self._taps, self._optimizer = loss, taps, optimizer
        self._execution, self._clip, self._micro_batch = execution, training.clip, micro_batch
        self._called = execution.callable_of(model)
        self._processes, self._reducing = processes, processes.reducing(model, loss)
        self._recomputed = blocks_to_recompute(model) if training.recompute else []
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        self._last = torch.zeros(())
        self._scaler = torch.amp.GradScaler(device, enabled=execution.precision == "float16")

    def __call__(self, batch: Batch, teacher: Teacher | None, progress: float) -> Tensor:
        """The loss of a batch, after an optimizer step that lowers it.

        Args:
            batch: on the device of the model; of several processes, the part of this one.
            teacher: for terms that need one.
            progress: of the training, in [0, 1].
        """
        self._optimizer.zero_grad(set_to_none=True)
        counts = self._processes.counts(batch, self._of_task)
        number = None if counts is None else self._reducing.number_of_parts(int(counts[0]), self._micro_batch)
        parts = parts_of_batch(batch, self._micro_batch, self._of_task, counts, number)
        losses = []
        self._reducing.begin(progress)
        for k, (shares, part) in enumerate(parts, start=1):
            with self._reducing.apart(when=k < len(parts)):
                losses.append(self._added(part, shares, teacher, progress))
        self._reducing.finish()
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            self._reducing.clip(self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        loss = self._processes.total(losses[0] if len(losses) == 1 else torch.stack(losses).sum())
        return self._of_taken_steps(loss) if self._scaler.is_enabled() else loss

    def _of_taken_steps(self, loss: Tensor) -> Tensor:
        """The loss in float16; where it overflows, and the step is left out, that of the step before.

        Raises:
            DivergedError: if steps are left out although losses are no longer scaled up.
        """
        if self._scaler.get_scale() < 1:
            raise DivergedError("gradients are not finite in float16, however small their scale")
        self._last = torch.where(loss.isfinite(), loss, self._last.to(loss.device))
        return self._last

    def _added(self, batch: Batch, shares: Shares, teacher: Teacher | None, progress: float) -> Tensor:
        """The share of a part in the loss of its batch, whose gradient is added to that of the parts before."""
        with recomputing(self._recomputed):
            loss = with_gradient(self._reducing(partial(self._loss_of, batch, shares, teacher, progress)))
            count = self._processes.count  # gradients become means over the processes
            self._scaler.scale(loss if count == 1 else count * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss_of(self, batch: Batch, shares: Shares, teacher: Teacher | None, progress: float) -> Tensor:
        with self._execution.autocast(batch.targets.device):
            outputs = call(self._called, self._execution.inputs(batch.inputs))
        guide = None
        if teacher is not None:
            given = teacher(batch)
            guide = Forward(batch, given.outputs, features=given.features)
        loss: Tensor = self._loss(Forward(batch, outputs, guide, self._taps.taken(), progress=progress, shares=shares))
        return loss

    def tried(self, batch: Batch, teacher: Teacher | None, progress: float) -> None:
        """Forward and backward pass of the first part of a batch, by this process alone, without a step of the optimizer."""
        _, part = parts_of_batch(batch, self._micro_batch, self._of_task)[0]
        with self._reducing.apart(when=True):
            self._added(part, Shares(), teacher, progress)
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state beside that of the optimizer, for a checkpoint: the scale of losses in float16."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._scaler.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        whole = ("growth_interval", "_growth_tracker")
        if tensors:
            values = {name: int(value) if name in whole else float(value) for name, value in tensors.items()}
            self._scaler.load_state_dict(values)
