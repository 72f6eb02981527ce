"""The interface of a lossless codec for arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mirabelle.records.families import Family

Symbols = npt.NDArray[Any]


@runtime_checkable
class Codec(Protocol):
    """Encodes arrays with a dtype in `dtypes` to bytes, and decodes them to equal arrays."""

    dtypes: tuple[str, ...]

    def encode(self, symbols: Symbols) -> bytes:
        """Encode an array."""

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        """Decode an array of this shape and dtype.

        Raises:
            ValueError: if the bytes do not encode such an array.
        """


class EstimatedCodec(Codec, Protocol):
    """A codec that tells about how long its result will be, so that it need not be tried.

    Args:
        exact: whether its estimates are close; otherwise they are lower bounds.
    """

    exact: bool

    def estimate(self, symbols: Symbols, counts: npt.NDArray[np.int64]) -> float:
        """About the length of `encode(symbols)`, for `counts = byte_counts(symbols)`; infinite if another codec is better."""


def codecs_named(names: Iterable[str]) -> list[Codec]:
    """Instances of codecs, by the names in a resolved recipe; the modules of a user's own codecs must be imported.

    Raises:
        UserError: E106 if a codec is unknown or not imported.
    """
    classes: list[Any] = [CODECS.imported_member(name) for name in names]
    return [cls() for cls in classes]


def _is_codec(cls: Any) -> bool:
    return all(callable(getattr(cls, name, None)) for name in ("encode", "decode")) and not getattr(cls, "_is_protocol", False)


CODECS = Family("codec", ("codecs",), _is_codec, qualified=False)
