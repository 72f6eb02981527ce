"""The packed file: an ONNX model entropy-coded tensor by tensor, and decoded bit for bit.

Version 0, which promises nothing yet:

    "MIRA" · version, 1 byte · digest, 16 bytes, of all that follows · varints: ONNX length, skeleton length, packed skeleton
    length · the skeleton (the ONNX graph without the bytes of its tensors), deflated · for each tensor: codec, 1 byte,
    255 for a codec of a user's own, followed by the length of its name, varint, and the name · length, varint · its bytes

The digest is checked before anything is decoded; tensors together may not exceed the announced length of the ONNX model, nor
the limit that the reader gives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from mirabelle.artifact.codecs import Codec, Deflate, Histogram, Planes, Sparse
from mirabelle.artifact.codecs.codec import CODECS
from mirabelle.artifact.codecs.deflate import deflate, inflate
from mirabelle.artifact.codecs.varint import Reader, write_varints
from mirabelle.errors import UserError

MAGIC, VERSION = b"MIRA", 0
_DIGEST = 16
_MOST_BYTES = 1 << 31  # of an ONNX model, by protobuf's own limit
_USUAL_BYTES, _USUAL_TIMES = 1 << 28, 64  # what an honest file may become, whichever is more
# Types of which several share a byte; ONNX packs them, and they are coded as the bytes that they are.
_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}

_RAW = 0
_CODECS: dict[int, Codec] = {
    1: Deflate(),
    2: Histogram(),
    3: Planes(),
    4: Sparse(Histogram()),
    5: Sparse(Planes()),
}
_OWN = 255  # a codec of a user's own, whose name follows
_NOT_CODED = {
    getattr(TensorProto, name) for name in ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2") if hasattr(TensorProto, name)
}
# Strings that most graphs hold, so that a small file need not carry them.
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
    """The packed form of a canonical ONNX model; every tensor by the codec that takes the fewest bytes.

    Args:
        onnx: bytes of the model.
        codecs: of a user's own, tried besides those that Mirabelle ships; their classes are made without arguments when the
            file is unpacked, where their modules must be imported.

    Raises:
        UserError: E121 when the model is not canonical, so that it could not be given back bit for bit.
    """
    model = ModelProto.FromString(onnx)
    try:
        plain = all(len(tensor.raw_data) == _length(tensor) and not tensor.external_data for tensor in model.graph.initializer)
    except ValueError as error:
        raise UserError("E121", f"the ONNX model cannot be packed: {error}", "ship the .onnx file itself") from None
    if not plain or model.SerializeToString(deterministic=True) != onnx:
        raise UserError("E121", "the ONNX model is not in canonical form", "export it with mirabelle")
    sections = b""
    for tensor in model.graph.initializer:
        kind, body = _coded(tensor, codecs)
        sections += kind + write_varints([len(body)]) + body
        tensor.ClearField("raw_data")
    skeleton = model.SerializeToString(deterministic=True)
    small = deflate(skeleton, _DICTIONARY)
    content = write_varints([len(onnx), len(skeleton), len(small)]) + small + sections
    return MAGIC + bytes([VERSION]) + hashlib.blake2b(content, digest_size=_DIGEST).digest() + content


def unpack(packed: bytes, most_bytes: int | None = None) -> bytes:
    """The canonical ONNX model, bit for bit.

    Args:
        packed: content of a .mira file.
        most_bytes: the largest ONNX model that may come out, since a few bytes can stand for many; by default 256 MiB, or 64
            times the packed bytes where that is more.

    Raises:
        UserError: E143 not a packed file, E142 a newer version, E141 damaged or inconsistent, E106 a codec of a user's own that
            is not imported.
    """
    head = len(MAGIC) + 1 + _DIGEST
    if packed[: len(MAGIC)] != MAGIC:
        raise UserError("E143", "this is not a .mira file: it does not begin with MIRA", "give a file that Mirabelle packed")
    if len(packed) > len(MAGIC) and packed[len(MAGIC)] > VERSION:
        raise UserError(
            "E142", f"the file has version {packed[len(MAGIC)]}, this Mirabelle reads up to {VERSION}", "upgrade Mirabelle"
        )
    content = packed[head:]
    if hashlib.blake2b(content, digest_size=_DIGEST).digest() != packed[len(MAGIC) + 1 : head]:
        raise UserError("E141", "the file is damaged: its digest does not match its content", "fetch it again")
    if most_bytes is None:
        most_bytes = max(_USUAL_BYTES, _USUAL_TIMES * len(packed))
    try:
        return _decoded(content, min(most_bytes, _MOST_BYTES))
    except ValueError as error:
        raise UserError("E141", f"the file is inconsistent: {error}", "fetch it again") from error


def _decoded(content: bytes, most_bytes: int) -> bytes:
    reader = Reader(content)
    onnx_length, skeleton_length, small_length = reader.varint(), reader.varint(), reader.varint()
    if not skeleton_length <= onnx_length <= most_bytes:
        raise ValueError(
            f"an ONNX model of {onnx_length} bytes with a graph of {skeleton_length} cannot be, or is over the limit"
        )
    model = ModelProto()
    try:
        model.ParseFromString(inflate(reader.take(small_length), skeleton_length, _DICTIONARY))
    except Exception as error:
        raise ValueError(f"the graph cannot be read: {error}") from error
    budget = onnx_length
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            raise ValueError(f'tensor "{tensor.name}" lies outside the file')
        budget -= _length(tensor)
        if budget < 0:
            raise ValueError(f'tensor "{tensor.name}" does not fit into {onnx_length} bytes')
        codec = _codec(tensor, reader)
        tensor.raw_data = _bytes(tensor, codec, reader.take(reader.varint()))
    if reader.left:
        raise ValueError(f"{reader.left} bytes follow the last tensor")
    onnx: bytes = model.SerializeToString(deterministic=True)
    if len(onnx) != onnx_length:
        raise ValueError(f"{onnx_length} bytes of ONNX were announced, {len(onnx)} came")
    return onnx


def _coded(tensor: TensorProto, own: Sequence[Codec]) -> tuple[bytes, bytes]:
    """How the codec is called, and the bytes, of the codec that takes the fewest for a tensor's values."""
    best = (bytes([_RAW]), tensor.raw_data)
    dtype = _dtype(tensor)
    values = np.frombuffer(tensor.raw_data, dtype).reshape(_shape(tensor))
    named = [(bytes([kind]), codec) for kind, codec in _CODECS.items()] + [(_name(codec), codec) for codec in own]
    for name, codec in named:
        if dtype.name not in codec.dtypes:
            continue
        body = codec.encode(values)
        if len(name) + len(body) < len(best[0]) + len(best[1]):
            best = (name, body)
    return best


