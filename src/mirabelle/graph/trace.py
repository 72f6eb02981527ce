"""A model -> its program: functional ATen, one node an operator, parameters and buffers by their names.

`torch.export` without strictness, then decomposition with an empty table: the level at which `linear`, `conv2d`,
`scaled_dot_product_attention`, `layer_norm` and `lstm` are still whole.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError

_NOISY = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")  # loggers
_RAISED_BY = re.compile(r'call raised this error:\s+File "(.+?)", line (\d+), in \S+\s+(.+)')  # as the exporter tells it
Kind = Literal["parameter", "buffer", "constant", "input"]


@dataclass(frozen=True)
class Source:
    """What a placeholder of the program stands for.

    Args:
        kind: of thing; a constant is a tensor that the model made while it was traced.
        name: of the parameter or buffer, for tied ones the first of their names.
    """

    kind: Kind
    name: str


@dataclass(frozen=True)
class Program:
    """A traced model.

    Args:
        exported: the program, with graph and signature.
        sources: by the name of each placeholder.
        tensors: parameters, buffers and constants by `Source.name`; the model's own, not copies.
        names: every name of each parameter and buffer that the model has, by its first name; tied ones have several.
        saved: names of what the model's own state holds; the other buffers are made anew with each model.
        updates: by the name of an output's node, the buffer that every call sets to it: a count of calls, a running mean.
    """

    exported: ExportedProgram
    sources: Mapping[str, Source]
    tensors: Mapping[str, Tensor]
    names: Mapping[str, tuple[str, ...]]
    saved: frozenset[str]
    updates: Mapping[str, str]

    @property
    def graph(self) -> fx.Graph:
        graph: fx.Graph = self.exported.graph
        return graph


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """The program of a model in eval mode on example inputs.

    Args:
        model: on any device, "meta" included; it is not run.
        args: example inputs by position; a batch of at least 2, and sizes that equal no width of the model.
        kwargs: example inputs by name.

    Raises:
        UserError: E121 when the model cannot be exported.
    """
    before = _Attributes(model)
    model.eval()
    try:
        with _quiet(), torch.no_grad():
            exported = _exported(model, args, dict(kwargs or {}))
    except Exception as error:
        message = f"the model cannot be traced by torch.export: {_reason(error)}"
        raise UserError("E121", message, "mend its forward, or prune single weights: prune.Weights needs no trace") from error
    finally:
        before.restore()
    return _program(model, exported)


class _Attributes:
    """What the modules of a model hold, hooks included: a trace may leave tensors of its own on them."""

    def __init__(self, model: nn.Module) -> None:
        self._of = [(vars(module), dict(vars(module))) for module in model.modules()]
        held = [value for _, values in self._of for value in values.values()]
        self._inside = [(value, value.copy()) for value in held if type(value) in (dict, OrderedDict, list)]

    def restore(self) -> None:
        for attributes, values in self._of:
            attributes.clear()
            attributes.update(values)
        for value, before in self._inside:
            value.clear()
            if isinstance(value, dict):
                value.update(before)
            else:
                value.extend(before)


def _reason(error: Exception) -> str:
    """Why an export failed, in a line: where the model asks for a number that a trace does not have, the line of its code."""
    if type(error).__name__ != "GuardOnDataDependentSymNode":
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    found = _RAISED_BY.search(str(error))
    place = f', at {found[1]}:{found[2]}: "{found[3].strip()[:120]}"' if found else ""
    return f"its code decides by the values of tensors{place}"


class _Called(nn.Module):
    """A model that takes its arguments as one tuple and one dict, whatever its own signature: free dimensions find them so.

    Buffers that its code assigns anew are set in place once it is through: the exporter sees that only.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = [(module._buffers, dict(module._buffers)) for module in self.model.modules()]
        outputs = self.model(*args, **kwargs)
        for buffers, own in before:
            for name, buffer in own.items():
                if buffer is not None and (assigned := buffers[name]) is not buffer and assigned is not None:
                    buffers[name] = buffer.copy_(assigned)
        return outputs


def name_in_model(name: str) -> str:
    """A name as the model has it, from one of the traced module, or from the path of a module in a node."""
    return name.removeprefix("L['self']").removeprefix(".").removeprefix("model").removeprefix(".")


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """With a batch of any size where the model allows it, so that a rewritten program may run on other batches."""
    free = pytree.tree_map(lambda part: {0: Dim.AUTO} if isinstance(part, Tensor) and part.ndim else None, (args, kwargs))
    called = _Called(model).eval()
    try:
        exported = torch.export.export(called, (args, kwargs), dynamic_shapes=free, strict=False)
    except Exception:  # noqa: BLE001 (whatever it was, the batch as given may still do)
        exported = torch.export.export(called, (args, kwargs), strict=False)
    decomposed: ExportedProgram = exported.run_decompositions({torch.ops.aten._weight_norm.default: _weight_of_norm})
    return decomposed


def _weight_of_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A normalized weight, v · g / ‖v‖, in operators that have rules."""
    others = [d for d in range(v.ndim) if d != dim] if dim >= 0 else list(range(v.ndim))
    norms: Tensor = torch.linalg.vector_norm(v, 2, others, keepdim=True)
    return v * (g / norms)


def _program(model: nn.Module, exported: ExportedProgram) -> Program:
    held: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held |= dict(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, tensor in held.items():
        known = first.setdefault(id(tensor), name)
        names[known] = (*names.get(known, ()), name)
    sources, tensors = {}, {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None, "a parameter has a name"
            own = name_in_model(spec.target)
            name = first[id(held[own])] if own in held else own
            kind: Kind = "parameter" if spec.kind == InputKind.PARAMETER else "buffer"
            tensors[name] = held.get(name, exported.state_dict.get(spec.target, exported.constants.get(spec.target)))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            assert spec.target is not None, "a constant has a name"
            name, kind = name_in_model(spec.target), "constant"
            tensors[name] = exported.constants[spec.target]
        else:
            name, kind = spec.arg.name, "input"
        sources[spec.arg.name] = Source(kind, name)
    mutated = exported.graph_signature.buffers_to_mutate
    updates = {node: first[id(held[name_in_model(target)])] for node, target in mutated.items()}
    return Program(exported, sources, tensors, names, frozenset(model.state_dict()), updates)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices, without fused kernels that hide attention, without a look into masks to choose one."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    fast, look = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True  # noqa: ARG005
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # where a failed export prints its graph
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)
        transformer._detect_is_causal_mask = look
