"""Pruning whole layers: residual blocks, transformer layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.allocation.amount import Amount
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
    """Drops the residual layers whose loss is missed least: their input goes on as it came, x + f(x) becomes x.

    A residual layer is an element of a `Sequential`, a `ModuleList` or a `ModuleDict` that runs once, gives a tensor of its
    first argument's shape, and adds that argument to something inside: a block of a ResNet that keeps its shape, a layer of a
    transformer with all its branches. Damage is the rise of the mean loss on `samples` training samples when a layer is
    skipped alone. How much goes is told in one of two ways:
        sparsity s   ⌊s · n⌋ of n layers go, those of least damage;
        a goal       one or several of macs, parameters, size, latency: the layers whose damage together is least
                     (`mirabelle.allocation`). A layer's milliseconds are its share of what all layers of its size save when
                     they are gone, timed in the runtime; those of the plan are held against the runtime's.

    Args:
        sparsity: fraction of the layers removed, in [0, 1).
        macs: multiply-accumulates of one sample that may be left: "2.3M", or "50%" of the model's.
        parameters: that may be left: "20k", or "8%".
        size: bytes of the parameters in float32 that may be left: "80 kB", or "8%".
        latency: median of one call in ONNX Runtime that may be left: "0.8 ms", or "60%"; measured, then written down.
        batch: samples of a call whose latency is measured.
        exclude: patterns of layers' names; they stay.
        recover: what the model gets without labels: "batch-norm" estimates the statistics of its norms again,
            "least-squares" fits every layer after a dropped one to the outputs of the dense model's.
        samples: of the training data, for damage and recovery.
        train: the training in which the rest recovers; None drops and leaves it at that.

    Raises:
        UserError: E110 out of range, E111 both or neither of sparsity and a goal, E112 a pattern that matches nothing or a
            model without residual layers, E113 a goal that cannot be read, E114 one that cannot be reached, E121 a model that
            cannot be traced.

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
        from mirabelle.prune.recovery import recovered

        smaller = self._plan(model, task, run).smaller()
        return Prepared(recovered(self.recover, model, smaller, task.train, run, samples=self.samples))

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        plan = self._plan(model, task, run)
        return Preview(plan.smaller(), tuple(plan.describe()), self.train)

    def _plan(self, model: nn.Module, task: Task, run: Run) -> LayerPlan:
        from mirabelle.prune.layer_plan import LayerPlan

        amount = Amount.of(self)
        return LayerPlan(model, task, run, amount=amount, exclude=self.exclude, samples=self.samples, batch=self.batch)
