"""Encoded rows of a table in a file: encoded once, column by column, and then read by their numbers, whatever their number."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import BinaryIO

import numpy as np

from mirabelle.run.files import digest
from mirabelle.sources.datasets.cache import cache_folder, state_of, write_once
from mirabelle.sources.datasets.row_file import RowFile
from mirabelle.task.preprocessing import to_json
from mirabelle.task.preprocessing.columns import Source
from mirabelle.task.preprocessing.table import Table

_BLOCK, _ROWS = 1 << 25, 1 << 16  # most bytes and rows that are turned from columns into rows at once
_VERSION = b"1"  # of the encoding, which changes whenever equal tables become other numbers
_DIGITS = 16  # of the digest at the end of a file
_KIND = np.dtype(np.float32)


def encoded(source: Source, table: Table) -> tuple[RowFile, str]:
    """The inputs of all rows of a table, in a file in the cache folder, which is written unless it is there already.

    The file is found again by the preprocessing of the table, which has been learned from all values, and by `state_of` its
    files.

    Returns:
        The rows, and their identity: the digest of all their values, which was made when they were written.

    Raises:
        UserError: E202 if there is no space for the file, or it cannot be written.
    """
    count, width = len(source), table.shape[0]
    key = digest(_VERSION, to_json(table).encode(), *state_of(source.paths))
    file = cache_folder() / f"{key}.rows"
    size = count * width * _KIND.itemsize
    write_once(file, partial(_write, source, table), size, f"the encoded rows of {source.path}")
    remedy = "remove it, and run the same command again, which encodes the table again"
    rows = RowFile(file, 0, count, (width,), _KIND, size + _DIGITS, file.stat().st_mtime_ns, remedy)
    return rows, rows.ending(_DIGITS).decode()


def _write(source: Source, table: Table, file: BinaryIO) -> None:
    """Write the rows, and the digest of their values behind them.

    A column is encoded for all rows, as it is read. So the file is first written in blocks of rows of which each holds its
    columns one after the other, and then each block is turned into rows, in its place.
    """
    count, width = len(source), table.shape[0]
    at_once = max(1, min(_ROWS, _BLOCK // (width * _KIND.itemsize)))
    before = 0
    for name in table.columns:
        column = source.column(name)
        for k, part in enumerate(table.parts(column, count, at_once)):
            file.seek((k * at_once * width + before * len(part)) * _KIND.itemsize)
            file.write(np.ascontiguousarray(part.T).data)
        del column  # before the next one is read
        before += len(table.features_of(name))
    total = hashlib.blake2b(digest_size=_DIGITS // 2)
    for start in range(0, count, at_once):
        place, rows = start * width * _KIND.itemsize, min(at_once, count - start)
        file.seek(place)
        columns = np.frombuffer(file.read(rows * width * _KIND.itemsize), _KIND).reshape(width, rows)
        turned = np.ascontiguousarray(columns.T)
        total.update(turned.data)
        file.seek(place)
        file.write(turned.data)
    file.write(total.hexdigest().encode())
