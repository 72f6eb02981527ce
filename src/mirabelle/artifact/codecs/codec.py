"""The contract of a codec: symbols to bytes and back, lossless."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mirabelle.records.families import Family

Symbols = npt.NDArray[Any]


@runtime_checkable
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


def codecs_named(names: Iterable[str]) -> list[Codec]:
    """Codecs by the names that a resolved recipe gives; those of a user's own are imported already.

    Raises:
        UserError: E106 when one is not known or not imported.
    """
    classes: list[Any] = [CODECS.imported_member(name) for name in names]
    return [cls() for cls in classes]


def _is_codec(cls: Any) -> bool:
    return all(callable(getattr(cls, name, None)) for name in ("encode", "decode")) and not getattr(cls, "_is_protocol", False)


CODECS = Family("codec", ("artifact.codecs",), _is_codec, qualified=False)
