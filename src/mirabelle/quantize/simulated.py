"""Layers that simulate quantization while they are trained: rounded forward, straight-through gradients, learned step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.model.replacement import uncounted
from mirabelle.numerics import affine
from mirabelle.quantize.group_layer import GroupLayer
from mirabelle.quantize.layers import BIAS_LIMIT, DynamicLayer, RoundedValue, StaticLayer, TokenLayer, WeightLayer, activated

WithCodes = StaticLayer | WeightLayer | GroupLayer


class _Levels(torch.autograd.Function):
    """clamp(round(values / scale), low, high), with the gradient of values / scale inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        ratio = values.float() / scale
        ctx.save_for_backward(values, scale)
        ctx.limits = low, high
        return ratio.round_().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, scale = ctx.saved_tensors
        low, high = ctx.limits
        ratio = values.float() / scale
        inside = gradients[0] / scale * ((ratio >= low - 0.5) & (ratio <= high + 0.5))
        to_values = inside.to(values.dtype) if ctx.needs_input_grad[0] else None
        to_scale = -(inside * ratio).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return to_values, to_scale, None, None


def levels(values: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Integers q = clamp(round(values / scale), low, high) as float32, for training.

    The gradient treats the rounding as the identity (straight-through): ∂q/∂values = 1 / scale and
    ∂q/∂scale = −values / scale² inside the range, 0 outside. So scale · q has the gradient of learned step sizes.

    Args:
        values: any shape.
        scale: broadcastable to `values`, above 0.
        low: smallest integer.
        high: largest integer.

    Example:
        >>> step = torch.tensor(0.5, requires_grad=True)
        >>> rounded = step * levels(torch.tensor([0.6, 9.0]), step, -4, 3)
        >>> rounded.sum().backward()
        >>> rounded.tolist(), round(float(step.grad), 4)  # (1 − 0.6 / 0.5) + 3
        ([0.5, 1.5], 2.8)

    Source: Esser et al. 2020, arXiv:1902.08153, equation 3.
    """
    found: Tensor = _Levels.apply(values, scale, low, high)  # type: ignore[no-untyped-call]
    return found


class Step(nn.Module):
    """A learned step size: first · exp(logarithm); that of a weight is rounded to bfloat16, in which it is stored.

    The logarithm is learned, so that the step stays above 0 and an optimizer changes it in proportion to itself. Its gradient
    is divided by √(numbers · high), so that steps and weights change at similar speeds under SGD (Esser et al. 2020, 2.2).

    Args:
        first: the step at the beginning, any shape.
        high: the largest level.
        coarse: round the step to bfloat16.
    """

    first: Tensor

    def __init__(self, first: Tensor, high: float, *, coarse: bool = True) -> None:
        super().__init__()
        self._coarse = coarse
        self.register_buffer("first", first.detach().clone().float())
        self.logarithm = nn.Parameter(torch.zeros_like(self.first))
        self._high = high

    def forward(self, numbers: int) -> Tensor:
        """The step.

        Args:
            numbers: how many values share it.
        """
        slow = 1 / math.sqrt(max(numbers, 1) * self._high)
        logarithm = self.logarithm * slow + (self.logarithm * (1 - slow)).detach()
        step = self.first * logarithm.exp()
        return step + (step.bfloat16().float() - step).detach() if self._coarse else step


class Simulated(nn.Module):
    """A layer in training that computes what its quantized form will compute, up to the rounding of floating point.

    Parameters: weight, with its outputs on the first axis; bias; and the logarithms of step sizes: of the weight, (out,) or
    (out, groups), and for a static layer of its inputs and of its rounded outputs. Zero points stay as calibrated.

    Args:
        quantized: the layer that it becomes (`layer()`): gives kind, bits and first steps.
        weight: dense weight, with its outputs on the first axis.
        bias: dense bias, or None.
    """

    def __init__(self, quantized: WithCodes, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.bits = int(quantized.settings["weight_bits"])
        self.high = 2 ** (self.bits - 1) - 1
        self.low = -self.high - 1 if isinstance(quantized, GroupLayer) else -self.high
        self.group = quantized.group if isinstance(quantized, GroupLayer) else weight[0].numel()
        self.kind = quantized.kind
        self.applied: Callable[..., Tensor] | None = quantized.applied
        self.inputs = _rounding_of(quantized)
        self.output = quantized.settings.get("output", "")
        self.weight_step = Step(quantized.scale, self.high)
        self.input_step: Step | None = None
        self.output_step: Step | None = None
        if isinstance(quantized, StaticLayer):
            self.input_step = Step(quantized.input_scale, 255, coarse=False)
            self._zero = int(quantized.input_zero_point)
            if quantized.output_scale is not None and quantized.output_zero_point is not None:
                self.output_step = Step(quantized.output_scale, 255, coarse=False)
                self._output_zero = int(quantized.output_zero_point)

    @uncounted()
    def forward(self, inputs: Tensor) -> Tensor:
        if self.applied is None:  # an embedding
            return F.embedding(inputs, self._rounded_weight())
        if self.inputs == "float":
            return self.applied(inputs, self._rounded_weight(), self.bias)
        entering, scale = self._entering(inputs)
        codes, step = self._codes(scale.detach() if scale.ndim == 0 else None)
        sums = self.applied(entering, codes, None)
        shape = (-1,) if self.kind in ("Linear", "Conv1D") else (-1, *[1] * (self.weight.ndim - 2))
        scale, sums = scale * step.reshape(shape), sums.float()
        if self.bias is not None and self.input_step is not None:
            bias = self.bias.reshape(shape) / scale
            sums = sums + bias + (bias.round() - bias).detach()
        result = sums * scale
        if self.bias is not None and self.input_step is None:
            result = result + self.bias
        return self._leaving(result)

    def positions(self) -> Sequence[tuple[Tensor, Tensor]]:
        """The weight, and it over its steps before the rounding, (out, all other axes), for the term `Rate`."""
        step = self._codes(self._input_scale())[1]
        return [(self.weight, (self.weight / self._of_each_weight(step)).flatten(1))]

    def steps(self) -> dict[str, Tensor]:
        """The steps as they are now: "weight", and of a static layer "input" and "output"."""
        with torch.no_grad():
            found = {"weight": self._codes(self._input_scale())[1]}
            if self.input_step is not None:
                found["input"] = self.input_step(1)
            if self.output_step is not None:
                found["output"] = self.output_step(1)
        return found

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes of the weight, int8, with its shape."""
        return self._codes(self._input_scale())[0].to(torch.int8)

    def _input_scale(self) -> Tensor | None:
        return None if self.input_step is None else self.input_step(1).detach()

    def _codes(self, input_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """(codes as float32, steps) of the weight."""
        step = self.weight_step(self.group)
        if input_scale is not None and self.bias is not None and self.input_step is not None:
            least = self.bias.detach().abs() / (input_scale * BIAS_LIMIT)  # a bias must fit into int32
            step = torch.where(step > least, step, (1.01 * least).bfloat16().float())
        return levels(self.weight, self._of_each_weight(step), self.low, self.high), step

    def _of_each_weight(self, step: Tensor) -> Tensor:
        """Steps, (out,) or (out, groups), as a tensor that is broadcastable to the weight."""
        if step.ndim == 1:
            return step.reshape(-1, *[1] * (self.weight.ndim - 1))
        return step.repeat_interleave(self.group, 1)[:, : self.weight[0].numel()].reshape(self.weight.shape)

    def _rounded_weight(self) -> Tensor:
        codes, step = self._codes(None)
        rounded: Tensor = codes * self._of_each_weight(step)
        return rounded

    def _entering(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(levels of the inputs, their step): a scalar, or for each token one."""
        if self.input_step is not None:
            step = self.input_step(max(inputs[0].numel(), 1))
            return levels(inputs, step, -self._zero, 255 - self._zero), step
        values = inputs.detach().float()
        if self.inputs == "token":
            step = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
            return levels(inputs, step, -127, 127), step
        step, zero = affine.asymmetric_parameters(*values.aminmax())
        return levels(inputs, step, -float(zero), 255 - float(zero)), step

    def _leaving(self, result: Tensor) -> Tensor:
        if self.output_step is None:
            return result
        result = activated(result, self.output)
        step: Tensor = self.output_step(max(result[0].numel(), 1))
        return step * levels(result, step, -self._output_zero, 255 - self._output_zero)

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.weight.shape)}, weight_bits={self.bits}, inputs={self.inputs}"


class SimulatedValue(nn.Module):
    """A rounded result of a function call in training, with a learned step.

    Args:
        quantized: the module that it becomes.
    """

    def __init__(self, quantized: RoundedValue) -> None:
        super().__init__()
        self.step = Step(quantized.scale, 255, coarse=False)
        self._zero = int(quantized.zero_point)

    @uncounted()
    def forward(self, values: Tensor) -> Tensor:
        step: Tensor = self.step(max(values[0].numel(), 1))
        return step * levels(values, step, -self._zero, 255 - self._zero)


def _rounding_of(layer: WithCodes) -> str:
    """How a layer rounds its inputs: "static", by "token", by "tensor", or not: "float"."""
    if isinstance(layer, StaticLayer):
        return "static"
    if isinstance(layer, TokenLayer):
        return "token"
    return "tensor" if isinstance(layer, DynamicLayer) else "float"