def _name(codec: Codec) -> bytes:
    """What the file says of a codec of a user's own."""
    name = CODECS.name_of(type(codec)).encode()
    return bytes([_OWN]) + write_varints([len(name)]) + name


def _codec(tensor: TensorProto, reader: Reader) -> Codec | None:
    """The codec that the file tells for a tensor; None for plain bytes. A user's own is found where it is imported.

    Raises:
        UserError: E106 when it is not.
    """
    kind = reader.take(1)[0]
    if kind == _OWN:
        cls: Any = CODECS.imported_member(reader.take(reader.varint()).decode())
        codec: Codec = cls()
        return codec
    if kind != _RAW and kind not in _CODECS:
        raise ValueError(f'tensor "{tensor.name}" names codec {kind}')
    return _CODECS.get(kind)


def _bytes(tensor: TensorProto, codec: Codec | None, body: bytes) -> bytes:
    if codec is None:
        if len(body) != _length(tensor):
            raise ValueError(f'tensor "{tensor.name}" has {len(body)} bytes, {_length(tensor)} are due')
        return body
    dtype = _dtype(tensor)
    if dtype.name not in codec.dtypes:
        raise ValueError(f'tensor "{tensor.name}" of {dtype.name} names {type(codec).__name__}')
    return codec.decode(body, _shape(tensor), dtype).tobytes()


def _length(tensor: TensorProto) -> int:
    return math.prod(_shape(tensor)) * _dtype(tensor).itemsize


def _shape(tensor: TensorProto) -> tuple[int, ...]:
    """Of the array that is coded: the tensor's own, or that of the bytes which several of its values share."""
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f'tensor "{tensor.name}" has a negative size')
    bits = _BITS.get(tensor.data_type)
    return tuple(tensor.dims) if bits is None else ((math.prod(tensor.dims) * bits + 7) // 8,)


def _dtype(tensor: TensorProto) -> np.dtype[np.generic]:
    if tensor.data_type in _BITS:
        return np.dtype(np.uint8)
    if tensor.data_type in _NOT_CODED:
        raise ValueError(f'tensor "{tensor.name}" has type {TensorProto.DataType.Name(tensor.data_type)}, which is not coded')
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError as error:
        raise ValueError(f'tensor "{tensor.name}" has type {tensor.data_type}, which is not known') from error
