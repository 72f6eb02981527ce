"""int8 weights and activations, ranges calibrated on real data beforehand: the form that suits convolutional networks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.plain import Count, Patterns, record
from mirabelle.state import copied
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from mirabelle.batch import Batch
    from mirabelle.quantize.dynamic import Dynamic
    from mirabelle.quantize.layers import WeightLayer
    from mirabelle.quantize.weights import Weights
    from mirabelle.run import Run
    from mirabelle.task import Task

Calibration = Literal["min-max", "percentile", "entropy"]
Bits = Annotated[int, Field(ge=2, le=8)]
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
        targets: patterns of module names; by default all of these kinds.
        ignore: patterns of module names that stay in floating point.

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
    targets: Patterns = ()
    ignore: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.architecture import replace_module
        from mirabelle.calibrate import activation_ranges
        from mirabelle.quantize.folding import Behind, FoldedNorm, folded, surroundings
        from mirabelle.quantize.layers import LINEAR_AND_CONVOLUTION, StaticLayer

        model = copied(model).eval()
        chosen = layers_for(model, LINEAR_AND_CONVOLUTION, self)
        chosen = {name: module for name, module in chosen.items() if getattr(module, "padding_mode", "zeros") == "zeros"}
        behind = {name: found for name, found in surroundings(model, task.example(), run).items() if name in chosen}
        outputs = {name: found.output_of(name) for name, found in behind.items() if found.rounds_for(chosen)}
        seen = [*chosen, *outputs.values()]
        ranges = activation_ranges(model, seen, self._batches(task, run), self.calibration, self.percentile)
        for name, dense in chosen.items():
            if name not in ranges:
                raise UserError("E121", f'layer "{name}" never ran on the calibration data', f'ignore = ["{name}"]')
            after = behind.get(name, Behind())
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
            model = replace_module(model, name, layer, "quantize.StaticLayer", layer.settings)
            if norm is not None:
                nothing = FoldedNorm(model.get_submodule(norm), of=name, bias=dense.bias is None)
                model = replace_module(model, norm, nothing, "quantize.FoldedNorm", nothing.settings)
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


def layers_for(model: nn.Module, kinds: tuple[type[nn.Module], ...], step: Static | Dynamic | Weights) -> dict[str, nn.Module]:
    """The layers of these kinds that a step asks for.

    Raises:
        UserError: as `selected_modules`; E121 where a program without layers stands for the model.
    """
    from mirabelle.architecture import architecture_of
    from mirabelle.patterns import selected_modules

    why = architecture_of(model).program.get("why")
    if why and not any(type(module) in kinds for module in model.modules()):
        raise UserError(
            "E121",
            f"a rewritten program without layers stands for the model, so there is nothing to quantize ({why})",
            'let prune.Channels cut what the code follows, targets = ["*.conv1"] within residual blocks, say',
        )
    return selected_modules(model, kinds, step.targets, step.ignore)


def coded(model: nn.Module, chosen: Mapping[str, nn.Module], kind: type[WeightLayer], weight_bits: int, run: Run) -> nn.Module:
    """The model with integer weights in the chosen layers, each one of `kind` now; the run is told."""
    from mirabelle.architecture import replace_module

    for name, dense in chosen.items():
        layer = kind.quantized(dense, weight_bits)
        model = replace_module(model, name, layer, f"quantize.{kind.__name__}", layer.settings)
    run.event("quantized", modules=list(chosen), left_alone=left_in_floating_point(model))
    return model


def left_in_floating_point(model: nn.Module) -> list[str]:
    """Modules with weights of two or more dimensions that no quantized layer replaced."""
    from mirabelle.architecture import replaced_module_names

    replaced = replaced_module_names(model)
    return sorted(
        name
        for name, module in model.named_modules()
        if name not in replaced and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    )


def quantized_in_words(given: nn.Module, model: nn.Module) -> tuple[str, ...]:
    """Which layers of the given model became integers, and which did not."""
    from mirabelle.architecture import replaced_module_names

    before, alone = replaced_module_names(given), left_in_floating_point(model)
    replaced = [name for name in replaced_module_names(model) if name not in before]
    return (f"{len(replaced)} layers become integers: {', '.join(replaced)}",) + (
        (f"left in floating point: {', '.join(alone)}",) if alone else ()
    )
