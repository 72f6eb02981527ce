"""The contract of a codec: symbols to bytes and back, lossless."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[Any]


class Codec(Protocol):
    """Arrays of the types in `dtypes` to bytes, and back to equal arrays."""

    dtypes: tuple[str, ...]

    def encode(self, symbols: Symbols) -> bytes:
        """The bytes of an array."""

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        """The array again.

        Raises:
            ValueError: when the bytes cannot be those of such an array.
        """
