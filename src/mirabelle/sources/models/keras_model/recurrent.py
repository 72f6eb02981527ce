"""Converters for the recurrent layers of Keras: to PyTorch modules, and back to configs and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.sources.models.keras_model.converting import Array, Converter, Tensors, array_of, tensors_of

_KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
_ORDER = {
    "LSTM": (0, 1, 2, 3),
    "GRU": (1, 0, 2),
}  # PyTorch's gates by their positions in Keras; each permutation is its own inverse
_SUFFIXES = ("_l0", "_l0_reverse")


def _reordered(rows: Tensor, kind: str) -> Tensor:
    parts = rows.chunk(len(_ORDER[kind]))
    return torch.cat([parts[k] for k in _ORDER[kind]])


def _is_plain(layer: Any) -> bool:
    """Whether PyTorch has a layer that computes the same."""
    extras = layer.dropout or layer.recurrent_dropout or layer.return_state or layer.stateful
    usual = layer.activation.__name__ == "tanh" and layer.recurrent_activation.__name__ == "sigmoid"
    return not extras and usual and getattr(layer, "reset_after", True)


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
    return None if layer.go_backwards else _made([layer])


def _both_ways(layer: Any) -> nn.Module | None:
    return _made([layer.forward_layer, layer.backward_layer]) if layer.merge_mode == "concat" else None


def _run(layer: Any, module: Any, x: Tensor) -> Tensor:
    outputs: Tensor = module(x)[0]
    return outputs if layer.return_sequences else outputs[:, -1]


def _run_both_ways(layer: Any, module: Any, x: Tensor) -> Tensor:
    outputs: Tensor = module(x)[0]
    if layer.return_sequences:
        return outputs
    onwards, back = outputs.chunk(2, dim=-1)
    return torch.cat([onwards[:, -1], back[:, 0]], dim=-1)


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
    "Bidirectional": Converter(
        _both_ways,
        _run_both_ways,
        _config_both_ways,
        lambda config, tensors: [part for suffix in _SUFFIXES for part in _weights_of(_kind_within(config), tensors, suffix)],
    ),
}
