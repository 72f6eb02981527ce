"""Dynamic quantization: int8 weights, and inputs quantized over their range at inference; well suited to transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.quantize.bits import Bits
from mirabelle.quantize.layer_selection import WithoutData, coded, layers_for
from mirabelle.records.record import Patterns, record
from mirabelle.step import Stage

if TYPE_CHECKING:
    from torch import nn


@record
class Dynamic(WithoutData):
    """Dynamic quantization of Linear layers: int8 weights (per output), inputs quantized over their range at inference.

    `Conv1D` of transformers, the linear layer of GPT-2, is quantized, too. No calibration is needed. With granularity "token",
    each input vector has 255 levels between ± its own largest absolute value. With "tensor", the whole batch has 256 levels
    between its smallest and largest value. ONNX Runtime is about a third faster with "tensor" (both are two to four times as
    fast as floating point), but a single outlier then makes the steps of all values larger, which multiplies the rounding
    errors in transformers, and the result of a sample depends on its batch.

    Layers that share a weight share its codes. An embedding that shares the weight of a layer becomes a table of these codes,
    which adds the rounding of its weights. A weight that is shared with anything else stays in floating point.

    Args:
        weight_bits: bits per weight, 2 to 8; codes are stored as int8.
        granularity: which inputs share a range: those of a "token" or of the whole "tensor".
        include: patterns of module names; by default all Linear layers.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E112 if a pattern matches nothing, or no layer is selected; E121 for a
            rewritten program, which has no layers.

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

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR

        return (*LINEAR, *turned_linear())

    def _quantized(self, model: nn.Module) -> nn.Module:
        from mirabelle.model.state import copied
        from mirabelle.quantize.layers import DynamicLayer, TokenLayer
        from mirabelle.quantize.tied_weights import with_ties

        model = copied(model).eval()
        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        kind = {"tensor": DynamicLayer, "token": TokenLayer}[self.granularity]
        return coded(model, with_ties(model, chosen, self.layers(), self.exclude), kind, self.weight_bits)
