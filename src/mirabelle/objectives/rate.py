"""The rate of a model that is trained with rounded weights: how many bits they will take in a packed file."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.errors import UserError
from mirabelle.objectives.objective import Term
from mirabelle.records.record import record
from mirabelle.task.goal import limit_of

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


@record
class Rate(Term):
    """Rate: the mean bits of a weight, R = 1 / n · Σ_i −log₂ p(q_i), over the n numbers that the training rounds.

    q = round(w / s) are the levels of a tensor with the step s. p is the model that fits the present levels of the tensor: a
    weight is not 0 with a probability that depends on the density of its row and its column, and magnitudes have their
    frequencies (`numerics.entropy`). In the gradient, the cost of w / s is linear between two levels, so that weights move to
    the cheaper one; the steps get a gradient, too. Weights that are not worth their bits become zeros, rows and columns become
    empty, and few levels are left.

    It needs a training that rounds weights: `quantize.EntropyConstrained`, which adds the term, or `quantize.Aware`.

    Args:
        size: most bytes of the rounded numbers, "4 kB", or "5%" of these numbers in float32. The term then finds its weight: it
            grows while the estimated size is above a limit that falls from the first size to this one in half of the training,
            and shrinks while it is below. The weight that the objective gives is a factor; leave it at 1.

    Raises:
        UserError: E113 for a size that cannot be read; E112, when it is bound, if the model rounds no weights.

    Example:
        >>> 2.0 * Rate()
        Objective(terms=((2.0, Rate(size=None)),))

    Source: Oktay, Ballé, Singh, Shrivastava 2020, arXiv:1906.06624 (rate of weights in the loss); Wiedemann, Marban, Müller,
    Samek 2019, arXiv:1812.07520 (entropy constraint); the gradient of steps: Esser et al. 2020, arXiv:1902.08153.
    """

    reads_weights: ClassVar[bool] = True
    size: str | float | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            limit_of("size", self.size, 1.0)

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        from mirabelle.objectives.bound_rate import BoundRate, Rounds

        del task, example
        layers = [module for module in model.modules() if isinstance(module, Rounds)]
        if not layers:
            message = "Rate needs a model whose weights are rounded in the training, and this one has none"
            raise UserError("E112", message, "use it with quantize.EntropyConstrained or quantize.Aware")
        return BoundRate(layers, self.size)
