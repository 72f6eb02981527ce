"""Bytes to disk so that a kill at any moment leaves the old file or the new one, never half of one.

Written beside its name, flushed, renamed; the folder flushed too. Tensors go as safetensors, never as pickle.
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
    """Write `data` to `path` atomically and durably.

    Raises:
        UserError: E202 when the disk or its permissions do not allow it; the old file is untouched.
    """
    beside = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error, len(data)) from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Tensor]], count: int) -> int:
    """Write tensors that come some rows at a time as one safetensors file, without holding more than these; their bytes.

    Args:
        path: of the file, which appears when it is whole.
        rows: parts of the tensors, (rows, ...), of equal names, types and other sizes.
        count: rows of all parts together.

    Raises:
        UserError: E202 when the disk or its permissions do not allow it.
    """
    import torch
    from safetensors.torch import save

    beside, begun = path.with_name(path.name + ".writing"), 0
    places: dict[str, int] = {}
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            for part in rows:
                if not places:
                    names = sorted(part, key=lambda name: (-part[name].element_size(), name))  # larger types first: aligned
                    header: dict[str, Any] = {}
                    for name in names:
                        kind = _header(save({name: part[name][:0].contiguous()}))[name]["dtype"]
                        length = part[name][:1].nbytes * count
                        header[name] = {
                            "dtype": kind,
                            "shape": [count, *part[name].shape[1:]],
                            "data_offsets": [size, size + length],
                        }
                        places[name], size = size, size + length
                    text = json.dumps(header).encode()
                    text += b" " * (-len(text) % 8)
                    file.write(len(text).to_bytes(8, "little") + text)
                    begun = file.tell()
                for name, tensor in part.items():
                    file.seek(begun + places[name])
                    places[name] += file.write(tensor.contiguous().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error, size) from error
    return size


def _header(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def cannot_write(path: Path, error: OSError, size_bytes: int = 0) -> UserError:
    """What to tell of a failed write, and what to do about it."""
    remedy = "see that the folder can be written to; the same command goes on"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free at least {max(1, size_bytes // 1_000_000)} MB; the same command goes on from what is on disk"
    return UserError("E202", f"cannot write {path}: {error.strerror or error}", remedy)


def write_json(path: Path, value: Any) -> None:
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("E141", f"{path} cannot be read as JSON: {error}", "restore the file, or start a new run") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file."""
    write(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors in the safetensors format; equal tensors give equal bytes."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data: bytes = save(contiguous, metadata=dict(metadata) if metadata else None)
    return data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata.

    Raises:
        UserError: E130 when absent, E141 when it is no intact safetensors file.
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
    """Sixteen hexadecimal digits that tell contents apart (BLAKE2b, 8 bytes)."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
