"""Layers whose weights are integer codes; their forward gives the quantized results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.calibration.ranges import Range
from mirabelle.errors import UserError
from mirabelle.model.replacement import Replacement
from mirabelle.numerics import affine
from mirabelle.runtime import operators

LINEAR = (nn.Linear,)
LINEAR_AND_CONVOLUTION = (nn.Linear, nn.Conv1d, nn.Conv2d)
WEIGHTED = (*LINEAR_AND_CONVOLUTION, nn.Embedding)

_BIAS_LIMIT = 2.0**30  # biases are int32, and rounding a scale up must not carry one over the edge
Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class StaticLayer(Replacement):
    """y = layer(Q(x), scale · codes, bias) with Q rounding to 256 levels over a calibrated range.

    Buffers: codes int8 of the weight's shape; scale (out,); input_scale and input_zero_point scalars; where the layer has a
    bias, bias_codes int32 (out,) with bias_scale = input_scale · scale, as integer kernels want it; where the result is
    rounded, too, output_scale and output_zero_point.

    Args:
        dense: the layer that it stands for.
        weight_bits: of the codes.
        bias: whether it has one although the dense layer has none.
        output: "relu" or "plain" where the result, behind a ReLU or as it is, is rounded to 256 levels; "" where it is not.
    """

    rounds: ClassVar[bool] = True
    codes: Tensor
    scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    bias_codes: Tensor | None
    bias_scale: Tensor | None

    output_scale: Tensor | None
    output_zero_point: Tensor | None

    def __init__(self, dense: nn.Module, weight_bits: int, *, bias: bool = False, output: str = "") -> None:
        super().__init__(
            {"weight_bits": weight_bits, **({"bias": True} if bias else {}), **({"output": output} if output else {})}
        )
        weight, has_bias = _weight(dense), bias or _bias(dense) is not None
        self.applied = _applied(dense)
        self.kind = type(dense).__name__
        out = weight.shape[0]
        self.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("bias_codes", torch.zeros(out, dtype=torch.int32) if has_bias else None)
        self.register_buffer("bias_scale", torch.ones(out) if has_bias else None)
        self.register_buffer("output_scale", torch.ones(()) if output else None)
        self.register_buffer("output_zero_point", torch.zeros((), dtype=torch.uint8) if output else None)

    @classmethod
    @torch.no_grad()
    def quantized(cls, dense: nn.Module, inputs: Range, outputs: Range | None = None, **settings: Any) -> StaticLayer:
        """The layer with its weights rounded and its ranges fixed; settings as of the class."""
        layer = cls(dense, **settings)
        weight_bits = layer.settings["weight_bits"]
        input_scale, zero_point = _scale_and_zero_point(inputs)
        if outputs is not None:
            assert layer.output_scale is not None, "a range of outputs is for layers that round them"
            assert layer.output_zero_point is not None, "a range of outputs is for layers that round them"
            scale, point = _scale_and_zero_point(outputs)
            layer.output_scale.copy_(scale)
            layer.output_zero_point.copy_(point)
        values = _bias(dense)
        largest = None if values is None else values.abs().float() / (input_scale * _BIAS_LIMIT)
        codes, scale = _codes(_weight(dense), weight_bits, least_scale=largest)
        layer.codes.copy_(codes)
        layer.scale.copy_(scale)
        layer.input_scale.copy_(input_scale)
        layer.input_zero_point.copy_(zero_point)
        if values is not None:
            assert layer.bias_codes is not None, "a bias has its codes"
            assert layer.bias_scale is not None, "and their scale"
            layer.bias_scale.copy_(scale * input_scale)
            layer.bias_codes.copy_(torch.round(values.double() / layer.bias_scale.double()))
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        result = self._as_exported(inputs) if torch.compiler.is_exporting() else self._of_integers(inputs)
        if self.output_scale is not None:
            result = F.relu(result) if self.settings["output"] == "relu" else result
            result = operators.fake_quantize(result, self.output_scale, self.output_zero_point)
        return result

    def _as_exported(self, inputs: Tensor) -> Tensor:
        """In the form of which ONNX runtimes make an integer kernel."""
        inputs = operators.fake_quantize(inputs, self.input_scale, self.input_zero_point)
        bias = None
        if self.bias_codes is not None and self.bias_scale is not None:
            bias = operators.dequantize(self.bias_codes, self.bias_scale)
        return self.applied(inputs, operators.dequantize(self.codes, self.scale), bias)

    def _of_integers(self, inputs: Tensor) -> Tensor:
        """As such a kernel computes it: a sum of integers, exact in float32 below 2²⁴, that is scaled once."""
        zero = self.input_zero_point.to(inputs.dtype)
        levels = affine.quantize(inputs, self.input_scale, zero, 0, 255) - zero
        bias = None if self.bias_codes is None else self.bias_codes.to(levels.dtype)
        sums = self.applied(levels, self.codes.to(levels.dtype), bias)
        scale = self.input_scale * self.scale
        return sums * (scale if self.kind == "Linear" else scale.reshape(-1, *[1] * (self.codes.dim() - 2)))

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        found = {"weight": operators.dequantize(self.codes, self.scale)}
        if self.bias_codes is not None and self.bias_scale is not None:
            found["bias"] = operators.dequantize(self.bias_codes, self.bias_scale)
        return found

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, weight_bits={self.settings['weight_bits']}"


class WeightLayer(Replacement):
    """y = layer(x, scale · codes, bias), or the rows scale · codes of an embedding; x stays in floating point.

    In the ONNX file scale · codes is a cast and a product, which runtimes compute once, as they load it.

    Buffers: codes int8 of the weight's shape; scale (out,), of an embedding (rows,); where the layer has one, bias (out,).
    """

    rounds: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[nn.Module], ...]] = WEIGHTED
    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Module, weight_bits: int) -> None:
        super().__init__({"weight_bits": weight_bits})
        weight, bias = _weight(dense, self.kinds), _bias(dense)
        self.applied = None if isinstance(dense, nn.Embedding) else _applied(dense)
        self.kind = type(dense).__name__
        self.register_buffer("codes", self._stored(torch.zeros(weight.shape, dtype=torch.int8)).contiguous())
        self.register_buffer("scale", torch.ones(weight.shape[0]))
        self.register_buffer("bias", None if bias is None else torch.zeros_like(bias))

    @classmethod
    @torch.no_grad()
    def quantized(cls, dense: nn.Module, weight_bits: int) -> Self:
        """The layer with its weights rounded."""
        layer = cls(dense, weight_bits)
        codes, scale = _codes(_weight(dense, cls.kinds), weight_bits)
        layer.codes.copy_(cls._stored(codes))
        layer.scale.copy_(scale)
        bias = _bias(dense)
        if bias is not None:
            assert layer.bias is not None, "a bias has its place"
            layer.bias.copy_(bias)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        if self.applied is None:  # only the rows that are looked up are computed
            return F.embedding(inputs, self.codes).to(self.scale.dtype) * F.embedding(inputs, self.scale[:, None])
        return self.applied(inputs, operators.decode(self.codes, self.scale), self.bias)

    def stored_tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes} if self.bias is None else {"codes": self.codes, "bias": self.bias}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        weight = operators.dequantize(self._stored(self.codes).contiguous(), self.scale)
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias}

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, weight_bits={self.settings['weight_bits']}"

    @staticmethod
    def _stored(codes: Tensor) -> Tensor:
        """Codes of the weight's shape as the buffer has them, and back."""
        return codes


