"""Measure how much each layer's rounding changes the outputs of a model, and choose bits for each layer within a size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.allocation.knapsack import Constraint, Table, allocate
from mirabelle.calibration.samples import CalibrationSamples, SampleBatches
from mirabelle.model.device import at_work
from mirabelle.model.state import copied, memory_of, tensors_of_module
from mirabelle.numerics import affine
from mirabelle.numerics.arrays import to_numpy
from mirabelle.quantize.bits import MixedBits
from mirabelle.quantize.dense_layers import WEIGHTED, weight_of
from mirabelle.quantize.output_change import OutputChange, having
from mirabelle.run.run import Run
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task

_STORED_BYTES, _FLOAT_BYTES = 2, 4  # of a scale or a value of a codebook; of other parameters
_MOST_CHANGE = 1e6  # for outputs that are not finite: the search needs numbers


@dataclass(frozen=True)
class Rounded:
    """A weight with a number of bits.

    Args:
        codes: its codes, any shape.
        values: what they stand for, with the shape of the weight.
        stored: number of scales, or of values of codebooks, that are stored with the codes.
    """

    codes: Tensor
    values: Tensor
    stored: int

    @property
    def coded_bytes(self) -> float:
        """The expected bytes: n · H / 8 for n codes with entropy H in bits, and two for each stored number.

        Example:
            >>> Rounded(torch.tensor([1, -1, 1, -1, 1, -1, 1, -1]), torch.zeros(1, 8), 1).coded_bytes
            3.0
        """
        shares = np.unique(to_numpy(self.codes), return_counts=True)[1] / max(self.codes.numel(), 1)
        return self.codes.numel() * float(-(shares * np.log2(shares)).sum()) / 8 + _STORED_BYTES * self.stored


class Tried(NamedTuple):
    """What a number of bits does to a weight: the change of the model's outputs, and the bytes that it takes."""

    change: float
    coded_bytes: float


Rounding = Callable[[Tensor, int], Rounded]


def rounded_by_row(weight: Tensor, bits: int) -> Rounded:
    """A weight rounded with one scale for each row."""
    high = 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1).float()
    scale = affine.symmetric_scales(rows, high)[:, None]
    codes = affine.quantize(rows, scale, torch.zeros_like(scale), -high, high)
    return Rounded(codes, (codes * scale).reshape(weight.shape), len(scale))


def bits_within(
    mixed: MixedBits,
    model: nn.Module,
    names: Sequence[str],
    task: Task,
    run: Run,
    *,
    rounding: Rounding = rounded_by_row,
    most_samples: int | None = None,
) -> dict[str, int]:
    """The bits of each layer, so that the parameters fit into the size and the outputs change least.

    Args:
        mixed: size, choices and number of samples.
        model: with dense layers of these names.
        names: layers that are quantized; those that share a weight get the same bits.
        task: its training samples are used.
        run: records the decision, which a resumed run repeats.
        rounding: how a weight is rounded to a number of bits.
        most_samples: limits the samples, for a preview, which records nothing.

    Raises:
        UserError: E114 if the least bits do not fit into the size; E121 if outputs are not finite.
    """

    samples = CalibrationSamples.drawn(task.train, most_samples or mixed.samples, run.seed_for("bits"))

    if most_samples is not None:
        return _chosen(mixed, model, names, samples, rounding)
    decided: dict[str, int] = json.loads(
        run.decide("bits", lambda: json.dumps(_chosen(mixed, model, names, samples, rounding)))
    )
    return decided


def _chosen(
    mixed: MixedBits, model: nn.Module, names: Sequence[str], samples: CalibrationSamples, rounding: Rounding
) -> dict[str, int]:
    model = copied(model).eval()
    weights = {name: weight_of(model.get_submodule(name), WEIGHTED) for name in names}
    groups: dict[object, list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(memory_of(weight), []).append(name)
    first = [group[0] for group in groups.values()]
    with at_work(model):
        own = {name: weight_of(model.get_submodule(name), WEIGHTED) for name in first}
        tried = output_changes(model, own, mixed.choices, samples.for_model(model), rounding)
    quantized = {memory_of(weight) for weight in weights.values()}
    sizes = {name: tensor for name, tensor in tensors_of_module(model).items() if tensor.is_floating_point()}
    rest = sum(tensor.numel() for tensor in sizes.values() if memory_of(tensor) not in quantized) * _FLOAT_BYTES
    whole = sum(tensor.numel() for tensor in sizes.values()) * _FLOAT_BYTES
    tables: dict[tuple[int, ...], Table] = {(): np.array(float(rest))}
    tables |= {(k,): np.array([one.coded_bytes for one in tried[name]]) for k, name in enumerate(first)}
    limit = limit_of("size", mixed.size, float(whole), where="weight_bits.")
    budget = Constraint("size", limit, tables)
    chosen = allocate([[one.change for one in tried[name]] for name in first], [budget]).choice
    return {name: mixed.choices[pick] for pick, group in zip(chosen, groups.values(), strict=True) for name in group}


def output_changes(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    choices: Sequence[int],
    batches: SampleBatches,
    rounding: Rounding = rounded_by_row,
) -> dict[str, list[Tried]]:
    """For each weight and each number of bits: the change of the outputs, as `OutputChange`, if this weight alone is rounded.

    Args:
        model: in eval mode; its weights are changed for the time of a measurement.
        weights: of the model, by the name of their layer, with outputs on the first axis.
        choices: numbers of bits.
        batches: inputs.
        rounding: how a weight is rounded to a number of bits.

    Raises:
        UserError: E121 if outputs are not finite.
    """
    change = OutputChange(model, batches)
    found: dict[str, list[Tried]] = {}
    for name, weight in weights.items():
        found[name] = []
        for bits in choices:
            rounded = rounding(weight, bits)
            with having(weight, rounded.values):
                found[name].append(Tried(min(change.of(model), _MOST_CHANGE), rounded.coded_bytes))
    return found
