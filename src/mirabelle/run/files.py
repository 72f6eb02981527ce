"""Atomic file writing: a process killed at any moment leaves the old file or the new one, never an incomplete one.

A file is written under a temporary name in the same folder, flushed to disk and renamed; then the folder is flushed. Tensors
are stored as safetensors, never as pickles.

What a run reads back carries a digest of its content: JSON files under the key "digest", safetensors in their metadata, texts
in a comment. It is checked whenever the file is read. Files of earlier versions have none and are read unchecked; a digest
whose own name is damaged is found by its value.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mirabelle.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "digest"  # the key of the digest in a JSON file
# Types in the order in which a safetensors file has its tensors, with their names there.
_SAFETENSORS_NAMES = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32", "int32": "I32",
    "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_SAFETENSORS = list(_SAFETENSORS_NAMES)
TENSORS_DIGEST = "mirabelle.digest"  # the key in the metadata of a safetensors file
_NO_DIGEST = "0" * 16
_UNKNOWN = "under a damaged key"
TEXT_DIGEST = f"digest of this file: {_NO_DIGEST}"  # put into a comment of a text, which `write_text` completes
_TEXT_DIGEST = re.compile("digest of this file: ([0-9a-f]{16})")
_HALVES = ("digest of ", "this file: ")  # one of which is whole if the line of the digest itself is damaged
_ENDS = 400  # characters at the beginning and at the end of a text, where that line is


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably, creating parent folders.

    Raises:
        UserError: E202 if the file cannot be written, for example if the disk is full; an existing file stays unchanged.
    """
    write_parts(path, [data], len(data))


def write_parts(path: Path, parts: Iterable[bytes | memoryview], size: int) -> None:
    """Write bytes that arrive in parts, `size` in all, as `write`; if a part raises an error, an old file stays unchanged."""
    temporary = path.with_name(path.name + ".writing")
    try:
        with _new_file(temporary) as file:
            try:
                file.writelines(parts)
            except Exception as error:
                if not isinstance(error, OSError):
                    temporary.unlink(missing_ok=True)
                raise
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, size) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def mapped(path: Path) -> memoryview:
    """The content of a file, of which only those parts that are read come into memory."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")


def _new_file(path: Path) -> BinaryIO:
    """Open a new file; what is left there of a killed process is removed, and a link in its place is not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_rows(path: Path, rows: Iterable[Mapping[str, Tensor]], count: int, metadata: Mapping[str, str] | None = None) -> int:
    """Write tensors that arrive in parts as one safetensors file, holding only one part in memory at a time.

    Args:
        path: of the file, which appears only when it is complete.
        rows: parts of the tensors, each of shape (rows, ...), with equal names, dtypes and remaining sizes.
        count: total number of rows of all parts.
        metadata: stored with the tensors.

    Returns:
        The number of bytes of the tensors.

    Raises:
        UserError: E202 if the file cannot be written, for example if the disk is full.
    """
    from safetensors.torch import save

    temporary, data_start = path.with_name(path.name + ".writing"), 0
    offsets: dict[str, int] = {}
    hashes: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    metadata = dict(metadata or {})
    size = 0
    try:
        with _new_file(temporary) as file:
            for part in rows:
                if not offsets:
                    names = sorted(
                        part, key=lambda name: (-part[name].element_size(), name)
                    )  # larger dtypes first, for alignment
                    header: dict[str, Any] = {"__metadata__": {**metadata, TENSORS_DIGEST: _NO_DIGEST}}
                    for name in names:
                        dtype = _header(save({name: part[name][:0].contiguous()}))[name]["dtype"]
                        length = part[name][:1].nbytes * count
                        header[name] = {
                            "dtype": dtype,
                            "shape": [count, *part[name].shape[1:]],
                            "data_offsets": [size, size + length],
                        }
                        offsets[name], size = size, size + length
                        kinds[name] = _kind(part[name].dtype, header[name]["shape"])
                        hashes[name] = hashlib.blake2b(digest_size=8)
                    text = json.dumps(header).encode()
                    text += b" " * (-len(text) % 8)
                    file.write(len(text).to_bytes(8, "little") + text)
                    data_start = file.tell()
                for name, tensor in part.items():
                    file.seek(data_start + offsets[name])
                    offsets[name] += file.write(_bytes(tensor))
                    hashes[name].update(_bytes(tensor))
            if hashes:
                total = _joined({name: (kinds[name], one.hexdigest()) for name, one in hashes.items()}, metadata)
                file.seek(8 + text.index(_NO_DIGEST.encode()))
                file.write(total.encode())
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
    """Write `value` as indented JSON, atomically; a table also gets its digest, under the key "digest".

    NaN and infinity are refused with a ValueError.
    """
    if isinstance(value, Mapping):
        value = {**value, DIGEST: digest_of_data(value)}
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file without its digest, which is checked if there is one.

    Raises:
        UserError: E141 if the file cannot be read, is not JSON, or does not have its digest.
    """
    return read_json_and_digest(path)[0]


def read_json_and_digest(path: Path) -> tuple[Any, str | None]:
    """(content without its digest, digest) of a JSON file; the digest is None in files of earlier versions.

    Raises:
        UserError: E141 if the file cannot be read, is not JSON, or does not have its digest.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError("E141", f"{path} cannot be read as JSON: {error}", "restore the file, or start a new run") from error
    written = without_digest(value) if isinstance(value, dict) else None
    if written is not None and written != digest_of_data(value):
        raise damaged(path)
    return value, written


