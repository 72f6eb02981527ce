"""The packed file format .mira: an ONNX model whose tensors are entropy-coded one by one; decoding restores every byte.

Layout of version 0, for which no compatibility is promised yet:

    "MIRA" · version, 1 byte · BLAKE2b digest of everything that follows, 16 bytes · varints: length of the ONNX model, length
    of the skeleton, length of the compressed skeleton · the skeleton (the ONNX graph without the data of its tensors), deflated
    · for each tensor: codec, 1 byte, 255 for a user's own codec, followed by the length of its name, varint, and the name ·
    length, varint · coded data

ONNX stores several integers of less than 8 bits in a byte. A codec with 64 added to its number codes these integers, in the
shape of the tensor; otherwise it codes the bytes.

The digest is verified before anything is decoded. The decoded tensors together must not exceed the length of the ONNX model in
the header, nor the limit that the caller sets.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper

from mirabelle.artifact.codecs import Codec, Contexts, Deflate, Histogram, Palette, Planes, Sparse
from mirabelle.artifact.codecs.codec import CODECS, EstimatedCodec, Symbols
from mirabelle.artifact.codecs.counts import byte_counts
from mirabelle.artifact.codecs.deflate import deflate, inflate
from mirabelle.artifact.codecs.narrow import narrowed, widened
from mirabelle.artifact.codecs.varint import Reader, write_varints
from mirabelle.errors import UserError
from mirabelle.run.machine import usable_memory
from mirabelle.runtime.skeleton import split

MAGIC, VERSION = b"MIRA", 0
_DIGEST = 16
_HEAD = len(MAGIC) + 1 + _DIGEST
_MOST_BYTES = 1 << 31  # size limit of a protobuf message, and so of an ONNX model
_USUAL_BYTES, _USUAL_TIMES = 1 << 28, 64  # always unpacked: so many bytes, or multiples of the packed size
_COPIES = 4  # of the unpacked model that fit into memory while a larger file is unpacked
# Types of less than 8 bits: ONNX stores several values in a byte.
_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}

_SMALL, _CLOSE = 1 << 14, 64  # bytes; codecs for a small tensor are both tried if their estimates differ less

_RAW = 0
_CODECS: dict[int, EstimatedCodec] = {
    1: Deflate(),
    2: Histogram(),
    3: Planes(),
    4: Sparse(Histogram()),
    5: Sparse(Planes()),
    6: Contexts(),
    7: Palette(),
}
_OWN = 255  # a codec of a user's own, whose name follows
_NARROW = 64  # is added to the number of a codec that codes integers of less than 8 bits one by one
_INTEGERS = {kind for kind in _BITS if TensorProto.DataType.Name(kind).startswith(("INT", "UINT"))}
_NOT_CODED = {
    getattr(TensorProto, name) for name in ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2") if hasattr(TensorProto, name)
}
# Strings that occur in most graphs, as a preset dictionary for deflate.
_DICTIONARY = (
    b"axis\xa0\x01\x02kernel_shape@\x05pads\x00strides@\x01dilations@\x01group\x18\x01auto_padNOTSETceil_modestorage_orderkeepdims"
    b"transB\x18\x01alphabetaepsilonmomentumallowzeroperm\x12\x05batch\x0a\x07channel_wisemainmirabellelabels"
    b'preprocessing\x12\x0e{"size":[,"mode":"RGB","mean":[,"deviation":[0.{"columns":["'
    b"ReshapeTransposeConcatSoftmaxSigmoidTanhMatMulAddMulBatchNormalizationGlobalAveragePoolLayerNormalization"
    b'MatMulIntegerDynamicQuantizeLinear\x0a\x04CastMaxPoolRelu"\x04Relu"\x04Gemm"\x04Conv'
    b".weight.bias.running_mean.running_var.codes.scale.input_scale.input_zero_point.bias_codes.bias_scale"
    b'QuantizeLinear"\x10DequantizeLinear'
)


def pack(onnx: bytes, codecs: Sequence[Codec] = ()) -> bytes:
    """Pack a canonical ONNX model; every tensor is coded with the codec that needs the fewest bytes.

    Returns the content of a .mira file.

    Args:
        onnx: content of an .onnx file in canonical form.
        codecs: the user's own codecs, which are tried in addition to those of Mirabelle. To unpack the file, their modules must
            be imported, and their classes are instantiated without arguments.

    Raises:
        UserError: E121 if the model is not in canonical form, so that unpacking could not restore every byte.
    """
    try:
        skeleton, raws = split(onnx)
        model = ModelProto.FromString(skeleton)
        canonical = skeleton == model.SerializeToString(deterministic=True)
    except (ValueError, DecodeError):
        canonical = False
    if not canonical:
        raise _not_canonical()
    tensors = model.graph.initializer
    try:
        if any(len(raw) != _length(tensor) or tensor.external_data for tensor, raw in zip(tensors, raws, strict=True)):
            raise _not_canonical()
    except ValueError as error:
        raise UserError("E121", f"the ONNX model cannot be packed: {error}", "ship the .onnx file itself") from None
    small = deflate(skeleton, _DICTIONARY)
    out = io.BytesIO()
    out.write(MAGIC + bytes([VERSION]) + bytes(_DIGEST))
    out.write(write_varints([len(onnx), len(skeleton), len(small)]) + small)
    for tensor, raw in zip(tensors, raws, strict=True):
        kind, body = _coded(tensor, raw, codecs)
        out.write(kind + write_varints([len(body)]))
        out.write(body)
    with out.getbuffer() as content:
        content[_HEAD - _DIGEST : _HEAD] = hashlib.blake2b(content[_HEAD:], digest_size=_DIGEST).digest()
    return out.getvalue()


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
    if packed[: len(MAGIC)] != MAGIC:
        raise UserError("E143", "this is not a .mira file: it does not begin with MIRA", "give a file packed by Mirabelle")
    if len(packed) > len(MAGIC) and packed[len(MAGIC)] > VERSION:
        raise UserError(
            "E142", f"the file has version {packed[len(MAGIC)]}, this Mirabelle reads up to {VERSION}", "upgrade Mirabelle"
        )
    content = packed[_HEAD:]
    if hashlib.blake2b(content, digest_size=_DIGEST).digest() != packed[len(MAGIC) + 1 : _HEAD]:
        raise UserError("E141", "the file is damaged: its digest does not match its content", "fetch it again")
    if most_bytes is None:
        most_bytes = int(max(_USUAL_BYTES, _USUAL_TIMES * len(packed), min(usable_memory() / _COPIES, _MOST_BYTES)))
    try:
        return _decoded(content, most_bytes)
    except ValueError as error:
        raise UserError("E141", f"the file is inconsistent: {error}", "fetch it again") from error


def _decoded(content: bytes, most_bytes: int) -> bytes:
    reader = Reader(content)
    onnx_length, skeleton_length, small_length = reader.varint(), reader.varint(), reader.varint()
    if not skeleton_length <= onnx_length < _MOST_BYTES:
        raise ValueError(f"its header gives {onnx_length} bytes of ONNX with a graph of {skeleton_length}, which is impossible")
    if onnx_length > most_bytes:
        message = f"the file unpacks to {onnx_length:,} bytes, which is above the limit of {most_bytes:,}"
        raise UserError("E203", message, "free memory, or set most_bytes of mirabelle.unpack if you trust the file")
    model = ModelProto()
    try:
        model.ParseFromString(inflate(reader.take(small_length), skeleton_length, _DICTIONARY))
    except Exception as error:
        raise ValueError(f"the graph cannot be read: {error}") from error
    budget = onnx_length
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            raise ValueError(f'tensor "{tensor.name}" is stored in another file')
        budget -= _length(tensor)
        if budget < 0:
            raise ValueError(f'tensor "{tensor.name}" does not fit into {onnx_length} bytes')
        codec, narrow = _codec(tensor, reader)
        body = reader.take(reader.varint())
        tensor.raw_data = _narrow_bytes(tensor, codec, body) if narrow and codec is not None else _bytes(tensor, codec, body)
    if reader.left:
        raise ValueError(f"{reader.left} bytes follow the last tensor")
    onnx: bytes = model.SerializeToString(deterministic=True)
    if len(onnx) != onnx_length:
        raise ValueError(f"its header gives {onnx_length} bytes of ONNX, but it unpacks to {len(onnx)}")
    return onnx


def _coded(tensor: TensorProto, raw: memoryview, own: Sequence[Codec]) -> tuple[bytes, bytes | memoryview]:
    """(name of the codec, coded bytes) of a tensor's values, with the codec that needs the fewest bytes."""
    best: tuple[bytes, bytes | memoryview] = (bytes([_RAW]), raw)
    dtype = _dtype(tensor)
    values = np.frombuffer(raw, dtype).reshape(_shape(tensor))
    for name, codec in [*_likely(values), *((_name(codec), codec) for codec in own)]:
        if dtype.name in codec.dtypes:
            body = codec.encode(values)
            if len(name) + len(body) < len(best[0]) + len(best[1]):
                best = (name, body)
    integers = _integers(tensor, raw) if tensor.data_type in _INTEGERS else None
    if integers is not None and narrowed(integers, _BITS[tensor.data_type]) == raw:  # only zeros fill the last byte
        for name, codec in _likely(integers):
            body = codec.encode(integers)
            if len(name) + len(body) < len(best[0]) + len(best[1]):
                best = (bytes([name[0] + _NARROW]), body)
    return best


