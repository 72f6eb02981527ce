"""Codes of weights that are chosen by the inputs of their layers: GPTQ, and scales of the inputs (AWQ).

Layers are quantized in the order in which they run, each by the inputs that it gets after the layers before it are quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.layer_moments import change_by_moments, runs_of, samples_needed
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.samples import SampleBatches
from mirabelle.model.device import home
from mirabelle.model.turned_linear import turned_linear
from mirabelle.numerics.compensation import Rounding, compensated, inverse_factor
from mirabelle.numerics.group_codes import Grid, GroupCodes, decoded, nearest
from mirabelle.quantize.dense_layers import weight_of

_EXPONENTS = 20  # of the scales of inputs: 0, 1/20, … 19/20
_WORTH = 0.02  # a scale of inputs costs a product at inference: it must lower the error by this share
_LEAST = 1e-4  # of the largest norm of an input


@dataclass(frozen=True)
class Fitted:
    """The codes of one layer.

    Args:
        codes: with the rows and columns of the layer's weight; with a factor those of the weight divided by it.
        factor: (in,), by which inputs are multiplied; None for none.
        errors: mean squared error of the outputs as a share of their mean square, with the nearest codes and with these.
    """

    codes: GroupCodes
    factor: Tensor | None
    errors: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """How codes are chosen.

    Args:
        name: "gptq" or "awq".
        grid: of the codes.
        group_size: weights of a group; 0 for whole rows.
        damping: added to the diagonal of the moments, as a share of its mean.
        by_activation: whether GPTQ takes the columns of the largest inputs first.
    """

    name: Literal["gptq", "awq"]
    grid: Grid
    group_size: int
    damping: float = 0.01
    by_activation: bool = False


@dataclass(frozen=True)
class Calibration:
    """The codes of the layers that could be calibrated, by name, and for the others the reason why not."""

    layers: dict[str, Fitted] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def calibrated_codes(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: SampleBatches, method: Method, *, pruned: Iterable[str] = ()
) -> Calibration:
    """Choose the codes of layers by the inputs that they get on calibration samples.

    Args:
        model: its weights are changed to the values of the codes.
        layers: by name; embeddings, and layers that run not once in a forward pass, are left.
        batches: of the model's inputs.
        method: of choosing.
        pruned: names of weights whose zeros stay zero.

    Raises:
        UserError: E131 if inputs of a layer are NaN or infinite.
    """
    found, zeros = Calibration(), set(pruned)
    chosen, left = as_products(model, layers, batches, linear_alone=method.name == "awq")
    found.left.update(left)

    def change(name: str, moments: Moments) -> None:
        columns = chosen[name][1]
        found.layers[name] = _changed(columns, moments.mean(), method, keeps_zeros=f"{name}.weight" in zeros)

    change_by_moments(model, batches, chosen, change)
    return found


def enough_samples(model: nn.Module, layers: Mapping[str, nn.Module], few: SampleBatches, method: Method) -> int:
    """How many samples the codes of layers are to be chosen by (see `samples_needed`).

    Args:
        model: runs on the samples.
        layers: by name, as in `calibrated_codes`.
        few: samples, by which the rows of one sample are counted.
        method: of choosing.
    """
    products, _ = as_products(model, layers, few, linear_alone=method.name == "awq")
    return samples_needed(model, few, products)


def as_products(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: SampleBatches, *, linear_alone: bool = False
) -> tuple[dict[str, tuple[nn.Module, Columns]], dict[str, str]]:
    """The layers that can be calibrated, as matrix products, and for the others the reason why not.

    Args:
        model: runs on the inputs.
        layers: by name.
        batches: inputs of the model; a few, or all of the first if there are layers that a few do not reach, tell how often
            each layer runs.
        linear_alone: leave convolutions.
    """
    runs = runs_of(model, layers, batches.few())
    if not all(runs[name] for name in layers):
        runs = runs_of(model, layers, next(iter(batches)))
    chosen: dict[str, tuple[nn.Module, Columns]] = {}
    left: dict[str, str] = {}
    for name, layer in layers.items():
        columns = product_of(layer)
        if columns is None:
            left[name] = "it looks rows up, which weighs no columns"
        elif linear_alone and not isinstance(columns.layer, nn.Linear):
            left[name] = "only inputs of linear layers are scaled"
        elif runs[name] != 1:
            left[name] = "it never runs" if not runs[name] else "it runs more than once"
        else:
            chosen[name] = layer, columns
    return chosen, left


def _changed(columns: Columns, moments: Tensor, method: Method, *, keeps_zeros: bool) -> Fitted:
    """Choose the codes of a layer, and set its weight to their values."""
    weight = columns.weight().to(moments.dtype)  # (groups, rows, columns)
    fitted = [fitted_matrix(*pair, method, keeps_zeros=keeps_zeros) for pair in zip(weight, moments, strict=True)]
    found = _together(fitted, [float((own @ gram * own).sum()) for own, gram in zip(weight, moments, strict=True)])
    values = decoded(found.codes.codes, found.codes.scale, method.group_size or columns.width)
    if found.factor is not None:
        values = values * found.factor
    columns.layer.weight.data.copy_(values.reshape(columns.layer.weight.shape))
    codes = GroupCodes(home(found.codes.codes), home(found.codes.scale), home(found.codes.zero_point))
    return Fitted(codes, home(found.factor), found.errors)


def fitted_matrix(weight: Tensor, moments: Tensor, method: Method, *, keeps_zeros: bool = False) -> Fitted:
    """The codes of a matrix of weights by the second moments of its inputs.

    Args:
        weight: (rows, columns), in the dtype of the moments.
        moments: E[x xᵀ], (columns, columns).
        method: of choosing.
        keeps_zeros: whether zeros stay zero; the nearest codes of zeros always are.

    Returns:
        The codes; their errors are the mean squared errors of the outputs, summed over the rows.
    """
    group = method.group_size or weight.shape[1]
    plain = nearest(weight, group, method.grid)
    before = _error(weight, decoded(plain.codes, plain.scale, group), moments)
    if method.name == "awq":
        return _scaled(weight, moments, method, Fitted(plain, None, (before, before)))
    order = moments.diagonal().argsort(descending=True, stable=True) if method.by_activation else None
    rule = Rounding(weight, group, method.grid, order, weight != 0 if keeps_zeros else None)
    if order is None:
        compensated(weight, inverse_factor(moments, method.damping), rule)
    else:
        compensated(weight[:, order], inverse_factor(moments[order][:, order], method.damping), rule)
    codes = rule.codes()
    after = _error(weight, decoded(codes.codes, codes.scale, group), moments)
    return Fitted(codes, None, (before, after)) if after < before else Fitted(plain, None, (before, before))


def _scaled(weight: Tensor, moments: Tensor, method: Method, plain: Fitted) -> Fitted:
    """The scales of inputs, ‖x_j‖^α with the best α, that make large inputs' weights finer; none if they gain too little."""
    group, norms = method.group_size or weight.shape[1], moments.diagonal().sqrt()
    norms = norms.clamp_min(_LEAST * float(norms.max())) if bool(norms.any()) else torch.ones_like(norms)
    best, least = plain, plain.errors[0]
    for k in range(1, _EXPONENTS):
        scale = norms ** (k / _EXPONENTS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        codes = nearest(weight * scale, group, method.grid)
        error = _error(weight, decoded(codes.codes, codes.scale, group) / scale, moments)
        if error < least:
            best, least = Fitted(codes, (1 / scale).float(), (plain.errors[0], error)), error
    return best if least < (1 - _WORTH) * plain.errors[0] else plain


def _error(weight: Tensor, values: Tensor, moments: Tensor) -> float:
    """The mean squared error of the outputs, summed over the rows."""
    apart = weight - values.to(weight.dtype)
    return float((apart @ moments * apart).sum())


def _together(parts: list[Fitted], powers: list[float]) -> Fitted:
    """The codes of a grouped convolution from those of its groups; errors become shares of the power of the outputs."""
    power = max(sum(powers), 1e-30)
    before, after = (sum(part.errors[k] for part in parts) / power for k in (0, 1))
    if len(parts) == 1:
        return Fitted(parts[0].codes, parts[0].factor, (before, after))
    zeros = [part.codes.zero_point for part in parts if part.codes.zero_point is not None]
    codes = GroupCodes(
        torch.cat([part.codes.codes for part in parts]),
        torch.cat([part.codes.scale for part in parts]),
        torch.cat(zeros) if zeros else None,
    )
    return Fitted(codes, None, (before, after))


def product_of(layer: nn.Module) -> Columns | None:
    """A layer as a matrix product; a `Conv1D` of transformers as the linear layer that shares its memory."""
    if isinstance(layer, turned_linear()):
        weight = weight_of(layer)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return Columns(linear)
    return columns_of(layer)
