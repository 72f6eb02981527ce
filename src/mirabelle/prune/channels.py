"""Pruning whole channels, neurons, heads: units of the axis groups that the graph finds, really gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.plain import Count, Fraction, Patterns, record
from mirabelle.scores import Magnitude
from mirabelle.scores.score import ScoreField
from mirabelle.step import Control, Preview, Stage
from mirabelle.training import Training

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives import Objective
    from mirabelle.run import Run
    from mirabelle.task import Task


@record
class Channels:
    """Cuts the units of lowest score out of every tensor that they touch: the model has smaller layers afterwards.

    What must be cut together is found on the traced program: channels with their norms and readers, heads with all their
    projections, key-value groups, neurons. What is not understood stays, and is named (`mirabelle inspect MODEL --groups`).
    Of a group of n units, max(minimum, ⌈(n − ⌊sparsity · n⌋) / multiple⌉ · multiple) stay, at most n. The score of a unit
    is √Σ s², over the scores s of every weight of two or more dimensions that it takes with it. With `scope = "global"` the
    scores of each group are divided by their mean, and all groups are ranked together.

    The cut model is the model's own module where its code follows its widths; where they are written into it, the rewritten
    program stands for it: without dropout and with its batch statistics fixed, as in eval mode.

    Args:
        sparsity: fraction of the units removed, in [0, 1).
        scope: rank within each "group", or "global" over all of them.
        ignore: patterns of parameter names; a group that touches one of them stays whole.
        minimum: units that every group keeps at least.
        multiple: what is left in a group is a multiple of this; widths of 8 or 16 run faster in most runtimes.
        score: what matters least; magnitude by default.
        train: the training in which the rest recovers; None cuts and leaves it at that.

    Raises:
        UserError: E110 out of range, E112 a pattern that matches nothing or no group that can be cut, E121 a model that
            cannot be traced.

    Example:
        >>> import mirabelle, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 2
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> Channels(sparsity=0.5)(model, task, mirabelle.Run("unused"))[0].weight.shape
        torch.Size([4, 4])

    Source: Fang, Ma, Song, Bi Mi, Wang 2023, arXiv:2301.12900 (groups); Li, Kadav, Durdanovic, Samet, Graf 2017,
    arXiv:1608.08710 (magnitude of filters).
    """

    stage: ClassVar[Stage] = "thin"

    sparsity: Fraction
    scope: Literal["group", "global"] = "group"
    ignore: Patterns = ()
    minimum: Count = 1
    multiple: Count = 1
    score: ScoreField = Magnitude()
    train: Training | None = None

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        return self.prepare(model, task, run)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.prune.cutting import Cutting

        del run
        return Cutting(self, model, task).cut()

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.prune.cutting import Cutting

        del run
        cutting = Cutting(self, model, task)
        smaller = cutting.cut()
        return Preview(smaller, tuple(cutting.says(smaller)), self.train)

    def terms(self) -> Objective | None:
        return None

    def controls(self, model: nn.Module) -> Sequence[Control]:
        del model
        return ()

    def finish(self, model: nn.Module) -> nn.Module:
        return model
