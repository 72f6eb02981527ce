"""An objective in somebody else's training loop: a Hugging Face `Trainer`, or one of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.batch import Batch, Inputs, call
from mirabelle.errors import UserError
from mirabelle.features import Taps
from mirabelle.objectives import Forward, Objective
from mirabelle.task import Task

_PROJECTORS = "distillation"  # the name under which what is trained along hangs in the model meanwhile
_LABELS = ("labels", "label", "label_ids")


class Guided:
    """A loss for a loop that calls the model itself: it listens to the calls, and asks the teacher the same.

    Within the context the model carries what the terms train along, so that an optimizer of the model's parameters trains it,
    too; afterwards nothing of it is left. Models may give a tensor, or an output with `logits`, as those of transformers do.
    Call it with the outputs and the labels of the call before: a Trainer does so with its `compute_loss_func`.

    Args:
        model: the student.
        teacher: for the same inputs; is put into eval mode.
        objective: of any terms but `CRD`, which must know samples again.
        example: inputs and labels of a few samples: (inputs, labels), inputs a tensor, or a tuple or dict of tensors.
        loss: of `TaskLoss`: (outputs, labels) -> scalar.
        steps: of the whole training, for weights and temperatures that change; None leaves them at their start.

    Raises:
        UserError: as `Objective.bind`; E111 when the loss is asked for without a call of the model.

    Example:
        >>> from mirabelle.objectives import SoftTargets, TaskLoss
        >>> student, teacher, x, y = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> optimizer = torch.optim.SGD(student.parameters(), 0.1)
        >>> with Guided(student, teacher, 0.9 * SoftTargets() + 0.1 * TaskLoss(), (x, y)) as loss:
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
        self._inputs: Inputs = None

    def __enter__(self) -> Self:
        self._taps.__enter__()
        self._hook = self._model.register_forward_pre_hook(self._listen, with_kwargs=True)
        self._model.add_module(_PROJECTORS, self._bound)
        return self

    def __exit__(self, *_: object) -> None:
        self._taps.__exit__()
        self._hook.remove()
        delattr(self._model, _PROJECTORS)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The loss of the call of the model that gave these outputs."""
        del num_items_in_batch
        if self._inputs is None:
            raise UserError("E111", "the loss is asked for, but the model was not called", "call the model within the context")
        batch = Batch(self._inputs, labels)
        with torch.no_grad(), Taps(self._teacher, self._bound.teacher_layers) as taps:
            outputs_of_teacher = call(self._teacher, self._inputs)
            guide = Forward(batch, logits_of(outputs_of_teacher), features=taps.taken())
        progress = min(1.0, self._done / self._steps) if self._steps else 0.0
        self._done, self._inputs = self._done + 1, None
        loss: Tensor = self._bound(Forward(batch, logits_of(outputs), guide, self._taps.taken(), progress))
        return loss

    def _listen(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named = {name: part for name, part in kwargs.items() if name not in _LABELS and isinstance(part, Tensor)}
        self._inputs = named or args


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
