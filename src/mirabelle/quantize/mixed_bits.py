"""Measure how much each layer's rounding changes the outputs of a model, and choose bits for each layer within a size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.allocation.knapsack import Constraint, Table, allocate
from mirabelle.calibration.samples import CalibrationSamples, SampleBatches
from mirabelle.model.state import copied, memory_of, tensors_of_module
from mirabelle.numerics import affine
from mirabelle.quantize.bits import MixedBits
from mirabelle.quantize.dense_layers import WEIGHTED, weight_of
from mirabelle.quantize.output_change import OutputChange
from mirabelle.run.run import Run
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task

_SCALE_BYTES, _FLOAT_BYTES = 2, 4
_MOST_CHANGE = 1e6  # for outputs that are not finite: the search needs numbers


def bits_within(
    mixed: MixedBits, model: nn.Module, names: Sequence[str], task: Task, run: Run, *, most_samples: int | None = None
) -> dict[str, int]:
    """The bits of each layer, so that the parameters fit into the size and the outputs change least.

    Args:
        mixed: size, choices and number of samples.
        model: with dense layers of these names.
        names: layers that are quantized; those that share a weight get the same bits.
        task: its training samples are used.
        run: records the decision, which a resumed run repeats.
        most_samples: limits the samples, for a preview, which records nothing.

    Raises:
        UserError: E114 if the least bits do not fit into the size; E121 if outputs are not finite.
    """

    samples = CalibrationSamples.drawn(task.train, most_samples or mixed.samples, run.seed_for("bits"))

    if most_samples is not None:
        return _chosen(mixed, model, names, samples)
    decided: dict[str, int] = json.loads(run.decide("bits", lambda: json.dumps(_chosen(mixed, model, names, samples))))
    return decided


def _chosen(mixed: MixedBits, model: nn.Module, names: Sequence[str], samples: CalibrationSamples) -> dict[str, int]:
    model = copied(model).eval()
    weights = {name: weight_of(model.get_submodule(name), WEIGHTED) for name in names}
    groups: dict[object, list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(memory_of(weight), []).append(name)
    first = [group[0] for group in groups.values()]
    damages = output_changes(model, {name: weights[name] for name in first}, mixed.choices, samples.for_model(model))
    quantized = {memory_of(weight) for weight in weights.values()}
    sizes = {name: tensor for name, tensor in tensors_of_module(model).items() if tensor.is_floating_point()}
    rest = sum(tensor.numel() for tensor in sizes.values() if memory_of(tensor) not in quantized) * _FLOAT_BYTES
    whole = sum(tensor.numel() for tensor in sizes.values()) * _FLOAT_BYTES
    tables: dict[tuple[int, ...], Table] = {(): np.array(float(rest))}
    tables |= {(k,): np.array([coded_bytes(weights[name], bits) for bits in mixed.choices]) for k, name in enumerate(first)}
    limit = limit_of("size", mixed.size, float(whole), where="weight_bits.")
    budget = Constraint("size", limit, tables)
    chosen = allocate([damages[name] for name in first], [budget]).choice
    return {name: mixed.choices[pick] for pick, group in zip(chosen, groups.values(), strict=True) for name in group}


def output_changes(
    model: nn.Module, weights: Mapping[str, Tensor], choices: Sequence[int], batches: SampleBatches
) -> dict[str, list[float]]:
    """For each weight and each number of bits: the change of the outputs, as `OutputChange`, if this weight alone is rounded.

    Args:
        model: in eval mode; its weights are changed for the time of a measurement.
        weights: of the model, by the name of their layer, with outputs on the first axis.
        choices: numbers of bits.
        batches: inputs.

    Raises:
        UserError: E121 if outputs are not finite.
    """
    change = OutputChange(model, batches)
    found: dict[str, list[float]] = {}
    for name, weight in weights.items():
        found[name] = []
        for bits in choices:
            with _rounded(weight, bits):
                found[name].append(min(change.of(model), _MOST_CHANGE))
    return found


def coded_bytes(weight: Tensor, bits: int) -> float:
    """The expected bytes of a rounded weight: n · H / 8 for its n codes with entropy H in bits, and two for each scale.

    Example:
        >>> coded_bytes(torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]]), 2)
        3.0
    """
    codes, scale = _codes(weight, bits)
    counts = np.unique(codes.numpy(), return_counts=True)[1]
    shares = counts / codes.numel()
    entropy = float(-(shares * np.log2(shares)).sum())
    return codes.numel() * entropy / 8 + _SCALE_BYTES * scale.numel()


def _codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(codes, (rows, elements); scales, (rows, 1)) of a weight with one scale for each row."""
    high = 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1).float()
    scale = affine.symmetric_scales(rows, high)[:, None]
    return affine.quantize(rows, scale, torch.zeros_like(scale), -high, high), scale


@contextmanager
def _rounded(weight: Tensor, bits: int) -> Iterator[None]:
    """A context in which a weight has its rounded values."""
    codes, scale = _codes(weight, bits)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_((codes * scale).reshape(weight.shape))
        try:
            yield
        finally:
            weight.copy_(before)
