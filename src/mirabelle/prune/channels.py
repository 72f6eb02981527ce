"""Pruning whole channels, neurons, heads: units of the axis groups that the graph finds, really gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.allocation.amount import Amount
from mirabelle.prune.recovery_methods import Recover
from mirabelle.records.record import Count, Fraction, Patterns, record
from mirabelle.scores import Magnitude
from mirabelle.scores.score import ScoreField
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.prune.channel_plan import ChannelPlan
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Channels:
    """Cuts the units of lowest score out of every tensor that they touch: the model has smaller layers afterwards.

    What must be cut together is found on the traced program: channels with their norms and readers, heads with all their
    projections, key-value groups, neurons. What is not understood stays, and is named (`mirabelle inspect MODEL --groups`).
    How much goes is told in one of two ways:
        sparsity s   of a group of n units, max(minimum, ⌈(n − ⌊s · n⌋) / multiple⌉ · multiple) stay, at most n;
        a goal       one or several of macs, parameters, size, latency: as little goes as the goal allows.
    The score of a unit is that of all weights together that it takes with it, √Σ s² for the magnitude; a group with no tensor
    of which the score speaks stays whole.
    With `scope = "group"` every group loses the same fraction. With "global" and a sparsity, scores are divided by their mean
    in the group and ranked over all groups; with "global" and a goal, the widths are those of least damage
    −Σ n · ln(share of the group's squared scores that stays), n the weights that the group narrows: an exact optimum over the
    widths that are looked at (`mirabelle.allocation`). Milliseconds are planned from times of single operators and held
    against those of the whole model.

    The cut model is the model's own module where its code follows its widths; where they are written into it, the rewritten
    program stands for it: without dropout and with its batch statistics fixed, as in eval mode, for inputs of the sizes that
    its code fixes (`len(x)` fixes the batch, `x.shape[0]` does not).

    Args:
        sparsity: fraction of the units removed, in [0, 1).
        macs: multiply-accumulates of one sample that may be left: "2.3M", or "50%" of the model's.
        parameters: that may be left: "20k", or "8%".
        size: bytes of the parameters in float32 that may be left: "80 kB", or "8%".
        latency: median of one call in ONNX Runtime that may be left: "0.8 ms", or "60%"; measured, then written down.
        batch: samples of a call whose latency is measured.
        scope: "group", or "global" over all of them; by default "group" for a sparsity and "global" for a goal.
        include: patterns of the names by which `inspect --groups` calls groups, less their ":dimension"; by default all.
        exclude: patterns of parameter names; a group that touches one of them stays whole.
        minimum: units that every group keeps at least.
        multiple: what is left in a group is a multiple of this; "measured" takes the smallest at which the heaviest operators
            run at nine tenths of their best rate, and writes it down.
        score: what matters least; magnitude by default. "Hessian" removes units one by one, always the one whose loss the
            layers that read it can make up for best.
        recover: what the cut model gets without labels: "batch-norm" estimates the statistics of its norms again,
            "least-squares" fits every layer after a cut to the outputs of the dense model's.
        samples: of the training data, looked at for that.
        train: the training in which the rest recovers; None cuts and leaves it at that.

    Raises:
        UserError: E110 out of range, E111 both or neither of sparsity and a goal, E112 a pattern that matches nothing or no
            group that can be cut, E113 a goal that cannot be read, E114 one that cannot be reached, E121 a model that cannot
            be traced.

    Example:
        >>> import mirabelle, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 2
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> Channels(sparsity=0.5)(model, task, mirabelle.Run("runs/example"))[0].weight.shape
        torch.Size([4, 4])

    Source: Fang, Ma, Song, Bi Mi, Wang 2023, arXiv:2301.12900 (groups); Li, Kadav, Durdanovic, Samet, Graf 2017,
    arXiv:1608.08710 (magnitude of filters);
    Shen, Yin, Molchanov, Mao, Liu, Alvarez 2022, arXiv:2110.10811 (latency as the budget of an integer program).
    """

    stage: ClassVar[Stage] = "thin"

    sparsity: Fraction | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None
    batch: Count = 1
    scope: Literal["group", "global"] | None = None
    include: Patterns = ()
    exclude: Patterns = ()
    minimum: Count = 1
    multiple: Count | Literal["measured"] = 1
    score: ScoreField = Magnitude()
    recover: Recover = "nothing"
    samples: Count = 1024
    train: Training | None = None

    def __post_init__(self) -> None:
        Amount.of(self).check()

    @property
    def ranks_together(self) -> bool:
        """Whether one group may lose more than another."""
        return self.scope == "global" or (self.scope is None and self.sparsity is None)

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        return self.prepare(model, task, run).model

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.prune.recovery import recovered

        smaller = self._plan(model, task, run).cut()
        return Prepared(recovered(self.recover, model, smaller, task.train, run, samples=self.samples))

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        plan = self._plan(model, task, run)
        smaller = plan.cut()
        return Preview(smaller, tuple(plan.describe(smaller)), self.train)

    def _plan(self, model: nn.Module, task: Task, run: Run) -> ChannelPlan:
        from mirabelle.prune.channel_plan import ChannelPlan

        return ChannelPlan(
            model,
            task,
            run,
            amount=Amount.of(self),
            score=self.score,
            include=self.include,
            exclude=self.exclude,
            ranks_together=self.ranks_together,
            minimum=self.minimum,
            multiple=self.multiple,
            batch=self.batch,
        )
