"""PyTorch layers for the ONNX operators LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.sources.models.onnx_graph.nodes import Node
from mirabelle.sources.models.onnx_graph.values import Value

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # PyTorch's gates by their positions in ONNX
_KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


class Recurrent(nn.Module):
    """One recurrent layer with the outputs of the ONNX operator: (time, directions, batch, hidden), and the last states.

    Args:
        node: of kind LSTM, GRU or RNN.
        weights: W (directions, gates · hidden, width), R (directions, gates · hidden, hidden), B or None.

    Raises:
        UserError: E121 for activations, peepholes or layouts that PyTorch's layers do not have.
    """

    def __init__(self, node: Node, weights: Sequence[Tensor | None]) -> None:
        super().__init__()
        into, recurrent, bias = (*weights, None)[:3]
        assert into is not None, "a recurrent node has weights"
        assert recurrent is not None, "a recurrent node has weights"
        self._backwards, both = node["direction"] == "reverse", node["direction"] == "bidirectional"
        _check_supported(node, directions=2 if both else 1)
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


def _check_supported(node: Node, *, directions: int) -> None:
    asked = tuple(str(name).lower() for name in node["activations"] or ())
    if asked and asked != _ACTIVATIONS[node.kind] * directions:
        raise node.refuse(f"activations {asked}")
    if node["clip"] or node["input_forget"] or node["layout"]:
        raise node.refuse("clip, input_forget or a batch-first layout")
    if node.kind == "GRU" and not node["linear_before_reset"]:
        raise node.refuse("linear_before_reset = 0, which PyTorch's GRU does not have")
    if len(node.inputs) > 4 and node.inputs[4]:  # noqa: PLR2004 (the fifth input)
        raise node.refuse("sequence lengths")
    if len(node.inputs) > 7 and node.inputs[7]:  # noqa: PLR2004 (the eighth)
        raise node.refuse("peepholes")
