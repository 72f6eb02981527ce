"""Pruning of single weights layer by layer: each layer by the inputs that the pruned layers before it give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.layer_moments import change_by_moments, runs_of
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.samples import SampleBatches
from mirabelle.scores.score import Evidence, LayerScore


def prune_in_order(
    model: nn.Module,
    names: Mapping[str, nn.Parameter],
    score: LayerScore,
    batches: SampleBatches,
    amount: float | tuple[int, int],
) -> dict[str, str]:
    """Prune the weights of layers in the order in which they run, in place.

    Args:
        model: with the parameters.
        names: parameters that the score covers, by name.
        score: prunes each.
        batches: calibration samples.
        amount: as for `LayerScore.pruned`.

    Returns:
        Name of each parameter that was left, since it is no weight of one layer that runs once -> why.
    """
    layers: dict[str, tuple[nn.Module, Columns]] = {}
    left: dict[str, str] = {}
    holders = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    modules = {name.rpartition(".")[0]: model.get_submodule(name.rpartition(".")[0]) for name in names}
    runs = runs_of(model, modules, next(iter(batches)))
    for (layer, module), (name, parameter) in zip(modules.items(), names.items(), strict=True):
        columns = columns_of(module)
        if holders.count(id(parameter)) > 1:
            left[name] = "several layers share it"
        elif columns is None or runs[layer] != 1:
            left[name] = "its layer runs more than once" if runs[layer] > 1 else "its layer never runs as a layer"
        else:
            layers[layer] = module, columns

    def change(name: str, moments: Moments) -> None:
        columns = layers[name][1]
        columns.layer.weight.data.copy_(_pruned(score, columns.layer.weight, moments.mean(), amount))

    change_by_moments(model, batches, layers, change, diagonal="input_moments" not in score.needs)
    return left


def prune_alone(
    parameters: Mapping[str, nn.Parameter],
    evidence: Mapping[str, Evidence],
    score: LayerScore,
    amount: float | tuple[int, int],
) -> None:
    """Prune parameters in place, each by the evidence that was measured on the model before any was pruned."""
    for name, own in evidence.items():
        assert own.input_moments is not None or own.input_norms is not None, "a score of layers needs inputs"
        moments = own.input_moments if own.input_moments is not None else _squared(own)
        parameters[name].data.copy_(_pruned(score, parameters[name], moments, amount))


def _squared(evidence: Evidence) -> Tensor:
    assert evidence.input_norms is not None, "the other kind of evidence about inputs"
    return evidence.input_norms.square()


def _pruned(score: LayerScore, weight: Tensor, moments: Tensor, amount: float | tuple[int, int]) -> Tensor:
    """The pruned weight of a layer, of any shape; the groups of a convolution are pruned each for itself."""
    by_group = weight.detach().reshape(len(moments), -1, moments.shape[1]).to(moments.dtype)
    parts = [score.pruned(own, gram, amount) for own, gram in zip(by_group, moments, strict=True)]
    return torch.cat(parts).reshape(weight.shape).to(weight.dtype)
