"""The width attributes of modules that change with a cut: those of torch's own classes, and integers of other modules.

An attribute is known by its class, not by its name: `groups` of a convolution is a number, `groups` of another module may be
anything. A module whose attributes do not describe its tensors before the cut is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.trace import Program, name_in_model

Attributes: TypeAlias = dict[str, dict[str, Any]]  # name of a module -> attribute -> new value
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def by_class(
    model: nn.Module, program: Program, flow: Flow, kept: Kept, indices: Mapping[str, Mapping[int, list[int]]]
) -> Attributes:
    """New values of the width attributes of torch's own modules, computed from the new shapes of their tensors.

    Args:
        model: the traced model.
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        indices: name of a tensor -> dimension -> indices that are kept.
    """
    groups = _groups_of_convolutions(program, flow, kept)
    attributes: Attributes = {}
    touched = {other.rpartition(".")[0] for name in indices for other in program.names.get(name, (name,))}
    dense = {
        other: tuple(program.tensors[name].shape)
        for name, names in program.names.items()
        if name in program.tensors
        for other in names
    }
    for name, module in model.named_modules():
        if name not in touched and name not in groups:
            continue
        paths = {key: path for key in _TENSORS if (path := f"{name}.{key}" if name else key) in dense}
        before = {key: dense[path] for key, path in paths.items()}
        after = {
            key: tuple(len(indices.get(program.first[path], {}).get(d, range(size))) for d, size in enumerate(dense[path]))
            for key, path in paths.items()
        }
        if not (values := _widths(module, before, None)) or not _describe(module, values):
            continue
        changed = {key: value for key, value in _widths(module, after, groups.get(name)).items() if value != values[key]}
        if changed:
            attributes[name] = changed
    return attributes


def by_width(model: nn.Module, flow: Flow, kept: Kept) -> Attributes:
    """New values of integer attributes of other modules that equal a width of their operators, where the new width is clear.

    They are guesses: whoever uses them must compare what the module then computes.
    """
    changes = _changes(flow, kept)
    names: dict[int, list[str]] = defaultdict(list)  # a module with several parents has several
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    attributes: Attributes = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention):
            continue
        for key, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and not key.startswith("_"):
                become = {size for other in names[id(module)] for size in changes.get(other, {}).get(value, ())}
                if len(become) == 1 and value not in become:
                    attributes.setdefault(name, {})[key] = next(iter(become))
    return attributes


def merged(one: Attributes, other: Attributes) -> Attributes:
    """The attributes of both; where both set the same one, the first decides."""
    return {name: {**other.get(name, {}), **one.get(name, {})} for name in {**one, **other}}


def _of_convolution(module: Any, shapes: Shapes, groups: int | None) -> dict[str, Any]:
    groups = groups or module.groups
    one, other = shapes["weight"][:2]
    out, into = (other * groups, one) if module.transposed else (one, other * groups)
    return {"out_channels": out, "in_channels": into, "groups": groups}


def _of_recurrent(module: Any, shapes: Shapes) -> dict[str, Any]:
    gates = module.weight_hh_l0.shape[0] // module.hidden_size
    widths = {"hidden_size": shapes["weight_hh_l0"][0] // gates, "input_size": shapes["weight_ih_l0"][1]}
    return {**widths, "proj_size": shapes["weight_hh_l0"][1]} if module.proj_size else widths


def _named(*names: str) -> Callable[[Any, Shapes, int | None], dict[str, Any]]:
    """The sizes of the weight by these names."""
    return lambda _, shapes, __: dict(zip(names, shapes["weight"], strict=False))


_TENSORS = ("weight", "running_mean", "weight_ih_l0", "weight_hh_l0")
_WIDTHS: tuple[
    tuple[type | tuple[type, ...], str, int, Callable[[Any, Shapes, int | None], dict[str, Any]]], ...
] = (  # class, a tensor that it must have, the least number of its dimensions, the width attributes
    (nn.Linear, "weight", 2, _named("out_features", "in_features")),
    (nn.modules.conv._ConvNd, "weight", 3, _of_convolution),
    (nn.modules.batchnorm._NormBase, "weight", 1, _named("num_features")),
    (
        nn.modules.batchnorm._NormBase,
        "running_mean",
        1,
        lambda _, shapes, __: {"num_features": shapes["running_mean"][0]},
    ),
    ((nn.Embedding, nn.EmbeddingBag), "weight", 2, lambda _, shapes, __: {"embedding_dim": shapes["weight"][1]}),
    (nn.Bilinear, "weight", 3, _named("out_features", "in1_features", "in2_features")),
    ((nn.LayerNorm, nn.RMSNorm), "weight", 1, lambda _, shapes, __: {"normalized_shape": shapes["weight"]}),
    (
        nn.GroupNorm,
        "weight",
        1,
        lambda module, shapes, groups: {"num_channels": shapes["weight"][0], "num_groups": groups or module.num_groups},
    ),
    (nn.PReLU, "weight", 1, _named("num_parameters")),
    (nn.RNNBase, "weight_hh_l0", 2, lambda module, shapes, __: _of_recurrent(module, shapes)),
)


def _widths(module: nn.Module, shapes: Shapes, groups: int | None) -> dict[str, Any]:
    """The width attributes of a module of torch's own with tensors of these shapes; empty for other modules."""
    for cls, needed, rank, widths in _WIDTHS:
        if isinstance(module, cls) and len(shapes.get(needed, ())) >= rank:
            return widths(module, shapes, groups)
    return {}


def _describe(module: nn.Module, values: Mapping[str, Any]) -> bool:
    """Whether a module's attributes have these values."""
    return all(_same(getattr(module, key, None), value) for key, value in values.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, tuple):
        return isinstance(one, Sequence) and tuple(one) == other
    return isinstance(one, int) and one == other


def _groups_of_convolutions(program: Program, flow: Flow, kept: Kept) -> dict[str, int]:
    """Module -> number of groups that are kept."""
    groups: dict[str, int] = {}
    for node, rewriting in flow.rewritings.items():
        call = Call.of(node)
        for key in ("groups", "num_groups"):
            if key in call.arguments and call.get("weight") is not None:
                source = program.sources.get(call["weight"].name)
                values = rewriting.arguments(kept)
                for name in program.names.get(source.name, ()) if source is not None and key in values else ():
                    groups[name.rpartition(".")[0]] = values[key]
    return groups


def _changes(flow: Flow, kept: Kept) -> dict[str, dict[int, set[int]]]:
    """Module -> old size -> new sizes, over all tensors computed by operators of the module and its submodules."""
    changes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for node, axes in flow.axes.items():
        if isinstance(axes, tuple) and node not in flow.inside and isinstance(value_of(node), Tensor):
            for axis, size in zip(axes, sizes_of(value_of(node)), strict=True):
                if axis is not None:
                    for module in _calling_modules(node):
                        changes[module][size].add(kept.count(axis, size))
    return changes


def _calling_modules(node: Any) -> Iterator[str]:
    """The modules whose code calls an operator, outermost first."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        yield name_in_model(str(path))
