"""Quantization-aware training: a model is trained while its quantization is simulated, with learned step sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.calibration.settings import Calibration
from mirabelle.errors import UserError
from mirabelle.quantize.bits import Bits, MixedBits
from mirabelle.quantize.dynamic import Dynamic
from mirabelle.quantize.static import Static
from mirabelle.quantize.weights import Weights
from mirabelle.records.record import Count, Patterns, record
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Aware:
    """Quantization-aware training: trains with rounded weights and activations, and learns the step sizes of both.

    In the forward pass weights and inputs of the layers are ŵ = s · clamp(round(w / s), −n, n), n = 2^(weight_bits − 1) − 1, as
    they will be after the step; the gradient passes through the rounding unchanged inside the range, and the steps s get the
    gradient ∂ŵ/∂s = round(w / s) − w / s inside and ±n outside (learned step size quantization). Ranges begin as the
    calibration of `quantize.Static` finds them; batch norms that it folds are folded before the training. Pruned weights stay
    zero. After the training the layers are those of `quantize.Static`, `Dynamic` or `Weights`, with the trained codes and
    steps.

    With 8 bits, calibration alone usually suffices. Training pays with 2 to 5 bits, and for small networks. As in every
    training, the model before compression teaches by default. A network whose batch norms are folded diverges at learning rates
    that it was trained with; with AdamW, 1e-5 to 2e-4 are usual. If the model is worse on the validation data after the
    training than before it, as calibrated, the calibrated one is kept, and this is told.

    Args:
        weight_bits: bits per weight, 2 to 8; for "static" also a table `{size, choices, samples}` for bits of each layer
            within a size, chosen before the training (see `MixedBits`).
        activations: rounding of the inputs of layers: "static" with one learned range each, as in `quantize.Static`; by "token"
            or by "tensor" with the range of the moment, as in `quantize.Dynamic`; "float" for none, as in `quantize.Weights`.
        calibration: how the first ranges of "static" are found; see `quantize.Static`.
        samples: number of training samples for the calibration.
        include: patterns of module names; by default all layers of the classes that the other step quantizes.
        exclude: patterns of names of modules that stay in floating point.
        train: the training; None only in a joint training, which has its own.

    Raises:
        UserError: E110 for a value out of range; E111 without a training; E112 if a pattern matches nothing, or no layer is
            selected; E121 if a layer did not run on the calibration data, or for a rewritten program without layers.

    Example:
        >>> from mirabelle.training import Training
        >>> Aware(weight_bits=4, train=Training(epochs=2, lr=1e-4)).stage
        'quantize'

    Source: Esser et al. 2020, arXiv:1902.08153; Jacob et al. 2018, arXiv:1712.05877.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits | MixedBits = 8
    activations: Literal["static", "token", "tensor", "float"] = "static"
    calibration: Calibration = "min-max"
    samples: Count = 1000
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weight_bits, MixedBits) and self.activations != "static":
            message = f'bits of each layer are chosen for static activations; got activations = "{self.activations}"'
            raise UserError("E111", message, "give one number of bits", path=("weight_bits",))

    @property
    def needs_training(self) -> bool:
        """Whether the step needs a training: always."""
        return True

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is None:
            raise UserError("E111", "quantize.Aware trains", "give `train`, or use quantize.Static, which calibrates")
        return train_together((self,), self.train, model, task, run)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.model.architecture import architecture_of
        from mirabelle.quantize.after_training import better_one
        from mirabelle.quantize.simulation import quantized_as_trained, simulating

        quantized = self._without_training()(model, task, run)
        training = simulating(model, quantized)
        pruned = set(architecture_of(training).pruned)

        def finish(trained: nn.Module) -> nn.Module:
            found = quantized_as_trained(quantized, trained)
            # A training that has pruned weights has no model without it to compare with.
            if set(architecture_of(trained).pruned) != pruned:
                return found
            return better_one(quantized, found, task, run, before_is="as calibrated")

        return Prepared(training, finish=finish)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        found = self._without_training().preview(model, task, run)
        from mirabelle.quantize.simulation import simulating

        return Preview(found.model, found.description, self.train, in_training=simulating(model, found.model))

    def _without_training(self) -> Static | Dynamic | Weights:
        """The step that makes the same layers without a training."""
        bits, include, exclude = self.weight_bits, self.include, self.exclude
        if self.activations == "static":
            return Static(
                calibration=self.calibration, samples=self.samples, weight_bits=bits, include=include, exclude=exclude
            )
        assert isinstance(bits, int), "__post_init__ refuses other bits"
        if self.activations == "float":
            return Weights(weight_bits=bits, include=include, exclude=exclude)
        return Dynamic(weight_bits=bits, granularity=self.activations, include=include, exclude=exclude)
