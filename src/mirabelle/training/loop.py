"""The training loop; all trainings use it.

A killed training can resume after any optimizer step with the same result to the bit: the order of the data depends on
(seed, epoch) only, and the random numbers of a step on (seed, step), so that no generator state has to be stored.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, is_out_of_memory
from mirabelle.model.device import at_home, at_work_on, check_device, computing_on, device_of_job
from mirabelle.model.state import copies_of_tensors, load_tensors
from mirabelle.model.taps import Taps
from mirabelle.numerics.draws import global_draws, seed_generators
from mirabelle.objectives import Objective
from mirabelle.records.schedules import learning_rate_factor
from mirabelle.run.journal import Stop
from mirabelle.run.process_group import agreed, in_all_processes
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import sharded
from mirabelle.training.adding_up import warn_unless_it_adds_up
from mirabelle.training.by_length import ByLength
from mirabelle.training.checkpoint import CHECKPOINT, Numbers, settings_of
from mirabelle.training.contracts import Control
from mirabelle.training.data_parallel import ROUNDED_DIFFERENTLY, Part, Processes, check_terms_of_processes
from mirabelle.training.divergence import DivergedError, NewlyNotFinite, diverged, finite, sum_of_losses
from mirabelle.training.evaluation import evaluate
from mirabelle.training.gradient_step import GradientStep
from mirabelle.training.kept_zeros import KeptZeros
from mirabelle.training.lockstep import evaluate_in_lockstep
from mirabelle.training.memory import as_before, decided_execution, free_memory, halved, on_device_if_they_fit
from mirabelle.training.objective_by_default import default_objective
from mirabelle.training.optimizer import optimizer_for, set_learning_rate
from mirabelle.training.saved_state import SavedState
from mirabelle.training.settings import Training
from mirabelle.training.single_samples import SingleSamples, check_parts_of_batches
from mirabelle.training.synchronized import synchronized
from mirabelle.training.teacher import guidance
from mirabelle.training.teacher_targets import answered


def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    run: Run,
    *,
    objective: Objective | None = None,
    controls: Sequence[Control] = (),
) -> nn.Module:
    """Train a model in place and return it with its best or last weights, in evaluation mode.

    During training, all modules are in training mode; a batch norm that was in evaluation mode updates its statistics too.
    Batches of samples in memory are full. A loader's batch of one sample is left out if the model cannot be trained on it.

    If several processes have been started for the job, each takes a part of every batch. The loss is the same; batch norms, and
    terms that compare samples, see the parts.

    Args:
        model: the model, trained in place.
        task: its training split is used for training, its validation split to select the best weights and for early stopping.
        training: settings.
        run: records the checkpoint, events and measured decisions.
        objective: the loss; by default the objective of the settings, or else `default_objective`.
        controls: act after every optimizer step.

    If memory does not suffice for the first batch, it is taken in smaller parts, and the run is told.

    Raises:
        UserError: E121 if the model or the teacher has tensors without values, or if all batches have one sample and the model
            cannot be trained on one; E150 if the folder of `run` has the checkpoint of another training; E201 if the loss or a
            weight is no longer finite; the model then has its last finite weights.
    """
    check_device(model)
    if task.teacher is not None:
        check_device(task.teacher, "the teacher")
    objective = objective or training.objective or default_objective(task)
    sharded.check_can_be_sharded(training, objective, controls)
    return in_all_processes(_fitted, model, task, training, run, objective=objective, controls=controls)


def _fitted(
    model: nn.Module, task: Task, training: Training, run: Run, *, objective: Objective, controls: Sequence[Control]
) -> nn.Module:
    """What `fit` does, in each of the processes."""
    device = device_of_job(model)
    models = [] if sharded.shards(training) else [model]  # a divided copy is on the device
    with computing_on(device), at_work_on(device, *models, *([] if task.teacher is None else [task.teacher])):
        while True:
            loop = _Loop(model, task, training, run, objective=objective, controls=controls)
            with global_draws(device=device):
                ended = loop.ran_to_end()
            found, alone = loop.finished_model() if ended else None, loop.processes.count == 1
            del loop
            if found is None or not alone:
                free_memory(device)  # also of what reduces the gradients of these parameters
            if found is not None:
                return found


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        run: Run,
        *,
        objective: Objective,
        controls: Sequence[Control],
    ) -> None:
        self.task, self.training, self.run = task, training, run
        self.device = device_of_job(model)
        self.processes = Processes(task.train.batch_size(training.batch_size))
        self.steps_per_epoch = task.train.steps(training.batch_size)
        self.total = training.steps or (training.epochs or 0) * self.steps_per_epoch
        self.step_seed = run.seed_for("step")
        self.whole, self.sharded = model, sharded.shards(training)
        check_parts_of_batches(model, task, training.batch_size, self.processes.count)
        check_terms_of_processes(objective, self.processes.count)
        self.execution, self.micro_batch = decided_execution(model, task, training, run)
        if self.processes.count > 1 or self.micro_batch < task.train.batch_size(training.batch_size):
            warn_unless_it_adds_up(model, task, run)
        self.model = self.execution.laid_out(model)
        if training.targets == "teacher":
            self.task = task = answered(task, run, self.execution)
        traced = at_home(self.model), at_home(task.teacher or self.model)  # as terms may do with them
        with global_draws(run.seed_for("objective")), traced[0], traced[1]:  # a resumed run initializes the same projectors
            bound = objective.bind(self.model, task, task.example())
        self.loss = bound.to(self.device)
        self.by_length = self._grouping(objective) if training.group_by_length else None
        self.single_samples = SingleSamples(self.model, run)
        if self.sharded:
            self.model = sharded.sharded_copy(model, task.example(), self.device)
        self.data = on_device_if_they_fit(task.train, self.device) if self.by_length is None else task.train
        self.taps = Taps(self.model, self.loss.student_layers)
        self.optimizer = optimizer_for([*self.model.parameters(), *self.loss.parameters()], training)
        self.gradient_step = GradientStep(
            self.model, self.loss, self.taps, self.optimizer,
            training=training, execution=self.execution, micro_batch=self.micro_batch,
            processes=self.processes, of_task=task.loss,
        )  # fmt: skip
        self.teacher = None
        if task.teacher is not None and not task.has_lessons and (objective.needs_teacher or training.targets == "teacher"):
            run.event("warning", text="the training asks a model to teach that is not better than a constant answer")
        if objective.needs_teacher and task.teacher is not None:
            layers = self.loss.teacher_layers
            self.teacher = guidance(
                task.teacher, task.train, run,
                layers=layers, augment=task.augment, execution=self.execution, limit=training.teacher_cache,
                one_length=self.by_length is None,
            )  # fmt: skip
        self.controls = list(controls)
        self.numbers = Numbers()
        self.best: dict[str, Tensor] = {}
        self.answer: Stop | None = None
        self.saved = SavedState(
            run.folder / CHECKPOINT, self.processes,
            model=self.model, loss=self.loss, optimizer=self.optimizer, gradient_step=self.gradient_step,
            controls=self.controls, settings=settings_of(training, objective),
        )  # fmt: skip
        self.not_finite = NewlyNotFinite(self.model)
        # A training that diverges before the first checkpoint is rolled back to the initial weights, which `whole` has if it is
        # a copy that is trained.
        self.beginning = {} if self._take_up() or self.sharded else copies_of_tensors(self.model)
        self.first = self.numbers.step  # of this process
        self.zeros = KeptZeros(self.model, self.optimizer)

    def ran_to_end(self) -> bool:
        """Train; False if memory did not suffice for the first batch, and the run knows that parts are to be smaller now."""
        alone = self.processes.count == 1
        if not alone and not self.sharded and self.processes.any(self._runs_out_of_memory()):
            self.micro_batch = halved(min(self.micro_batch, len(self._example())), self.run)
            return False
        try:
            self.run_to_end()
        except Exception as error:
            if self.sharded and is_out_of_memory(error):
                raise sharded.too_large_in_shards(error) from error
            if not is_out_of_memory(error) or not alone or not self._takes_smaller_parts():
                raise
            return False
        return True

    def _example(self) -> Batch:
        """As many samples as this process takes of a batch."""
        batch = self.task.example(-(-self.training.batch_size // self.processes.count)).to(self.device)
        batch = batch if self.by_length is None else self.by_length.cut(batch)
        return batch if self.task.augment is None else self.task.augment(batch, 0)

    def _runs_out_of_memory(self) -> bool:
        """Whether memory does not suffice for the part of this process; tried before the processes wait for one another."""
        batch = self._example()
        if self.teacher is not None:  # what it computes for all samples, it computes in all processes
            self.teacher(batch)
        try:
            with self.taps, global_draws(device=self.device), as_before(self.model, self.loss):
                self.model.train()
                self.gradient_step.tried(batch, self.teacher, self.numbers.step / self.total)
        except Exception as error:
            if not is_out_of_memory(error) or self.micro_batch == 1:
                raise
            return True
        return False

    def _takes_smaller_parts(self) -> bool:
        """Whether memory that did not suffice for the first batch of this process may suffice for its halves.

        The model is as it was before, and the run knows the size of the parts.
        """
        if self.numbers.step > self.first or self.micro_batch == 1:
            return False
        load_tensors(self.model, self.beginning or self.saved.weights()[0])
        self.optimizer.zero_grad(set_to_none=True)
        self.micro_batch = halved(self.micro_batch, self.run)
        return True

    def run_to_end(self) -> None:
        with self.taps, synchronized(self.model, self.processes.group if self.training.sync_batch_norm else None):
            while self.numbers.step < self.total and not self.numbers.stopped:
                try:
                    self._epoch()
                except DivergedError as error:
                    raise self._rolled_back(error) from None

    def finished_model(self) -> nn.Module:
        if self.training.keep == "best" and self.best:
            load_tensors(self.model, self.best)
        self.zeros.without_signs()
        if self.sharded:
            sharded.load_from_shards(self.whole, self.model)
        model: nn.Module = self.whole.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return model.eval()

    def _epoch(self) -> None:
        numbers = self.numbers
        epoch, done = divmod(numbers.step, self.steps_per_epoch)
        self.model.train()
        loss_sum = sum_of_losses(numbers.loss, self.device)
        begin, seconds_before, left_out = time.monotonic(), numbers.seconds, 0
        for part in self._parts(epoch, done):
            if self.single_samples.left_out(part.batch, part.smallest):
                left_out += 1
            else:
                loss_sum += self._learned(part, epoch)
            numbers.step += 1
            self._control(numbers.step / self.total)
            if self.saved.due:
                numbers.seconds = seconds_before + time.monotonic() - begin
                if isinstance(self.task.train, Samples) and not self._epoch_is_over:
                    numbers.loss = finite(loss_sum)
                    self._write_checkpoint()
                self.answer = self._tell_progress(epoch)
            if numbers.step == self.total or self.answer is not None:
                break
        learned = numbers.step - epoch * self.steps_per_epoch - left_out
        self.single_samples.check_some_are_left(learned)
        mean_loss = finite(loss_sum) / learned
        numbers.loss = 0.0
        numbers.seconds = seconds_before + time.monotonic() - begin
        self._close_epoch(epoch, mean_loss)

    def _grouping(self, objective: Objective) -> ByLength:
        teacher = self.task.teacher if objective.needs_teacher else None
        return ByLength(self.task.train, self.model, *([] if teacher is None else [teacher]))

    def _parts(self, epoch: int, done: int) -> Iterator[Part]:
        """The parts of this process in the batches of one epoch after the first `done`."""
        by_length, seed = self.by_length, self.run.seed_for("order", epoch)
        arranged = None if by_length is None else by_length.order
        for part in self.processes.batches(self.data, self.training.batch_size, seed, done, arranged):
            if by_length is None:
                yield part
            else:  # the columns of a text do not depend on the process that has it
                length = self.processes.largest(by_length.longest(part.batch))
                yield dataclasses.replace(part, batch=by_length.cut(part.batch, length))

    @property
    def _epoch_is_over(self) -> bool:
        """Whether the epoch has had its last step; its checkpoint is written only after the validation."""
        step = self.numbers.step
        return step == self.total or step % self.steps_per_epoch == 0

    def _learned(self, part: Part, epoch: int) -> Tensor:
        """The loss of a batch, of which this process takes a part, after an optimizer step that lowers it."""
        batch, step = part.batch.to(self.device), self.numbers.step
        if self.task.augment is not None:
            batch = self.task.augment(batch, epoch)
        seed_generators(self.step_seed + step + self.processes.seed, self.device)
        factor = learning_rate_factor(self.training.lr_schedule, step / self.total, self.training.warmup)
        set_learning_rate(self.optimizer, self.training.lr * factor)
        loss = self.gradient_step(batch, self.teacher, step / self.total)
        if self.sharded:
            sharded.check_no_weight_was_read(self.whole)
        self.processes.with_first_buffers(self.model)
        return loss

    def _control(self, progress: float) -> None:
        self.zeros.keep()  # first, so that controls see pruned weights as zero
        if self.processes.count > 1:  # controls draw the same numbers in all processes
            seed_generators(self.step_seed + self.numbers.step, self.device)
        if any([control(self.model, progress) for control in self.controls]):  # noqa: C419 (every control must act)
            self.zeros.refresh()
            self.zeros.keep()

    def _close_epoch(self, epoch: int, mean_loss: float) -> None:
        numbers, run = self.numbers, self.run
        if self.processes.any(self.not_finite.any()):
            raise DivergedError("a weight is no longer finite")
        if self.processes.with_first_weights(self.model):
            run.event("warning", text=ROUNDED_DIFFERENTLY)
        begin, value = time.monotonic(), self._validated()
        numbers.seconds += time.monotonic() - begin
        progress = numbers.step / self.total
        left = numbers.seconds * (1 - progress) / progress
        told = {
            "epoch": epoch + 1, "epochs": math.ceil(self.total / self.steps_per_epoch), "step": numbers.step, "loss": mean_loss,
            "metric": value, "metric_name": self.task.metric.name, "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(numbers.seconds, 3), "seconds_left": round(left, 3),
        }  # fmt: skip
        answer = agreed(lambda: run.event("epoch", **told)) or self.answer
        settled = all(control.settled(progress) for control in self.controls)
        if answer is not None and not settled:
            self._settle()
            value, settled = self._validated(), True
        enough = self._judged(value) if settled else None
        why = answer.why if answer is not None else enough
        if why is not None:
            numbers.stopped = True
            run.event("stopped", why=why)
        if why is not None or self.saved.due:  # a stop is stored, so that a resumed run stops too
            self._write_checkpoint()

    def _validated(self) -> float:
        task = self.task
        if not self.sharded:
            return task.metric.value(evaluate(self.model, task.validation, task))
        size = min(self.micro_batch, -(-self.training.batch_size // self.processes.count))  # as in the training
        return task.metric.value(evaluate_in_lockstep(self.model, task.validation, task, size))

    def _settle(self) -> None:
        """Bring the model to its final form at once, so that a training that is stopped early still reaches its sparsity."""
        for control in self.controls:
            control(self.model, 1.0)
        self.zeros.refresh()
        self.zeros.keep()

    def _judged(self, value: float) -> str | None:
        """Keep the weights if they are the best so far (or equal to it); return the reason for early stopping, if any."""
        numbers, training = self.numbers, self.training
        improved = value > numbers.best
        if value >= numbers.best:
            numbers.best = value
            self.best = {} if training.keep == "last" else copies_of_tensors(self.model)
        numbers.since_best = 0 if improved else numbers.since_best + 1
        if training.until is not None and value >= training.until:
            return f"the metric reached {training.until}"
        if training.patience is not None and numbers.since_best >= training.patience:
            return f"no better metric for {training.patience} epochs"
        return None

    def _rolled_back(self, error: DivergedError) -> UserError:
        """Restore the last finite weights of the model; return the error to raise."""
        finite, good = self.saved.weights() if self.processes.leads else ({}, None)
        if finite or self.beginning:
            load_tensors(self.whole, finite or self.beginning, source="the checkpoint")
        step, path = self.numbers.step, "" if good is None else f" ({self.saved.path})"
        where = f"epoch {(step - 1) // self.steps_per_epoch + 1} (step {step} of {self.total})"
        return diverged(f"{where}: {error}", self.training.lr, f"step {good or 0}{path}")

    def _tell_progress(self, epoch: int) -> Stop | None:
        numbers = self.numbers
        left = numbers.seconds * (self.total - numbers.step) / numbers.step
        text = f"epoch {epoch + 1}"
        return agreed(lambda: self.run.progress(numbers.step, self.total, seconds_left=left, text=text))

    def _write_checkpoint(self) -> None:
        """Write the current state, unless a weight is no longer finite; then the previous checkpoint remains."""
        if not self.processes.any(self.not_finite.any()):
            self.saved.write(self.numbers, self.best)
            self.beginning = {} if self.processes.leads else self.beginning

    def _take_up(self) -> bool:
        """Resume from the checkpoint, if there is one; return whether there was."""
        found = self.saved.read()
        if found is None:
            return False
        self.numbers, self.best = found
        self.run.event("taken up", step=self.numbers.step, steps=self.total)
        return True