def _likely(values: Symbols) -> list[tuple[bytes, EstimatedCodec]]:
    """The codecs of Mirabelle that may need the fewest bytes, by what they estimate."""
    suited = [(bytes([kind]), codec) for kind, codec in _CODECS.items() if values.dtype.name in codec.dtypes]
    if not suited or not values.size:
        return []
    counts = byte_counts(values)
    lengths = [codec.estimate(values, counts) for _, codec in suited]
    most = min([values.nbytes, *(length for (_, codec), length in zip(suited, lengths, strict=True) if codec.exact)])
    most += _CLOSE if values.nbytes <= _SMALL else 0
    return [one for one, length in zip(suited, lengths, strict=True) if length <= most]


def _name(codec: Codec) -> bytes:
    """The name of a user's own codec as it is stored in the file."""
    name = CODECS.name_of(type(codec)).encode()
    return bytes([_OWN]) + write_varints([len(name)]) + name


def _codec(tensor: TensorProto, reader: Reader) -> tuple[Codec | None, bool]:
    """(the codec of a tensor, None for uncoded bytes; whether it codes integers of less than 8 bits), read from the file.

    A user's own codec must be imported.

    Raises:
        UserError: E106 if it is not imported.
    """
    kind = reader.take(1)[0]
    if kind == _OWN:
        name = reader.take(reader.varint()).decode()
        cls: Any = CODECS.imported_member(name)
        codec = cls()
        if not isinstance(codec, Codec):
            raise ValueError(f'tensor "{tensor.name}" names "{name}", which is not a codec')
        return codec, False
    narrow = tensor.data_type in _INTEGERS and kind - _NARROW in _CODECS
    if kind != _RAW and kind not in _CODECS and not narrow:
        raise ValueError(f'tensor "{tensor.name}" has the unknown codec {kind}')
    return _CODECS.get(kind - _NARROW if narrow else kind), narrow


