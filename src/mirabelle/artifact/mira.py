"""The packed file format .mira: an ONNX model whose tensors are entropy-coded one by one; decoding restores every byte.

docs/mira.md specifies version 1, which every later Mirabelle will read. In short:

    "MIRA" · version, 1 byte · BLAKE2b digest of everything that follows, 16 bytes · length of the head, varint · the head:
    the graph, and for each tensor the number of its codec and the length of its coded data (`head`) · the coded data of the
    tensors, one after another

Version 0 is still read. The digest is verified before anything is decoded, and the sizes of all tensors before memory is taken
for one.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mirabelle.artifact.assembly import assembled, assembled_length, is_sealed, with_digest, with_zeros
from mirabelle.artifact.head import MOST_GRAPH, Entry, Head, inflated_graph, is_model, read, tensors_in, written
from mirabelle.artifact.products import product
from mirabelle.artifact.tensors import BFLOAT16, OWN, Coded, codecs_of_a_file, coded, decoded
from mirabelle.artifact.wire import Fields, bytes_of, fields_of
from mirabelle.codecs.codec import Codec, Symbols
from mirabelle.codecs.varint import Reader, write_varints
from mirabelle.errors import UserError
from mirabelle.run.machine import usable_memory

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, VERSION = b"MIRA", 1
_DIGEST = 16
_HEAD = len(MAGIC) + 1 + _DIGEST
_MOST_BYTES = 1 << 31  # size limit of a protobuf message, and so of an ONNX model
_USUAL_BYTES, _USUAL_TIMES = 1 << 28, 64  # always unpacked: so many bytes, or multiples of the packed size
_KEPT_BYTES = 1 << 20  # of a model whose packed file is kept
_COPIES = 4  # of the unpacked model that fit into memory while a larger file is unpacked


def pack(onnx: bytes, codecs: Sequence[Codec] = ()) -> bytes:
    """Pack a canonical ONNX model; every tensor is coded with the codec that suits it best.

    That is the one that needs the fewest bytes, or 0.5 % more if it is decoded much faster.

    Returns the content of a .mira file.

    Args:
        onnx: content of an .onnx file in canonical form.
        codecs: the user's own codecs, which are tried in addition to those of Mirabelle. To unpack the file, their modules must
            be imported, and their classes are instantiated without arguments.

    Raises:
        UserError: E121 if the model is not in canonical form, so that unpacking could not restore every byte.
    """
    if codecs or len(onnx) > _KEPT_BYTES:
        return _joined(packed_parts(onnx, codecs))
    return _packed(bytes(onnx))


@functools.lru_cache(maxsize=32)
def _packed(onnx: bytes) -> bytes:
    """The content of a file, kept for a while: runs of a comparison or a search all pack the model from which they begin."""
    return _joined(packed_parts(onnx))


def _joined(parts: list[bytes | memoryview]) -> bytes:
    parts.reverse()
    out = io.BytesIO()
    while parts:
        out.write(parts.pop())  # which is not needed any more
    return out.getvalue()


def packed_parts(onnx: bytes, codecs: Sequence[Codec] = ()) -> list[bytes | memoryview]:
    """The content of a .mira file in parts, as `pack` joins them: what stands before the bodies, and each body."""
    from mirabelle.runtime.skeleton import split  # needs onnx, which reading does without

    try:
        skeleton, raws = split(onnx)
        fields = fields_of(skeleton)
        canonical = bytes_of(fields) == skeleton
    except ValueError:
        canonical = False
    if not canonical:
        raise _not_canonical()
    try:
        tensors = tensors_in(fields)
    except ValueError as error:
        raise UserError("E121", f"the ONNX model is not in canonical form: {error}", "ship the .onnx file itself") from None
    if any(len(raw) != one.length for one, raw in zip(tensors, raws, strict=True)):
        raise _not_canonical()
    if not _comes_back(onnx, fields, raws) or not is_model(fields) or len(skeleton) > MOST_GRAPH // 2:
        raise _not_canonical()
    zeros = with_zeros(fields)
    sealed = zeros is not None and is_sealed(fields, zeros, raws)
    own = codecs_of_a_file()
    parts = [coded(tensor, raw, own, codecs) for tensor, raw in zip(tensors, raws, strict=True)]
    front, following = written(zeros if zeros is not None and sealed else fields, sealed=sealed, raws=raws, coded=parts)
    bodies = [parts[place].body for place in following]
    head = write_varints([len(front)]) + front
    return [MAGIC + bytes([VERSION]) + _digest_of([head, *bodies]) + head, *bodies]


def _digest_of(parts: Iterable[bytes | memoryview]) -> bytes:
    found = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        found.update(part)
    return found.digest()


def _comes_back(onnx: bytes, fields: Fields, raws: Sequence[memoryview]) -> bool:
    """Whether the fields of a model and the data of its tensors make the same bytes again."""
    at, view = 0, memoryview(onnx)
    for part in assembled(fields, raws.__getitem__, [len(raw) for raw in raws]):
        if view[at : at + len(part)] != part:
            return False
        at += len(part)
    return at == len(onnx)


def _not_canonical() -> UserError:
    return UserError("E121", "the ONNX model is not in canonical form", "export it with mirabelle")


def unpack(packed: bytes, most_bytes: int | None = None) -> bytes:
    """Unpack a .mira file to the ONNX model that was packed, byte for byte.

    Args:
        packed: content of a .mira file.
        most_bytes: limit of the unpacked size, as a protection against decompression bombs; by default 256 MiB, 64 times the
            packed size, or a quarter of the memory that is free, whichever is largest.

    Raises:
        UserError: E143 if this is not a .mira file, E142 if its version is newer, E141 if it is damaged or inconsistent, E203
            if it unpacks to more than the limit, E106 if the module of a user's own codec is not imported.
    """
    out = io.BytesIO()
    for part in PackedModel(packed, most_bytes).parts():
        out.write(part)
    return out.getvalue()


class PackedModel:
    """A .mira file whose tensors are decoded when they are asked for.

    Args:
        packed: content of the file; a view of it, such as a memory map; or its parts, as `packed_parts` gives them.
        most_bytes: as in `unpack`.

    Raises:
        UserError: as `unpack`.

    Example:
        >>> import onnx
        >>> weight = onnx.helper.make_tensor("w", 1, [2], bytes(8), raw=True)
        >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [], [weight])
        >>> model = PackedModel(pack(onnx.helper.make_model(graph).SerializeToString()))
        >>> model.names, model.array("w")
        (['w'], array([0., 0.], dtype=float32))
    """

    def __init__(self, packed: bytes | memoryview | Sequence[bytes | memoryview], most_bytes: int | None = None) -> None:
        parts = packed if isinstance(packed, (list, tuple)) else [memoryview(packed)]  # type: ignore[arg-type]
        content, size = memoryview(parts[0]), sum(map(len, parts))
        magic, version = bytes(content[: len(MAGIC)]), int(content[len(MAGIC)]) if len(content) > len(MAGIC) else 0
        if magic != MAGIC:
            raise UserError("E143", "this is not a .mira file: it does not begin with MIRA", "give a file packed by Mirabelle")
        if version > VERSION:
            raise UserError(
                "E142", f"the file has version {version}, this Mirabelle reads up to {VERSION}", "upgrade Mirabelle"
            )
        parts = [content[_HEAD:], *parts[1:]]
        if _digest_of(parts) != content[len(MAGIC) + 1 : _HEAD]:
            raise UserError("E141", "the file is damaged: its digest does not match its content", "fetch it again")
        if most_bytes is None:
            most_bytes = int(max(_USUAL_BYTES, _USUAL_TIMES * size, min(usable_memory() / _COPIES, _MOST_BYTES)))
        self._version, self._codecs, self._decoded = version, codecs_of_a_file(version), set[int]()
        try:
            self.head, bodies = (_read_1 if version else _read_0)(_PartsReader(parts), most_bytes)
            self.onnx_bytes = _length(self.head)
        except OverflowError as error:
            raise _too_large(int(error.args[0]), most_bytes) from None
        except ValueError as error:
            raise _inconsistent(error) from error
        if self.onnx_bytes > most_bytes:
            raise _too_large(self.onnx_bytes, most_bytes)
        self._bodies = bodies

    @property
    def names(self) -> list[str]:
        """The names of the tensors, in their order."""
        return [tensor.name for tensor in self.head.tensors]

    def array(self, name: str) -> Symbols:
        """The values of a tensor; those of bfloat16, or of floats of 8 bits or less, as integers of their bits.

        Raises:
            UserError: E141 if the data are inconsistent, E106 if the module of a user's own codec is not imported.
            KeyError: if there is no such tensor.
        """
        if name not in self.names:
            raise KeyError(name)
        place = self.names.index(name)
        return self.head.tensors[place].array(self._raw(place))

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors for torch, by their names in the ONNX model: those of parameters, unless the export changed the layer.

        Integers of less than 8 bits come one by one as int8 or uint8, bfloat16 as such, floats of 8 bits or less as integers.
        """
        import torch

        found = {}
        for place, tensor in enumerate(self.head.tensors):
            values = torch.from_numpy(tensor.array(self._raw(place)).copy())
            found[tensor.name] = values.view(torch.bfloat16) if tensor.kind == BFLOAT16 else values
        return found

    def parts(self) -> Iterator[bytes | memoryview]:
        """The bytes of the ONNX model, tensor by tensor: no more than two of them are in memory at a time.

        Raises:
            UserError: as `array`.
        """
        parts = assembled(self.head.fields, self._raw, [tensor.length for tensor in self.head.tensors])
        if not self.head.sealed:
            yield from parts
            return
        # The digest stands behind the graph, in the last part.
        digest, last = hashlib.blake2b(digest_size=8), b""
        for part in parts:
            yield last
            digest.update(part)
            last = bytes(part)
        yield with_digest(last, digest.hexdigest())

    def _raw(self, place: int) -> bytes:
        """The data of a tensor."""
        entry, tensor = self.head.entries[place], self.head.tensors[place]
        if entry.data is not None:
            return entry.data
        try:
            if entry.factors is not None:
                return product(tensor, *(self._raw(factor) for factor in entry.factors))
            # The bits of a file are counted once, however often a tensor is asked for.
            codecs = codecs_of_a_file(self._version) if place in self._decoded else self._codecs
            self._decoded.add(place)
            return decoded(tensor, Coded(entry.number, entry.name, self._bodies[place]), codecs)
        except ValueError as error:
            raise _inconsistent(error) from error


