"""int8 weights, activations quantized by the range that they have as the model runs: the form that suits transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.quantize.layer_selection import Bits, coded, layers_for, quantized_in_words
from mirabelle.records.record import Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Dynamic:
    """Every Linear with int8 weights (per output) and inputs rounded over the range that they have as the model runs.

    Needs no calibration. Per token, each vector of the inputs has 255 levels between ± its own largest absolute value. Per
    tensor, all have the same 256 between the least and the largest value of the batch: ONNX Runtime is faster by a third then
    (both are two to four times as fast as floating point), but one outlier coarsens all, which in transformers makes rounding
    errors several times as large, and a sample's result depends on its batch.

    Args:
        weight_bits: levels of the weights, 2 to 8; codes are stored as int8.
        granularity: "token" or "tensor", what shares one range of inputs.
        include: patterns of module names; by default every Linear.
        exclude: patterns of module names that stay in floating point.

    Raises:
        UserError: E110 out of range, E112 a pattern that matches nothing or no layer left, E121 a rewritten program that
            has none.

    Example:
        >>> Dynamic(exclude=("classifier",)).stage
        'quantize'

    Source: ONNX operators DynamicQuantizeLinear and MatMulInteger; per token: Yao et al. 2022, arXiv:2206.01861.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits = 8
    granularity: Literal["token", "tensor"] = "token"
    include: Patterns = ()
    exclude: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.model.state import copied
        from mirabelle.quantize.layers import LINEAR, DynamicLayer, TokenLayer

        del task
        model = copied(model).eval()
        chosen = layers_for(model, LINEAR, self.include, self.exclude)
        kind = {"tensor": DynamicLayer, "token": TokenLayer}[self.granularity]
        return coded(model, chosen, kind, self.weight_bits, run)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        quantized = self(model, task, run)
        return Preview(quantized, quantized_in_words(model, quantized))
