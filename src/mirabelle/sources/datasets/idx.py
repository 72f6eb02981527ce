"""IDX files, the format of MNIST: arrays of any type and shape, compressed by gzip or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

Array = npt.NDArray[Any]
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_MAGIC, _MOST_AXES, _MOST_FILES = 4, 8, 64
_TEST, _VALIDATION = ("test", "t10k"), ("val",)  # parts of the names of files


def read_idx(path: Path) -> Array:
    """The array in an IDX file, in the byte order of this machine.

    Raises:
        UserError: E131 if the file is damaged or no IDX file.

    Source: LeCun, Cortes, Burges 1998, "The MNIST database of handwritten digits", section "File formats".
    """
    data = path.read_bytes()
    if data[:2] == _GZIP:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError("E131", f"{path} is damaged: {error}", "download it again") from error
    if not _is_header(data[:_MAGIC]):
        raise UserError("E131", f"{path} is not an IDX file", "download the original file again")
    kind, axes = np.dtype(_TYPES[data[2]]), data[3]
    start = _MAGIC + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(data[_MAGIC:start][: (len(data[_MAGIC:start]) // 4) * 4], ">u4"))
    due = start + kind.itemsize * int(np.prod(shape, dtype=object))
    if len(shape) != axes or len(data) != due:
        message = f"{path} has {len(data):,} bytes; an IDX file of shape {shape} and type {kind.name} has {due:,}"
        raise UserError("E131", message, "download the original file again")
    return np.frombuffer(data, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def idx_files(folder: Path) -> list[Path]:
    """The IDX files that lie directly in a folder, sorted; found by their first bytes, whatever their names."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [path for path in files[:_MOST_FILES] if _is_header(_first_bytes(path))]


def idx_splits(folder: Path) -> dict[str, tuple[Array, Array]]:
    """(inputs, targets) by split: of each split, the file with one axis holds the targets and the other one the inputs.

    A file whose name contains "test" or "t10k" is of the test split, one with "val" of the validation split, any other of the
    training split.

    Raises:
        UserError: E131 if a file is damaged, or a split has not one file of inputs and one of targets, of equal lengths.
    """
    groups: dict[str, list[Path]] = {}
    for path in idx_files(folder):
        groups.setdefault(_split_of(path.name.lower()), []).append(path)
    found = {name: _pair(folder, name, {path: read_idx(path) for path in paths}) for name, paths in sorted(groups.items())}
    if "train" not in found:
        named = ", ".join(path.name for path in idx_files(folder))
        message = f"{folder} has no training data among its IDX files: {named}"
        raise UserError("E131", message, 'name one without "test", "t10k" and "val"')
    return found


def _pair(folder: Path, split: str, arrays: Mapping[Path, Array]) -> tuple[Array, Array]:
    inputs = [path for path, array in arrays.items() if array.ndim > 1]
    targets = [path for path, array in arrays.items() if array.ndim == 1]
    if len(inputs) != 1 or len(targets) != 1:
        named = ", ".join(f"{path.name} {array.shape}" for path, array in arrays.items())
        message = f"{folder}: the {split} data need one IDX file of inputs and one of labels (N,); found {named}"
        raise UserError("E131", message, 'remove the others, or name them after their split: "train", "val" or "test"')
    x, y = arrays[inputs[0]], arrays[targets[0]]
    if len(x) != len(y) or not len(x):
        message = f"{inputs[0]} has {len(x):,} samples, {targets[0].name} has {len(y):,} labels"
        raise UserError("E131", message, "give one label for each sample, and at least one")
    return x, y


def _split_of(name: str) -> str:
    if any(part in name for part in _TEST):
        return "test"
    return "validation" if any(part in name for part in _VALIDATION) else "train"


def _is_header(start: bytes) -> bool:
    return len(start) == _MAGIC and start[:2] == b"\0\0" and start[2] in _TYPES and 0 < start[3] <= _MOST_AXES


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(_MAGIC)
        if start[:2] != _GZIP:
            return start
        with gzip.open(path) as file:
            return file.read(_MAGIC)
    except (OSError, EOFError, zlib.error):
        return b""
