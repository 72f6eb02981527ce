"""The model that simulates a quantized one while it is trained, and the quantized one with what the training has learned."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import set_attribute
from mirabelle.model.plain_weights import with_plain_weights
from mirabelle.model.state import copied, memory_of
from mirabelle.model.ties import named_tensors
from mirabelle.model.turned_linear import turned_linear
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.group_layer import GroupLayer
from mirabelle.quantize.layers import RoundedValue, WeightLayer
from mirabelle.quantize.simulated import Simulated, SimulatedValue, Step, WithCodes


def simulating(dense: nn.Module, quantized: nn.Module) -> nn.Module:
    """A model for training that computes what the quantized one computes.

    Args:
        dense: the model before quantization.
        quantized: the result of a quantizing step on it.

    Returns:
        A copy of the quantized model, in which the layers that the step has quantized simulate it with the dense weights; batch
        norms that the step has folded are folded into these. Layers that shared a weight share it.
    """
    dense = with_plain_weights(dense)
    layers = _layers(dense, quantized)
    norms = {module.settings["of"]: name for name, module in quantized.named_modules() if isinstance(module, FoldedNorm)}
    model = copied(quantized)
    weights: dict[Hashable, nn.Parameter] = {}
    steps: dict[Hashable, Step] = {}
    for name, layer in layers.items():
        own: Any = dense.get_submodule(name)
        joined: Any = folded(own, dense.get_submodule(norms[name])) if name in norms else own
        weight = joined.weight.detach()
        turned = weight.t() if isinstance(own, turned_linear()) else weight
        shared = weights.setdefault(memory_of(own.weight), nn.Parameter(turned.clone(memory_format=torch.contiguous_format)))
        bias = None if getattr(joined, "bias", None) is None else nn.Parameter(joined.bias.detach().clone())
        one = Simulated(layer, shared, bias)
        one.weight_step = steps.setdefault(memory_of(layer.scale), one.weight_step)
        model = _with(model, quantized, layer, one)
    values = {name: module for name, module in quantized.named_modules() if isinstance(module, RoundedValue)}
    for name, value in values.items():
        set_attribute(model, name, SimulatedValue(value))
    _share_steps(model, layers)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    attach(model, architecture_of(model).with_pruned([name for name in architecture_of(dense).pruned if name in known]))
    return model


@torch.no_grad()
def quantized_as_trained(quantized: nn.Module, trained: nn.Module) -> nn.Module:
    """A copy of the quantized model with the codes, steps and other tensors of the model that simulated it.

    Args:
        quantized: as it was given to `simulating`.
        trained: the result of that, after a training.
    """
    model = copied(quantized)
    learned: dict[str, nn.Module] = {}
    for name, one in trained.named_modules():
        if not isinstance(one, Simulated):
            continue
        learned[name] = one
        layer = model.get_submodule(name)
        assert isinstance(layer, WithCodes), "only these are simulated"
        _fill(layer, one)
    for name, module in trained.named_modules():
        if isinstance(module, SimulatedValue):
            learned[name] = module
            model.get_submodule(name).scale.copy_(module.step(1))  # type: ignore[operator]  # the tensor of a RoundedValue
    inside = tuple(f"{name}." if name else "" for name in learned)
    found = named_tensors(trained)
    for name, tensor in named_tensors(model).items():
        if not name.startswith(inside):
            tensor.copy_(found[name])
    outside = [name for name in architecture_of(trained).pruned if not name.startswith(inside)]
    attach(model, architecture_of(model).with_pruned(outside))
    return model.eval()


def _share_steps(model: nn.Module, layers: Mapping[str, WithCodes]) -> None:
    """Give each layer that reads a rounded value the step of that value, so that no conversion comes between them."""
    for name, layer in layers.items():
        one, read = model.get_submodule(name), layer.settings.get("reads", "")
        value = model.get_submodule(read) if read else None
        if isinstance(one, Simulated) and isinstance(value, SimulatedValue):
            one.input_step = value.step
        elif isinstance(one, Simulated) and isinstance(value, Simulated) and value.output_step is not None:
            one.input_step = value.output_step


def _layers(dense: nn.Module, quantized: nn.Module) -> dict[str, WithCodes]:
    """The layers that a step has quantized, by name."""
    known = dict(dense.named_modules())
    found = {
        name: module
        for name, module in quantized.named_modules()
        if isinstance(module, WithCodes) and not isinstance(known.get(name), WithCodes)
    }
    if not found:
        raise UserError("E112", "no layer is quantized, so there is nothing to train", "widen `include`, or shorten `exclude`")
    return found


def _with(model: nn.Module, quantized: nn.Module, layer: nn.Module, one: nn.Module) -> nn.Module:
    """Put a layer at every name at which the quantized model has a given one, without a record: it lives for a training."""
    for name, module in quantized.named_modules(remove_duplicate=False):
        if module is layer and not name:
            return one
        if module is layer:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, one)
    return model


def _fill(layer: WithCodes, one: Simulated) -> None:
    """Give a quantized layer the codes, steps and bias of the layer that simulated it."""
    steps, codes = one.steps(), one.codes()
    layer.scale.copy_(steps["weight"])
    if isinstance(layer, (WeightLayer, GroupLayer)):
        layer.codes.copy_(layer._stored(codes) if isinstance(layer, WeightLayer) else codes)
        if layer.bias is not None and one.bias is not None:
            layer.bias.copy_(one.bias)
        return
    layer.codes.copy_(codes)
    layer.input_scale.copy_(steps["input"])
    if layer.output_scale is not None:
        layer.output_scale.copy_(steps["output"])
    if layer.bias_codes is not None and layer.bias_scale is not None and one.bias is not None:
        layer.bias_scale.copy_(layer.scale * layer.input_scale)
        layer.bias_codes.copy_(torch.round(one.bias.double() / layer.bias_scale.double()))
