"""Structured regularization: terms that pull whole channels, neurons and heads towards zero before they are removed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

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
    """Group lasso: Σ √|u| · ‖w_u‖₂ over the units u that can be removed; w_u are the |u| weights that belong to unit u.

    Units are the channels, neurons and heads that `prune.Channels` removes; they are found on the traced model when the term is
    bound. Because the norm is not squared, its gradient does not vanish for small units: a unit reaches zero as a whole.

    Args:
        include: patterns of parameter names; groups with a matching parameter are regularized, by default all.
        exclude: patterns of parameter names; groups with a matching parameter are not regularized.

    Raises:
        UserError: when the term is bound: E112 if a pattern matches no parameter or no group is left, E121 if the model cannot
            be traced.

    Example:
        >>> from mirabelle.objectives import TaskLoss
        >>> TaskLoss() + 1e-3 * GroupLasso()
        Objective(terms=((1.0, TaskLoss()), (0.001, GroupLasso(include=(), exclude=()))))

    Source: Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables"; Wen, Wu, Wang, Chen, Li
    2016, arXiv:1608.03665 (networks).
    """

    reads_weights: ClassVar[bool] = True
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
            # The norm has no gradient at zero: values below the smallest positive number are clamped and get gradient 0.
            return (factors.to(own.device) * own.clamp_min(torch.finfo(own.dtype).tiny).sqrt()).sum()

        return BoundFunction(penalty)


@record
class Growing(Term):
    """Growing regularization (GReg-1): ½ λ(t) Σ ‖w_u‖² over the units u selected for removal, at training progress t in [0, 1].

        λ(t) = initial + (ceiling − initial) · min(1, t / end)

    In a group of n units, the ⌊sparsity · n⌋ units with the lowest ‖w_u‖₂ at the time of binding are selected; at least
    `minimum` are left. The network gradually stops using the selected units, so that their removal changes its outputs little.

    Args:
        sparsity: fraction of the units of each group to select, in [0, 1); use the same value in the step that removes them.
        ceiling: the largest value of λ, > 0.
        initial: λ at the start of the training, > 0 and at most `ceiling`.
        end: the progress at which λ reaches `ceiling`, in [0, 1]; λ is constant afterwards.
        include: patterns of parameter names; units are selected in groups with a matching parameter, by default in all.
        exclude: patterns of parameter names; no units are selected in groups with a matching parameter.
        minimum: least number of units of every group that are not selected.

    Raises:
        UserError: E110 if a value is out of range, E111 if initial exceeds ceiling; when the term is bound: E112 if a pattern
            matches no parameter or no unit is selected, E121 if the model cannot be traced.

    Example:
        >>> Growing(ceiling=1.0, initial=0.1, end=0.5).factor(0.25)
        0.55

    Source: Wang, Qin, Zhang, Fu 2021, arXiv:2012.09243.
    """

    reads_weights: ClassVar[bool] = True
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
                f"initial must not exceed ceiling; got {self.initial:g} and {self.ceiling:g}",
                "lower initial, or raise ceiling",
                path=("initial",),
            )

    def factor(self, progress: float) -> float:
        """λ(progress), for a progress in [0, 1]."""
        grown = 1.0 if progress >= self.end else progress / self.end
        return self.initial + (self.ceiling - self.initial) * grown

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        import torch

        from mirabelle.objectives.bound_objective import BoundFunction
        from mirabelle.objectives.units import UnitSquares

        del example
        squares = UnitSquares(model, task, self.include, self.exclude)
        with torch.no_grad():
            chosen = self._selected(squares)
        bound = BoundFunction(lambda forward: 0.5 * self.factor(forward.progress) * squares()[bound.get_buffer("to_go")].sum())
        # The selection is made once and stored in the checkpoint, so that a resumed training uses the same units.
        bound.register_buffer("to_go", chosen)
        return bound

    def _selected(self, squares: UnitSquares) -> torch.Tensor:
        """The indices of the selected units."""
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
            message = f"no unit can be removed with sparsity {self.sparsity:g} and minimum {self.minimum}"
            raise UserError("E112", message, "raise sparsity, or lower minimum")
        return numbers
