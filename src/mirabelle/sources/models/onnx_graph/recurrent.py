"""The ONNX operators LSTM, GRU and RNN: PyTorch layers where PyTorch has them, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, tensor_of

_LENGTHS, _PEEPHOLES = 4, 7  # positions of these inputs

RECURRENT = ("LSTM", "GRU", "RNN")
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # PyTorch's gates by their positions in ONNX
_KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


class Recurrent(nn.Module):
    """One recurrent layer with the outputs of the ONNX operator: (time, directions, batch, hidden), and the last states.

    Args:
        node: of kind LSTM, GRU or RNN, for which `has_layer` is true.
        weights: W (directions, gates · hidden, width), R (directions, gates · hidden, hidden), B or None.
    """

    def __init__(self, node: Node, weights: Sequence[Tensor | None]) -> None:
        super().__init__()
        into, recurrent, bias = (*weights, None)[:3]
        assert into is not None, "a recurrent node has weights"
        assert recurrent is not None, "a recurrent node has weights"
        self._backwards, both = node["direction"] == "reverse", node["direction"] == "bidirectional"
        hidden = recurrent.shape[2]
        self.rnn = _KINDS[node.kind](into.shape[2], hidden, bias=bias is not None, bidirectional=both)
        self._hidden, self._directions = hidden, 2 if both else 1
        with torch.no_grad():
            for direction, suffix in enumerate(("", "_reverse")[: self._directions]):
                self._fill(f"weight_ih_l0{suffix}", node, into[direction])
                self._fill(f"weight_hh_l0{suffix}", node, recurrent[direction])
                if bias is not None:
                    first, second = bias[direction].chunk(2)
                    self._fill(f"bias_ih_l0{suffix}", node, first)
                    self._fill(f"bias_hh_l0{suffix}", node, second)
        self.eval()

    def forward(self, x: Tensor, *states: Value) -> list[Tensor]:
        given = [state for state in states if isinstance(state, Tensor)]
        start = None if not given else (given[0], given[1]) if isinstance(self.rnn, nn.LSTM) else given[0]
        outputs, last = self.rnn(x.flip(0) if self._backwards else x, start)
        outputs = outputs.flip(0) if self._backwards else outputs
        laid_out = outputs.unflatten(2, (self._directions, self._hidden)).permute(0, 2, 1, 3)
        return [laid_out, *(last if isinstance(last, tuple) else (last,))]

    def _fill(self, name: str, node: Node, rows: Tensor) -> None:
        gates = rows.chunk(len(_GATES[node.kind]))
        getattr(self.rnn, name).copy_(torch.cat([gates[k] for k in _GATES[node.kind]]).float())


def has_layer(node: Node, constant: Container[str]) -> bool:
    """Whether PyTorch has a layer for a recurrent node: constant weights, and no setting that PyTorch lacks."""
    both = 2 if node["direction"] == "bidirectional" else 1
    asked = tuple(str(name).lower() for name in node["activations"] or ())
    usual = not asked or asked == _ACTIVATIONS[node.kind] * both
    plain = usual and not (node["clip"] or node["input_forget"] or node["layout"])
    resets_after = node.kind != "GRU" or bool(node["linear_before_reset"])
    extra = [name for k, name in enumerate(node.inputs) if k in (_LENGTHS, _PEEPHOLES) and name]
    return plain and resets_after and not extra and all(name in constant for name in node.inputs[1:4] if name)


@operator("LSTM", "GRU", "RNN")
def stepwise(node: Node, x: Tensor, into: Tensor, recurrent: Tensor, *rest: Value) -> list[Tensor]:
    """The outputs (time, directions, batch, hidden) and the last states of any form of these operators, step by step."""
    bias, lengths, hidden, cell, peepholes = (*rest, None, None, None, None, None)[:5]
    x = x.transpose(0, 1) if node["layout"] else x
    time, batch, count = x.shape[0], x.shape[1], into.shape[0]
    states = [
        x.new_zeros(count, batch, recurrent.shape[2]) if state is None else state.transpose(0, 1) if node["layout"] else state
        for state in ((hidden, cell) if node.kind == "LSTM" else (hidden,))
    ]
    ends = None if lengths is None else tensor_of(lengths)
    outputs, lasts = [], []
    for direction in range(count):
        parts = (into[direction], recurrent[direction], None if bias is None else bias[direction])
        step = _Step(node, direction, parts, None if peepholes is None else peepholes[direction])
        now, rows = [state[direction] for state in states], [x.new_zeros(batch, recurrent.shape[2])] * time
        backwards = node["direction"] == "reverse" or direction == 1
        for t in reversed(range(time)) if backwards else range(time):
            then = step(x[t], now)
            if ends is None:
                now, rows[t] = then, then[0]
            else:
                valid = (t < ends)[:, None]
                now = [torch.where(valid, new, old) for new, old in zip(then, now, strict=True)]
                rows[t] = torch.where(valid, then[0], torch.zeros_like(then[0]))
        outputs.append(torch.stack(rows))
        lasts.append(now)
    whole = torch.stack(outputs, 1)
    last = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    if node["layout"]:
        return [whole.permute(2, 0, 1, 3), *(part.transpose(0, 1) for part in last)]
    return [whole, *last]


class _Step:
    """One step of one direction."""

    def __init__(self, node: Node, direction: int, parts: Any, peepholes: Tensor | None) -> None:
        self._node, self._clip, self._peepholes = node, node["clip"], peepholes
        self._into, self._recurrent, bias = parts
        zeros = self._into.new_zeros(self._into.shape[0])
        self._bias, self._recurrent_bias = (zeros, zeros) if bias is None else bias.chunk(2)
        kinds = _ACTIVATIONS[node.kind]
        names = [str(name).lower() for name in node["activations"] or kinds * (direction + 1)]
        self._functions = [_function(node, name) for name in names[direction * len(kinds) : (direction + 1) * len(kinds)]]

    def __call__(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        given, hidden = F.linear(x, self._into, self._bias), states[0]
        if self._node.kind == "GRU":
            return self._gru(given, hidden)
        total = given + F.linear(hidden, self._recurrent, self._recurrent_bias)
        if self._node.kind == "RNN":
            return [self._functions[0](self._clipped(total))]
        return self._lstm(total, states[1])

    def _gru(self, given: Tensor, hidden: Tensor) -> list[Tensor]:
        update_, reset_, new_ = given.chunk(3, 1)
        weights, biases = self._recurrent.chunk(3), self._recurrent_bias.chunk(3)
        gate, function = self._functions
        update = gate(self._clipped(update_ + F.linear(hidden, weights[0], biases[0])))
        reset = gate(self._clipped(reset_ + F.linear(hidden, weights[1], biases[1])))
        if self._node["linear_before_reset"]:
            new = new_ + reset * F.linear(hidden, weights[2], biases[2])
        else:
            new = new_ + F.linear(reset * hidden, weights[2], biases[2])
        return [(1 - update) * function(self._clipped(new)) + update * hidden]

    def _lstm(self, total: Tensor, cell: Tensor) -> list[Tensor]:
        enter, leave, forget, new = total.chunk(4, 1)
        seen = (0.0, 0.0, 0.0) if self._peepholes is None else self._peepholes.chunk(3)
        gate, function, last = self._functions
        enter = gate(self._clipped(enter + seen[0] * cell))
        forget = 1 - enter if self._node["input_forget"] else gate(self._clipped(forget + seen[2] * cell))
        cell = forget * cell + enter * function(self._clipped(new))
        leave = gate(self._clipped(leave + seen[1] * cell))
        return [leave * last(cell), cell]

    def _clipped(self, x: Tensor) -> Tensor:
        return x.clamp(-self._clip, self._clip) if self._clip else x


def _function(node: Node, name: str) -> Callable[[Tensor], Tensor]:
    functions = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
    }
    if name not in functions or node["activation_alpha"] or node["activation_beta"]:
        raise node.refuse(f"the activation {name}" if name not in functions else "factors of its activations")
    return functions[name]
