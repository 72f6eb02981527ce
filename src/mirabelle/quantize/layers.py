"""Quantized layers: modules that store weights as integer codes and compute the results of quantized inference."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.calibration.ranges import Range
from mirabelle.model.replacement import Replacement
from mirabelle.numerics import affine
from mirabelle.quantize.dense_layers import LINEAR, WEIGHTED, applied_of, as_in_dense, bias_of, weight_of
from mirabelle.runtime import operators

BIAS_LIMIT = 2.0**30  # limit of bias codes: half the range of int32, so that rounding cannot cause an overflow


class StaticLayer(Replacement):
    """A statically quantized layer: y = layer(Q(x), scale · codes, bias), where Q rounds to 256 levels over a calibrated range.

    Buffers: codes, int8, with the shape of the weight; scale, (out,), or a scalar per tensor; input_scale and input_zero_point,
    scalars. With a bias: bias_codes, int32, (out,), and bias_scale = input_scale · scale, as integer kernels require. With a
    quantized output: output_scale and output_zero_point, scalars.

    Args:
        dense: the layer to replace: Linear, Conv1d, Conv2d or Conv3d.
        weight_bits: bits per weight.
        per_tensor: one scale for the whole weight instead of one for each output.
        bias: add a bias although the dense layer has none.
        output: "plain" if the output is rounded to 256 levels, "relu" or "relu6" if it is rounded after this
            activation, "" if it is not rounded.
        reads: name of the layer, or of the `RoundedValue`, whose rounded output the layer reads, with the same levels; "" for
            other inputs.
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

    def __init__(
        self,
        dense: nn.Module,
        weight_bits: int,
        *,
        per_tensor: bool = False,
        bias: bool = False,
        output: str = "",
        reads: str = "",
    ) -> None:
        other = {"per_tensor": per_tensor, "bias": bias, "output": output, "reads": reads}
        super().__init__({"weight_bits": weight_bits, **{name: value for name, value in other.items() if value}})
        weight, has_bias = weight_of(dense), bias or bias_of(dense) is not None
        self.applied = applied_of(dense)
        self.kind = type(dense).__name__
        out = weight.shape[0]
        scale = torch.ones(() if per_tensor else out)
        self.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("bias_codes", torch.zeros(out, dtype=torch.int32) if has_bias else None)
        self.register_buffer("bias_scale", scale.clone() if has_bias else None)
        self.register_buffer("output_scale", torch.ones(()) if output else None)
        self.register_buffer("output_zero_point", torch.zeros((), dtype=torch.uint8) if output else None)

    @classmethod
    @torch.no_grad()
    def quantized(
        cls,
        dense: nn.Module,
        inputs: Range,
        outputs: Range | None = None,
        least_scale: Tensor | None = None,
        **settings: Any,
    ) -> StaticLayer:
        """Quantize a layer.

        Args:
            dense: the layer.
            inputs: range of its inputs.
            outputs: range of its outputs, if they are quantized.
            least_scale: (out,), lower limits of the scales of the weight in addition to those that the bias needs.
            settings: further arguments of the class.
        """
        layer = cls(dense, **settings)
        weight_bits = layer.settings["weight_bits"]
        input_scale, zero_point = _scale_and_zero_point(inputs)
        if outputs is not None:
            assert layer.output_scale is not None, "a range of outputs is for layers that round them"
            assert layer.output_zero_point is not None, "a range of outputs is for layers that round them"
            scale, point = _scale_and_zero_point(outputs)
            layer.output_scale.copy_(scale)
            layer.output_zero_point.copy_(point)
        values = bias_of(dense)
        limits = [limit for limit in (least_scale, least_scale_of(dense, inputs)) if limit is not None]
        least = torch.stack(limits).amax(0) if limits else None
        codes, scale = _codes(weight_of(dense), weight_bits, least, per_tensor=layer.scale.ndim == 0)
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
        result = self._as_exported(inputs) if torch.compiler.is_exporting() else self.before_rounding(inputs)
        if self.output_scale is not None:
            result = activated(result, self.settings["output"])
            result = operators.fake_quantize(result, self.output_scale, self.output_zero_point)
        return result

    def _as_exported(self, inputs: Tensor) -> Tensor:
        """The computation in the form that ONNX runtimes fuse to an integer kernel: dequantized weights and inputs."""
        inputs = operators.fake_quantize(inputs, self.input_scale, self.input_zero_point)
        bias = None
        if self.bias_codes is not None and self.bias_scale is not None:
            bias = operators.dequantize(self.bias_codes, self.bias_scale)
        return self.applied(inputs, operators.dequantize(self.codes, self.scale), bias)

    def before_rounding(self, inputs: Tensor) -> Tensor:
        """The computation of an integer kernel: a sum of integers, exact in float32 below 2²⁴, that is scaled once."""
        zero = self.input_zero_point.to(inputs.dtype)
        levels = affine.quantize(inputs, self.input_scale, zero, 0, 255) - zero
        bias = None if self.bias_codes is None else self.bias_codes.to(levels.dtype)
        sums = self.applied(levels, self.codes.to(levels.dtype), bias)
        scale = self.input_scale * self.scale
        return sums * (scale if self.applied.kind == "linear" else scale.reshape(-1, *[1] * (self.codes.dim() - 2)))

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        found = {"weight": as_in_dense(operators.decode(self.codes, self.scale), self.kind)}
        if self.bias_codes is not None and self.bias_scale is not None:
            found["bias"] = operators.decode(self.bias_codes, self.bias_scale)
        return found

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, weight_bits={self.settings['weight_bits']}"


