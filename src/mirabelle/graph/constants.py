"""Elements of a program's tensors that are the same for every input, such as a channel whose batch norm has γ = 0.

The program runs on the example inputs with the weights of the model. Next to every tensor goes a mask of the elements that may
depend on the inputs. An element of a sum does not depend on them where all factors that do are multiplied by zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mirabelle.graph.call import Call
from mirabelle.graph.interpret import result_of, run_nodes, substituted
from mirabelle.graph.rules import elementwise, layout
from mirabelle.graph.trace import Program

_TINY = 1e-6  # a normalized channel with a factor of this size, relative to its offset or the largest factor, does not vary
_VIEWS = ("view", "_unsafe_view")
_MOVED = frozenset((*layout.NAMES, "cat", "concat", "concatenate", "stack", "clone", "contiguous", "detach", "alias"))
_AVERAGES = frozenset((
    *(f"{kind}{n}d" for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool") for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "sum", "mean",
))  # fmt: skip
_FACTORS = ("input", "self", "weight", "other", "mat2", "vec")  # arguments of a product
_FACTORS_ADDED = ("mat1", "batch1", "mat", "mat2", "batch2", "vec")  # of a product that is added to something
_NONE = 0.5  # a count below this is zero that was rounded


class UnclearError(Exception):
    """A number of Python is computed from the inputs, so that nothing can be said of what depends on it."""


@dataclass(frozen=True)
class Known:
    """A tensor of the program.

    Args:
        value: for the example inputs.
        varies: of the shape of `value`; True where the element may depend on the inputs.
    """

    value: Tensor
    varies: Tensor

    def constant_along(self, dimension: int) -> Tensor:
        """For each index of a dimension, whether all elements there are constants."""
        others = [d for d in range(self.varies.ndim) if d != dimension]
        return ~(self.varies.any(dim=tuple(others)) if others else self.varies)


Visit = Callable[[Call, Mapping[str, Any]], None]  # a call, and its arguments, with `Known` for tensors


@torch.no_grad()
def followed(program: Program, example: Any, visit: Visit | None = None) -> list[Any]:
    """Run a program, and follow which elements depend on its inputs.

    Args:
        program: of the model.
        example: inputs of the trace.
        visit: is called before each operator.

    Returns:
        The outputs; tensors as `Known`.

    Raises:
        UnclearError: if a number that the program computes from its inputs decides what it computes.
    """

    def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        called = Call.of(node)
        arguments = substituted(dict(called.arguments), known)
        if visit is not None:
            visit(called, arguments)
        return _wrapped(called, arguments, _called(called, _values(arguments)))

    tensors = {
        name: Known(tensor.detach(), torch.zeros_like(tensor, dtype=torch.bool)) for name, tensor in program.tensors.items()
    }
    for name in program.updates.values():  # a state that earlier inputs have changed
        tensors[name] = Known(tensors[name].value, torch.ones_like(tensors[name].varies))
    inputs = [
        Known(leaf, torch.ones_like(leaf, dtype=torch.bool)) if isinstance(leaf, Tensor) else leaf
        for leaf in pytree.tree_leaves(example)
    ]
    return run_nodes(program, tensors, inputs, call)


def has_constant_lines(program: Program) -> bool:
    """Whether a weight of the model has a line of zeros, without which no part of a layer is constant."""
    return any(_has_empty_line(program.tensors[name]) for name in _weights(program))


def _weights(program: Program) -> Iterator[str]:
    """The parameters that are read as more than a bias."""
    for node in program.graph.nodes:
        source = program.sources.get(node.name) if node.op == "placeholder" else None
        if (
            source is not None
            and source.kind == "parameter"
            and any(Call.of(user).get("bias") is not node for user in node.users if user.op == "call_function")
        ):
            yield source.name


def _has_empty_line(weight: Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return False
    size = weight.detach().abs()
    if weight.ndim < 2:  # noqa: PLR2004 (a factor for each channel)
        return bool((size <= _TINY * max(1.0, float(size.max()))).any())
    return any(bool((size.amax([d for d in range(size.ndim) if d != line]) == 0).any()) for line in (0, 1))


def _wrapped(call: Call, arguments: Mapping[str, Any], result: Any) -> Any:
    """The result of a call with its mask."""
    operands = list(_known_in(arguments))
    if isinstance(result, (list, tuple)):
        masks = _varies(call, arguments, result[0]) if result and isinstance(result[0], Tensor) else None
        parts = masks if isinstance(masks, list) else [masks, *[None] * (len(result) - 1)]
        return [_one(part, mask, operands) for part, mask in zip(result, parts, strict=True)]
    if not isinstance(result, Tensor):
        if any(bool(operand.varies.any()) for operand in operands) and call.name != "sym_size":
            raise UnclearError(call.name)
        return result
    mask = _varies(call, arguments, result)
    return _one(result, mask if isinstance(mask, Tensor) else None, operands)


def _one(result: Any, mask: Tensor | None, operands: Sequence[Known]) -> Any:
    """A result; without a mask, all of it varies if anything that it was computed from does."""
    if not isinstance(result, Tensor):
        return result
    if mask is None or mask.shape != result.shape:
        varies = any(bool(operand.varies.any()) for operand in operands)
        mask = torch.full(result.shape, varies, dtype=torch.bool, device=result.device)
    return Known(result, mask)


def _varies(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | list[Tensor] | None:
    """The mask of a result, or a list for each of its parts; None if all elements depend on all."""
    rule = _RULES.get(call.name)
    if rule is not None:
        return rule(call, arguments, result)
    return _elementwise(call, arguments, result) if elementwise.is_elementwise(call.node) else None


def _drawn(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | None:
    """Random numbers vary; dropout outside of a training is no random number."""
    if call.name == "dropout" and not call.get("train"):
        return _elementwise(call, arguments, result)
    return torch.ones_like(result, dtype=torch.bool)


def _by_channel(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | None:
    """A channel that is normalized by stored statistics varies if it did and its factor is not tiny."""
    del result
    if call.get("training"):
        return None
    first: Known = arguments["input"]
    return first.varies & _factors(arguments, 1, first.value.ndim)


def _over_width(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor:
    """Elements depend on all over which they are normalized, unless their factor is tiny."""
    del call, result
    first, count = arguments["input"], arguments["input"].value.ndim
    start = count - len(arguments["normalized_shape"])
    return _any_of(first.varies, range(start, count)) & _factors(arguments, start, count)


def _over_groups(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor:
    """As `_over_width`, for one sample."""
    del call, result
    first, count = arguments["input"], arguments["input"].value.ndim
    return _any_of(first.varies, range(1, count)) & _factors(arguments, 1, count)


def _any_of(varies: Tensor, dimensions: Iterable[int]) -> Tensor:
    """Whether any element along some dimensions varies, at each element."""
    return varies.any(dim=tuple(dimensions), keepdim=True).expand(varies.shape)


def _by_itself(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | list[Tensor] | None:
    """The mask of an operator that moves or averages elements: its result on the mask."""
    del result
    first = next(name for name in ("self", "input", "tensors") if name in arguments)
    others = [value for name, value in arguments.items() if name != first]
    if any(bool(other.varies.any()) for other in _known_in(others)):
        return None  # positions that depend on the inputs
    changed = {**arguments, first: pytree.tree_map_only(Known, lambda part: part.varies.float(), arguments[first])}
    values = _values(changed)
    if call.name in ("constant_pad_nd", "pad"):
        values["value"] = 0
    if call.name in ("sum", "mean"):
        values["dtype"] = None
    moved = _called(call, values)
    if call.name.endswith("_with_indices"):
        moved = moved[0]
    return [part != 0 for part in moved] if isinstance(moved, (list, tuple)) else torch.ne(moved, 0)


def _product(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor:
    """An element of a sum of products varies if a factor does where the other one is not zero."""
    del result
    names = [name for name in _FACTORS if isinstance(arguments.get(name), Known)]
    one, other = arguments[names[0]], arguments[names[1]]
    plain = {**_values(arguments), **({"bias": None} if "bias" in arguments else {})}

    def counted(left: Tensor, right: Tensor) -> Tensor:
        return torch.gt(result_of(call.node.target, {**plain, names[0]: left.float(), names[1]: right.float()}), _NONE)

    varies = counted(one.varies, _used(other))
    if other.varies.any():
        varies = varies | counted(_used(one), other.varies)
    return varies


def _sum_of_product(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor:
    del call
    added: Known = arguments["self"]
    one, other = (arguments[name] for name in _FACTORS_ADDED if name in arguments)
    varies = torch.matmul(one.varies.float(), _used(other).float()) + torch.matmul(_used(one).float(), other.varies.float())
    return (varies > _NONE) | added.varies.expand(result.shape)


def _factors(arguments: Mapping[str, Any], start: int, count: int) -> Tensor:
    """Where the factor γ of a normalization is not tiny, with its first dimension at `start` of `count` dimensions."""
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if not isinstance(weight, Known):
        return torch.ones([1] * count, dtype=torch.bool)
    size = weight.value.abs()
    least = size.max().clamp_min(bias.value.abs()) if isinstance(bias, Known) else size.max()
    matters = (size > _TINY * least) | weight.varies
    return matters.reshape([1] * start + list(matters.shape) + [1] * (count - start - matters.ndim))


def _attention(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | None:
    """Weights sum up to one: values that are the same constant at all positions are the result."""
    del call
    value: Known = arguments["value"]
    if value.value.shape[:-2] != result.shape[:-2]:
        return None
    same = value.value.amax(-2, keepdim=True) == value.value.amin(-2, keepdim=True)
    return (value.varies.any(-2, keepdim=True) | ~same).expand(result.shape)


def _elementwise(call: Call, arguments: Mapping[str, Any], result: Tensor) -> Tensor | None:
    operands = list(_known_in(arguments))
    if not operands:
        return None
    masks = [operand.varies for operand in operands]
    if call.name in ("mul", "multiply") and len(operands) == 2:  # noqa: PLR2004 (factors)
        one, other = operands
        masks = [one.varies & _used(other), other.varies & _used(one)]
    joined = masks[0]
    for mask in masks[1:]:
        joined = joined | mask
    return joined.expand(result.shape) if math.prod(joined.shape) <= result.numel() else None


def _used(factor: Known) -> Tensor:
    """Where a factor is not always zero."""
    return factor.varies | (factor.value != 0)


def _called(call: Call, values: Mapping[str, Any]) -> Any:
    """The result of an operator; strides may differ from those of the trace."""
    return values["self"].reshape(values["size"]) if call.name in _VIEWS else result_of(call.node.target, values)


def _known_in(value: Any) -> Iterator[Known]:
    if isinstance(value, Known):
        yield value
    elif isinstance(value, Mapping):
        yield from _known_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _known_in(part)


def _values(value: Any) -> Any:
    """The same arguments with the plain tensors."""
    if isinstance(value, Known):
        return value.value
    if isinstance(value, Mapping):
        return {name: _values(part) for name, part in value.items()}
    return [_values(part) for part in value] if isinstance(value, (list, tuple)) else value


_RULES: Mapping[str, Callable[[Call, Mapping[str, Any], Tensor], Tensor | list[Tensor] | None]] = {
    **dict.fromkeys((*_MOVED, *_AVERAGES), _by_itself),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", *(f"conv{n}d" for n in (1, 2, 3)), "convolution"), _product),
    **dict.fromkeys((f"conv_transpose{n}d" for n in (1, 2, 3)), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _sum_of_product),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _by_channel),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), _over_width),
    "group_norm": _over_groups,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("bernoulli", "native_dropout", "dropout", "rand_like", "randn_like", "rand", "randn"), _drawn),
    **dict.fromkeys(("rrelu_with_noise", "multinomial"), _drawn),
}
