"""The packed file bit for bit, against damage; the folder to go on in torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from mirabelle import Run, Task, load, pack, prune, quantize, save, unpack
from mirabelle.artifact import mira
from mirabelle.artifact.head import DICTIONARY
from mirabelle.artifact.mira import MAGIC, VERSION
from mirabelle.artifact.reading import model_of, onnx_of
from mirabelle.artifact.structure import Structure
from mirabelle.artifact.wire import MODEL, Fields, bytes_of, fields_of
from mirabelle.codecs.codec import CODECS
from mirabelle.codecs.deflate import deflate
from mirabelle.codecs.mixing import MixedEncoder
from mirabelle.codecs.varint import write_varints
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import fingerprint
from mirabelle.run.files import read_json, write_json
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.export import export

HEAD = len(MAGIC) + 1 + 16


def sealed(content: bytes, version: int = VERSION) -> bytes:
    """A file around this content whose digest is right."""
    return MAGIC + bytes([version]) + hashlib.blake2b(content, digest_size=16).digest() + content


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    inputs, targets = torch.randn(40, 1, 8, 8), torch.arange(40) % 3
    task, run = Task(train=(inputs, targets), test=(inputs, targets)), Run(tmp_path_factory.mktemp("packed"))
    pruned = prune.Weights(sparsity=0.8)(model, task, run)
    return pack(export(quantize.Static()(pruned, task, run), task.example()))


@pytest.mark.parametrize("steps", [[], [prune.Weights(sparsity=0.9)], [quantize.Static()], [quantize.Dynamic()]])
def test_the_onnx_model_comes_back_bit_for_bit(cnn: nn.Module, images: Task, run: Run, steps: list[object]) -> None:
    model: nn.Module = cnn
    for step in steps:
        model = step(model, images, run)
    onnx = export(model, images.example(), ("a", "b", "c"))
    packed = pack(onnx)
    assert unpack(packed) == onnx
    assert len(packed) < len(onnx)
    mira._packed.cache_clear()
    assert pack(onnx) == packed


def test_tensors_of_every_type_and_shape_come_back() -> None:
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(0, 2, size=shape).astype(name) * (7 if name != "bool" else 1)
        for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
        for shape in [(3, 4)]
    }
    arrays |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.5, np.float32), "cube": np.zeros((2, 3, 4), np.int8)}
    tensors = [
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True)
        for name, a in arrays.items()
    ]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in arrays]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.UNDEFINED, None) for name in arrays]
    model = helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors))
    onnx = canonical(model, {})
    assert unpack(pack(onnx)) == onnx


def test_only_canonical_models_are_packed(cnn: nn.Module, images: Task) -> None:
    onnx = export(cnn, images.example())
    with pytest.raises(UserError, match="canonical"):
        pack(onnx + b"\x12\x09mirabelle")  # a field out of its order


def test_every_changed_byte_is_noticed(packed: bytes) -> None:
    for position in range(0, len(packed), max(1, len(packed) // 200)):
        damaged = bytearray(packed)
        damaged[position] ^= 0x10
        with pytest.raises(UserError, match=r"E14[123]"):
            unpack(bytes(damaged))


def test_every_truncation_is_noticed(packed: bytes) -> None:
    for length in (0, 3, 4, 5, 20, 21, 22, len(packed) // 2, len(packed) - 1):
        with pytest.raises(UserError, match=r"E14[13]"):
            unpack(packed[:length])


@pytest.mark.parametrize("seed", range(150))
def test_a_resealed_mutation_decodes_to_something_or_is_refused_in_one_line(packed: bytes, seed: int) -> None:
    """A fuzzer that reseals the digest, so that the decoder itself is tested."""
    generator = np.random.default_rng(seed)
    content = bytearray(packed[HEAD:])
    for _ in range(generator.integers(1, 4)):
        content[generator.integers(0, min(len(content), 200 if seed % 2 else len(content)))] = generator.integers(0, 256)
    with contextlib.suppress(UserError):
        onnx = unpack(sealed(bytes(content)))
        assert bytes_of(fields_of(onnx)) == onnx, "whole messages, each with its length"
        assert model_of(onnx).ByteSize() > 0


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_arbitrary_content_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="E141"):
        unpack(sealed(content))


NOISE = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)


class Tiny:
    """A codec that takes one byte for one array that it knows, and so is chosen for it."""

    dtypes = ("float32",)

    def encode(self, symbols: np.ndarray) -> bytes:
        return b"n" if np.array_equal(symbols, NOISE) else symbols.tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[np.float32]) -> np.ndarray:
        return NOISE if data == b"n" else np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nowhere:Codec", "E106"),  # not imported, and not imported for it either
        ("codecs:Codec", "E141"),  # a class of Python's own that encodes and decodes something else
        ("os:getcwd", "E141"),
        ("builtins:eval", "E141"),
        ("Deflate", "E141"),  # Mirabelle's own, by its name: the byte is no deflated array
    ],
)
def test_a_file_cannot_name_what_is_not_a_codec(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = helper.make_tensor("noise", TensorProto.FLOAT, NOISE.shape, NOISE.tobytes(), raw=True)
    graph = helper.make_graph([helper.make_node("Identity", ["noise"], ["y"])], "g", [], [], [tensor])
    onnx = canonical(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), {})
    data = pack(onnx, [Tiny()])
    assert len(data) < NOISE.nbytes, "the codec of the test is the shortest"
    assert unpack(data) == onnx
    renamed = SimpleNamespace(name_of=lambda _: name, imported_member=CODECS.imported_member)
    monkeypatch.setattr("mirabelle.artifact.tensors.CODECS", renamed)
    with pytest.raises(UserError) as caught:
        unpack(pack(onnx, [Tiny()]))
    assert caught.value.code == code


def test_a_newer_version_is_told_from_damage() -> None:
    with pytest.raises(UserError, match="version 2, this Mirabelle reads up to 1"):
        unpack(sealed(b"", version=2))


def test_the_reader_says_how_much_may_come_out(packed: bytes) -> None:
    size = len(unpack(packed))
    assert len(unpack(packed, most_bytes=size)) == size
    with pytest.raises(UserError, match="above the limit"):
        unpack(packed, most_bytes=size - 1)


def test_a_file_that_unpacks_to_much_more_needs_free_memory(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(unpack(packed))
    monkeypatch.setattr("mirabelle.artifact.mira._USUAL_BYTES", 10)
    monkeypatch.setattr("mirabelle.artifact.mira._USUAL_TIMES", 1)
    monkeypatch.setattr("mirabelle.artifact.mira.usable_memory", lambda: 4.0 * size)
    assert len(unpack(packed)) == size
    monkeypatch.setattr("mirabelle.artifact.mira.usable_memory", lambda: 4.0 * (size - 1))
    with pytest.raises(UserError, match=rf"E203.*unpacks to {size:,} bytes, .* limit of {size - 1:,}"):
        unpack(packed)


@pytest.mark.slow
def test_what_is_packed_is_read_also_beyond_256_mib(tmp_path: Path) -> None:
    """A sparse model that packs to less than a 64th of its bytes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 9000]) for name in "xy")
    weight = np.zeros((9000, 9000), np.float32)
    weight[0, 0] = 1
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString(deterministic=True)
    data = pack(onnx)
    assert len(onnx) > 1 << 28
    assert len(data) * 64 < 1 << 28
    (tmp_path / "m.mira").write_bytes(data)
    assert onnx_of(tmp_path / "m.mira") == onnx