def without_digest(value: dict[str, Any]) -> str | None:
    """Remove the digest from a table, and return it; None if there is none. One whose key is damaged belongs to no content."""
    if DIGEST in value:
        return str(value.pop(DIGEST))
    return _UNKNOWN if any(text == digest_of_data(_without(value, key)) for key, text in _like_digests(value)) else None


def _like_digests(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, text) for key, text in table.items() if isinstance(text, str) and len(text) == len(_NO_DIGEST)]


def _without(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def damaged(path: Path) -> UserError:
    """The E141 error for a file whose content does not have the digest with which it was written."""
    message = f"{path} is damaged: its content does not have the digest with which it was written"
    return UserError("E141", message, "restore the file, or start a new run in another folder")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically; the zeros of the `TEXT_DIGEST` that it contains are replaced by its digest."""
    before, mark, after = text.rpartition(TEXT_DIGEST)
    filled = f"{before}{mark.replace(_NO_DIGEST, digest(text.encode()))}{after}"
    write(path, filled.encode())


def read_text(path: Path) -> str:
    """Read a text, whose digest is checked if it contains one.

    Raises:
        UserError: E141 if the file cannot be read, is not UTF-8, or does not have its digest.
    """
    try:
        text = path.read_bytes().decode()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError("E141", f"{path} cannot be read: {error}", "restore the file, or start a new run") from error
    found = list(_TEXT_DIGEST.finditer(text))
    if found:
        last = found[-1]
        plain = text[: last.start(1)] + _NO_DIGEST + text[last.end(1) :]
        if digest(plain.encode()) != last[1]:
            raise damaged(path)
    elif any(half in text[:_ENDS] or half in text[-_ENDS:] for half in _HALVES):
        raise damaged(path)
    return text


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors as one safetensors file, atomically; returns their digest, which is also stored in the file."""
    data, total = _serialized(tensors, metadata)
    write(path, data)
    return total


def length_of_tensors(tensors: Mapping[str, Tensor]) -> int:
    """The length of the safetensors file of tensors, with their digest, without a copy of the tensors."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {TENSORS_DIGEST: _NO_DIGEST}}
    end = 0
    for name in sorted(tensors, key=lambda name: (_SAFETENSORS.index(kinds[name]), name.encode())):
        shape, begin = list(tensors[name].shape), end
        end += tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": _SAFETENSORS_NAMES[kinds[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def _serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> tuple[bytes, str]:
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    total = _digest_of_tensors(contiguous, metadata or {})
    data: bytes = save(contiguous, metadata={**(metadata or {}), TENSORS_DIGEST: total})
    return data, total


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file, whose digest is checked if there is one.

    Raises:
        UserError: E130 if there is no such file; E141 if it is not an intact safetensors file, or does not have its digest.
    """
    tensors, metadata, _ = read_tensors_and_digest(path)
    return tensors, metadata


def read_tensors_and_digest(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str | None]:
    """(tensors, metadata, digest) of a safetensors file; the digest is None in files of earlier versions.

    Raises:
        UserError: E130 if there is no such file; E141 if it is not an intact safetensors file, or does not have its digest.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError("E130", f"no weights at {path}", "check the path; weights are read from .safetensors files")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError("E141", f"{path} is not an intact safetensors file: {error}", "save it again as safetensors") from error
    written = metadata.pop(TENSORS_DIGEST, None)
    if written is None:
        lost = any(text == _digest_of_tensors(tensors, _without(metadata, key)) for key, text in _like_digests(metadata))
    else:
        lost = written != _digest_of_tensors(tensors, metadata)
    if lost:
        raise damaged(path)
    return tensors, metadata, written


def _digest_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A digest of the names, types, shapes and values of tensors, and of the metadata stored with them."""
    parts = {
        name: (_kind(tensor.dtype, tensor.shape), hashlib.blake2b(_bytes(tensor), digest_size=8).hexdigest())
        for name, tensor in tensors.items()
    }
    return _joined(parts, metadata)


def _joined(parts: Mapping[str, tuple[str, str]], metadata: Mapping[str, str]) -> str:
    return digest_of_data([sorted(parts.items()), sorted(metadata.items())])


def _kind(dtype: Any, shape: Iterable[int]) -> str:
    return f"{dtype} {tuple(shape)}"


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, without a copy if it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))  # a single value that was expanded has stride 0
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view


def digest_of_data(value: Any) -> str:
    """A digest of JSON-compatible data; the order of keys and the layout of a file do not matter."""
    plain = json.loads(json.dumps(value))
    return digest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


def digest_of_file(path: Path) -> str:
    """A digest of the bytes of a file, or of the names and contents of all files in a folder."""
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.is_file())
        return digest(*(f"{one.relative_to(path)} {digest_of_file(one)}".encode() for one in inside))
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def digest_of_bytes(data: bytes) -> str:
    """The digest of a file with this content, as `digest_of_file` gives it."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def digest(*parts: bytes) -> str:
    """A hash of the contents: 16 hexadecimal digits (BLAKE2b, 8 bytes)."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
