"""A decoder that was written from docs/mira.md alone reads what the first one writes."""

from __future__ import annotations

from pathlib import Path

import constriction
import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

import mirabelle
from artifact import second_decoder
from mirabelle.artifact import head, mira
from mirabelle.artifact.multiples import multiples_of
from mirabelle.artifact.tensors import codecs_of_a_file
from mirabelle.codecs import interleaved, planes

GOLDEN = Path(__file__).parent / "golden"
ONNX = (GOLDEN / "model.onnx").read_bytes()
PACKED = (GOLDEN / "version-1.mira").read_bytes()
NARROW = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.UINT2: 2, TensorProto.INT2: 2}
CODED = {
    1: {
        TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE,
        TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64,
    },
    2: {TensorProto.UINT8, TensorProto.INT8, *NARROW},
    3: {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16,
        TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64,
    },
    4: {TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2},
    5: {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64},
    6: {TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2},
    7: {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE},
    12: {TensorProto.UINT8, TensorProto.INT8, *NARROW},
}  # fmt: skip


def tensor(name: str, kind: int, shape: tuple[int, ...], raw: bytes) -> TensorProto:
    return TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)


def model(*tensors: TensorProto) -> bytes:
    graph = GraphProto(name="main", initializer=tensors)
    return ModelProto(ir_version=10, graph=graph, opset_import=[helper.make_opsetid("", 25)]).SerializeToString()


def drawn(kind: int, shape: tuple[int, ...]) -> TensorProto:
    """A tensor of few values, most of them 0, with rows and columns of zeros."""
    generator = np.random.default_rng(kind)
    values = generator.integers(1, 4, shape) * (generator.random(shape) < 0.2)
    if len(shape) > 1:
        values[3:4], values[:, ::5] = 0, 0
    if kind in NARROW:
        bits = NARROW[kind]
        digits = np.pad(values.ravel(), (0, -values.size % (8 // bits))).reshape(-1, 8 // bits) & (2**bits - 1)
        raw = (digits << np.arange(0, 8, bits)).sum(axis=1).astype(np.uint8).tobytes()
    elif kind == TensorProto.BFLOAT16:
        raw = (np.where(values % 2, -values, values).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        raw = (np.where(values % 2, -values, values) if dtype.kind in "if" else values).astype(dtype).tobytes()
    return tensor(f"layer.{kind}", kind, shape, raw)


def numbers(packed: bytes) -> list[int]:
    return [entry.number for entry in mirabelle.PackedModel(packed).head.entries]


@pytest.fixture
def deflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of form 1, in which no tensor stands."""
    monkeypatch.setattr(head, "_SMALL", 0)
    monkeypatch.setattr(head, "_LARGEST", 0)


def test_both_decoders_read_the_golden_file() -> None:
    assert second_decoder.decode(PACKED) == ONNX
    assert second_decoder.decode((GOLDEN / "version-1-first.mira").read_bytes()) == ONNX
    assert mirabelle.unpack(PACKED) == ONNX


def test_the_golden_file_is_what_is_written_today() -> None:
    assert mirabelle.pack(ONNX) == PACKED


@pytest.mark.usefixtures("deflated")
@pytest.mark.parametrize("number", CODED)
def test_bodies_of_each_codec(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if number == 12:
        short_lanes(monkeypatch, 64)
    monkeypatch.setattr(mira, "codecs_of_a_file", lambda *_: {number: codecs_of_a_file()[number]})
    kinds = sorted(CODED[number])
    onnx = model(*(drawn(kind, (37, 29)) for kind in kinds), *(drawn(kind, (300,)) for kind in kinds))
    packed = mirabelle.pack(onnx)
    taken = numbers(packed)
    assert {each % 64 for each in taken[: len(kinds)]} == {number}
    assert any(each >= 64 for each in taken) == (number in {2, 4, 6, 12})
    assert second_decoder.decode(packed) == onnx


def short_lanes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Lanes of so many bytes, so that small arrays have several."""
    monkeypatch.setattr(interleaved, "_EACH", size)
    monkeypatch.setattr(interleaved, "_LEAST_LANES", 1)


@pytest.mark.usefixtures("deflated")
def test_interleaved_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "MUCH_FASTER", 2)
    short_lanes(monkeypatch, 256)
    values = np.random.default_rng(0).normal(0, 0.1, (60, 70)).astype(np.float32)
    onnx = model(tensor("w", TensorProto.FLOAT, values.shape, values.tobytes()))
    packed = mirabelle.pack(onnx)
    assert numbers(packed) == [3]
    body = second_decoder._Reader(bytes(mirabelle.PackedModel(packed)._bodies[0]))
    kinds = [(body.varint(), body.take(body.varint()))[0] for _ in range(4)]
    assert kinds == [0, 0, 0, 2]
    assert second_decoder.decode(packed) == onnx
    assert mirabelle.unpack(packed) == onnx


def test_tensors_in_the_head() -> None:
    scale, other = np.float32(0.3), np.random.default_rng(0).standard_normal(20).astype(np.float32)
    bytes_of_a_type = np.random.default_rng(1).bytes(48)
    small = [
        tensor(f"small.{kind}", kind, shape, bytes_of_a_type[: length(kind, shape)])
        for kind in second_decoder._DTYPES
        for shape in ((3,), (), (0, 2))
    ]
    onnx = model(
        *small,
        tensor("a.scale", TensorProto.FLOAT, (), scale.tobytes()),
        tensor("a.other", TensorProto.FLOAT, (4, 5), other.tobytes()),
        tensor("a.product", TensorProto.FLOAT, (20,), (scale * other).tobytes()),
    )
    packed = mirabelle.pack(onnx)
    assert {8, 10} <= set(numbers(packed))
    assert second_decoder.decode(packed) == onnx


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.FLOAT4E2M1])
def test_matrices_in_the_head(kind: int) -> None:
    onnx = model(drawn(kind, (37, 61)))
    packed = mirabelle.pack(onnx)
    assert numbers(packed) == [9]
    assert second_decoder.decode(packed) == onnx


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (37, 61), (1, 9), (3, 0, 4)])
def test_matrices_of_multiples_in_the_head(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    levels = np.where(generator.random(shape) < 0.3, generator.normal(0, 3, shape).round(), 0).astype(np.int64)
    if levels.size:
        levels.flat[0] = 9
    onnx = model(tensor("fc.weight", TensorProto.FLOAT, shape, multiples_of(0.0123, levels.ravel())))
    packed = mirabelle.pack(onnx)
    assert numbers(packed) == [13] or levels.size < 100
    assert second_decoder.decode(packed) == onnx
    assert mirabelle.unpack(packed) == onnx


def test_multiples_beyond_a_byte_are_coded_otherwise() -> None:
    onnx = model(tensor("fc.weight", TensorProto.FLOAT, (4, 5), multiples_of(0.25, np.arange(-5, 15) * 20)))
    packed = mirabelle.pack(onnx)
    assert numbers(packed) != [13]
    assert mirabelle.unpack(packed) == onnx


def length(kind: int, shape: tuple[int, ...]) -> int:
    bits = NARROW.get(kind) or (16 if kind == TensorProto.BFLOAT16 else 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize)
    return -(-int(np.prod(shape)) * bits // 8)


def test_graph_with_all_that_its_contexts_look_at() -> None:
    """Empty names, a graph in a graph, tensors of attributes, and fields of another kind than ONNX gives them."""
    inner = helper.make_graph(
        [helper.make_node("Conv", ["x", "layer.1.weight", ""], ["layer.1:0", ""]), helper.make_node("", [], ["b"])],
        "inner", [], [], [drawn(TensorProto.FLOAT, (2, 3))],
    )  # fmt: skip
    value = drawn(TensorProto.INT64, (4, 3, 2))
    nodes = [
        helper.make_node("Constant", [], ["layer.1:1"], value=value),
        helper.make_node("If", ["", "layer.1:1"], ["q"], name="n", then_branch=inner, else_branch=inner, alpha=0.5),
        helper.make_node("Conv", ["q", "layer.2.weight", "layer.2.bias"], ["layer.2"], pads=[1, 1, 1, 1]),
    ]
    places = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, "batch"]) for name in ("x", "layer.2", "q")]
    graph = helper.make_graph(nodes, "main", places[:1], places[1:2], [drawn(TensorProto.FLOAT, (4, 2))], value_info=places[2:])
    fields = second_decoder._fields(ModelProto(ir_version=10, graph=graph).SerializeToString(), second_decoder._MODEL)
    node = fields[1][1][2][1]
    node[1:1] = [(1 << 3 | 5, b"a.be"), (1 << 3 | 0, 7)]  # among the inputs
    onnx = second_decoder._message([*fields, (15 << 3 | 1, bytes(range(8))), (16 << 3 | 5, b"four")])
    packed = mirabelle.pack(onnx)
    assert packed[23] != 1, "the head has form 0"
    assert second_decoder.decode(packed) == onnx