def head_of(fields: Fields) -> bytes:
    """The content of a file with this graph, and no entries for its tensors."""
    coder = MixedEncoder()
    Structure(coder).fields(MODEL, fields)
    head = write_varints([0]) + coder.finished()
    return write_varints([len(head)]) + head


def graph_with(*tensors: TensorProto) -> Fields:
    model = ModelProto()
    model.graph.initializer.extend(tensors)
    return fields_of(model.SerializeToString())


def test_a_length_that_memory_could_not_hold_is_refused_before_it_is_taken() -> None:
    with pytest.raises(UserError, match=r"E141.*bytes expected"):
        unpack(sealed(write_varints([1 << 40, 0])))
    huge = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    with pytest.raises(UserError, match=r"E203.*unpacks to 4,398,046,5"):
        unpack(sealed(head_of(graph_with(huge))))
    deflated = deflate(write_varints([0, 0]), DICTIONARY)
    head = write_varints([1, 1 << 40]) + deflated
    with pytest.raises(UserError, match="E203"):
        unpack(sealed(write_varints([len(head)]) + head))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(name="t", data_type=TensorProto.STRING, dims=[2]), "type STRING, which cannot be packed"),
        (TensorProto(name="t", data_type=99, dims=[2]), "type 99, which cannot be packed"),
        (TensorProto(name="t", data_type=1, dims=[-2]), "negative size"),
        (TensorProto(name="t", data_type=1, dims=[2], data_location=1), "stored in another file"),
        (TensorProto(name="t", data_type=1, dims=[2], float_data=[1, 2]), "does not store its data as bytes"),
    ],
)
def test_tensors_that_no_file_has_are_refused(tensor: TensorProto, message: str) -> None:
    with pytest.raises(UserError, match=f"E141.*{message}"):
        unpack(sealed(head_of(graph_with(tensor))))


def test_a_graph_that_is_no_message_is_refused() -> None:
    for fields in ([(7 << 3, 5)], [(7 << 3 | 2, []), (7 << 3 | 2, [])], [(7 << 3 | 2, [(5 << 3, 1)])]):
        with pytest.raises(UserError, match=r"E141.*not one message"):
            unpack(sealed(head_of(fields)))


def test_a_saved_model_loads_onto_a_fresh_dense_one(cnn: nn.Module, images: Task, run: Run, tmp_path: Path) -> None:
    fresh = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    pruned = prune.Weights(sparsity=0.8, include=("4.weight",))(cnn, images, run)
    for k, model in enumerate([cnn, pruned, quantize.Static()(pruned, images, run), quantize.Dynamic()(pruned, images, run)]):
        folder = tmp_path / str(k)
        save(model, folder)
        loaded = load(lambda: fresh, folder)
        assert fingerprint(loaded) == fingerprint(model)
        assert architecture_of(loaded) == architecture_of(model)
        with torch.inference_mode():
            assert torch.equal(loaded(images.test.inputs), model.eval()(images.test.inputs))
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "architecture.json"}
    assert architecture_of(fresh) == architecture_of(cnn), "the fresh module is left as it was"


def test_a_folder_that_does_not_fit_is_refused(mlp: nn.Module, cnn: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E130"):
        load(mlp, tmp_path)
    save(mlp, tmp_path)
    with pytest.raises(UserError, match="E140"):
        load(cnn, tmp_path)
    record = read_json(tmp_path / "architecture.json")
    (tmp_path / "architecture.json").write_text(json.dumps({**record, "schema": 6}))
    with pytest.raises(UserError, match="E142"):
        load(mlp, tmp_path)
    write_json(tmp_path / "architecture.json", {**record, "schema": 7})
    with pytest.raises(UserError, match="E142"):
        load(mlp, tmp_path)
