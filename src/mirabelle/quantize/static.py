"""Static quantization: int8 weights and activations with calibrated ranges; well suited to convolutional networks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mirabelle.calibration.settings import Calibration
from mirabelle.errors import UserError
from mirabelle.quantize.bits import Bits, MixedBits
from mirabelle.quantize.layer_selection import layers_for, opened, told
from mirabelle.records.record import Count, Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

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
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E112 if a pattern matches nothing, or no layer is selected; E121 if a layer
            did not run on the calibration data or saw a value that is not finite, or for a rewritten program without layers.

    Example:
        >>> Static(calibration="percentile", percentile=99.99).weight_bits
        8

    Source: Jacob et al. 2018, arXiv:1712.05877; calibration: see `numerics.ranges`.
    """

    stage: ClassVar[Stage] = "quantize"

    calibration: Calibration = "min-max"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.99
    samples: Count = 1000
    weight_bits: Bits | MixedBits = 8
    include: Patterns = ()
    exclude: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        model = opened(model, self, run)
        quantized = self._quantized(model, task, run)
        told(model, quantized, self, task, run)
        return quantized

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        model = opened(model, self)
        few = dataclasses.replace(self, samples=min(self.samples, _BATCH))
        quantized = few._quantized(model, task, run, most_samples_for_bits=_PREVIEWED)
        return Preview(quantized, told(model, quantized, self, task, run))

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR_AND_CONVOLUTION

        return (*LINEAR_AND_CONVOLUTION, *turned_linear())

    def _quantized(self, model: nn.Module, task: Task, run: Run, most_samples_for_bits: int | None = None) -> nn.Module:
        from mirabelle.calibration.ranges import activation_ranges
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.call_results import with_call_results
        from mirabelle.model.state import copied
        from mirabelle.model.ties import all_names
        from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
        from mirabelle.quantize.layers import RoundedValue, StaticLayer, WeightLayer, least_scale_of
        from mirabelle.quantize.mixed_bits import bits_of_layers
        from mirabelle.quantize.reading import read_but_not_called
        from mirabelle.quantize.surroundings import Consumer, surroundings
        from mirabelle.quantize.tied_weights import is_plain, tie_codes, with_ties

        model = copied(model).eval()
        names = all_names(model)
        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        chosen = {name: module for name, module in chosen.items() if is_plain(module)}
        selection = with_ties(model, chosen, self.layers(), self.exclude)
        chosen = dict(selection.layers)
        around = surroundings(model, chosen, task.example(), run)
        outputs = {name: found.output_of(name) for name, found in around.consumers.items() if found.rounds_for(chosen)}
        places = [around.place(number) for number in around.rounded]
        if places:
            model = with_call_results(model, around.calls, around.rounded)
        values = outputs | {place: f"{place}:output" for place in places}
        seen = [*chosen, *values.values()]
        ranges = activation_ranges(model, seen, self._batches(task, run), self.calibration, self.percentile)
        ranges |= {name: ranges[values[read]] for name, read in around.inputs.items() if name in ranges}
        running = selection.running(ranges)
        silent = chosen.keys() - running.layers.keys() - running.readers.keys()
        unused = sorted(silent - read_but_not_called(model, silent, task.example()))
        if unused:
            raise UserError("E121", f'layer "{unused[0]}" never ran on the calibration data', f'exclude = ["{unused[0]}"]')
        coded = [*running.layers, *running.readers]
        bits = bits_of_layers(self.weight_bits, model, coded, task, run, most_samples=most_samples_for_bits)
        least = {name: least_scale_of(dense, ranges[name]) for name, dense in running.layers.items()}
        for name, dense in running.layers.items():
            after = around.consumers.get(name, Consumer())
            norm = after.norm
            joined = dense if norm is None else folded(dense, model.get_submodule(norm))
            layer = StaticLayer.quantized(
                joined,
                ranges[name],
                ranges[outputs[name]] if name in outputs else None,
                least_scale=running.largest(least, name),
                weight_bits=bits[name],
                bias=dense.bias is None and norm is not None,
                output=after.output if name in outputs else "",
                reads=around.inputs.get(name, ""),
            )
            model = replace_module(model, name, layer)
            if norm is not None:
                nothing = FoldedNorm(model.get_submodule(norm), of=name, bias=dense.bias is None)
                model = replace_module(model, norm, nothing)
        for name, dense in running.readers.items():
            layer_of_codes = WeightLayer.quantized(dense, bits[name], least_scale=running.largest(least, name))
            model = replace_module(model, name, layer_of_codes)
        for place in places:
            value = RoundedValue.quantized(model.get_submodule(place), ranges[values[place]])
            model = replace_module(model, place, value)
        return tie_codes(model, names, running)

    def _batches(self, task: Task, run: Run) -> list[Batch]:
        """The calibration data: training samples drawn with the seed of the run, in batches."""
        calibration = task.train.drawn(self.samples, run.seed_for("calibration"))
        return list(calibration.batches(_BATCH))
