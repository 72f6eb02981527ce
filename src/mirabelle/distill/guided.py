"""An objective in somebody else's training loop: a Hugging Face `Trainer`, or one of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.taps import Taps
from mirabelle.model.watch import LayerRun, watched
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.objectives import Forward, Objective
from mirabelle.task.batch import Batch, Inputs
from mirabelle.task.task import Task

_LABELS = ("labels", "label", "label_ids")


class Guided:
    """A loss for a loop that calls the model itself: it listens to the calls, and asks the teacher the same.

    Within the context the model carries what the terms train along, so that an optimizer made there, of the model's parameters,
    trains it, too; afterwards nothing of it is left. Models may give a tensor, or an output with `logits`, as those of
    transformers do. Call it with the outputs and the labels of the call before: a Trainer does so with its
    `compute_loss_func`.

    Args:
        model: the student.
        teacher: for the same inputs; is put into eval mode.
        objective: of any terms but `CRD`, which must know samples again.
        example: inputs and labels of a few samples: (inputs, labels), inputs a tensor, or a tuple or dict of tensors.
        loss: of `TaskLoss`: (outputs, labels) -> scalar.
        steps: calls of the model in training mode in the whole training, for weights and temperatures that change; None leaves
            them at their start.

    Raises:
        UserError: as `Objective.bind`; E111 when the loss is asked for without a call of the model.

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
        self._model, self._teacher, self._steps, self._done = model, teacher.eval(), steps, 0
        inputs, labels = example
        task = Task(train=example, validation=example, test=example, loss=loss).with_teacher(teacher)
        self._bound = objective.bind(model, task, Batch(inputs, labels))
        self._taps = Taps(model, self._bound.student_layers)
        self._called: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        device = next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))
        self._bound.to(device)
        self._teacher.to(device)
        self._taps.__enter__()
        self._hooks.enter_context(watched({"": self._model}, before=self._listen))
        # As parameters of the model itself: a child would be called by containers such as `nn.Sequential`.
        self._trained = {f"distillation_{k}": parameter for k, parameter in enumerate(self._bound.parameters())}
        for name, parameter in self._trained.items():
            self._model.register_parameter(name, parameter)
        return self

    def __exit__(self, *_: object) -> None:
        self._taps.__exit__()
        self._hooks.close()
        for name in self._trained:
            delattr(self._model, name)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of the call of the model that gave these outputs.

        Args:
            outputs: of the model.
            labels: (batch, ...); those of −100 are no items.
            num_items_in_batch: of all calls whose gradients are added up before the optimizer's step, as a Trainer counts them:
                the loss counts as its share of them.
        """
        if self._called is None:
            raise UserError("E111", "the loss is asked for, but the model was not called", "call the model within the context")
        args, kwargs = self._called
        batch = Batch(kwargs if not args else args[0] if len(args) == 1 else args, labels)
        with torch.no_grad(), Taps(self._teacher, self._bound.teacher_layers) as taps:
            given = self._teacher(*args, **kwargs)
            guide = Forward(batch, logits_of(given), features=taps.taken())
        progress = min(1.0, self._done / self._steps) if self._steps else 0.0
        self._done, self._called = self._done + int(self._model.training), None
        loss: Tensor = self._bound(Forward(batch, logits_of(outputs), guide, self._taps.taken(), progress))
        if num_items_in_batch is None:
            return loss
        return loss * int((labels != UNLABELLED).sum()) / num_items_in_batch

    def _listen(self, run: LayerRun) -> None:
        self._called = run.args, {name: part for name, part in run.kwargs.items() if name not in _LABELS}


def logits_of(outputs: Any) -> Tensor:
    """The decisions in what a model gives.

    Example:
        >>> logits_of({"loss": torch.zeros(()), "logits": torch.ones(2, 3)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return found