def _too_large(size: int, most_bytes: int) -> UserError:
    message = f"the file unpacks to {size:,} bytes, which is above the limit of {most_bytes:,}"
    return UserError("E203", message, "free memory, or set most_bytes of mirabelle.unpack if you trust the file")


def _inconsistent(error: ValueError) -> UserError:
    return UserError("E141", f"the file is inconsistent: {error}", "fetch it again")


Bodies = dict[int, memoryview]


class _PartsReader(Reader):
    """Reads parts one after another; what is asked for at once lies in one of them."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        super().__init__(parts[0])
        self._following = [memoryview(part) for part in parts[:0:-1]]

    @property
    def left(self) -> int:
        return super().left + sum(map(len, self._following))

    def view(self, count: int) -> memoryview:
        while self._following and not super().left:
            self._data, self._at = self._following.pop(), 0
        if count > super().left:
            raise ValueError(f"{count} bytes expected, only {super().left} left")
        return super().view(count)


def _read_1(reader: Reader, most_bytes: int) -> tuple[Head, Bodies]:
    head = read(reader.take(reader.varint()), most_bytes)
    bodies = {
        place: reader.view(entry.length)
        for place, entry in enumerate(head.entries)
        if entry.data is None and entry.factors is None
    }
    return head, _complete(bodies, reader)


def _read_0(reader: Reader, most_bytes: int) -> tuple[Head, Bodies]:
    """Version 0: lengths of the model and the graph · the graph, deflated · for each tensor: codec, length, coded data."""
    onnx_length, skeleton_length, small_length = reader.varint(), reader.varint(), reader.varint()
    if not skeleton_length <= onnx_length < _MOST_BYTES:
        raise ValueError(f"its header gives {onnx_length} bytes of ONNX with a graph of {skeleton_length}, which is impossible")
    if onnx_length > most_bytes:
        raise OverflowError(onnx_length)
    fields = inflated_graph(reader.take(small_length), skeleton_length)
    entries, bodies = [], {}
    for place, _ in enumerate(tensors := tensors_in(fields)):
        number = reader.take(1)[0]
        name = reader.take(reader.varint()).decode() if number == OWN else ""
        bodies[place] = reader.view(reader.varint())
        entries.append(Entry(number, name, len(bodies[place])))
    head = Head(fields, tensors, entries, sealed=False, mixed=False)
    if _length(head) != onnx_length:
        raise ValueError(f"its header gives {onnx_length} bytes of ONNX, but it unpacks to {_length(head)}")
    return head, _complete(bodies, reader)


def _complete(bodies: Bodies, reader: Reader) -> Bodies:
    if reader.left:
        raise ValueError(f"{reader.left} bytes follow the last tensor")
    return bodies


def _length(head: Head) -> int:
    return assembled_length(head.fields, [tensor.length for tensor in head.tensors])
