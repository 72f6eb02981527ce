"""The fastest precision and memory layout of the forward pass on this machine, measured over a few training steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, is_out_of_memory
from mirabelle.model.device import at_work, device_of_job, wait_for
from mirabelle.model.precision import autocast
from mirabelle.model.state import copied
from mirabelle.numerics.draws import global_draws
from mirabelle.task.batch import Batch, Inputs, call, in_float32, map_tensors, tensors_of

_IMAGE_DIMENSIONS = 4
_GAIN = 1.1  # least speedup over plain float32 for another candidate to be chosen
_SECONDS = 0.4  # time for each candidate
_STEPS = 8


@dataclass(frozen=True)
class Execution:
    """Precision and memory layout of the forward pass.

    Args:
        precision: "float32", "bfloat16" or "float16".
        channels_last: whether images and convolutions use torch's memory format channels-last.
        compiled: whether the model is compiled by torch.compile.
    """

    precision: str
    channels_last: bool
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}{' channels_last' * self.channels_last}{' compiled' * self.compiled}"

    @staticmethod
    def parse(text: str) -> Execution:
        precision, *rest = text.split()
        return Execution(precision, "channels_last" in rest, "compiled" in rest)

    def callable_of(self, model: nn.Module) -> Callable[..., Any]:
        """What is called in the place of a model; it has the model's parameters."""
        compiled: Callable[..., Any] = torch.compile(model) if self.compiled else model
        return compiled

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return autocast(self.precision, device)

    def laid_out(self, model: nn.Module) -> nn.Module:
        laid_out: nn.Module = model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]
        return laid_out

    def inputs(self, inputs: Inputs) -> Inputs:
        return map_tensors(inputs, partial(_in_layout, channels_last=self.channels_last))


def fastest_execution(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[Any, Tensor], Tensor],
    precision: str = "auto",
    *,
    compiled: bool = False,
) -> Execution:
    """The precision and memory layout with the fastest training step; plain float32 unless another one is 10 % faster.

    The model and the global random generator are not changed.

    Args:
        model: the model to train.
        batch: a batch of training data.
        loss: (outputs, targets) -> scalar.
        precision: "auto", or the only precision to try.
        compiled: whether the fastest of them is tried compiled, too.
    """
    device = device_of_job(model)
    half = "bfloat16" if _has_bfloat16(device) else "float16"
    precisions = ("float32", half) if precision == "auto" else (precision,)
    images = any(tensor.dim() == _IMAGE_DIMENSIONS for tensor in tensors_of(batch.inputs))
    candidates = [Execution(name, layout) for name in precisions for layout in ((False, True) if images else (False,))]
    if len(candidates) == 1 and not compiled:
        return candidates[0]
    with at_work(model), global_draws(device=device):
        batch = batch.to(device)
        seconds = {candidates[0]: _step_seconds(model, batch, loss, candidates[0])}
        seconds |= {candidate: _seconds_if_it_runs(model, batch, loss, candidate) for candidate in candidates[1:]}
        plain, fastest = candidates[0], min(candidates, key=lambda candidate: seconds[candidate])
        best = fastest if seconds[plain] >= _GAIN * seconds[fastest] else plain
        if compiled:
            other = replace(best, compiled=True)
            seconds[other] = _seconds_if_it_runs(model, batch, loss, other)
            best = other if seconds[best] >= _GAIN * seconds[other] else best
    return best


def unmeasured_precision(precision: str, device: torch.device) -> str:
    """The precision of a training of which nothing is measured: for "auto" bfloat16 on accelerators that have it, else float32.

    Example:
        >>> unmeasured_precision("auto", torch.device("cpu"))
        'float32'
    """
    if precision != "auto":
        return precision
    return "bfloat16" if device.type != "cpu" and _has_bfloat16(device) else "float32"


def in_shards(execution: Execution) -> Execution:
    """What a training in shards takes of an execution that a training of whole weights may have decided: bfloat16 or not."""
    return Execution("bfloat16" if execution.precision == "bfloat16" else "float32", channels_last=False)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _seconds_if_it_runs(model: nn.Module, batch: Batch, loss: Callable[[Any, Tensor], Tensor], execution: Execution) -> float:
    """Seconds of a training step; infinite if the model cannot run, for example because an operator lacks this precision."""
    try:
        return _step_seconds(model, batch, loss, execution)
    except Exception as error:  # operators without this precision; a compiler that is not there, or fails
        if is_out_of_memory(error) or not (isinstance(error, RuntimeError) or execution.compiled):
            raise
        return math.inf


def with_gradient(loss: Tensor) -> Tensor:
    """The loss itself, if any weight has a gradient.

    Raises:
        UserError: E121 if none has, for example because the model rounds to integers behind all of its weights.
    """
    if not loss.requires_grad:
        message = "no weight has a gradient: an operator behind all of them, such as QuantizeLinear, has no derivative"
        remedy = "leave the training out, or start from the model as it was before it was quantized"
        raise UserError("E121", message, remedy)
    return loss


def _step_seconds(model: nn.Module, batch: Batch, loss: Callable[[Any, Tensor], Tensor], execution: Execution) -> float:
    model = execution.laid_out(copied(model)).train()
    called = execution.callable_of(model)
    if execution.compiled:
        call(called, execution.inputs(batch.inputs))  # compiles
    times: list[float] = []
    begin = time.perf_counter()
    for _ in range(_STEPS):
        start = time.perf_counter()
        with execution.autocast(batch.targets.device):
            outputs = call(called, execution.inputs(batch.inputs))
        with_gradient(loss(in_float32(outputs), batch.targets)).backward()  # type: ignore[no-untyped-call]
        wait_for(batch.targets.device)
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > _SECONDS and len(times) > 1:
            break
    return min(times[1:])


def _in_layout(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Images in one memory format; their strides say which, also with one channel, since a convolution goes by them."""
    if tensor.dim() != _IMAGE_DIMENSIONS or tensor.layout != torch.strided:
        return tensor
    _, channels, height, width = tensor.shape
    size = channels * height * width
    if channels_last:
        strides = size, 1, channels * width, channels
        return tensor.contiguous(memory_format=torch.channels_last).as_strided(tensor.shape, strides)
    return tensor.contiguous().as_strided(tensor.shape, (size, height * width, width, 1))
