"""What the steps of a recipe do to one matrix of weights, by the second moments of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirabelle import prune, quantize
from mirabelle.calibration.columns import columns_of
from mirabelle.errors import UserError
from mirabelle.model.turned_linear import turned_linear
from mirabelle.numerics.group_codes import Grid, GroupCodes, decoded, nearest
from mirabelle.numerics.masks import keep_highest, keep_highest_of_each
from mirabelle.quantize.calibrated_codes import Method, fitted_matrix
from mirabelle.records.patterns import matches
from mirabelle.scores.score import Evidence, LayerScore
from mirabelle.step import Step, use_of


@dataclass(frozen=True)
class Changed:
    """A matrix of weights after all steps.

    Args:
        values: (rows, columns), float32.
        codes: of the values, if they are quantized.
        error: mean squared error of the outputs as a share of their mean square.
        sparsity: share of zeros.
    """

    values: Tensor
    codes: GroupCodes | None
    error: float
    sparsity: float


def check_steps(steps: Sequence[Step]) -> None:
    """Refuse steps that cannot be carried out block by block.

    Raises:
        UserError: E111 with what is not possible; E105 if something follows a quantization.
    """
    if not steps:
        raise UserError("E111", "there is no step", "give prune.Weights, quantize.Weights, or both")
    for position, step in enumerate(steps):
        if position and isinstance(steps[position - 1], quantize.Weights):
            raise UserError("E105", f"{use_of(step)} follows quantize.Weights", "quantize last")
        if not isinstance(step, (prune.Weights, quantize.Weights)):
            raise UserError("E111", f"{use_of(step)} needs the whole model", "use prune.Weights and quantize.Weights")
        why = _impossible(step)
        if why:
            raise UserError("E111", f"{use_of(step)} block by block: {why[0]}", why[1], path=("step", position))


def _impossible(step: prune.Weights | quantize.Weights) -> tuple[str, str] | None:
    """What is not possible, and what is."""
    if isinstance(step, quantize.Weights):
        awq = "awq multiplies inputs, which a layer of transformers does not"
        return (awq, 'method = "gptq" or "nearest"') if step.method == "awq" else None
    if step.train is not None or step.needs_training:
        return "nothing is trained", 'leave train out, and schedule = "one-shot"'
    if step.scope != "layer" or (step.sparsity is None and step.pattern is None):
        return "each layer has the same share of zeros", "give sparsity or pattern, and leave scope out"
    if {"gradient", "squared_gradient"} & step.score.needs:
        return f"{type(step.score).__name__} needs gradients of the whole model", 'score = "Wanda" or "SparseGPT"'
    return None


def applies(step: prune.Weights | quantize.Weights, layer: str) -> bool:
    """Whether a step changes the weight of a layer; patterns of `prune.Weights` name parameters."""
    name = f"{layer}.weight" if isinstance(step, prune.Weights) else layer
    return (not step.include or matches(name, step.include)) and not matches(name, step.exclude)


def changed(weight: Tensor, moments: Tensor, steps: Sequence[prune.Weights | quantize.Weights], name: str) -> Changed:
    """A matrix after the steps.

    Args:
        weight: (rows, columns), float32.
        moments: E[x xᵀ] of its inputs, (columns, columns), float32.
        steps: those that apply to the layer.
        name: of the parameter.
    """
    values, codes = weight, None
    for step in steps:
        if isinstance(step, prune.Weights):
            values = _pruned(values, moments, step, name)
        else:
            codes = _coded(values, moments, step)
            values = decoded(codes.codes, codes.scale, step.size_of_groups or weight.shape[1])
    apart = values - weight
    power = float((weight @ moments * weight).sum())
    error = float((apart @ moments * apart).sum()) / max(power, 1e-30)
    return Changed(values, codes, error, 1 - float(values.count_nonzero()) / values.numel())


def _pruned(weight: Tensor, moments: Tensor, step: prune.Weights, name: str) -> Tensor:
    amount = step.of_each or float(step.sparsity or 0)
    if isinstance(step.score, LayerScore):
        known = moments if "input_moments" in step.score.needs else moments.diagonal()
        return step.score.pruned(weight, known, amount)
    norms = moments.diagonal().sqrt()[None]
    scores = step.score(weight, Evidence(name, input_moments=moments[None], input_norms=norms))
    keep = keep_highest_of_each(scores, *amount) if isinstance(amount, tuple) else keep_highest(scores, amount)
    return weight * keep


def _coded(weight: Tensor, moments: Tensor, step: quantize.Weights) -> GroupCodes:
    grid, group = Grid(step.weight_bits, zero_points=step.zero_points, clipping=step.clipping), step.size_of_groups
    if step.method == "nearest":
        return nearest(weight, group or weight.shape[1], grid)
    method = Method("gptq", grid, group, step.damping, by_activation=step.activation_order)
    return fitted_matrix(weight, moments, method, keeps_zeros=bool((weight == 0).any())).codes


def is_linear(layer: nn.Module) -> bool:
    """Whether the steps can change the weight of a layer."""
    return isinstance(layer, turned_linear()) or (isinstance(layer, nn.Linear) and columns_of(layer) is not None)


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight of a layer as (outputs, inputs), sharing its memory."""
    from mirabelle.quantize.dense_layers import weight_of

    return weight_of(layer)


def packed_codes(codes: GroupCodes, bits: int) -> dict[str, Tensor]:
    """Codes as tensors of the format pack-quantized of compressed-tensors: numbers of `bits` bits in int32, scales, shape.

    Numbers are unsigned, the first of each int32 in its lowest bits.

    Args:
        codes: (rows, columns).
        bits: 2, 4 or 8.
    """
    each, (rows, columns) = 32 // bits, codes.codes.shape
    numbers = torch.zeros(rows, -(-columns // each) * each, dtype=torch.int64)
    offset = 0 if codes.zero_point is None else codes.zero_point.repeat_interleave(-(-columns // codes.scale.shape[1]), 1)
    numbers[:, :columns] = codes.codes.to(torch.int64) + (offset if isinstance(offset, int) else offset[:, :columns])
    numbers[:, :columns] += 1 << bits - 1
    shifted = numbers.reshape(rows, -1, each) << (bits * torch.arange(each))
    packed = shifted.sum(2).to(torch.int32)  # wraps around, so that all 32 bits are used
    found = {
        "weight_packed": packed,
        "weight_scale": codes.scale.bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
    }
    return found if codes.zero_point is None else found | {"weight_zero_point": codes.zero_point}


def unpacked_codes(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The signed numbers in `weight_packed` of `packed_codes`: codes with their zero points added, int8, (rows, columns)."""
    numbers = packed[:, :, None] >> (bits * torch.arange(32 // bits)) & (1 << bits) - 1
    return (numbers.flatten(1)[:, :columns] - (1 << bits - 1)).to(torch.int8)