@pytest.mark.usefixtures("deflated")
def test_heads_of_form_1() -> None:
    packed = mirabelle.pack(ONNX)
    assert packed != PACKED
    assert second_decoder.decode(packed) == ONNX


@pytest.mark.parametrize("place", [0, 4, 5, 20, 21, 24, len(PACKED) // 2, len(PACKED) - 1])
def test_a_flipped_byte_is_found(place: int) -> None:
    damaged = bytearray(PACKED)
    damaged[place] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        second_decoder.decode(bytes(damaged))


def test_intervals_are_those_of_constriction() -> None:
    generator = np.random.default_rng(0)
    for k in range(60):
        counts = generator.integers(0 if k % 2 else 1, 10 ** int(generator.integers(1, 9)), int(generator.integers(2, 257)))
        counts[0] += 1
        borders = second_decoder._categorical(counts.tolist())
        categorical = constriction.stream.model.Categorical(counts.astype(np.float32) / np.float32(counts.sum()), perfect=False)
        assert [symbol_at(categorical, left) for left in borders[:-1]] == list(range(len(counts)))
        assert [symbol_at(categorical, right - 1) for right in borders[1:]] == list(range(len(counts)))
    for share in range(1, 256):
        left = second_decoder._bernoulli(share)[1]
        bernoulli = constriction.stream.model.Bernoulli(share / 256, perfect=False)
        assert [symbol_at(bernoulli, left - 1), symbol_at(bernoulli, left)] == [0, 1]


def symbol_at(model: object, quantile: int) -> int:
    """The symbol in whose interval a number of 24 bits is."""
    point = quantile * ((2**64 - 1) >> 24)
    words = np.array([point >> 32, point & 0xFFFFFFFF], np.uint32)
    return int(constriction.stream.queue.RangeDecoder(words).decode(model))
