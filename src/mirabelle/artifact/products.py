"""Tensors that are the product of two others, such as the scales of biases: they are not stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mirabelle.artifact.tensors import Tensor

_FACTORS = 48  # tensors before and after, among which factors are looked for
_FLOAT = 1


def products_among(tensors: Sequence[Tensor], raws: Sequence[bytes | memoryview]) -> dict[int, tuple[int, int]]:
    """Places of tensors that are products of two others, such as the scale of a bias, and the places of these."""
    floats = {
        k: np.frombuffer(raw, "<f4") for k, (one, raw) in enumerate(zip(tensors, raws, strict=True)) if one.kind == _FLOAT
    }
    scalars = [k for k, values in floats.items() if values.size == 1 and _is_plain(values)]
    found: dict[int, tuple[int, int]] = {}
    for k, values in floats.items():
        near = [j for j in floats if abs(j - k) <= _FACTORS and j != k and j not in found]
        used = {place for pair in found.values() for place in pair}
        if values.size <= 1 or not _is_plain(values) or k in used or tensors[k].name.rpartition(".")[2] == "weight":
            continue
        pairs = (
            (i, j)
            for j in near
            if floats[j].size == values.size and _is_plain(floats[j])
            for i in scalars
            if abs(i - k) <= _FACTORS and _times(floats[i][0], floats[j][0]) == values[0]
        )
        pair = next((pair for pair in pairs if product(tensors[k], raws[pair[0]], raws[pair[1]]) == bytes(raws[k])), None)
        if pair is not None:
            found[k] = pair
    return found


def _is_plain(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bool:
    """Whether no number is NaN, infinite or below the smallest normal one, of which processors compute different bits."""
    magnitudes = np.abs(values)
    return bool(np.isfinite(values).all() and ((magnitudes >= np.finfo(np.float32).tiny) | (magnitudes == 0)).all())


def _times(one: np.float32, other: np.float32) -> np.float32:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float32(one * other)


def product(tensor: Tensor, one: bytes | memoryview, other: bytes | memoryview) -> bytes:
    """The data of a tensor that is the product of two others of 32 bits, of which the first has one element.

    Raises:
        ValueError: if it has another size.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = bytes((np.frombuffer(one, "<f4")[:1] * np.frombuffer(other, "<f4")).astype("<f4").tobytes())
    if len(found) != tensor.length:
        raise ValueError(f'tensor "{tensor.name}" is a product of another size')
    return found
