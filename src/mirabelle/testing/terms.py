"""The contract test of a term of an objective."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.model.state import copied, fingerprint
from mirabelle.model.taps import Taps
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.objective import Objective, Term
from mirabelle.task.batch import call
from mirabelle.task.task import Task


def check_term(term: Term, model: nn.Module, task: Task, *, trains: bool = True) -> None:
    """Check that a term of an objective fulfils the contract of terms.

    It can be multiplied by a number (`0.5 * term`), and converted to plain data and back. Binding it to a model does not change
    the model. The bound term maps a `Forward` to a finite scalar with a gradient for the model's parameters.

    Args:
        term: the term to check.
        model: the student.
        task: a task; without a teacher, a copy of the model is the teacher.
        trains: whether a gradient is expected; False for a term that may be constant at the start.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle import Task
        >>> from mirabelle.objectives import L2
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> check_term(L2(), nn.Linear(4, 2), Task(train=(x, y), test=(x, y)))
    """
    objective = 0.5 * term
    assert Objective.from_data(objective.to_data()) == objective, "a term built from its plain data must equal the original"
    task = task if task.teacher is not None else task.with_teacher(copied(model).eval())
    assert task.teacher is not None, "the task has a teacher"
    before, batch = fingerprint(model), task.example()
    bound = objective.bind(model, task, batch)
    assert fingerprint(model) == before, "bind() must not change the model"
    with torch.no_grad(), Taps(task.teacher, bound.teacher_layers) as taps:
        outputs = call(task.teacher, batch.inputs)
        teacher = Forward(batch, outputs, features=taps.taken() if bound.teacher_layers else {})
    with Taps(model, bound.student_layers) as taps:
        outputs = call(model, batch.inputs)
        features = taps.taken() if bound.student_layers else {}
        value = bound(Forward(batch, outputs, teacher, features, 0.5))
    assert value.ndim == 0, f"a term must return a scalar; got shape {tuple(value.shape)}"
    assert bool(torch.isfinite(value)), f"a term must return a finite number; got {value.item()}"
    if trains:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        assert any(gradient is not None for gradient in found), "the gradient of a term must reach the model"
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in found if gradient is not None)
        assert finite, "the gradient of a term must be finite"
