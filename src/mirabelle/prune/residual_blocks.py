"""Find the residual layers of a model, drop them, and measure how the loss rises without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.trace import Program, name_in_model
from mirabelle.model.architecture import replace_module
from mirabelle.model.device import copy_at_work, device_of_job
from mirabelle.model.state import copied, in_eval_mode
from mirabelle.model.watch import LayerRun, watch
from mirabelle.prune.skipped import Skipped
from mirabelle.task.batch import Batch, call, in_float32
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_UNCHANGED = ("clone", "dropout", "native_dropout", "alias", "contiguous", "to", "_to_copy", "detach", "lift_fresh_copy")


@dataclass(frozen=True)
class Block:
    """A residual layer: its output is the sum of its input and of what it computes.

    Args:
        name: of the module.
        outputs: length of the tuple that it returns; 0 if it returns a single tensor.
        nodes: nodes of the program that belong to the layer.
    """

    name: str
    outputs: int
    nodes: frozenset[fx.Node]


def blocks_of(model: nn.Module, program: Program, example: Batch) -> list[Block]:
    """The residual layers of a model, in the order in which they run.

    A residual layer is an element of a `Sequential`, a `ModuleList` or a `ModuleDict` that has parameters, runs once, returns a
    tensor with the shape of its first argument, and contains an addition with this argument as an operand. Of nested residual
    layers, only the innermost are returned.
    """
    inside = _nodes_inside(program)
    called = _called(model, example)
    found: dict[str, Block] = {}
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        if not isinstance(parent, _LISTS) or not any(True for _ in module.parameters()) or len(called.get(name, ())) != 1:
            continue
        outputs = called[name][0]
        nodes = inside.get(name, frozenset())
        if outputs is not None and _adds_its_input(nodes):
            found[name] = Block(name, outputs, nodes)
    inner = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    order = {node: k for k, node in enumerate(program.graph.nodes)}
    return sorted((found[name] for name in inner), key=lambda block: min(order[node] for node in block.nodes))


def without(model: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """A copy of the model in which these layers are replaced by `Skipped`."""
    smaller = copied(model)
    for block in blocks:
        smaller = replace_module(smaller, block.name, Skipped(block.outputs))
    return smaller


@torch.no_grad()
def rises_of_loss(model: nn.Module, blocks: Sequence[Block], task: Task, samples: Samples) -> list[float]:
    """For each layer, the rise of the mean loss when only this layer is skipped; at least 0."""
    with copy_at_work(model) as own, in_eval_mode(own):
        batch = samples.first(len(samples)).to(device_of_job(own))
        losses = [float(task.loss(in_float32(call(own, batch.inputs)), batch.targets))]
        for block in blocks:
            handle = own.get_submodule(block.name).register_forward_hook(_skipping(block.outputs), with_kwargs=True)
            try:
                losses.append(float(task.loss(in_float32(call(own, batch.inputs)), batch.targets)))
            finally:
                handle.remove()
    return [max(loss - losses[0], 0.0) for loss in losses[1:]]


def _skipping(outputs: int) -> Any:
    skipped = Skipped(outputs)
    return lambda _module, args, kwargs, _given: skipped(*args, **kwargs)


def _nodes_inside(program: Program) -> Mapping[str, frozenset[fx.Node]]:
    """Name of each module -> the nodes that its call runs."""
    found: dict[str, set[fx.Node]] = {}
    for node in program.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            found.setdefault(name_in_model(str(path)), set()).add(node)
    return {name: frozenset(nodes) for name, nodes in found.items()}


def _adds_its_input(nodes: frozenset[fx.Node]) -> bool:
    """Whether a tensor from outside, with the shape of a result of these nodes, is an operand of an addition among them."""
    results = [node for node in nodes if is_tensor(node) and any(user not in nodes for user in node.users)]
    shapes = {tuple(sizes_of(value_of(node))) for node in results}
    for node in nodes:
        if node.op == "call_function" and Call.of(node).name == "add":
            for operand in node.args[:2]:
                source = _seen_through(operand)
                outside = isinstance(source, fx.Node) and source not in nodes and is_tensor(source)
                if outside and source.op == "call_function" and tuple(sizes_of(value_of(source))) in shapes:
                    return True
    return False


def _seen_through(operand: Any) -> Any:
    """The node of an operand before operators that do not change its values, such as dropout in eval mode."""
    while isinstance(operand, fx.Node) and operand.op == "call_function" and Call.of(operand).name in _UNCHANGED:
        operand = operand.args[0]
    return operand


def _called(model: nn.Module, example: Batch) -> dict[str, list[int | None]]:
    """For each call of each module: the length of the returned tuple (0: no tuple); None if the first result has another shape.

    The shape is compared with that of the first argument.
    """
    found: dict[str, list[int | None]] = {}

    def see(run: LayerRun) -> None:
        first = run.args[0] if run.args else next(iter(run.kwargs.values()), None)
        parts = run.given if isinstance(run.given, tuple) else (run.given,)
        same = isinstance(first, Tensor) and isinstance(parts[0], Tensor) and first.shape == parts[0].shape
        found.setdefault(run.name, []).append((len(run.given) if isinstance(run.given, tuple) else 0) if same else None)

    watch(model, [example], {name: module for name, module in model.named_modules() if name}, after=see)
    return found


def parameters_in(model: nn.Module, block: Block) -> int:
    """The number of parameters that are removed with a layer: those not shared with another part of the model."""
    own = {id(parameter): parameter.numel() for parameter in model.get_submodule(block.name).parameters()}
    elsewhere = {id(parameter) for name, parameter in _named(model) if not name.startswith(f"{block.name}.")}
    return sum(count for key, count in own.items() if key not in elsewhere)


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)
