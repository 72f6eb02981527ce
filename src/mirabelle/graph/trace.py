"""Traces a model into a program: functional ATen, one node per operator, parameters and buffers by name.

The model is exported by `torch.export` in non-strict mode and decomposed with an almost empty table, so that `linear`,
`conv2d`, `scaled_dot_product_attention`, `layer_norm` and `lstm` remain single operators.
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
from mirabelle.graph.call import name_of
from mirabelle.graph.exporter_tables import operators_listed_once
from mirabelle.model.free_lengths import free_lengths
from mirabelle.model.watch import every_layer_called

_NOISY = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")  # loggers
_RAISED_BY = re.compile(r'call raised this error:\s+File "(.+?)", line (\d+), in \S+\s+(.+)')  # in messages of the exporter
Kind = Literal["parameter", "buffer", "constant", "input"]


@dataclass(frozen=True)
class Source:
    """The tensor that a placeholder of the program represents.

    Args:
        kind: what it is; a constant is a tensor that the model created while it was traced.
        name: of the parameter or buffer; the first name of a shared one.
    """

    kind: Kind
    name: str


@dataclass(frozen=True)
class Program:
    """A traced model.

    Args:
        exported: the program of `torch.export`, with graph and signature.
        sources: name of a placeholder -> the tensor it represents.
        tensors: parameters, buffers and constants by `Source.name`; those of the model, not copies.
        names: first name of each parameter and buffer -> all its names; shared ones have several.
        first: every name of a parameter or buffer, in the order of the model -> the first name of its tensor.
        saved: names in the state dict of the model; other buffers are not persistent.
        unsaved: names of tensors that the program reads, that attributes or buffers of the model hold, and that its state dict
            lacks; they may be computed from weights, such as `self.bias = self.table[:, self.index]` in `train`.
        updates: name of an output node -> the buffer that every call sets to it, such as a running mean.
    """

    exported: ExportedProgram
    sources: Mapping[str, Source]
    tensors: Mapping[str, Tensor]
    names: Mapping[str, tuple[str, ...]]
    first: Mapping[str, str]
    saved: frozenset[str]
    unsaved: tuple[str, ...]
    updates: Mapping[str, str]

    @property
    def graph(self) -> fx.Graph:
        graph: fx.Graph = self.exported.graph
        return graph


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Trace a model in eval mode on example inputs.

    Args:
        model: on any device, including "meta"; only its shapes are computed.
        args: positional example inputs, with a batch size of at least 2 and sizes that differ from all widths of the model.
        kwargs: example inputs by name.

    Raises:
        UserError: E121 if the model cannot be exported.
    """
    before = AttributesBefore(model)
    _without_caches(model)
    try:
        with _quiet(), operators_listed_once(), torch.no_grad():
            exported = _exported(model, args, dict(kwargs or {}))
            held = _held(model)
    except UserError:
        raise  # a model that says itself why it has no trace
    except Exception as error:
        message = f"the model cannot be traced by torch.export: {_reason(error)}"
        raise UserError("E121", message, "change its forward method, or use prune.Weights, which needs no trace") from error
    finally:
        before.restore()
    return _program(model, exported, held)


def _without_caches(model: nn.Module) -> None:
    """Set a model to eval mode by way of training mode, in which it may drop or compute anew what it keeps for evaluation."""
    with contextlib.suppress(Exception), torch.no_grad():  # any code of a user's
        model.train()
    model.eval()


def _held(model: nn.Module) -> frozenset[int]:
    """Addresses of the tensors in attributes of a model that are no parameters and no buffers."""
    own = [
        value for module in model.modules() for name, value in vars(module).items() if name not in ("_parameters", "_buffers")
    ]
    return frozenset(part.data_ptr() for part in pytree.tree_leaves(own) if type(part) is Tensor and part.numel())


