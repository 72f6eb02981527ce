"""Converters for the recurrent layers of Keras: to PyTorch modules, and back to configs and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.sources.models.keras_model.converting import Array, Converter, Tensors, array_of, tensors_of
from mirabelle.sources.models.keras_model.layout import mask_of

_KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}
_ORDER = {
    "LSTM": (0, 1, 2, 3),
    "GRU": (1, 0, 2),
    "SimpleRNN": (0,),
}  # PyTorch's gates by their positions in Keras; each permutation is its own inverse
_MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda one, other: torch.cat([one, other], dim=-1),
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda one, other: (one + other) / 2,
}
_SUFFIXES = ("_l0", "_l0_reverse")


def _reordered(rows: Tensor, kind: str) -> Tensor:
    parts = rows.chunk(len(_ORDER[kind]))
    return torch.cat([parts[k] for k in _ORDER[kind]])


def _is_plain(layer: Any) -> bool:
    """Whether PyTorch has a layer that computes the same."""
    gates = getattr(layer, "recurrent_activation", None)
    usual = layer.activation.__name__ == "tanh" and (gates is None or gates.__name__ == "sigmoid")
    return not (layer.return_state or layer.stateful) and usual and getattr(layer, "reset_after", True)


def _made(layers: list[Any]) -> nn.Module | None:
    """One PyTorch module for a recurrent layer, given one Keras layer for each direction."""
    kind = type(layers[0]).__name__
    if kind not in _KINDS or not all(_is_plain(layer) for layer in layers):
        return None
    weights = [tensors_of(layer) for layer in layers]
    sizes = (weights[0][0].shape[0], weights[0][1].shape[0])
    biased = len(weights[0]) > 2  # noqa: PLR2004 (kernels, then the bias)
    rnn: nn.Module = _KINDS[kind](*sizes, bias=biased, batch_first=True, bidirectional=len(layers) > 1)
    with torch.no_grad():
        for suffix, (inner, outer, *bias) in zip(_SUFFIXES, weights, strict=False):
            found = {f"weight_ih{suffix}": inner.T, f"weight_hh{suffix}": outer.T}
            if bias:
                both = bias[0] if bias[0].ndim > 1 else torch.stack([bias[0], torch.zeros_like(bias[0])])
                found |= {f"bias_ih{suffix}": both[0], f"bias_hh{suffix}": both[1]}
            for name, rows in found.items():
                rnn.get_parameter(name).copy_(_reordered(rows, kind))
    return rnn


def _alone(layer: Any) -> nn.Module | None:
    return _made([layer])


def _both_ways(layer: Any) -> nn.Module | None:
    onwards, back = layer.forward_layer, layer.backward_layer
    if type(onwards) is not type(back) or type(back).__name__ not in _KINDS or onwards.go_backwards:
        return None
    same = (onwards.units, onwards.use_bias) == (back.units, back.use_bias)
    return _made([onwards, back]) if same and layer.merge_mode in _MERGES else None


class _Padding:
    """The positions of sequences that a mask leaves out, which Keras' recurrent layers skip: their state stays as it was.

    The positions that count are moved together, PyTorch's layer runs over the result, and each position takes the output of
    the last one that counts, as in Keras.

    Args:
        mask: (batch, positions), False for padding.
        zeros: whether the outputs at padding are 0 (`zero_output_for_mask` in Keras).
    """

    def __init__(self, mask: Tensor, *, zeros: bool) -> None:
        self.mask, self.zeros = mask, zeros

    def moved(self, x: Tensor, *, behind: bool) -> Tensor:
        """The sequences, (batch, positions, features), with all padding behind, or in front, of what counts."""
        later = ~self.mask if behind else self.mask
        size = self.mask.shape[1]
        return _picked(x, (torch.arange(size, device=x.device) + later.long() * size).argsort(1))

    def outputs(self, found: Tensor) -> Tensor:
        """The output of each position, (batch, positions, units), from those of the sequence with padding behind."""
        seen = self.mask.long().cumsum(1)
        return self._visible(_picked(found, (seen - 1).clamp_min(0)), seen)

    def outputs_back(self, found: Tensor) -> Tensor:
        """The output of each position of a layer that runs backwards, from those of the sequence with padding in front."""
        seen, size = self.mask.long().flip(1).cumsum(1).flip(1), self.mask.shape[1]
        return self._visible(_picked(found, (size - seen).clamp_max(size - 1)), seen)

    def _visible(self, found: Tensor, seen: Tensor) -> Tensor:
        shown = self.mask if self.zeros else seen > 0  # the state before the first position that counts is 0
        return found * shown[:, :, None].to(found.dtype)


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """The vectors at given positions of each sequence: (batch, positions, units) and (batch, positions)."""
    return x.gather(1, places[:, :, None].expand_as(x))


def _run(layer: Any, module: Any, x: Tensor) -> Tensor:
    mask = mask_of(x)
    if layer.go_backwards:
        x, mask = x.flip(1), None if mask is None else mask.flip(1)
    if mask is None:
        outputs: Tensor = module(x)[0]
    else:
        padding = _Padding(mask, zeros=layer.zero_output_for_mask)
        outputs = padding.outputs(module(padding.moved(x, behind=True))[0])
    return outputs if layer.return_sequences else outputs[:, -1]


def _run_both_ways(layer: Any, module: Any, x: Tensor) -> Tensor:
    mask = mask_of(x)
    if mask is None:
        onwards, back = module(x)[0].chunk(2, dim=-1)
    else:
        one = _Padding(mask, zeros=layer.forward_layer.zero_output_for_mask)
        other = _Padding(mask, zeros=layer.backward_layer.zero_output_for_mask)
        onwards = one.outputs(module(one.moved(x, behind=True))[0].chunk(2, dim=-1)[0])
        back = other.outputs_back(module(other.moved(x, behind=False))[0].chunk(2, dim=-1)[1])
    if not layer.return_sequences:
        onwards, back = onwards[:, -1], back[:, 0]
    return _MERGES[layer.merge_mode](onwards, back)


def _weights_of(kind: str, tensors: Tensors, suffix: str) -> list[Array]:
    found = [_reordered(tensors[f"{name}{suffix}"], kind).T for name in ("weight_ih", "weight_hh")]
    if f"bias_ih{suffix}" in tensors:
        both = [_reordered(tensors[f"{name}{suffix}"], kind) for name in ("bias_ih", "bias_hh")]
        found.append(torch.stack(both) if kind == "GRU" else both[0] + both[1])
    return [array_of(part) for part in found]


def _units(tensors: Tensors) -> int:
    return tensors["weight_hh_l0"].shape[1]


def _config_both_ways(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    def narrowed(serialized: Any) -> Any:
        if not serialized:
            return serialized
        kept = {key: value for key, value in serialized.items() if key != "build_config"}  # contains the old widths
        return {**kept, "config": {**serialized["config"], "units": _units(tensors)}}

    changed = {key: narrowed(config[key]) for key in ("layer", "backward_layer") if key in config}
    return {**config, **changed}


def _kind_within(config: Mapping[str, Any]) -> str:
    kind: str = config["layer"]["class_name"]
    return kind


def _one_way(kind: str) -> Converter:
    return Converter(
        _alone,
        _run,
        lambda config, tensors: {**config, "units": _units(tensors)},
        lambda _, tensors: _weights_of(kind, tensors, _SUFFIXES[0]),
    )


RECURRENT = {
    "LSTM": _one_way("LSTM"),
    "GRU": _one_way("GRU"),
    "SimpleRNN": _one_way("SimpleRNN"),
    "Bidirectional": Converter(
        _both_ways,
        _run_both_ways,
        _config_both_ways,
        lambda config, tensors: [part for suffix in _SUFFIXES for part in _weights_of(_kind_within(config), tensors, suffix)],
    ),
}
