"""int8 weights and activations, ranges calibrated on real data beforehand: the form that suits convolutional networks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mirabelle.calibration.settings import Calibration
from mirabelle.errors import UserError
from mirabelle.quantize.layer_selection import Bits, layers_for, left_in_floating_point, quantized_in_words
from mirabelle.records.record import Count, Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

_BATCH = 100


@record
class Static:
    """Every Linear, Conv1d and Conv2d with int8 weights (per output channel) and uint8 inputs (per tensor).

    x ≈ s_x · (code − z), code in 0 … 255, over the calibrated range;  w ≈ s_o · code, code in ±(2^(weight_bits − 1) − 1).

    What a convolution gives is rounded to uint8, too, unless it is the model's own output or goes into a layer norm. A batch
    norm that alone reads what a layer gives is taken into the layer's weights and bias first, and a ReLU behind both is part of
    what is rounded.

    Args:
        calibration: "min-max" (the extremes), "percentile" (tails cut), or "entropy" (least information lost).
        percentile: the share of values kept by "percentile", in (0, 100].
        samples: of the training data that are looked at.
        weight_bits: levels of the weights, 2 to 8; codes are stored as int8 in ONNX, and fewer levels pack smaller.
        include: patterns of module names; by default all of these kinds.
        exclude: patterns of module names that stay in floating point.

    Raises:
        UserError: E110 out of range, E112 a pattern that matches nothing or no layer left, E121 a layer that never ran, or a
            rewritten program without layers.

    Example:
        >>> Static(calibration="percentile", percentile=99.99).weight_bits
        8

    Source: Jacob et al. 2018, arXiv:1712.05877; calibration: see `numerics.ranges`.
    """

    stage: ClassVar[Stage] = "quantize"

    calibration: Calibration = "min-max"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    samples: Count = 1000
    weight_bits: Bits = 8
    include: Patterns = ()
    exclude: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.calibration.ranges import activation_ranges
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.state import copied
        from mirabelle.quantize.batch_norm_folding import Consumer, FoldedNorm, consumers, folded
        from mirabelle.quantize.layers import LINEAR_AND_CONVOLUTION, StaticLayer

        model = copied(model).eval()
        chosen = layers_for(model, LINEAR_AND_CONVOLUTION, self.include, self.exclude)
        chosen = {name: module for name, module in chosen.items() if getattr(module, "padding_mode", "zeros") == "zeros"}
        behind = {name: found for name, found in consumers(model, task.example(), run).items() if name in chosen}
        outputs = {name: found.output_of(name) for name, found in behind.items() if found.rounds_for(chosen)}
        seen = [*chosen, *outputs.values()]
        ranges = activation_ranges(model, seen, self._batches(task, run), self.calibration, self.percentile)
        for name, dense in chosen.items():
            if name not in ranges:
                raise UserError("E121", f'layer "{name}" never ran on the calibration data', f'exclude = ["{name}"]')
            after = behind.get(name, Consumer())
            norm = after.norm
            joined = dense if norm is None else folded(dense, model.get_submodule(norm))
            layer = StaticLayer.quantized(
                joined,
                ranges[name],
                ranges[outputs[name]] if name in outputs else None,
                weight_bits=self.weight_bits,
                bias=dense.bias is None and norm is not None,
                output=after.output if name in outputs else "",
            )
            model = replace_module(model, name, layer)
            if norm is not None:
                nothing = FoldedNorm(model.get_submodule(norm), of=name, bias=dense.bias is None)
                model = replace_module(model, norm, nothing)
        run.event("quantized", modules=list(chosen), left_alone=left_in_floating_point(model))
        return model

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        few = dataclasses.replace(self, samples=min(self.samples, _BATCH))
        quantized = few(model, task, run)
        return Preview(quantized, quantized_in_words(model, quantized))

    def _batches(self, task: Task, run: Run) -> list[Batch]:
        """`samples` of the training data, drawn with the run's seed."""
        calibration = task.train.drawn(self.samples, run.seed_for("calibration"))
        return list(calibration.batches(_BATCH))