def exported_alone(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """What an export makes of a model in eval mode for inputs of one shape, as a module that takes `(args, kwargs)`.

    This takes a fraction of the time of `traced`: sizes are fixed, and operators are not decomposed.
    """
    with _quiet(), torch.no_grad():
        exported = torch.export.export(_Called(model).eval(), (args, dict(kwargs)), strict=False)
        return exported.module(check_guards=False)


class AttributesBefore:
    """A copy of all attributes and hooks of a model's modules, to undo what a call changes in them; tensors are not copied."""

    def __init__(self, model: nn.Module) -> None:
        self._of = [(vars(module), dict(vars(module))) for module in model.modules()]
        attributes = [value for _, values in self._of for value in values.values()]
        self._inside = [(value, value.copy()) for value in attributes if type(value) in (dict, OrderedDict, list)]

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
    """Why an export failed, in one line; for control flow that depends on tensor values, with the line of the model's code."""
    if type(error).__name__ != "GuardOnDataDependentSymNode":
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    match = _RAISED_BY.search(str(error))
    place = f', at {match[1]}:{match[2]}: "{match[3].strip()[:120]}"' if match else ""
    return f"its control flow depends on values of tensors{place}"


class _Called(nn.Module):
    """Wraps a model so that it takes one tuple and one dict, to which dynamic dimensions can be assigned for any signature.

    Buffers that the model replaces by new tensors are updated in place after the call, since the exporter sees only such
    updates.
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
    """The name within the model, given a name within the traced wrapper or the module path of a node."""
    return name.removeprefix("L['self']").removeprefix(".").removeprefix("model").removeprefix(".")


def described(node: fx.Node) -> str:
    """The name of an operator and of the module that calls it, such as '"conv2d" in features.0'."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed([str(path) for path, _ in stack.values()]), "") if stack else ""
    module = name_in_model(path)
    return f'"{name_of(node)}" in {module}' if module else f'"{name_of(node)}"'


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Export with a dynamic batch size if the model allows it, so that a rewritten program runs on any batch size."""
    dynamic = pytree.tree_map(lambda part: {0: Dim.AUTO} if isinstance(part, Tensor) and part.ndim else None, (args, kwargs))
    called = _Called(model).eval()
    try:
        with free_lengths(model):
            exported = torch.export.export(called, (args, kwargs), dynamic_shapes=dynamic, strict=False)
    except Exception:  # noqa: BLE001 (a static batch size may still work)
        exported = torch.export.export(called, (args, kwargs), strict=False)
    if any(map(_is_decomposed, exported.graph.nodes)):  # which takes four times as long as the export
        exported = exported.run_decompositions(_DECOMPOSED)
    exported.graph.eliminate_dead_code()
    return exported


def _is_decomposed(node: fx.Node) -> bool:
    """Whether decompositions would change an operator, other than `batch_norm` and `dropout`, which have rules of their own.

    That are the operators of the table, those that write into their inputs, and composed ones that return a view of an input.
    """
    if node.op != "call_function":
        return node.op == "get_attr"  # the graph of a branch or a loop
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    name: str = target.name()  # type: ignore[no-untyped-call]
    composed = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    views = any(argument.alias_info is not None for argument in target._schema.arguments)
    changed = composed and (views or name_of(node) in _REWRITTEN)
    return changed or target in _DECOMPOSED or bool(target._schema.is_mutable)


def _assigned(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001, FBT001, FBT002
    """What `target[...] = source` writes; the operator that torch has for it has no derivative."""
    return source.to(target.dtype).expand(target.shape).clone()


def _weight_of_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A weight-normalized weight, v · g / ‖v‖, written with operators that have rules."""
    others = [d for d in range(v.ndim) if d != dim] if dim >= 0 else list(range(v.ndim))
    norms: Tensor = torch.linalg.vector_norm(v, 2, others, keepdim=True)
    return v * (g / norms)


_REWRITTEN = ("alpha_dropout", "feature_dropout", "unsafe_chunk", "atleast_1d", "atleast_2d", "atleast_3d")
_DECOMPOSED = {torch.ops.aten._weight_norm.default: _weight_of_norm, torch.ops.aten.copy.default: _assigned}


def _program(model: nn.Module, exported: ExportedProgram, held: frozenset[int]) -> Program:
    own_tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own_tensors |= dict(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, tensor in own_tensors.items():
        known = first.setdefault(id(tensor), name)
        names[known] = (*names.get(known, ()), name)
    first_names = {name: first[id(tensor)] for name, tensor in own_tensors.items()}
    sources, tensors = {}, {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None, "a parameter has a name"
            own = name_in_model(spec.target)
            name = first_names.get(own, own)
            kind: Kind = "parameter" if spec.kind == InputKind.PARAMETER else "buffer"
            tensors[name] = own_tensors.get(name, exported.state_dict.get(spec.target, exported.constants.get(spec.target)))
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            assert spec.target is not None, "a constant has a name"
            name, kind = name_in_model(spec.target), "constant"
            tensors[name] = exported.constants[spec.target]
        else:
            name, kind = spec.arg.name, "input"
        sources[spec.arg.name] = Source(kind, name)
    mutated = exported.graph_signature.buffers_to_mutate
    updates = {node: first_names[name_in_model(target)] for node, target in mutated.items()}
    saved = frozenset(model.state_dict())
    constants = {source.name for source in sources.values() if source.kind == "constant"}
    unsaved = tuple(
        name
        for name, tensor in tensors.items()
        if (tensor.data_ptr() in held if name in constants else name not in saved and tensor.is_floating_point())
    )
    return Program(exported, sources, tensors, names, first_names, saved, unsaved, updates)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No messages of the exporter, no fused kernels that hide attention, and no inspection of mask values."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True  # noqa: ARG005
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with (
            every_layer_called(),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # a failed export prints its graph there
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        transformer._detect_is_causal_mask = detect
