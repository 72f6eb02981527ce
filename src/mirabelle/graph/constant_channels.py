"""Constants of channels that are cut go to the layers that read them.

A channel that is the same number for every input, for example behind a batch norm with γ = 0, adds a constant to each layer
that reads it. After the cut, this constant is part of the layer's bias. A layer without a bias has it in the running mean of
the batch norm that alone reads the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mirabelle.graph.call import Call, value_of
from mirabelle.graph.constants import Known, UnclearError, followed, has_constant_lines
from mirabelle.graph.example_signature import Example
from mirabelle.graph.flow import Flow, Kept, Masking
from mirabelle.graph.groups import axes_of_tensors
from mirabelle.graph.interpret import NodeError, result_of
from mirabelle.graph.trace import Program, described

_SAME = 1e-5  # a constant that differs by this share of its size between positions is one number
_READERS: Mapping[str, tuple[str, str]] = {  # operator -> operand with the channels, and with the bias
    "linear": ("input", "bias"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), ("input", "bias")),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("input", "bias")),
    "addmm": ("mat1", "self"),
}
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training")


@dataclass
class ConstantsCut:
    """The constants that a cut takes from the layers that read them, and where they can go.

    Args:
        added: name of a tensor of the uncut model -> what is added to it.
        roughly: layer -> largest error at a position, as a share of the constant. The positions at the border of a padded
            convolution do not see the whole constant; the mean over all positions is added.
        lost: layer that reads a constant -> why it cannot take it.
    """

    added: dict[str, Tensor] = field(default_factory=dict)
    roughly: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> Iterator[str]:
        """What does not stay exactly the same, in words."""
        for layer, error in self.roughly.items():
            yield (
                f"{layer} reads channels that are constant and cut; their constant is in its bias, but differs by up to "
                f"{error:.0%} between positions, for example at the border of a padding"
            )
        for layer, why in self.lost.items():
            yield f"{layer} reads channels that are constant and cut; their constant is lost: {why}"

    @torch.no_grad()
    def give_to(self, smaller: nn.Module, program: Program, flow: Flow, kept: Kept) -> None:
        """Add the constants to the tensors of the cut model."""
        named = {
            **dict(smaller.named_parameters(remove_duplicate=False)),
            **dict(smaller.named_buffers(remove_duplicate=False)),
        }
        axes = axes_of_tensors(program, flow)
        for name, change in self.added.items():
            axis, size = axes[name][0]
            stays = torch.from_numpy(kept.of(axis, size)).to(change.device)
            named[name].add_(change[stays].to(named[name].dtype))


def constants_cut(program: Program, flow: Flow, kept: Kept, example: Example) -> ConstantsCut:
    """The constants of removed channels, from the weights of the program.

    With constants c_j of the removed channels j, a linear layer gets b_o + Σ_j W_oj c_j, and a convolution the sum over its
    kernel, too. This is exact unless the constant differs between positions.

    Args:
        program: of the uncut model.
        flow: of the program.
        kept: units that are kept.
        example: inputs of the trace.

    Source: Ye, Lu, Lin, Wang 2018, arXiv:1802.00124 (constant channels are absorbed into the next layer).
    """
    if not has_constant_lines(program):
        return ConstantsCut()
    reading = _Reading(program, flow, kept)
    try:
        followed(program, example, reading)
    except (UnclearError, NodeError):
        return ConstantsCut()
    return reading.found


class _Reading:
    """Notes the removed constants that the operators of a program read."""

    def __init__(self, program: Program, flow: Flow, kept: Kept) -> None:
        self._program, self._flow, self._kept = program, flow, kept
        self.found = ConstantsCut()

    def __call__(self, call: Call, arguments: Mapping[str, Any]) -> None:
        for masking in self._flow.maskings.get(call.node, ()):
            constant = self._removed(arguments, masking)
            if constant is not None:
                self._read(call, arguments, masking, constant)

    def _removed(self, arguments: Mapping[str, Any], masking: Masking) -> Tensor | None:
        """An operand with zeros in place of all but the removed constants; None if there are none."""
        operand = arguments[str(masking.operand[0])]
        for place in masking.operand[1:]:
            operand = operand[int(place)]
        stays = torch.from_numpy(self._kept.of(masking.axis, operand.value.shape[masking.dimension]))
        cut = ~stays & operand.constant_along(masking.dimension)
        if not cut.any() or not operand.varies.any():  # a weight, for example
            return None
        shape = [-1 if d == masking.dimension else 1 for d in range(operand.value.ndim)]
        constant = torch.where(cut.reshape(shape), operand.value, torch.zeros((), dtype=operand.value.dtype))
        return constant if constant.any() else None

    def _read(self, call: Call, arguments: Mapping[str, Any], masking: Masking, constant: Tensor) -> None:
        """Note what removed constants add to the result of an operator."""
        found, layer = self.found, described(call.node).partition(" in ")[2] or described(call.node)
        channels, bias = _READERS.get(call.name, ("", ""))
        if masking.operand != (channels,):
            found.lost[layer] = f"{described(call.node)} has no bias that could hold it"
            return
        shown = _shown(call, arguments, {channels: constant, bias: None})
        outputs = _channels_of(call, shown.ndim)
        lines = shown.movedim(outputs, 0).flatten(1)
        lines[torch.from_numpy(~self._kept.of(self._flow.of(call.node)[outputs], len(lines)))] = 0.0
        size = float(lines.abs().max())
        if not size:
            return
        target, sign = _target(self._program, call, bias)
        if target is None:
            found.lost[layer] = "it has no bias of its own, and no batch norm that alone reads it"
            return
        change = lines.mean(1)
        found.added[target] = found.added.get(target, 0.0) + sign * change
        error = float((lines - change[:, None]).abs().max()) / size
        if error > _SAME:
            found.roughly[layer] = error


def _shown(call: Call, arguments: Mapping[str, Any], changed: Mapping[str, Any]) -> Tensor:
    """What the constants of the removed channels add to the result of a layer."""
    if call.name == "addmm":
        return torch.matmul(changed["mat1"], arguments["mat2"].value)
    values = {name: value.value if isinstance(value, Known) else value for name, value in arguments.items()}
    result: Tensor = result_of(call.node.target, {**values, **changed})
    return result


def _channels_of(call: Call, ndim: int) -> int:
    """The dimension of the output channels in the result of a layer."""
    if call.name in ("linear", "addmm"):
        return ndim - 1
    weight: Tensor = value_of(call["weight"])
    return ndim - weight.ndim + 1


def _target(program: Program, call: Call, bias: str) -> tuple[str | None, float]:
    """The tensor that takes a constant, and the sign with which it does."""
    own = call.get(bias)
    if own is not None:
        return _own_vector(program, own), 1.0
    readers = list(call.node.users)
    if len(readers) == 1 and readers[0].op == "call_function":
        reader = Call.of(readers[0])
        if reader.name in _NORMS and reader.get("input") is call.node and not reader.get("training"):
            return _own_vector(program, reader["running_mean"]), -1.0
    return None, 1.0


def _own_vector(program: Program, node: Any) -> str | None:
    """The name of a parameter or buffer in one dimension that one operator alone reads."""
    source = program.sources.get(node.name) if isinstance(node, fx.Node) and node.op == "placeholder" else None
    if source is None or source.kind not in ("parameter", "buffer") or value_of(node).ndim != 1:
        return None
    placeholders = [
        other for other in program.graph.nodes if other.op == "placeholder" and program.sources[other.name].name == source.name
    ]
    return source.name if sum(len(other.users) for other in placeholders) == 1 else None