class DynamicLayer(WeightLayer):
    """y = Q(x) · weightᵀ + bias, x rounded to 256 levels over the range of the batch at hand.

    Buffers as of `WeightLayer`, but codes (in, out), as integer products want them.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = LINEAR

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = operators.dynamic_linear(inputs, self.codes, self.scale)
        return result if self.bias is None else result + self.bias

    @staticmethod
    def _stored(codes: Tensor) -> Tensor:
        return codes.t()


class TokenLayer(DynamicLayer):
    """y = Q(x) · weightᵀ + bias, each vector of x rounded to 255 levels between ± its largest absolute value.

    Buffers as of `DynamicLayer`.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = operators.token_linear(inputs, self.codes, self.scale)
        return result if self.bias is None else result + self.bias


def _scale_and_zero_point(values: Range) -> tuple[Tensor, Tensor]:
    """Of 256 levels over a range."""
    scale, zero_point = affine.asymmetric_parameters(torch.tensor(values.low), torch.tensor(values.high))
    return _rounded_up(scale), zero_point


def _codes(weight: Tensor, bits: int, least_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric codes in ±(2^(bits−1) − 1), one scale an output; zeros stay zero.

    A row of zeros takes the largest scale of the others, which is fine enough for its bias and costs nothing to store. No
    scale is below `least_scale`, so that the bias of a row with tiny weights still fits into its integer.
    """
    high = 2 ** (bits - 1) - 1
    rows = weight.flatten(1).float()
    scale = affine.symmetric_scales(rows, high)
    empty = ~rows.any(dim=1)
    if bool(empty.any()) and not bool(empty.all()):
        scale = torch.where(empty, scale[~empty].max(), scale)
    if least_scale is not None:
        scale = torch.maximum(scale, _rounded_up(least_scale))
    step = scale[:, None]
    return affine.quantize(rows, step, torch.zeros_like(step), -high, high).reshape(weight.shape), scale


def _rounded_up(scale: Tensor) -> Tensor:
    """The next bfloat16 at or above: two bytes to store, and nothing of the range is lost."""
    near = scale.bfloat16()
    return torch.where(near.float() >= scale, near.float(), torch.nextafter(near, torch.full_like(near, torch.inf)).float())


def _weight(dense: nn.Module, kinds: tuple[type[nn.Module], ...] = LINEAR_AND_CONVOLUTION) -> Tensor:
    if not isinstance(dense, kinds):
        raise UserError("E140", f"{type(dense).__name__} has no quantized form", "give the module the weights were made for")
    weight = dense.weight
    assert isinstance(weight, Tensor), "each of these kinds has one"
    return weight.detach()


def _bias(dense: nn.Module) -> Tensor | None:
    bias = getattr(dense, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _applied(dense: nn.Module) -> Apply:
    """The layer's function of (inputs, weight, bias), its stride, padding and groups bound."""
    if isinstance(dense, nn.Linear):
        return F.linear
    assert isinstance(dense, (nn.Conv1d, nn.Conv2d)), "_weight refuses every other kind"
    function = F.conv1d if isinstance(dense, nn.Conv1d) else F.conv2d
    stride, padding, dilation, groups = dense.stride, dense.padding, dense.dilation, dense.groups
    return lambda inputs, weight, bias: function(inputs, weight, bias, stride, padding, dilation, groups)