class RoundedValue(Replacement):
    """Rounds the result of a function call to 256 levels over a calibrated range; see `model.CallResults`.

    Buffers: scale and zero_point, scalars.

    Args:
        dense: the module that it replaces, which returns its input.
    """

    rounds: ClassVar[bool] = True
    scale: Tensor
    zero_point: Tensor

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        del dense
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    @classmethod
    def quantized(cls, dense: nn.Module, values: Range) -> RoundedValue:
        """Round values over a range."""
        layer = cls(dense)
        scale, zero_point = _scale_and_zero_point(values)
        layer.scale.copy_(scale)
        layer.zero_point.copy_(zero_point)
        return layer

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = operators.fake_quantize(values, self.scale, self.zero_point)
        return result


class WeightLayer(Replacement):
    """A layer with integer weights that computes in floating point: y = layer(x, scale · codes, bias).

    An embedding returns rows of scale · codes. In the ONNX file, scale · codes is a cast and a product, which runtimes compute
    once, when they load the file.

    Buffers: codes, int8, with the shape of the weight; scale, (out,), for an embedding (rows,); bias, (out,), if the layer has
    one. Layers that shared a weight share codes and scale.

    Args:
        dense: the layer to replace.
        weight_bits: bits per weight.
        rows: store the codes with the shape of the weight, also where a subclass has another layout: a layer that shares them
            reads rows.
    """

    rounds: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[nn.Module], ...]] = WEIGHTED
    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Module, weight_bits: int, *, rows: bool = False) -> None:
        super().__init__({"weight_bits": weight_bits, **({"rows": True} if rows else {})})
        weight, bias = weight_of(dense, self.kinds), bias_of(dense)
        self.applied = None if isinstance(dense, nn.Embedding) else applied_of(dense)
        self.kind = type(dense).__name__
        self.register_buffer("codes", self._stored(torch.zeros(weight.shape, dtype=torch.int8)).contiguous())
        self.register_buffer("scale", torch.ones(weight.shape[0]))
        self.register_buffer("bias", None if bias is None else torch.zeros_like(bias))

    @classmethod
    @torch.no_grad()
    def quantized(cls, dense: nn.Module, weight_bits: int, *, rows: bool = False, least_scale: Tensor | None = None) -> Self:
        """Quantize the weights of a layer; `least_scale`, (out,), are lower limits of the scales."""
        layer = cls(dense, weight_bits, rows=rows)
        codes, scale = _codes(weight_of(dense, cls.kinds), weight_bits, least_scale)
        layer.codes.copy_(layer._stored(codes))
        layer.scale.copy_(scale)
        bias = bias_of(dense)
        if bias is not None:
            assert layer.bias is not None, "a layer with a bias has a buffer for it"
            layer.bias.copy_(bias)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        if self.applied is None:  # an embedding: dequantize only the rows that are looked up
            return F.embedding(inputs, self.codes).to(self.scale.dtype) * F.embedding(inputs, self.scale[:, None])
        return self.applied(inputs, operators.decode(self.codes, self.scale), self.bias)

    def stored_tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes} if self.bias is None else {"codes": self.codes, "bias": self.bias}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Weight and bias as the numbers that the codes stand for."""
        weight = as_in_dense(operators.decode(self._stored(self.codes), self.scale), self.kind)
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias}

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.codes.shape)}, weight_bits={self.settings['weight_bits']}"

    def _stored(self, codes: Tensor) -> Tensor:
        """Convert codes from the layout of the weight to that of the buffer, and back."""
        return codes


class DynamicLayer(WeightLayer):
    """A dynamically quantized Linear, y = Q(x) · weightᵀ + bias, where Q rounds to 256 levels over the range of the batch.

    Buffers: codes, int8, (in, out), as integer matrix products require, or (out, in) with `rows`; scale, (out,); bias, (out,),
    if the layer has one.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = LINEAR

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = operators.dynamic_linear(inputs, self._factor(), self.scale)
        return result if self.bias is None else result + self.bias

    def _stored(self, codes: Tensor) -> Tensor:
        return codes if self.settings.get("rows") else codes.t()

    def _factor(self) -> Tensor:
        """The codes as (in, out)."""
        return self.codes.t() if self.settings.get("rows") else self.codes


