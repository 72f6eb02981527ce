"""Structured pruning: removes whole channels, neurons and attention heads, so that tensors become smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.allocation.amount import Amount, check_amount
from mirabelle.prune.previewing import PREVIEWED, ranked_on_fewer, times_as_long
from mirabelle.prune.recovery_methods import Recover
from mirabelle.records.record import Count, Fraction, Patterns, Share, record
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
    """Structured pruning: removes the units (channels, neurons, heads) of lowest score, which makes the layers smaller.

    A trace of the model shows which elements of which tensors must be removed together: channels with their norms and the
    layers that use them, heads with all their projections, key-value groups, neurons. Units of operators without a rule are
    not removed; `mirabelle inspect MODEL --groups` lists them. The amount is given in one of three ways:
        sparsity s   a group of n units keeps max(minimum, ⌈(n − ⌊s · n⌋) / multiple⌉ · multiple) of them, at most n;
        widths       the number of units that each named group keeps; the others keep all;
        limits       one or several of macs, parameters, size, latency: as little is removed as the limits allow.
    The score of a unit combines the scores of all weights that are removed with it, for the magnitude √Σ s². A group without a
    tensor to which the score applies is not pruned.
    With `scope = "group"`, all groups lose the same fraction. With "global" and a sparsity, scores are divided by their mean in
    the group and ranked over all groups. With "global" and limits, the widths minimize the damage
    −Σ n · ln(share of the squared scores that the group keeps), where n is the number of weights that the group narrows; the
    optimum over the considered widths is exact (`mirabelle.allocation`). A limit on latency is planned with the times of
    single operators and then checked by timing the whole model.

    A unit that is the same number for every input, such as a channel whose batch norm has γ = 0, is cut without a change: its
    constant is added to the biases of the layers that read it. Where a padding hides it at the border, the mean over all
    positions is added, and it is told (Ye 2018, arXiv:1802.00124).

    If the code of the model works with the new widths, the result is the model's own module. Otherwise it is a rewritten
    program in eval mode: without dropout, with fixed batch norm statistics, and for the input sizes that the code fixes
    (a loop over the samples fixes the batch size, `len(x)` and `x.shape[0]` do not).

    Args:
        sparsity: fraction of the units to remove, in [0, 1).
        widths: patterns of names of groups -> number of units that they keep, such as {"conv1.weight" = 12}; with ":dimension"
            where two groups have the same name.
        macs: limit on multiply-accumulates per sample, such as "2.3M", or "50%" of the model's.
        parameters: limit on parameters, such as "20k" or "8%".
        size: limit on the size of the parameters in float32, such as "80 kB" or "8%".
        latency: limit on the median latency of a call in ONNX Runtime, such as "0.8 ms" or "60%"; the widths that were found
            by measuring are recorded in the run.
        batch: batch size for the measurement of latency.
        scope: "group" or "global", over all groups; by default "group" for a sparsity and "global" for limits.
        include: patterns of names of groups, as shown by `inspect --groups`, without ":dimension"; by default all groups.
        exclude: patterns of parameter names; a group with a matching parameter is not pruned.
        floor: in a global ranking by a sparsity s, a group of n units keeps at least ⌈floor · (1 − s) · n⌉, so that no layer is
            emptied; the others lose more instead. 1 is the same sparsity for all, 0 no floor.
        minimum: smallest number of units that each group keeps.
        multiple: each group keeps a multiple of this number of units; "measured" takes the smallest number for which the most
            expensive operators run at 90 % of their highest rate, and records it in the run.
        score: importance of weights; magnitude by default. "Hessian" removes units one by one, each time the one whose removal
            the layers that use it can compensate best.
        recover: how the pruned model is corrected without labels: "batch-norm" estimates the statistics of batch norms again,
            "least-squares" fits each layer after a cut to the outputs of the dense model.
        samples: number of training samples for `recover`.
        train: training after pruning (fine-tuning); None for no training.

    Raises:
        UserError: E110 for a value out of range; E111 unless there is a sparsity, widths or limits, or if two widths are given
            for groups that must keep the same number; E112 if a pattern matches nothing, or no group can be pruned; E113 for a
            limit that cannot be read; E114 for one that cannot be reached; E121 if the model cannot be traced.

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
    widths: Mapping[str, Count] | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None
    batch: Count = 1
    scope: Literal["group", "global"] | None = None
    include: Patterns = ()
    exclude: Patterns = ()
    floor: Share = 0.2
    minimum: Count = 1
    multiple: Count | Literal["measured"] = 1
    score: ScoreField = Magnitude()
    recover: Recover = "nothing"
    samples: Count = 1024
    train: Training | None = None

    def __post_init__(self) -> None:
        check_amount(self, "widths", self.widths)

    @property
    def ranks_together(self) -> bool:
        """Whether groups may lose different fractions of their units."""
        return self.scope == "global" or (self.scope is None and self.sparsity is None)

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        prepared = self.prepare(model, task, run)
        return prepared.finish(prepared.model)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.model.left_alone import tell_left_alone
        from mirabelle.model.plain_weights import with_plain_weights
        from mirabelle.prune.collapse import told_of_collapse
        from mirabelle.prune.recovery import recovered

        model = with_plain_weights(model, run)
        plan = self._plan(model, task, run)
        smaller = plan.cut()
        for text in plan.constants.sentences():
            run.event("note", text=text)
        tell_left_alone(run, smaller, task.example(), plan.left(smaller))
        smaller = recovered(self.recover, model, smaller, task.train, run, samples=self.samples)
        return Prepared(smaller, finish=lambda trained: told_of_collapse(run, model, trained, task.train))

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.model.left_alone import tell_left_alone
        from mirabelle.model.plain_weights import with_plain_weights

        model = with_plain_weights(model)
        score, samples = self.score, getattr(self.score, "samples", 0)
        if samples > PREVIEWED:
            score = dataclasses.replace(score, samples=PREVIEWED)  # type: ignore[type-var]  # a record with samples
        plan = dataclasses.replace(self, score=score)._plan(model, task, run)
        smaller = plan.cut()
        left = tell_left_alone(run, smaller, task.example(), plan.left(smaller))
        told = (*plan.describe(smaller), *left, *ranked_on_fewer(samples))
        return Preview(smaller, told, self.train, plan.ranking_seconds * times_as_long(samples))

    def _plan(self, model: nn.Module, task: Task, run: Run) -> ChannelPlan:
        from mirabelle.prune.channel_plan import ChannelPlan

        return ChannelPlan(
            model,
            task,
            run,
            amount=Amount.of(self),
            widths=self.widths,
            score=self.score,
            include=self.include,
            exclude=self.exclude,
            ranks_together=self.ranks_together,
            floor=self.floor,
            minimum=self.minimum,
            multiple=self.multiple,
            batch=self.batch,
        )
