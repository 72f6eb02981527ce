"""The head of a .mira file: the graph, and how the data of each tensor are coded; those of small tensors stand in it.

One stream of bits, as long as the graph is small; a larger graph and the table of its tensors are deflated, which is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mirabelle.artifact.assembly import with_zeros
from mirabelle.artifact.inline import (
    IN_HEAD,
    INLINE,
    INLINE_BYTES,
    INLINE_CONTEXTS,
    INLINE_ELEMENTS,
    MATRIX,
    MULTIPLES,
    code_data,
    levels_of,
)
from mirabelle.artifact.multiples import step_of
from mirabelle.artifact.products import products_among
from mirabelle.artifact.structure import Structure
from mirabelle.artifact.tensors import OWN, Coded, Tensor, tensor_of
from mirabelle.artifact.wire import GRAPH_FIELD, MODEL, TENSOR_FIELD, Fields, bytes_of, fields_of, number_of
from mirabelle.codecs.contexts import most_bits
from mirabelle.codecs.deflate import deflate, inflate
from mirabelle.codecs.mixing import Allowance, Mixed, MixedDecoder, MixedEncoder, MixedTrial
from mirabelle.codecs.narrow import narrowed
from mirabelle.codecs.varint import Reader, write_varints

PRODUCT = 10  # number of a codec
_MIXED, _DEFLATED = 0, 1  # forms of a head
_SMALL, _LARGEST = 1 << 15, 1 << 17  # bytes of a graph that is coded in contexts: always, and if it is a share of the file
_SHARE = 100  # a hundredth of the file
_TINY, _DIVERSE = 64, 0.35  # bytes that always stand in the head; coded bytes of an element that contexts hardly make less
_FEW = 64  # tensors of a file, for each of which the ways are measured
_ROOM = 8  # the data of a tensor take at most an eighth of the bits that the head may still have
_ENTRY_BITS = 12  # about what the length of a body takes in the table
MOST_GRAPH = 1 << 24  # bytes of a graph without its tensors, and of the table
_VERSION_FIELD = 1  # of a model
_FLOAT = 1
# Strings that occur in most graphs, as a preset dictionary for deflate.
DICTIONARY = (
    b"axis\xa0\x01\x02kernel_shape@\x05pads\x00strides@\x01dilations@\x01group\x18\x01auto_padNOTSETceil_modestorage_orderkeepdims"
    b"transB\x18\x01alphabetaepsilonmomentumallowzeroperm\x12\x05batch\x0a\x07channel_wisemainmirabellelabels"
    b'preprocessing\x12\x0e{"size":[,"mode":"RGB","mean":[,"deviation":[0.{"columns":["'
    b"ReshapeTransposeConcatSoftmaxSigmoidTanhMatMulAddMulBatchNormalizationGlobalAveragePoolLayerNormalization"
    b'MatMulIntegerDynamicQuantizeLinear\x0a\x04CastMaxPoolRelu"\x04Relu"\x04Gemm"\x04Conv'
    b".weight.bias.running_mean.running_var.codes.scale.input_scale.input_zero_point.bias_codes.bias_scale"
    b'QuantizeLinear"\x10DequantizeLinear'
)


@dataclass(frozen=True)
class Entry:
    """How the data of a tensor are coded.

    Args:
        number: of the codec.
        name: of a user's own codec.
        length: bytes of the coded data behind the head.
        data: the data themselves, if they stand in the head.
        factors: places of the two tensors whose product this one is.
    """

    number: int
    name: str = ""
    length: int = 0
    data: bytes | None = None
    factors: tuple[int, int] | None = None


@dataclass(frozen=True)
class Head:
    """What the head of a file says.

    Args:
        fields: the graph, without the data of its tensors.
        tensors: name, type and shape of each.
        entries: how the data of each are coded.
        sealed: whether the digest in the metadata of the model is that of its bytes, which the reader computes.
        mixed: whether it is one stream of bits.
    """

    fields: Fields
    tensors: Sequence[Tensor]
    entries: Sequence[Entry]
    sealed: bool
    mixed: bool


def tensors_in(fields: Fields) -> list[Tensor]:
    """The tensors of a model, in their order.

    Raises:
        ValueError: if one cannot be packed.
    """
    graphs = [value for tag, value in fields if number_of(tag) == GRAPH_FIELD]
    tensors = [value for graph in graphs if isinstance(graph, list) for tag, value in graph if number_of(tag) == TENSOR_FIELD]
    if len(graphs) > 1 or not all(isinstance(one, list) for one in (*graphs, *tensors)):
        raise ValueError("its graph is not one message")
    return [tensor_of(one) for one in tensors]


def written(
    fields: Fields, *, sealed: bool, raws: Sequence[bytes | memoryview], coded: Sequence[Coded]
) -> tuple[bytes, list[int]]:
    """(the head, places of the tensors whose coded data follow it)."""
    tensors = tensors_in(fields)
    products = products_among(tensors, raws)
    if _in_contexts(fields, sum(one.length for one in coded)):
        try:
            return _mixed(fields, tensors, products, sealed=sealed, raws=raws, coded=coded)
        except ValueError:
            pass  # more bits, or messages deeper in each other, than a reader takes: deflated below
    skeleton = bytes_of(fields)
    entries = [Entry(PRODUCT, factors=products[k]) if k in products else _separate(one) for k, one in enumerate(coded)]
    table = write_varints([sealed, len(skeleton)]) + skeleton + b"".join(map(as_varints, entries))
    return write_varints([_DEFLATED, len(table)]) + deflate(table, DICTIONARY), _following(entries)


def _mixed(
    fields: Fields,
    tensors: Sequence[Tensor],
    products: Mapping[int, tuple[int, int]],
    *,
    sealed: bool,
    raws: Sequence[bytes | memoryview],
    coded: Sequence[Coded],
) -> tuple[bytes, list[int]]:
    allowance = Allowance()
    coder = MixedEncoder(allowance)
    structure, values = Structure(coder), Structure(coder, Mixed())
    structure.fields(MODEL, fields)
    structure.number(int(sealed), "sealed", [()])
    entries = []
    for place, (tensor, raw, one) in enumerate(zip(tensors, raws, coded, strict=True)):
        trial = None
        if place in products:
            entry = Entry(PRODUCT, factors=products[place])
        else:
            entry, trial = _shortest(tensor, raw, one, values if len(tensors) <= _FEW else None, allowance.left)
        code_entry(structure, values, tensor, entry, trial)
        entries.append(entry)
    return write_varints([_MIXED]) + coder.finished(), _following(entries)


def _in_contexts(fields: Fields, bodies: int) -> bool:
    """Whether a graph is coded in contexts, which takes about 40 µs for a byte, and as much to read it."""
    skeleton = bytes_of(fields)
    worth = len(skeleton) <= _SMALL or (len(skeleton) <= _LARGEST and _SHARE * len(deflate(skeleton, DICTIONARY)) > bodies)
    return worth and _is_sorted(fields)


def read(data: bytes, most_bytes: int) -> Head:
    """The head of a file.

    Args:
        data: the head.
        most_bytes: limit of the bytes of all tensors and the graph together.

    Raises:
        ValueError: if it is impossible.
        OverflowError: with the number of bytes, if there are more.
    """
    reader = Reader(data)
    form = reader.varint()
    if form == _DEFLATED:
        return _read_deflated(reader, most_bytes)
    if form != _MIXED:
        raise ValueError(f"its head has the unknown form {form}")
    coder = MixedDecoder(reader.rest())
    structure, values = Structure(coder), Structure(coder, Mixed())
    fields = structure.fields(MODEL)
    sealed = bool(structure.number(None, "sealed", [()]))
    tensors = tensors_in(fields)
    _check_size(tensors, bytes_of(fields), most_bytes)
    entries = [code_entry(structure, values, tensor, None) for tensor in tensors]
    if not coder.read_to_the_end:
        raise ValueError("bytes follow its head")
    return _checked(Head(fields, tensors, entries, sealed, mixed=True))


def inflated_graph(data: bytes, length: int) -> Fields:
    """The graph in a deflate stream.

    Raises:
        ValueError: if it cannot be read.
    """
    if length > MOST_GRAPH:
        raise ValueError(f"its graph has {length:,} bytes, more than {MOST_GRAPH:,}")
    try:
        return fields_of(inflate(data, length, DICTIONARY))
    except ValueError as error:
        raise ValueError(f"the graph cannot be read: {error}") from error


def _read_deflated(reader: Reader, most_bytes: int) -> Head:
    length = reader.varint()
    if length > most_bytes:
        raise OverflowError(length)
    if length > MOST_GRAPH:
        raise ValueError(f"its graph has {length:,} bytes, more than {MOST_GRAPH:,}")
    table = Reader(inflate(reader.rest(), length, DICTIONARY))
    sealed = bool(table.varint())
    skeleton = table.take(table.varint())
    fields = fields_of(skeleton)
    tensors = tensors_in(fields)
    _check_size(tensors, skeleton, most_bytes)
    entries = [_from_varints(table) for _ in tensors]
    if table.left:
        raise ValueError("bytes follow its table")
    return _checked(Head(fields, tensors, entries, sealed, mixed=False))


def _check_size(tensors: Sequence[Tensor], skeleton: bytes, most_bytes: int) -> None:
    size = sum(tensor.length for tensor in tensors) + len(skeleton)
    if size > most_bytes:
        raise OverflowError(size)


def is_model(fields: Fields) -> bool:
    """Whether a message has a version and a graph, as every ONNX model."""
    return {number_of(tag) for tag, _ in fields} >= {_VERSION_FIELD, GRAPH_FIELD}


def _checked(head: Head) -> Head:
    for entry in head.entries:
        for place in entry.factors or ():
            if place >= len(head.entries) or head.entries[place].factors is not None:
                raise ValueError("a tensor is the product of one that is a product, or of none")
    for tensor, entry in zip(head.tensors, head.entries, strict=True):
        if entry.factors is not None:
            one, other = (head.tensors[place] for place in entry.factors)
            if {tensor.kind, one.kind, other.kind} != {_FLOAT} or one.length != other.length // max(math.prod(other.shape), 1):
                raise ValueError(f'tensor "{tensor.name}" is no product of a number and floats')
    if not is_model(head.fields):
        raise ValueError("it holds no ONNX model")
    if head.sealed and with_zeros(head.fields) is None:
        raise ValueError("it has no place for the digest of the model")
    return head


def _separate(one: Coded) -> Entry:
    return Entry(one.number, one.name, len(one.body))


def _following(entries: Sequence[Entry]) -> list[int]:
    return [place for place, entry in enumerate(entries) if entry.data is None and entry.factors is None]


def _inline(tensor: Tensor, raw: bytes, separate: int, left: int) -> list[Entry]:
    """The ways in which the data of a small tensor may stand in the head, if they take `separate` bytes behind it."""
    found = [Entry(INLINE, data=raw)] if len(raw) <= INLINE_BYTES else []
    if found and tensor.kind == _FLOAT and step_of(raw) is not None:
        found.append(Entry(MULTIPLES, data=raw))
    elements = math.prod(tensor.shape)
    integers = tensor.integers is not None or tensor.dtype.name in ("int8", "uint8")
    if integers and 0 < elements <= INLINE_ELEMENTS and separate <= max(_DIVERSE * elements, _TINY):
        values = tensor.array(raw)
        whole = tensor.integers is None or narrowed(values, tensor.integers[0]) == raw
        found += [Entry(INLINE_CONTEXTS, data=raw)] if whole and _ROOM * most_bits(values) <= left else []
    if tensor.kind == _FLOAT and len(tensor.shape) > 1 and elements <= INLINE_ELEMENTS:
        levels = levels_of(raw, tensor.shape)
        found += [Entry(MATRIX, data=raw)] if levels is not None and _ROOM * most_bits(levels[1]) <= left else []
    return found


def _shortest(
    tensor: Tensor, raw: bytes | memoryview, one: Coded, values: Structure | None, left: int
) -> tuple[Entry, Structure | None]:
    """The entry that takes the fewest bits; where nothing is measured, the data stand in the head if they are tiny.

    Args:
        tensor: name, type and shape.
        raw: its data.
        one: the data as they would stand behind the head.
        values: codes data in the head; None if nothing is measured.
        left: bits that the head may still have.

    Returns:
        The entry, and the trial by which it was measured, if its data stand in the head.
    """
    if values is None:
        return (Entry(INLINE, data=bytes(raw)) if len(raw) <= _TINY else _separate(one)), None
    best: tuple[Entry, Structure | None] = _separate(one), None
    if math.prod(tensor.shape) > INLINE_ELEMENTS or len(raw) > 4 * INLINE_ELEMENTS:
        return best
    least = 8.0 * one.length + _ENTRY_BITS  # about, with the data
    for entry in _inline(tensor, bytes(raw), one.length, left):
        coder = MixedTrial()
        trial = values.trial(coder)
        code_data(trial, tensor, entry.number, entry.data)
        if coder.bits < least:
            best, least = (entry, trial), coder.bits
    return best


def code_entry(
    structure: Structure, values: Structure, tensor: Tensor, entry: Entry | None, trial: Structure | None = None
) -> Entry:
    """Code the entry of a tensor, or read it if none is given.

    Args:
        structure: codes the entry.
        values: codes data that stand in the head.
        tensor: name, type and shape.
        entry: of the tensor.
        trial: by which `values` has measured these data, directly before.
    """
    ending = tensor.name.rpartition(".")[2]
    number = structure.number(None if entry is None else entry.number, "codec", [(), ending, tensor.kind])
    if number == PRODUCT:
        factors = [None, None] if entry is None or entry.factors is None else list(entry.factors)
        one, other = (structure.number(place, "factor", [()]) for place in factors)
        return Entry(number, factors=(one, other))
    if trial is not None:
        values.repeat(trial)
        return entry or Entry(number)
    if number in IN_HEAD:
        return Entry(number, data=code_data(values, tensor, number, None if entry is None else entry.data))
    name = b""
    if number == OWN:
        given = None if entry is None else entry.name.encode()
        letters = structure.number(None if given is None else len(given), "letters", [()])
        name = b"".join(structure.element(None if given is None else given[k : k + 1], 1, "letter") for k in range(letters))
    return Entry(number, name.decode(), structure.number(None if entry is None else entry.length, "length", [(), ending]))


def as_varints(entry: Entry) -> bytes:
    if entry.factors is not None:
        return write_varints([entry.number, *entry.factors])
    name = entry.name.encode()
    own = write_varints([len(name)]) + name if entry.number == OWN else b""
    return write_varints([entry.number]) + own + write_varints([entry.length])


def _from_varints(reader: Reader) -> Entry:
    number = reader.varint()
    if number == PRODUCT:
        return Entry(number, factors=(reader.varint(), reader.varint()))
    if number in IN_HEAD:
        raise ValueError("data stand in a head that is deflated")
    name = reader.take(reader.varint()).decode() if number == OWN else ""
    return Entry(number, name, reader.varint())


def _is_sorted(fields: Fields) -> bool:
    numbers = [number_of(tag) for tag, _ in fields]
    return numbers == sorted(numbers) and all(_is_sorted(value) for _, value in fields if isinstance(value, list))
