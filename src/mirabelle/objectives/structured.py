"""Structured regularization: terms that draw whole channels, neurons and heads towards zero before they are cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mirabelle.errors import UserError
from mirabelle.objectives.forward import Forward
from mirabelle.objectives.objective import Term
from mirabelle.records.record import Count, Fraction, Patterns, Positive, Share, record

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mirabelle.objectives.units import UnitSquares
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class GroupLasso(Term):
    """Σ √|u| · ‖w_u‖₂ over the units u that can be cut: w_u are the |u| parameters that the unit takes with it.

    Units are the channels, neurons and heads that `prune.Channels` cuts, found on the traced model when the term is bound. The
    norm is not squared, so that small units lose as fast as large ones, and end at zero together with all that belongs to them.

    Args:
        include: patterns of parameter names; groups that touch one of them count, by default all.
        exclude: patterns of parameter names; groups that touch one of them do not count.

    Raises:
        UserError: when it is bound: E112 a pattern that matches nothing or no group left, E121 a model that cannot be traced.

    Example:
        >>> from mirabelle.objectives import TaskLoss
        >>> TaskLoss() + 1e-3 * GroupLasso()
        Objective(terms=((1.0, TaskLoss()), (0.001, GroupLasso(include=(), exclude=()))))

    Source: Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables"; Wen, Wu, Wang, Chen, Li
    2016, arXiv:1608.03665 (networks).
    """

    include: Patterns = ()
    exclude: Patterns = ()

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        import torch

        from mirabelle.objectives.bound_objective import BoundFunction
        from mirabelle.objectives.units import UnitSquares

        del example
        squares = UnitSquares(model, task, self.include, self.exclude)
        factors = squares.counts.sqrt()

        def penalty(_: Forward) -> Tensor:
            own = squares()
            # At zero the norm has no gradient; what is below the smallest number has none here.
            return (factors * own.clamp_min(torch.finfo(own.dtype).tiny).sqrt()).sum()

        return BoundFunction(penalty)


@record
class Growing(Term):
    """½ λ(t) Σ ‖w_u‖² over the units u that are to go, λ growing with the progress t of the training (GReg-1).

        λ(t) = initial + (ceiling − initial) · min(1, t / end)

    Of a group of n units, the ⌊sparsity · n⌋ of lowest ‖w_u‖₂ when the term is bound are to go, and `minimum` stay. What they
    carried moves to the others little by little, so that the cut afterwards removes next to nothing.

    Args:
        sparsity: fraction of the units of each group that are to go, in [0, 1); as in the step that cuts them.
        ceiling: the greatest factor, > 0.
        initial: the factor at the beginning, > 0 and at most `ceiling`.
        end: the progress at which the ceiling is reached, in [0, 1]; the rest of the training stays there.
        include: patterns of parameter names; groups that touch one of them lose units, by default all.
        exclude: patterns of parameter names; groups that touch one of them lose none.
        minimum: units of every group that are left alone at least.

    Raises:
        UserError: E110 out of range, E111 initial above ceiling; when it is bound: E112 a pattern that matches nothing or no
            unit to go, E121 a model that cannot be traced.

    Example:
        >>> Growing(ceiling=1.0, initial=0.1, end=0.5).factor(0.25)
        0.55

    Source: Wang, Qin, Zhang, Fu 2021, arXiv:2012.09243.
    """

    sparsity: Fraction = 0.5
    ceiling: Positive = 1.0
    initial: Positive = 1e-4
    end: Share = 0.8
    include: Patterns = ()
    exclude: Patterns = ()
    minimum: Count = 1

    def __post_init__(self) -> None:
        if self.initial > self.ceiling:
            raise UserError(
                "E111",
                f"the factor grows from initial to ceiling; got {self.initial:g} and {self.ceiling:g}",
                "lower initial, or raise ceiling",
                path=("initial",),
            )

    def factor(self, progress: float) -> float:
        """λ at this progress."""
        grown = 1.0 if progress >= self.end else progress / self.end
        return self.initial + (self.ceiling - self.initial) * grown

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        import torch

        from mirabelle.objectives.bound_objective import BoundFunction
        from mirabelle.objectives.units import UnitSquares

        del example
        squares = UnitSquares(model, task, self.include, self.exclude)
        with torch.no_grad():
            chosen = self._to_go(squares)
        bound = BoundFunction(lambda forward: 0.5 * self.factor(forward.progress) * squares()[bound.get_buffer("to_go")].sum())
        # Chosen once: a training that goes on takes the choice from its checkpoint.
        bound.register_buffer("to_go", chosen)
        return bound

    def _to_go(self, squares: UnitSquares) -> torch.Tensor:
        """The numbers of the units that are to go."""
        import torch

        values = squares()
        chosen, begin = [], 0
        for group in squares.groups:
            count = min(math.floor(self.sparsity * len(group)), max(0, len(group) - self.minimum))
            own = values[begin : begin + len(group)]
            chosen.append(begin + own.argsort(stable=True)[:count])
            begin += len(group)
        numbers = torch.cat(chosen)
        if not len(numbers):
            message = f"sparsity {self.sparsity:g} and minimum {self.minimum} leave no unit to go"
            raise UserError("E112", message, "raise sparsity, or lower minimum")
        return numbers
