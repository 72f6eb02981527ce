"""Rows of arrays that are read when they are needed, in the place of arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.run.files import digest
from mirabelle.sources.datasets.cache import remembered
from mirabelle.sources.datasets.row_file import Indices, RowFile
from mirabelle.sources.datasets.stored_arrays import StoredArray

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array that are read when they are needed, with the shape, type and indexing of an array.

    Args:
        file: of all rows.
        index: the rows, by their positions in the file.
        change: what is done with rows that are read; each row is changed by itself.
        identity: of the values in the file, and of what is done with them.
    """

    file: RowFile
    index: Indices
    change: Callable[[Array], Array]
    identity: str

    @staticmethod
    def of(file: RowFile, identity: str) -> ArrayRows:
        return ArrayRows(file, np.arange(file.count), _unchanged, identity)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def _none(self) -> Array:
        return self.change(np.empty((0, *self.file.shape), self.file.kind))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._none.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._none.dtype

    def __getitem__(self, index: Indices) -> ArrayRows:
        return ArrayRows(self.file, self.index[index], self.change, self.identity)

    @property
    def state(self) -> str:
        """A digest of their identity and of which they are."""
        return digest(self.identity.encode(), self.index.tobytes())

    def changed(self, change: Callable[[Array], Array]) -> ArrayRows:
        """The same rows, with a further change."""
        return ArrayRows(self.file, self.index, partial(_changed_twice, self.change, change), self.identity)

    def read(self, own: Indices) -> Array:
        """Some of the rows."""
        return self.change(self.file.read(self.index[own]))

    def blocks(self) -> Iterator[Array]:
        """All of the rows, in the order of the file, in blocks of bounded size."""
        places = np.sort(self.index)
        for start in range(0, len(places), self.file.block_rows):
            yield self.change(self.file.read(places[start : start + self.file.block_rows]))


def _unchanged(values: Array) -> Array:
    return values


def _changed_twice(first: Callable[[Array], Array], second: Callable[[Array], Array], values: Array) -> Array:
    return second(first(values))


def changed(values: Array | ArrayRows, change: Callable[[Array], Array]) -> Array | ArrayRows:
    """The values after a change, which is made when they are read if they are not in memory."""
    return values.changed(change) if isinstance(values, ArrayRows) else change(values)


def parts_of(values: Array | ArrayRows) -> Iterable[Array]:
    """All values, in parts of bounded size if they are not in memory."""
    return values.blocks() if isinstance(values, ArrayRows) else [values]


def checked_rows(array: StoredArray) -> ArrayRows:
    """The rows of an array in a file, all of whose values have been looked at once: they are finite and have their checksum.

    Their identity is a digest of all of them. It is kept in the cache folder, under the name, size and time of the file, and
    parts of it, so that the values are looked at again only if the file has changed.

    Raises:
        UserError: E131 if a value is not finite, or the bytes do not have the checksum that the .zip file says.
    """
    file = array.rows()
    identity = remembered(digest(b"values", array.state.encode()), partial(_looked_at, array, file))
    return ArrayRows.of(file, f"{identity} {array.kind} {array.shape}")


def _looked_at(array: StoredArray, file: RowFile) -> str:
    total, wrong, first, seen = hashlib.blake2b(digest_size=8), 0, 0, 0
    for block in file.blocks():
        total.update(block.data)
        if np.issubdtype(block.dtype, np.floating):
            with np.errstate(over="ignore"):
                finite = np.isfinite(block.astype(np.float32)).reshape(len(block), -1).all(1)
            if not wrong:
                first = seen + int(np.argmin(finite))
            wrong += int((~finite).sum())
        seen += len(block)
    if wrong:
        message = f"the inputs contain NaN or infinite values in {wrong:,} of {seen:,} samples, first in row {first}"
        raise UserError("E131", f"{array.named}: {message}", "clean the data before compressing")
    array.check_sum()
    return total.hexdigest()