def _bytes(tensor: TensorProto, codec: Codec | None, body: bytes) -> bytes:
    if codec is None:
        if len(body) != _length(tensor):
            raise ValueError(f'tensor "{tensor.name}" has {len(body)} bytes instead of {_length(tensor)}')
        return body
    dtype = _dtype(tensor)
    if dtype.name not in codec.dtypes:
        raise ValueError(f'tensor "{tensor.name}" has codec {type(codec).__name__}, which does not code {dtype.name}')
    return codec.decode(body, _shape(tensor), dtype).tobytes()


def _integers(tensor: TensorProto, raw: bytes | memoryview) -> Symbols:
    """The integers of less than 8 bits of a tensor, in its shape, as integers of 8 bits."""
    return widened(raw, _BITS[tensor.data_type], tuple(tensor.dims), signed=_signed(tensor))


def _narrow_bytes(tensor: TensorProto, codec: Codec, body: bytes) -> bytes:
    """The bytes that hold integers of less than 8 bits, which a codec has coded one by one."""
    dtype = np.dtype(np.int8 if _signed(tensor) else np.uint8)
    if dtype.name not in codec.dtypes:
        raise ValueError(f'tensor "{tensor.name}" has codec {type(codec).__name__}, which does not code {dtype.name}')
    return narrowed(codec.decode(body, tuple(tensor.dims), dtype), _BITS[tensor.data_type])


def _signed(tensor: TensorProto) -> bool:
    return not TensorProto.DataType.Name(tensor.data_type).startswith("U")


def _length(tensor: TensorProto) -> int:
    return math.prod(_shape(tensor)) * _dtype(tensor).itemsize


def _shape(tensor: TensorProto) -> tuple[int, ...]:
    """The shape of the coded array: the tensor's own shape, or for types of less than 8 bits the number of bytes."""
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f'tensor "{tensor.name}" has a negative size')
    bits = _BITS.get(tensor.data_type)
    return tuple(tensor.dims) if bits is None else ((math.prod(tensor.dims) * bits + 7) // 8,)


def _dtype(tensor: TensorProto) -> np.dtype[np.generic]:
    if tensor.data_type in _BITS:
        return np.dtype(np.uint8)
    if tensor.data_type in _NOT_CODED:
        raise ValueError(
            f'tensor "{tensor.name}" has type {TensorProto.DataType.Name(tensor.data_type)}, which cannot be packed'
        )
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError as error:
        raise ValueError(f'tensor "{tensor.name}" has type {tensor.data_type}, which is unknown') from error
