"""int8 weights, activations quantized by the range of each batch as it runs: the form that suits transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.plain import Patterns, record
from mirabelle.quantize.static import Bits, coded, quantized_in_words
from mirabelle.state import copied
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run import Run
    from mirabelle.task import Task


@record
class Dynamic:
    """Every Linear with int8 weights (per output) and inputs rounded to 256 levels over the range of the batch at hand.

    Needs no calibration. A sample's result depends on its batch, since the range does.

    Args:
        weight_bits: levels of the weights, 2 to 8; codes are stored as int8.
        targets: patterns of module names; by default every Linear.
        ignore: patterns of module names that stay in floating point.

    Raises:
        UserError: E110 out of range, E112 a pattern that matches nothing or no layer left.

    Example:
        >>> Dynamic(ignore=("classifier",)).stage
        'quantize'

    Source: ONNX operators DynamicQuantizeLinear and MatMulInteger.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits = 8
    targets: Patterns = ()
    ignore: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.patterns import selected_modules
        from mirabelle.quantize.layers import LINEAR, DynamicLayer

        del task
        model = copied(model).eval()
        chosen = selected_modules(model, LINEAR, self.targets, self.ignore)
        return coded(model, chosen, DynamicLayer, self.weight_bits, run)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        quantized = self(model, task, run)
        return Preview(quantized, quantized_in_words(model, quantized))
