"""Entropy-constrained training: zeros, bit widths and values of the weights come out of one training that counts their bits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mirabelle.errors import UserError
from mirabelle.quantize.layer_selection import opened, selected, told, weighted_kinds
from mirabelle.records.record import NotNegative, Patterns, record
from mirabelle.records.schedules import Annealed
from mirabelle.step import Preview, Stage
from mirabelle.task.goal import limit_of
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from mirabelle.objectives.objective import Objective
    from mirabelle.quantize.folded_form import FoldedForm
    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task
    from mirabelle.training.contracts import Control

_RISE = 0.3  # share of the training in which the rate rises from 0


@record
class EntropyConstrained:
    """Trains with rounded weights and the bits that they take as a term of the loss, L + rate · bits per weight.

    Each layer has one learned step for its weight and one for its bias, ŵ = s · round(w / s). The term `Rate` estimates the
    bits of the levels under a model that fits the layer's present levels, with the density of each row and each column. So
    one number decides how many weights become zeros, which neurons and inputs disappear, how many values are left, and how
    far apart they are. After each optimizer step, numbers are pulled a little towards their levels, so that they do not change
    between two of them at every other step (`Damping`).

    Afterwards the layers have codebooks of these values (`CodebookLayer`): computed in floating point, small in `model.mira`.
    In `model.onnx`, layers of up to 4,096 weights are stored as weights. A batch norm that is the only user of a layer's output
    is folded into the layer before, so that nothing of it is stored. Pruned weights stay zero. At the end, units that nobody
    reads, and those that are 0 for every input, lose what is left of their weights; no output changes. As in every training,
    the model before compression teaches by default.
    The weights at the end of the training are kept, also with `keep = "best"`: those of earlier epochs take more bytes.

    Args:
        rate: loss per bit of a mean weight, to which it rises in the first 30 % of the training. Small networks with many
            weights take 0.5 to 5; larger means smaller files.
        size: instead of a rate, most bytes of the coded weights and biases, "4 kB", or "5%" of these in float32; the rate is
            then found in the training. The file has the graph, scales of norms and other tensors besides.
        include: patterns of module names; by default all layers of the classes that `quantize.Codebook` takes.
        exclude: patterns of names of modules that stay as they are.
        train: the training; None only in a joint training, which has its own.

    Raises:
        UserError: E110 for a value out of range; E111 unless there is a rate or a size, or without a training; E112 if a
            pattern matches nothing, or no layer is selected; E113 for a size that cannot be read; E121 if a weight is not
            finite, or for a rewritten program, which has no layers.

    Example:
        >>> EntropyConstrained(size="4 kB", train=Training(epochs=60)).stage
        'quantize'

    Source: see `objectives.Rate`; the combination with trained pruning: Wiedemann et al. 2020, arXiv:1907.11900 (DeepCABAC).
    """

    stage: ClassVar[Stage] = "quantize"

    rate: NotNegative | None = None
    size: str | float | None = None
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.size is None):
            given = "neither" if self.rate is None else "both"
            raise UserError("E111", f"give a rate or a size; got {given}", 'for example size = "4 kB"')
        if self.size is not None:
            limit_of("size", self.size, 1.0, where="")

    @property
    def needs_training(self) -> bool:
        """Whether the step needs a training: always."""
        return True

    def layers(self) -> tuple[type[nn.Module], ...]:
        return weighted_kinds()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is None:
            raise UserError("E111", "quantize.EntropyConstrained trains", "give `train`, or use quantize.Codebook without one")
        return train_together((self,), self.train, model, task, run)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        given = opened(model, self, run)
        form, in_training = self._begun(given, task, run)
        told(given, _finished(form, in_training), self, task, run)
        finish = partial(_finished_without_idle_units, form, size=self.size, task=task, run=run)
        return Prepared(in_training, terms=self._terms(), controls=partial(_controls, form, task=task, run=run), finish=finish)

    def _begun(self, given: nn.Module, task: Task, run: Run) -> tuple[FoldedForm, nn.Module]:
        """The form of the model, and the model that trains."""
        from mirabelle.quantize.folded_form import FoldedForm

        form = FoldedForm(given, self._selection(given), task, run)
        return form, _in_training(form, self._first_bits(form.dense))

    def _terms(self) -> Objective:
        from mirabelle.objectives.rate import Rate

        return 1.0 * Rate(size=self.size) if self.rate is None else Annealed(start=0.0, end=self.rate, until=_RISE) * Rate()

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        given = opened(model, self)
        form, in_training = self._begun(given, task, run)
        shared = _finished(form, in_training)
        told_of = told(given, shared, self, task, run)
        return Preview(shared, told_of, self.train, in_training=in_training, terms=self._terms())

    def _selection(self, model: nn.Module) -> Selection:
        from mirabelle.quantize.tied_weights import check_finite

        selection = selected(model, self)
        check_finite(selection)
        return selection

    def _first_bits(self, layers: Sequence[nn.Module]) -> float:
        """The entropy of the levels at the beginning: that of the size, or so little that most weights are 0."""
        from mirabelle.quantize.rounded_layer import FEWEST_BITS

        if self.size is None:
            return FEWEST_BITS
        parameters = {id(parameter): parameter for layer in layers for parameter in layer.parameters()}  # shared ones once
        count = sum(parameter.numel() for parameter in parameters.values())
        return max(FEWEST_BITS, 8 * limit_of("size", self.size, 4.0 * count, where="") / count)


def _in_training(form: FoldedForm, first_bits: float) -> nn.Module:
    """The model with layers that train with rounded weights."""
    from mirabelle.quantize.rounded_layer import rounded_layers

    return form.with_layers(dict(zip(form.names, rounded_layers(form.dense, first_bits), strict=True)))


def _controls(form: FoldedForm, trained: nn.Module, *, task: Task, run: Run) -> tuple[Control, ...]:
    from mirabelle.quantize.rounding_controls import Clearing, Damping

    del trained
    return Damping(), Clearing(partial(_clear_idle_units, form, task=task, run=run))


def _clear_idle_units(form: FoldedForm, trained: nn.Module, *, task: Task, run: Run) -> None:
    """Set what is left of the weights and biases of units that do nothing to zero; other numbers stay as they are."""
    layers: dict[str, Any] = {name: trained.get_submodule(name) for name in form.names}
    before = {name: layer.rounded() for name, layer in layers.items()}
    after = {name: layer.rounded() for name, layer in layers.items()}
    cleared = form.silence(after, task.example().inputs)
    for name, layer in layers.items():
        gone = [
            None if old is None or new is None else (old != 0) & (new == 0)
            for old, new in zip(before[name], after[name], strict=True)
        ]
        layer.clear(*gone)
    if cleared:
        run.event("idle units", cleared=cleared)


def _finished_without_idle_units(
    form: FoldedForm, trained: nn.Module, *, size: str | float | None, task: Task, run: Run
) -> nn.Module:
    """The trained model with codebook layers; if its size is above the one that was asked for, that is told."""
    from mirabelle.objectives.bound_rate import BoundRate

    _clear_idle_units(form, trained, task=task, run=run)
    layers: list[Any] = [trained.get_submodule(name) for name in form.names]
    rate = BoundRate(layers, size)
    if rate.most_bytes is not None and (coded := rate.coded_bytes()) > rate.most_bytes:
        text = f"the coded weights and biases take {coded:,.0f} bytes, more than size = {size}: raise it, or train longer"
        run.event("warning", text=text)
    return _finished(form, trained)


def _finished(form: FoldedForm, trained: nn.Module) -> nn.Module:
    """The trained model with codebook layers."""
    rounded: Any = trained.get_submodule  # layers that _in_training has put there
    return form.finished(trained, lambda name, dense: rounded(name).as_codebook(dense))
