"""Depth pruning: drops whole residual layers, such as residual blocks and transformer layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from mirabelle.allocation.amount import Amount
from mirabelle.prune.previewing import PREVIEWED, ranked_on_fewer, times_as_long
from mirabelle.prune.recovery_methods import Recover
from mirabelle.records.record import Count, Fraction, Patterns, record
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.prune.layer_plan import LayerPlan
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Layers:
    """Depth pruning: drops the residual layers that matter least, so that x + f(x) becomes x.

    A residual layer is an element of a `Sequential`, a `ModuleList` or a `ModuleDict` that runs once, returns a tensor with the
    shape of its first argument, and contains an addition with this argument: a residual block that keeps its shape, or a
    transformer layer with all its branches. The damage of a layer is the rise of the mean loss on `samples` training samples
    when only this layer is skipped. The amount is given in one of two ways:
        sparsity s   ⌊s · n⌋ of n layers are dropped, those of least damage;
        limits       one or several of macs, parameters, size, latency: the layers with the smallest sum of damages are dropped
                     (`mirabelle.allocation`). All layers of one size are timed together in the runtime, and each gets an equal
                     share of the time that dropping them saves; the latency of the result is then measured.

    Args:
        sparsity: fraction of the layers to drop, in [0, 1).
        macs: limit on multiply-accumulates per sample, such as "2.3M", or "50%" of the model's.
        parameters: limit on parameters, such as "20k" or "8%".
        size: limit on the size of the parameters in float32, such as "80 kB" or "8%".
        latency: limit on the median latency of a call in ONNX Runtime, such as "0.8 ms" or "60%"; the layers that were chosen
            by measuring are recorded in the run.
        batch: batch size for the measurement of latency.
        exclude: patterns of names of layers that are kept.
        recover: how the pruned model is corrected without labels: "batch-norm" estimates the statistics of batch norms again,
            "least-squares" fits each layer after a dropped one to the outputs of the dense model.
        samples: number of training samples to measure the damage, and for `recover`.
        train: training after pruning (fine-tuning); None for no training.

    Raises:
        UserError: E110 for a value out of range; E111 if both or neither of a sparsity and limits are given; E112 if a pattern
            matches nothing, or no layer can be dropped; E113 for a limit that cannot be read; E114 for one that cannot be
            reached; E121 if the model cannot be traced.

    Example:
        >>> import mirabelle, torch
        >>> from torch import nn
        >>> class Block(nn.Linear):
        ...     def forward(self, x):
        ...         return x + super().forward(x)
        >>> model = nn.Sequential(nn.Linear(4, 6), Block(6, 6), Block(6, 6), nn.Linear(6, 2))
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 2
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> smaller = Layers(sparsity=0.5)(model, task, mirabelle.Run("runs/example"))
        >>> sorted(type(layer).__name__ for layer in smaller)
        ['Block', 'Linear', 'Linear', 'Skipped']

    Source: Veit, Wilber, Belongie 2016, arXiv:1605.06431 (residual layers can be dropped); Fan, Grave, Joulin 2020,
    arXiv:1909.11556; Sajjad, Dalvi, Durrani, Nakov 2023, arXiv:2004.03844 (transformers).
    """

    stage: ClassVar[Stage] = "thin"

    sparsity: Fraction | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None
    batch: Count = 1
    exclude: Patterns = ()
    recover: Recover = "nothing"
    samples: Count = 512
    train: Training | None = None

    def __post_init__(self) -> None:
        Amount.of(self).check()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        return self.prepare(model, task, run).model

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.model.left_alone import tell_left_alone
        from mirabelle.model.plain_weights import with_plain_weights
        from mirabelle.prune.recovery import recovered

        model = with_plain_weights(model, run)
        plan = self._plan(model, task, run)
        smaller = plan.smaller()
        tell_left_alone(run, smaller, task.example(), plan.left(smaller))
        return Prepared(recovered(self.recover, model, smaller, task.train, run, samples=self.samples))

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.model.left_alone import tell_left_alone
        from mirabelle.model.plain_weights import with_plain_weights

        model = with_plain_weights(model)
        plan = dataclasses.replace(self, samples=min(self.samples, PREVIEWED))._plan(model, task, run)
        smaller = plan.smaller()
        left = tell_left_alone(run, smaller, task.example(), plan.left(smaller))
        told = (*plan.describe(), *left, *ranked_on_fewer(self.samples))
        return Preview(smaller, told, self.train, plan.ranking_seconds * times_as_long(self.samples))

    def _plan(self, model: nn.Module, task: Task, run: Run) -> LayerPlan:
        from mirabelle.prune.layer_plan import LayerPlan

        amount = Amount.of(self)
        return LayerPlan(model, task, run, amount=amount, exclude=self.exclude, samples=self.samples, batch=self.batch)
