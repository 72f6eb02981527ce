"""Which node of a trace is which call of the model's code, as `model.call_results` counts them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from mirabelle.graph.call import Call
from mirabelle.model.call_results import HOLDER, place_of, with_call_results
from mirabelle.model.state import copied

_MARK = "mirabelle.numbered"


@torch.library.custom_op("mirabelle::numbered", mutates_args=())
def _number(values: Tensor, number: int) -> Tensor:
    """The values; a node for them in the trace tells the number of the call."""
    del number
    return values.clone()


@_number.register_fake
def _(values: Tensor, number: int) -> Tensor:
    del number
    return torch.empty_like(values)


class _Numbered(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = _number(values, self.number)
        return result


def with_numbers(model: nn.Module, calls: tuple[str, ...]) -> nn.Module:
    """A copy whose trace has a node with the number of each call."""
    model = copied(model)
    if not calls:
        return model
    model = with_call_results(model, calls, range(len(calls)))
    for number in range(len(calls)):
        setattr(getattr(model, HOLDER), place_of(calls, number), _Numbered(number))
    return model


def numbers_of(graph: fx.Graph) -> dict[fx.Node, int]:
    """Node -> number of its call. The nodes that tell the numbers are taken out of the graph, and those that assert something.

    A result that something reads past its module, because the call was in place, has no number.
    """
    numbers = {}
    for node in [node for node in graph.nodes if _kind(node).startswith("_assert") and not node.users]:
        graph.erase_node(node)
    for mark in [node for node in graph.nodes if _kind(node) == _MARK]:
        (node,) = mark.all_input_nodes
        if len(node.users) == 1:
            numbers[node] = mark.args[1]
        mark.replace_all_uses_with(node)
        graph.erase_node(mark)
    return numbers


def _kind(node: fx.Node) -> str:
    return Call.of(node).name if node.op == "call_function" else ""
