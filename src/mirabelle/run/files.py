"""Atomic file writing: a process killed at any moment leaves the old file or the new one, never an incomplete one.

A file is written under a temporary name in the same folder, flushed to disk and renamed; then the folder is flushed. Tensors
are stored as safetensors, never as pickles.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirabelle.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably, creating parent folders.

    Raises:
        UserError: E202 if the file cannot be written, for example if the disk is full; an existing file stays unchanged.
    """
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, len(data)) from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Tensor]], count: int) -> int:
    """Write tensors that arrive in parts as one safetensors file, holding only one part in memory at a time.

    Args:
        path: of the file, which appears only when it is complete.
        rows: parts of the tensors, each of shape (rows, ...), with equal names, dtypes and remaining sizes.
        count: total number of rows of all parts.

    Returns:
        The number of bytes of the tensors.

    Raises:
        UserError: E202 if the file cannot be written, for example if the disk is full.
    """
    import torch
    from safetensors.torch import save

    temporary, data_start = path.with_name(path.name + ".writing"), 0
    offsets: dict[str, int] = {}
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in rows:
                if not offsets:
                    names = sorted(
                        part, key=lambda name: (-part[name].element_size(), name)
                    )  # larger dtypes first, for alignment
                    header: dict[str, Any] = {}
                    for name in names:
                        dtype = _header(save({name: part[name][:0].contiguous()}))[name]["dtype"]
                        length = part[name][:1].nbytes * count
                        header[name] = {
                            "dtype": dtype,
                            "shape": [count, *part[name].shape[1:]],
                            "data_offsets": [size, size + length],
                        }
                        offsets[name], size = size, size + length
                    text = json.dumps(header).encode()
                    text += b" " * (-len(text) % 8)
                    file.write(len(text).to_bytes(8, "little") + text)
                    data_start = file.tell()
                for name, tensor in part.items():
                    file.seek(data_start + offsets[name])
                    offsets[name] += file.write(tensor.contiguous().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, size) from error
    return size


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def cannot_write(path: Path, error: OSError, size_bytes: int = 0) -> UserError:
    """The E202 error for a failed write, with a remedy that depends on the cause."""
    remedy = "make the folder writable, then run the same command again to continue"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free at least {max(1, size_bytes // 1_000_000)} MB, then run the same command again to continue"
    return UserError("E202", f"cannot write {path}: {error.strerror or error}", remedy)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused with a ValueError."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: E141 if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("E141", f"{path} cannot be read as JSON: {error}", "restore the file, or start a new run") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, atomically."""
    write(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialize tensors in the safetensors format; equal tensors give equal bytes."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data: bytes = save(contiguous, metadata=dict(metadata) if metadata else None)
    return data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        UserError: E130 if there is no such file; E141 if it is not an intact safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError("E130", f"no weights at {path}", "check the path; weights are read from .safetensors files")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise UserError("E141", f"{path} is not an intact safetensors file: {error}", "save it again as safetensors") from error


def digest(*parts: bytes) -> str:
    """A hash of the contents: 16 hexadecimal digits (BLAKE2b, 8 bytes)."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
