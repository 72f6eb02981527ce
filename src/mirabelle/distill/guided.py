"""Use an objective in another training loop: that of a Hugging Face `Trainer`, or your own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.device import device_of_job
from mirabelle.model.state import in_eval_mode, load_tensors, tensors_of_module
from mirabelle.model.taps import Taps
from mirabelle.model.watch import LayerRun, watched
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.objectives import Forward, Objective
from mirabelle.task.batch import Batch, Inputs
from mirabelle.task.task import Task

_LABELS = ("labels", "label", "label_ids")
_STEPS_DONE = "steps_done"  # in the state of a `Guided`


class Guided:
    """A distillation loss for a training loop that calls the model itself; used as a context manager.

    A hook records the inputs of every forward pass of the model, and the teacher is run on the same inputs when the loss is
    computed. Call the object with the outputs and labels of the last forward pass; a Trainer does this if the object is given
    as `compute_loss_func`. Within the context, parameters of the objective (such as projectors) are registered as parameters of
    the model, so that an optimizer created there trains them, too; they are removed at the end. They are not part of the state
    of the model: a checkpoint of a Trainer has the tensors of the student alone. To resume a training, store `state_dict()` of
    this object next to the checkpoint. Models may return a tensor, or an output with `logits`, like the models of transformers.

    Args:
        model: the student.
        teacher: a model for the same inputs; it runs in evaluation mode, and each of its modules keeps the mode that it has.
        objective: any terms except `CRD`, which needs the indices of samples.
        example: (inputs, labels) of a few samples; inputs are a tensor, or a tuple or dict of tensors.
        loss: the loss of the term `TaskLoss`: (outputs, labels) -> scalar.
        steps: number of forward passes in training mode in the whole training, for weights and temperatures that change during
            training; None keeps them at their initial value.

    Raises:
        UserError: E111 if the loss is computed without a preceding forward pass of the model, and the errors of the objective's
            `bind`.

    Example:
        >>> from mirabelle.objectives import SoftTargets, TaskLoss
        >>> student, teacher, x, y = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> with Guided(student, teacher, 0.9 * SoftTargets() + 0.1 * TaskLoss(), (x, y)) as loss:
        ...     optimizer = torch.optim.SGD(student.parameters(), 0.1)
        ...     loss(student(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        objective: Objective,
        example: tuple[Inputs, Tensor],
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        steps: int | None = None,
    ) -> None:
        self._model, self._teacher, self._steps, self._done = model, teacher, steps, 0
        inputs, labels = example
        task = Task(train=example, validation=example, test=example, loss=loss).with_teacher(teacher)
        self._bound = objective.bind(model, task, Batch(inputs, labels))
        self._taps = Taps(model, self._bound.student_layers)
        self._called: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        device = device_of_job(self._model)
        self._bound.to(device)
        self._teacher.to(device)
        self._taps.__enter__()
        self._hooks.enter_context(watched({"": self._model}, before=self._listen))
        # As parameters of the model itself: a child would be called by containers such as `nn.Sequential`.
        self._trained = {f"distillation_{k}": parameter for k, parameter in enumerate(self._bound.parameters())}
        for name, parameter in self._trained.items():
            self._model.register_parameter(name, parameter)
        self._keep_out_of_state()
        return self

    def __exit__(self, *_: object) -> None:
        self._taps.__exit__()
        self._hooks.close()
        for name in self._trained:
            delattr(self._model, name)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of the last forward pass of the model.

        Args:
            outputs: the outputs of that pass.
            labels: (batch, ...); a label of −100 is ignored.
            num_items_in_batch: number of labels in all forward passes whose gradients are accumulated before an optimizer step,
                as a Trainer counts them; the loss is scaled by its share of them.
        """
        if self._called is None:
            message = "the loss needs a forward pass of the model, and there was none"
            raise UserError("E111", message, "call the model within the context, before the loss")
        args, kwargs = self._called
        batch = Batch(kwargs if not args else args[0] if len(args) == 1 else args, labels)
        with torch.no_grad(), in_eval_mode(self._teacher), Taps(self._teacher, self._bound.teacher_layers) as taps:
            given = self._teacher(*args, **kwargs)
            guide = Forward(batch, logits_of(given), features=taps.taken())
        progress = min(1.0, self._done / self._steps) if self._steps else 0.0
        self._done, self._called = self._done + int(self._model.training), None
        loss: Tensor = self._bound(Forward(batch, logits_of(outputs), guide, self._taps.taken(), progress))
        if num_items_in_batch is None:
            return loss
        return loss * int((labels != UNLABELLED).sum()) / max(int(num_items_in_batch), 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of the objective, such as projectors, and the number of steps done, to resume a training."""
        return {**tensors_of_module(self._bound), _STEPS_DONE: torch.tensor(self._done)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, for the same objective.

        Raises:
            UserError: E140 if a tensor is missing, unknown or of another shape.
        """
        load_tensors(self._bound, {name: tensor for name, tensor in state.items() if name != _STEPS_DONE})
        self._done = int(state.get(_STEPS_DONE, 0))

    def _keep_out_of_state(self) -> None:
        """The parameters of the objective are not in the model's state, and loading a state does not miss them."""
        trained = self._trained

        def leave_out(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
            for name in trained:
                state.pop(f"{prefix}{name}", None)

        def put_in(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
            for name, parameter in trained.items():
                state.setdefault(f"{prefix}{name}", parameter)

        for handle in (
            self._model.register_state_dict_post_hook(leave_out),  # type: ignore[no-untyped-call]
            self._model.register_load_state_dict_pre_hook(put_in),  # type: ignore[no-untyped-call]
        ):
            self._hooks.callback(handle.remove)

    def _listen(self, run: LayerRun) -> None:
        self._called = run.args, {name: part for name, part in run.kwargs.items() if name not in _LABELS}


def logits_of(outputs: Any) -> Tensor:
    """The logits in the output of a model: a tensor itself, the entry "logits" of a mapping, or the first of a tuple.

    Example:
        >>> logits_of({"loss": torch.zeros(()), "logits": torch.ones(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return found
