"""Static quantization: int8 weights and activations with calibrated ranges; well suited to convolutional networks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.calibration.settings import Calibration
from mirabelle.errors import UserError
from mirabelle.quantize.bits import Bits, MixedBits
from mirabelle.quantize.layer_selection import opened, selected, told
from mirabelle.records.record import Count, Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from mirabelle.calibration.ranges import Range
    from mirabelle.quantize.sensitivity import Floating
    from mirabelle.quantize.static_plan import Plan, Planner
    from mirabelle.run.run import Run
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

_BATCH = 100
_PREVIEWED = 8  # samples by which a preview chooses bits


@record
class Static:
    """Static quantization of linear and convolution layers: int8 weights (per output channel) and uint8 inputs (per tensor).

    x ≈ s_x · (code − z), code in 0 … 255, over the calibrated range;  w ≈ s_o · code, code in ±(2^(weight_bits − 1) − 1).

    `Conv1D` of transformers, the linear layer of GPT-2, is quantized, too.

    Outputs of convolutions are quantized to uint8, too, unless they are outputs of the model or inputs of a layer norm or
    softmax. So are results of additions, products, concatenations, averages and activations between quantized layers, so that
    no conversion stands between integer kernels. A batch norm that is the only user of a layer's output is folded into the
    layer first, and a ReLU that follows is applied before the output is quantized.

    Layers that share a weight share its codes. An embedding that shares the weight of a layer becomes a table of these codes.
    A weight that is shared with anything else stays in floating point.

    Args:
        calibration: how ranges are found: "min-max" (smallest and largest value), "percentile" (outliers clipped), "entropy"
            (smallest loss of information), or "mse" (smallest squared error).
        percentile: percentage of values inside the range for "percentile", in (0, 100].
        samples: number of training samples for the calibration.
        weight_bits: bits per weight, 2 to 8, or a table `{size, choices, samples}` for bits of each layer within a size (see
            `MixedBits`); codes are stored as int8 in ONNX, and fewer bits make the packed file smaller.
        per_channel: whether each output of a layer has a scale of its own for its weights; false for one scale per weight.
        symmetric: whether the zero point of all inputs and values is 128, so that x ≈ s · (code − 128); half of the levels are
            lost where values are never negative.
        rounding: to the "nearest" code, or "adaptive": up or down, as the outputs of each layer change least, layer by layer on
            up to 256 of the samples, each with the inputs that it gets after the layers before it are quantized (AdaRound).
            Helps with 2 to 5 bits. Layers whose error does not fall keep the nearest codes.
        equalize: whether channels between two layers, with nothing but a batch norm, ReLU, leaky ReLU or pooling between, are
            scaled first, so that the weights on both sides have equal ranges; the function in floating point stays the same.
            Helps weights with one scale, and with few bits.
        correct_bias: whether the mean error of each output channel of a layer, on the calibration data and after the layers
            before it are quantized, is subtracted from its bias. Layers that have no bias, neither of their own nor of a
            folded batch norm, or that run more than once, are left.
        max_damage: most change of the outputs, Σ (y − ŷ)² / Σ (y − ȳ)², such as 0.01, on up to 128 of the samples; of several
            outputs the mean of their changes. Layers and rounded values are left in floating point, those first whose
            quantization alone changes the outputs most, until the change of the whole model is within the limit. Labels are
            not needed. None for no limit.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E111 for `max_damage` with bits within a size; E112 if a pattern matches
            nothing, or no layer is selected; E114 if `max_damage` is not met with a single layer; E121 if a layer
            did not run on the calibration data or saw a value that is not finite, or for a rewritten program without layers.

    Example:
        >>> Static(calibration="percentile", percentile=99.99).weight_bits
        8

    Source: Jacob et al. 2018, arXiv:1712.05877; calibration: see `numerics.ranges`; equalization and bias
    correction: Nagel et al. 2019, arXiv:1906.04721; adaptive rounding: Nagel et al. 2020, arXiv:2004.10568.
    """

    stage: ClassVar[Stage] = "quantize"

    calibration: Calibration = "min-max"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    samples: Count = 1000
    weight_bits: Bits | MixedBits = 8
    per_channel: bool = True
    symmetric: bool = False
    rounding: Literal["nearest", "adaptive"] = "nearest"
    equalize: bool = False
    correct_bias: bool = False
    max_damage: Annotated[float, Field(gt=0)] | None = None
    include: Patterns = ()
    exclude: Patterns = ()

    def __post_init__(self) -> None:
        if self.max_damage is not None and isinstance(self.weight_bits, MixedBits):
            message = "max_damage leaves layers in floating point, which takes the bytes that bits within a size save"
            raise UserError("E111", message, "give one number of bits, or leave max_damage out", path=("max_damage",))

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        model = opened(model, self, run)
        quantized, floating = self._quantized(model, task, run)
        self._told(model, quantized, floating, task, run)
        return quantized

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        model = opened(model, self)
        few = dataclasses.replace(self, samples=min(self.samples, _BATCH), rounding="nearest", correct_bias=False)
        quantized, floating = few._quantized(model, task, run, measured=_PREVIEWED)
        return Preview(quantized, self._told(model, quantized, floating, task, run))

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR_AND_CONVOLUTION

        return (*LINEAR_AND_CONVOLUTION, *turned_linear())

    def _quantized(
        self, model: nn.Module, task: Task, run: Run, measured: int | None = None
    ) -> tuple[nn.Module, Floating | None]:
        """The model, and what stays in floating point by `max_damage`; a preview measures on few samples."""
        from mirabelle.quantize.mixed_bits import bits_within
        from mirabelle.quantize.sensitivity import MEASURED, floating_within

        planner = self._planner(model, task, run)

        def make(plan: Plan) -> nn.Module:
            return self._refined(planner.dense, planner.converted(plan), task, run)

        if self.max_damage is not None:
            samples, preview = measured or min(self.samples, MEASURED), measured is not None
            floating = floating_within(self.max_damage, planner, make, task, run, samples=samples, preview=preview)
            return make(planner.plan(floating.damages)), floating
        plan = planner.plan()
        if isinstance(self.weight_bits, MixedBits):
            bits = bits_within(self.weight_bits, planner.dense, plan.coded, task, run, most_samples=measured)
            plan = dataclasses.replace(plan, bits=bits)
        return make(plan), None

    def _refined(self, dense: nn.Module, quantized: nn.Module, task: Task, run: Run) -> nn.Module:
        """The quantized model with codes and biases that are chosen by what its layers give."""
        from mirabelle.calibration.samples import CalibrationSamples
        from mirabelle.model.device import at_work
        from mirabelle.quantize.adaptive_rounding import SAMPLES, with_adaptive_codes
        from mirabelle.quantize.bias_correction import with_corrected_biases

        with at_work(dense, quantized):
            if self.rounding == "adaptive":
                few = CalibrationSamples.drawn(task.train, min(self.samples, SAMPLES), run.seed_for("calibration"))
                quantized = with_adaptive_codes(dense, quantized, few, run)
            if self.correct_bias:
                samples = CalibrationSamples.drawn(task.train, self.samples, run.seed_for("calibration"))
                quantized = with_corrected_biases(dense, quantized, samples)
        return quantized

    def _told(self, model: nn.Module, quantized: nn.Module, floating: Floating | None, task: Task, run: Run) -> tuple[str, ...]:
        if floating is None or self.max_damage is None:
            return told(model, quantized, self, task, run)
        notes = floating.notes(self.max_damage)
        run.event("damage", notes=notes)
        return (*told(model, quantized, self, task, run, floating=floating.reasons(self.max_damage)), *notes)

    def _planner(self, model: nn.Module, task: Task, run: Run) -> Planner:
        from mirabelle.calibration.ranges import activation_ranges
        from mirabelle.model.state import copied
        from mirabelle.quantize.equalization import equalize
        from mirabelle.quantize.static_plan import Planner
        from mirabelle.quantize.surroundings import Flow

        model = copied(model).eval()
        selection = selected(model, self)
        batches = self._batches(task, run)

        def observe(dense: nn.Module, names: Iterable[str]) -> dict[str, Range]:
            found = activation_ranges(dense, names, batches, self.calibration, self.percentile)
            return {name: one.symmetric() if self.symmetric else one for name, one in found.items()}

        flow = Flow.of(model, task.example(), run, pairs=self.equalize)
        if self.equalize:
            pairs = equalize(model, flow.pairs(selection.layers))
            run.event("equalized", pairs=[" ".join(pair) for pair in pairs])
        bits = self.weight_bits if isinstance(self.weight_bits, int) else 8
        return Planner(model, selection, flow, observe, task.example(), bits=bits, per_tensor=not self.per_channel)

    def _batches(self, task: Task, run: Run) -> list[Batch]:
        """The calibration data: training samples drawn with the seed of the run, in batches."""
        calibration = task.train.drawn(self.samples, run.seed_for("calibration"))
        return list(calibration.batches(_BATCH))
