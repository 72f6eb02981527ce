"""ONNX operators of signal processing: Fourier transforms, windows, mel filters."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator, type_of
from mirabelle.sources.models.onnx_graph.values import Value, integers_of, tensor_of

_AXIS_IS_AN_INPUT = 20  # from this operator set on
_COSINES: dict[str, tuple[float, ...]] = {  # coefficients of the windows Σ aₖ cos(2π k n / N)
    "HannWindow": (0.5, -0.5),
    "HammingWindow": (25 / 46, -21 / 46),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


@operator(*_COSINES)
def window(node: Node, size: Value) -> Tensor:
    count = integers_of(size)[0]
    turns = 2 * math.pi * torch.arange(count, dtype=torch.float64) / (count if node["periodic"] else count - 1)
    parts = [factor * torch.cos(k * turns) for k, factor in enumerate(_COSINES[node.kind])]
    return torch.stack(parts).sum(0).to(type_of(node["output_datatype"], node))


@operator("MelWeightMatrix")
def mel_weights(node: Node, *settings: Value) -> Tensor:
    """Triangular filters (spectrogram bins, mel bins), equally spaced on the mel scale 2595 log₁₀(1 + f / 700)."""
    count, size, samples = (integers_of(part)[0] for part in settings[:3])
    low, high = (2595 * math.log10(1 + float(part) / 700) for part in settings[3:])
    steps = torch.arange(count + 2, dtype=torch.float64) * ((high - low) / (count + 2)) + low
    edges = ((size + 1) * (700 * (10 ** (steps / 2595) - 1)) // samples).long().tolist()
    found = torch.zeros(size // 2 + 1, count, dtype=torch.float64)
    for column, (left, center, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        if left == center:
            found[center, column] = 1
        for row in range(left, center + 1 if left < center else left):
            found[row, column] = (row - left) / (center - left)
        for row in range(center, right):
            found[row, column] = (right - row) / (right - center)
    return found.to(type_of(node["output_datatype"], node))


@operator("DFT")
def fourier(node: Node, x: Tensor, length: Value = None, axis: Value = None) -> Tensor:
    """The discrete Fourier transform along an axis; the last axis holds real parts, or real and imaginary parts."""
    where = node["axis"] if node.version < _AXIS_IS_AN_INPUT else -2 if axis is None else integers_of(axis)[0]
    where, count = where % x.ndim, None if length is None else integers_of(length)[0]
    if node["inverse"] and node["onesided"]:
        found: Tensor = torch.fft.irfft(_complex(x), count or 2 * (x.shape[where] - 1), where)
        return found.unsqueeze(-1)
    if node["inverse"]:
        return torch.view_as_real(torch.fft.ifft(_complex(x), count, where))
    return _transformed(x, count or x.shape[where], where, onesided=bool(node["onesided"]))


@operator("STFT")
def short_time_fourier(node: Node, x: Tensor, step: Value, weights: Tensor | None = None, length: Value = None) -> Tensor:
    """Fourier transforms (batch, frames, bins, 2) of the frames of a signal (batch, time, 1 or 2), each times a window."""
    size = integers_of(length)[0] if length is not None else x.shape[1] if weights is None else weights.shape[0]
    x = x.unsqueeze(-1) if x.ndim == 2 else x  # noqa: PLR2004 (ONNX Runtime also takes real signals without the last axis)
    frames = x.unfold(1, size, integers_of(step)[0]).movedim(-1, 2)
    frames = frames if weights is None else frames * tensor_of(weights).reshape(-1, 1)
    return _transformed(frames, size, 2, onesided=bool(node["onesided"]))


def _transformed(x: Tensor, count: int, axis: int, *, onesided: bool) -> Tensor:
    real = x.shape[-1] == 1
    transform: Callable[..., Tensor] = torch.fft.rfft if real and onesided else torch.fft.fft
    found = torch.view_as_real(transform(x.squeeze(-1) if real else _complex(x), count, axis))
    return found.narrow(axis, 0, count // 2 + 1) if onesided and not real else found


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1).to(torch.complex64)  # noqa: PLR2004
