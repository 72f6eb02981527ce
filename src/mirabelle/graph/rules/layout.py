"""Layout operators, which only move elements, and how their arguments change when units are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_free, name_of, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow, Kept, Results, Share, dimension_of
from mirabelle.graph.rules.labels import FLOATING, VIEWS, Moved, settle
from mirabelle.graph.units import product
from mirabelle.numerics.arrays import to_numpy

_aten = torch.ops.aten
_EXPANSIONS = {"expand", "broadcast_to", "expand_copy", "expand_as"}
_REPEATS = {"repeat", "tile"}
_PIECES = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"}
_SLICES = {"select", "slice", "narrow", "slice_copy"}
_PADS = {"constant_pad_nd", "pad"}
_WITHOUT_WIDTHS = {  # whose arguments do not mention a dimension that they leave unchanged
    "roll", "flip", "rot90", "index_select", "index", "repeat_interleave", "unfold", "diagonal", "channel_shuffle",
    *FLOATING - {"pad"},
}  # fmt: skip
_PLAIN = {
    "permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "swapaxes", "moveaxis", "swapdims", "numpy_T", "adjoint",
    "mT",
    "unbind", "atleast_1d", "atleast_2d", "permute_copy", "transpose_copy",
}  # fmt: skip
_PIXELS = {"pixel_shuffle", "pixel_unshuffle"}  # whose factor, and with it the positions within a block, is not changed
_SHUFFLING = {"permute", "transpose", "clone", "contiguous"}
_LONGEST_SHUFFLE = 4
NAMES = tuple(sorted({*VIEWS, *_PIXELS, *_EXPANSIONS, *_REPEATS, *_PIECES, *_SLICES, *_PADS, *_WITHOUT_WIDTHS, *_PLAIN}))


def layout(flow: Flow, call: Call) -> Results:
    """The axes of a result that consists of moved elements of the first operand."""
    moved = Moved.by(flow, [call])
    if call.name in _WITHOUT_WIDTHS and not moved.can_be_picked():
        flow.freeze([axis for axis, same in zip(moved.axes, moved.unchanged, strict=True) if not same])
        moved = Moved.by(flow, [call])
    if call.name in _PADS and call.get("mode", "constant") == "constant":
        moved.labels = {d: [padded_line(moved, call, d)] for d in moved.labels if any(_pads_of(call, len(moved.sizes), d))}
    settle(flow, moved)
    if call.name in _PADS:
        passed = [
            axis if d not in moved.labels else after
            for d, (axis, after) in enumerate(zip(moved.axes, moved.results[0], strict=True))
        ]
        moved.results = [tuple(passed)]
    if call.name in _EXPANSIONS | _REPEATS:
        moved.results = [_with_new(flow, moved.sizes, moved.results[0], moved.outs[0])]
    if call.name in _PIXELS:
        flow.freeze(moved.results[0][-2:])
    if any(axis is not None for part in (moved.axes, *moved.results) for axis in part):
        _rewrite(flow, call, moved)
    return moved.results if isinstance(value_of(call.node), (list, tuple)) else moved.results[0]


def padded_line(moved: Moved, call: Call, dimension: int) -> Tensor:
    """Labels along a padded dimension; padding along other dimensions has no effect on them."""
    low, high = _pads_of(call, len(moved.sizes), dimension)
    line = torch.nn.functional.pad(torch.arange(1, moved.sizes[dimension] + 1), (low, high))
    return line.reshape([-1 if d == dimension else 1 for d in range(len(moved.sizes))]).expand(*moved.outs[0])


def _pads_of(call: Call, count: int, dimension: int) -> tuple[int, int]:
    """Padding before and after a dimension; the list of pads starts with the last dimension."""
    position = 2 * (count - 1 - dimension)
    pads = [int(pad) for pad in call["pad"]]
    return (pads[position], pads[position + 1]) if position < len(pads) else (0, 0)


def patches(flow: Flow, call: Call) -> Results:
    """`im2col`: the values in each window, ordered by channel and position; positions are frozen."""
    axes, out = list(flow.of(call["self"])), sizes_of(value_of(call.node))
    flow.freeze(axes[-2:])
    channels = axes[-3]
    times = out[-2] // sizes_of(value_of(call["self"]))[-3]
    return (*axes[:-3], None if channels is None else np.repeat(channels, times, axis=0), None)


def put_together(flow: Flow, call: Call) -> Results:
    """`col2im`: adds up overlapping windows; channels pass."""
    axes, sizes, out = list(flow.of(call["self"])), sizes_of(value_of(call["self"])), sizes_of(value_of(call.node))
    channels, times = flow.fresh(out[-3]), sizes[-2] // out[-3]
    flow.unify(axes[-2], product([(channels, out[-3]), (None, times)]))
    flow.freeze([axes[-1]])
    return (*axes[:-2], flow.units.resolve(channels), None, None)


def shuffled(flow: Flow, node: fx.Node) -> bool:
    """Treat a view, a permutation and a view back as a single reordering of one dimension; False if they are not one.

    ShuffleNet mixes the channels of its groups in this way. Treated one by one, the views would tie all channels of a group.
    """
    chain = there_and_back(node)
    if not chain:
        return False
    calls = [Call.of(part) for part in chain]
    moved = Moved.by(flow, calls)
    if all(moved.unchanged) or not moved.can_be_picked():
        return False
    settle(flow, moved)
    _rewrite_by_index(flow, calls[-1], moved, moved.unchanged.index(False))
    for part in chain[:-1]:
        flow.inside.add(part)
        flow.axes[part] = (None,) * len(sizes_of(value_of(part)))
    flow.axes[chain[-1]] = moved.results[0]
    return True


def there_and_back(node: fx.Node) -> list[fx.Node]:
    """The nodes from a view to the view that restores its shape, each read only by the next; [] if they are not such."""
    chain = [node]
    while len(chain) <= _LONGEST_SHUFFLE and len(chain[-1].users) == 1:
        chain.append(next(iter(chain[-1].users)))
        name = name_of(chain[-1])
        if name in VIEWS:
            source = node.all_input_nodes[0]
            return chain if len(chain) > 2 and sizes_of(value_of(chain[-1])) == sizes_of(value_of(source)) else []  # noqa: PLR2004
        if name not in _SHUFFLING:
            return []
    return []


def _with_new(flow: Flow, sizes: Sequence[int], result: Axes, out: Sequence[int]) -> Axes:
    """Give new units to dimensions that an operator creates by repeating one element, since they may have any size."""
    shift = len(out) - len(sizes)
    before = [1] * shift + list(sizes)
    return tuple(
        flow.fresh(size) if own == 1 and size > 1 else axis for axis, own, size in zip(result, before, out, strict=True)
    )


def _rewrite(flow: Flow, call: Call, moved: Moved) -> None:
    """Record how the call changes when units are removed: new sizes, bounds and counts, or selection of elements by index."""
    name, node, result, out = call.name, moved.node, moved.results[0], moved.outs[0]
    value = value_of(call.node)
    free = any(is_free(size) for part in (value if isinstance(value, (list, tuple)) else [value]) for size in part.shape)
    if free and name in VIEWS | _EXPANSIONS and len(call.get("size", call.get("shape")) or ()) != len(out):
        raise ValueError("the sizes of the trace would be written in")
    if name in VIEWS:
        literal = call.get("size", call.get("shape"))
        flow.rewrite(
            call, _aten.reshape.default, self=lambda _: node, shape=lambda kept: kept_sizes(kept, result, out, literal)
        )
    elif name in _EXPANSIONS:
        literal = call.get("size")
        flow.rewrite(call, _aten.expand.default, self=lambda _: node, size=lambda kept: kept_sizes(kept, result, out, literal))
    elif name in _PIECES:
        _rewrite_pieces(flow, call, moved)
    elif name in _SLICES:
        _rewrite_slice(flow, call, moved)
    elif name in _REPEATS:
        times = [1] * (len(out) - len(call[_times_of(call)])) + list(call[_times_of(call)])
        before = [1] * (len(out) - len(moved.sizes)) + list(moved.sizes)
        flow.rewrite(
            call,
            None,
            **{
                _times_of(call): lambda kept: [
                    _part(time, kept.count(axis, size), size) if own == 1 else time
                    for axis, size, own, time in zip(result, out, before, times, strict=True)
                ]
            },
        )
    elif name in _PADS:
        _rewrite_padding(flow, call, moved)
    elif name in _WITHOUT_WIDTHS and not all(moved.unchanged):
        _rewrite_by_index(flow, call, moved, moved.unchanged.index(False))


def _times_of(call: Call) -> str:
    return "repeats" if call.name == "repeat" else "dims"


def kept_sizes(kept: Kept, axes: Axes, sizes: Sequence[int], literal: Sequence[Any] | None) -> list[Any]:
    """Sizes of a result: the written ones where nothing is removed or they are not numbers, otherwise the kept numbers."""
    written = literal if literal is not None and len(literal) == len(sizes) else sizes
    return [_part(literal, kept.count(axis, size), size) for axis, size, literal in zip(axes, sizes, written, strict=True)]


def _part(written: Any, stays: int, size: int) -> Any:
    """A written size reduced from `size` to `stays`; -1 is unchanged, since it means an inferred or unchanged size."""
    if stays == size or (isinstance(written, int) and written < 0):
        return written
    return Share(written, stays, size) if isinstance(written, fx.Node) else stays


def _rewrite_pieces(flow: Flow, call: Call, moved: Moved) -> None:
    d = dimension_of(call.get("dim", 0), len(moved.sizes))
    pieces = [(part[d], size[d]) for part, size in zip(moved.results, moved.outs, strict=True)]
    if is_free(value_of(moved.node).shape[d]):
        flow.freeze([moved.axes[d]])
        return
    flow.rewrite(
        call,
        _aten.split_with_sizes.default,
        self=lambda _: moved.node,
        split_sizes=lambda kept: [kept.count(axis, size) for axis, size in pieces],
        dim=lambda _: d,
    )


def _rewrite_slice(flow: Flow, call: Call, moved: Moved) -> None:
    d = dimension_of(call.get("dim", 0), len(moved.sizes))
    axis, size = moved.axes[d], moved.sizes[d]
    if axis is None:
        return

    def before(kept: Kept, place: int) -> int:
        return int(kept.of(axis, size)[:place].sum())

    if call.name == "select":
        index = int(call["index"])  # a negative one is counted from the end, which a free size may move
        if index < 0:
            flow.rewrite(call, None, index=lambda kept: before(kept, size + index) - kept.count(axis, size))
        else:
            flow.rewrite(call, None, index=lambda kept: before(kept, index))
        return
    if moved.outs[0][d] == size:
        return  # all elements: the written bounds stay right at any size
    if is_free(value_of(moved.node).shape[d]):
        flow.freeze([axis])  # which elements a part of a free size has depends on the size
        return
    if int(call.get("step", 1) or 1) != 1:
        _rewrite_by_index(flow, call, moved, d)
        return
    start = min(max(dimension_of(int(call.get("start") or 0), size), 0), size)
    end = start + moved.outs[0][d]

    def bound(kept: Kept, name: str, place: int) -> Any:
        return before(kept, place) if kept.count(axis, size) < size else call.get(name, place)

    flow.rewrite(
        call,
        _aten.slice.Tensor,
        self=lambda _: moved.node,
        dim=lambda _: d,
        start=lambda kept: bound(kept, "start", start),
        end=lambda kept: bound(kept, "end", end),
    )


def _rewrite_padding(flow: Flow, call: Call, moved: Moved) -> None:
    """Padding: the padding of a dimension may lose elements with it."""
    pads, count = [int(pad) for pad in call["pad"]], len(moved.sizes)

    def values(kept: Kept) -> list[int]:
        result = list(pads)
        for place in range(len(pads) // 2):
            d = count - 1 - place
            if moved.results[0][d] is not None and (pads[2 * place] or pads[2 * place + 1]):
                stays = kept.of(moved.results[0][d], moved.outs[0][d])
                inside = kept.count(moved.axes[d], moved.sizes[d])
                low = pads[2 * place]
                result[2 * place] = int(stays[:low].sum()) if low > 0 else low
                result[2 * place + 1] = int(stays.sum()) - inside - result[2 * place]
        return result

    if any(pad < 0 for pad in pads):
        touched = [count - 1 - place for place in range(len(pads) // 2) if pads[2 * place] or pads[2 * place + 1]]
        flow.freeze([moved.axes[d] for d in touched] + [moved.results[0][d] for d in touched])
        return
    flow.rewrite(call, None, pad=values)


def _rewrite_by_index(flow: Flow, call: Call, moved: Moved, dimension: int) -> None:
    """Replace the operator by a selection of elements along one dimension, at the positions of the labels that are kept."""
    labels = moved.labels[dimension][0]
    for k in reversed(range(labels.ndim)):
        if k != dimension:
            labels = labels.select(k, 0)
    index = to_numpy(labels) - 1
    axis, size = moved.axes[dimension], moved.sizes[dimension]

    def picked(kept: Kept) -> Tensor:
        stays = kept.of(axis, size)
        return torch.from_numpy((np.cumsum(stays) - 1)[index[stays[index]]])

    target = _aten.index_select.default
    flow.rewrite(call, target, self=lambda _: moved.node, dim=lambda _: dimension, index=picked)