class TokenLayer(DynamicLayer):
    """A Linear quantized per token, y = Q(x) · weightᵀ + bias.

    Q rounds each vector of x to 255 levels between ± its largest absolute value.

    Buffers: codes, int8, (in, out), as integer matrix products require; scale, (out,); bias, (out,), if the layer has one.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = operators.token_linear(inputs, self._factor(), self.scale)
        return result if self.bias is None else result + self.bias


def activated(result: Tensor, output: str) -> Tensor:
    """The result of a layer after the activation that its setting `output` names."""
    if output == "relu":
        return F.relu(result)
    return F.relu6(result) if output == "relu6" else result


def least_scale_of(dense: nn.Module, inputs: Range) -> Tensor | None:
    """The smallest scales of a weight, (out,), with which the bias of a static layer fits into int32; None without a bias."""
    bias = bias_of(dense)
    return None if bias is None else bias.abs().float() / (_scale_and_zero_point(inputs)[0] * BIAS_LIMIT)


def _scale_and_zero_point(values: Range) -> tuple[Tensor, Tensor]:
    """Scale and zero point of 256 levels over a range.

    The scale keeps all its digits: sums of values with scales of 8 digits would lie halfway between two levels so often that
    kernels, which round such ties in their own ways, would differ.
    """
    return affine.asymmetric_parameters(torch.tensor(values.low), torch.tensor(values.high))


def _codes(weight: Tensor, bits: int, least_scale: Tensor | None = None, *, per_tensor: bool = False) -> tuple[Tensor, Tensor]:
    """Symmetric codes in ±(2^(bits−1) − 1) and one scale per output, or for all; zeros stay zero.

    A row of zeros gets the largest scale of the other rows, which adds no new value to store.

    Args:
        weight: (out, ...).
        bits: bits per weight.
        least_scale: (out,), lower limits of the scales, so that the bias of a row with tiny weights fits into int32.
        per_tensor: whether there is one scale for all outputs.

    Returns:
        Codes, with the shape of the weight, and scales, (out,), or a scalar.
    """
    if per_tensor:
        codes, one = _codes(weight.reshape(1, -1), bits, None if least_scale is None else least_scale.amax(0, keepdim=True))
        return codes.reshape(weight.shape), one.reshape(())
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
    """Round a scale up to a bfloat16 value, which takes two bytes to store; no value leaves the range."""
    near = scale.bfloat16()
    return torch.where(near.float() >= scale, near.float(), torch.nextafter(near, torch.full_like(near, torch.inf)).float())
