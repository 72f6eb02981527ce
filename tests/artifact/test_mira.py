"""Version 1 of .mira: what it costs, one tensor at a time, without torch; version 0 is still read; damage and hostile files."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from mirabelle import PackedModel, Run, Task, pack, quantize, unpack
from mirabelle.artifact import mira
from mirabelle.artifact.head import PRODUCT
from mirabelle.artifact.inline import INLINE, INLINE_CONTEXTS, MULTIPLES
from mirabelle.artifact.multiples import multiples_of, step_of
from mirabelle.artifact.structure import Structure
from mirabelle.artifact.tensor_costs import costs_of
from mirabelle.artifact.wire import MODEL, bytes_of, fields_of
from mirabelle.cli.main import run
from mirabelle.codecs.contexts import Contexts
from mirabelle.codecs.mixing import Allowance, MixedDecoder, MixedEncoder, MixedLength
from mirabelle.errors import UserError
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.export import export
from mirabelle.runtime.skeleton import split

GOLDEN = Path(__file__).parent / "golden"
ONNX = (GOLDEN / "model.onnx").read_bytes()
FRONT = 21  # bytes before the head


def resealed(packed: bytes | bytearray) -> bytes:
    return bytes(packed[:5]) + hashlib.blake2b(packed[FRONT:], digest_size=16).digest() + bytes(packed[FRONT:])


@pytest.mark.parametrize("name", ["version-0", "version-1-first", "version-1"])
def test_golden_files_are_read(name: str) -> None:
    packed = (GOLDEN / f"{name}.mira").read_bytes()
    assert packed[4] == int(name.split("-")[1])
    assert unpack(packed) == ONNX


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two convolutions and two linear layers with few weights in codes, as a compressed network is."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 1, 12, 12), torch.arange(64) % 10
    task = Task(train=(inputs, targets), test=(inputs, targets))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 40), nn.ReLU(),
        nn.Linear(40, 10),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.1
    shared = quantize.Codebook(bits=2)(model, task, Run(tmp_path_factory.mktemp("codebook")))
    return export(shared, task.example(), [str(k) for k in range(10)])


def test_a_file_of_four_layers_has_at_most_sixty_bytes_over_graph_and_data(four_layers: bytes) -> None:
    packed = pack(four_layers)
    model = PackedModel(packed)
    skeleton, _ = split(four_layers)
    length = MixedLength()
    Structure(length).fields(MODEL, fields_of(skeleton.replace(four_layers[-16:], b"0" * 16)))
    graph = length.bits / 8
    inline = [k for k, entry in enumerate(model.head.entries) if entry.data is not None]
    bodies = sum(entry.length for entry in model.head.entries)
    data = 0.0
    values = MixedLength()
    for k in inline:
        from mirabelle.artifact.inline import code_data
        from mirabelle.codecs.mixing import Mixed

        entry = model.head.entries[k]
        code_data(Structure(values, Mixed()), model.head.tensors[k], entry.number, entry.data)
    data = values.bits / 8
    assert graph < 150, "the graph is coded by its structure"
    assert len(packed) - graph - bodies - data <= 60
    assert unpack(packed) == four_layers


def test_what_unpacks_runs_with_the_same_outputs_in_a_process_without_torch(four_layers: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.mira").write_bytes(pack(four_layers))
    images = np.random.default_rng(0).standard_normal((5, 1, 12, 12)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    program = """
import sys
for name in ("torch", "onnx", "google.protobuf"):
    sys.modules[name] = None
from mirabelle.cli.entry import main
sys.argv = ["mirabelle", "unpack", "model.mira"]
try:
    main()
except SystemExit as end:
    assert not end.code
for name in ("torch", "onnx", "google.protobuf"):
    del sys.modules[name]
import numpy, onnxruntime
outputs = onnxruntime.InferenceSession("model.onnx").run(None, {"input": numpy.load("images.npy")})
numpy.save("outputs.npy", outputs[0])
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "model.onnx").read_bytes() == four_layers
    expected = onnxruntime.InferenceSession(four_layers).run(None, {"input": images})[0]
    assert np.array_equal(np.load(tmp_path / "outputs.npy"), expected)


def test_one_tensor_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PackedModel((GOLDEN / "version-1.mira").read_bytes())
    expected = {tensor.name: tensor for tensor in ModelProto.FromString(ONNX).graph.initializer}
    assert model.names == list(expected)
    decoded: list[str] = []
    real = mira.decoded
    monkeypatch.setattr(mira, "decoded", lambda tensor, *rest: decoded.append(tensor.name) or real(tensor, *rest))
    assert model.array("half").tobytes() == expected["half"].raw_data
    assert decoded == ["half"]
    with pytest.raises(KeyError):
        model.array("nowhere")


def test_any_buffer_and_parts_are_read() -> None:
    content = (GOLDEN / "version-1.mira").read_bytes()
    for given in (content, bytearray(content), memoryview(content), mira.packed_parts(ONNX)):
        assert b"".join(PackedModel(given).parts()) == ONNX


def test_a_state_dict_has_the_values_and_types() -> None:
    found = PackedModel((GOLDEN / "version-1.mira").read_bytes()).state_dict()
    tensors = {tensor.name: tensor for tensor in ModelProto.FromString(ONNX).graph.initializer}
    assert list(found) == list(tensors)
    assert found["brain"].dtype == torch.bfloat16
    assert found["brain"].view(torch.int16).numpy().tobytes() == tensors["brain"].raw_data
    raw = np.frombuffer(tensors["fc4.codes"].raw_data, np.uint8)
    nibbles = [(byte >> shift & 15) - 16 * (byte >> shift & 15 > 7) for byte in raw.astype(int) for shift in (0, 4)]
    assert found["fc4.codes"].flatten().tolist() == nibbles[:15]
    assert found["fc2.codes"].dtype == torch.int8
    assert torch.equal(found["fc2.bias_scale"], found["fc2.input_scale"] * found["fc2.scale"])


def test_a_packed_network_goes_straight_into_torch(cnn: nn.Module, images: Task) -> None:
    other = copy.deepcopy(cnn)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    missing = other.load_state_dict(PackedModel(pack(export(cnn, images.example()))).state_dict(), strict=False)
    assert not missing.missing_keys
    for name, value in cnn.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_products_of_scales_are_not_stored_again() -> None:
    model = PackedModel((GOLDEN / "version-1.mira").read_bytes())
    entries = dict(zip(model.names, model.head.entries, strict=True))
    assert [name for name, entry in entries.items() if entry.number == PRODUCT] == ["fc2.bias_scale"]


def model_of(*arrays: np.ndarray | TensorProto) -> bytes:
    tensors = [
        array
        if isinstance(array, TensorProto)
        else helper.make_tensor(f"t{k}.x", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes(), raw=True)
        for k, array in enumerate(arrays)
    ]
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"]) for tensor in tensors]
    return canonical(helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)), {})


EDGES = {
    "smallest and largest integers": np.array([-(1 << 63), (1 << 63) - 1, 0, -1], np.int64),
    "smallest and largest of 32 bits": np.array([-(1 << 31), (1 << 31) - 1], np.int32),
    "NaN with bits, infinities": np.array([0x7FC12345, 0xFF800000, 0x7F800000, 0x80000000], np.uint32).view(np.float32),
    "all zero": np.zeros((40, 30), np.float32),
    "one element": np.array([[[3]]], np.int8),
    "scalar": np.array(-7, np.int64),
    "empty": np.zeros((0, 5), np.int8),
    "empty with a large size": np.zeros((1 << 20, 0), np.int8),
    "false and true": np.array([True, False]),
    "complex": np.array([1 + 2j, 3], np.complex64),
}


@pytest.mark.parametrize("name", EDGES)
def test_strange_values_come_back_bit_for_bit(name: str) -> None:
    onnx = model_of(EDGES[name])
    assert unpack(pack(onnx)) == onnx


@pytest.mark.parametrize(("kind", "bits"), [(21, 4), (22, 4), (23, 4), (25, 2), (26, 2)])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 9), (0,), (64, 64)])
def test_types_of_less_than_eight_bits_come_back(kind: int, bits: int, shape: tuple[int, ...]) -> None:
    size = (int(np.prod(shape)) * bits + 7) // 8
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8) * (np.random.default_rng(1).random(size) < 0.3)
    for last in (raw, np.append(raw[:-1], 0).astype(np.uint8) if size else raw):  # bits behind the last element, or none
        onnx = model_of(TensorProto(name="codes", data_type=kind, dims=shape, raw_data=last.astype(np.uint8).tobytes()))
        assert unpack(pack(onnx)) == onnx


def test_a_large_graph_is_deflated_and_comes_back(monkeypatch: pytest.MonkeyPatch, four_layers: bytes) -> None:
    small = pack(four_layers)
    monkeypatch.setattr("mirabelle.artifact.head._SMALL", 0)
    monkeypatch.setattr("mirabelle.artifact.head._LARGEST", 0)
    mira._packed.cache_clear()
    large = pack(four_layers)
    assert unpack(large) == four_layers
    assert len(large) > len(small) + 200


@pytest.mark.parametrize("position", range(0, FRONT, 3))
def test_every_changed_byte_of_the_front_is_noticed(position: int) -> None:
    packed = bytearray((GOLDEN / "version-1.mira").read_bytes())
    packed[position] ^= 1
    with pytest.raises(UserError, match=r"E14[123]"):
        unpack(bytes(packed))


@pytest.fixture(scope="module")
def tiny() -> bytes:
    codes = np.random.default_rng(0).integers(-2, 3, (6, 9)).astype(np.int8)
    return pack(model_of(codes, np.float32([0.5, 0.25]), np.arange(200, dtype=np.int64), codes[0]))


def outcome(packed: bytes | bytearray) -> str:
    """The code of the error with which a file is refused; an empty one if it is read."""
    try:
        found = unpack(resealed(packed))
    except UserError as error:
        return error.code
    assert bytes_of(fields_of(found)) == found
    return ""


REFUSED_OR_READ = {"", "E106", "E141", "E203"}


def test_every_length_of_a_resealed_file_is_refused_or_read(tiny: bytes) -> None:
    found = [outcome(tiny[:length]) for length in range(FRONT, len(tiny))]
    assert set(found) <= REFUSED_OR_READ
    assert found.count("") <= 2, "zeros follow the end of a stream, so one that ends in zeros may lack them"


def test_every_changed_byte_of_a_resealed_file_is_refused_or_read(tiny: bytes) -> None:
    for position in range(FRONT, len(tiny)):
        packed = bytearray(tiny)
        packed[position] ^= 0x41
        assert outcome(packed) in REFUSED_OR_READ, position


def test_random_heads_are_refused_or_read(tiny: bytes) -> None:
    generator = np.random.default_rng(0)
    for length in (0, 1, 5, 50):
        for form in (0, 1, 2):
            head = bytes([form]) + generator.bytes(length)
            found = outcome(tiny[:FRONT] + bytes([len(head)]) + head)
            assert found in (REFUSED_OR_READ if form == 0 else {"E141", "E203"})


def test_all_streams_of_a_file_together_are_bounded() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (100, 100)).astype(np.uint8)
    body = Contexts().encode(codes)
    allowance = Allowance(15_000)
    assert np.array_equal(Contexts(allowance).decode(body, codes.shape, codes.dtype), codes)
    with pytest.raises(ValueError, match="so many bits"):
        Contexts(allowance).decode(body, codes.shape, codes.dtype)
    assert Contexts(Allowance(100)).estimate(codes, np.ones((1, 256), np.int64)) == np.inf, "it is not tried then"


def test_a_head_cannot_hold_much(tiny: bytes) -> None:
    """Data in the head are for small tensors: a hostile entry of a large one is refused before memory is taken."""
    for number in (INLINE, INLINE_CONTEXTS):
        model = ModelProto()
        model.graph.initializer.append(TensorProto(name="t", data_type=TensorProto.INT8, dims=[1 << 14, 1 << 13]))
        coder = MixedEncoder()
        structure = Structure(coder)
        structure.fields(MODEL, fields_of(model.SerializeToString()))
        structure.number(0, "sealed", [()])
        structure.number(number, "codec", [(), "t", TensorProto.INT8])
        head = b"\0" + coder.finished()
        with pytest.raises(UserError, match="too large for the head"):
            unpack(resealed(tiny[:FRONT] + bytes([len(head)]) + head))


def test_messages_that_lie_deep_in_each_other_are_refused() -> None:
    inner: list[tuple[int, object]] = []
    for _ in range(40):
        inner = [(1 << 3 | 2, [(5 << 3 | 2, [(6 << 3 | 2, inner)])])]
    with pytest.raises(ValueError, match="too deep"):
        Structure(MixedEncoder()).fields(MODEL, [(7 << 3 | 2, inner)])
    with pytest.raises(ValueError, match="too deep"):
        fields_of(bytes_of([(7 << 3 | 2, inner)]))


def test_the_structure_of_graphs_comes_back_in_the_order_of_fields() -> None:
    fields = fields_of(split(ONNX)[0])
    coder = MixedEncoder()
    Structure(coder).fields(MODEL, fields)
    assert Structure(MixedDecoder(coder.finished())).fields() == fields
    assert len(coder.finished()) < len(bytes_of(fields)) / 6


def bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.astype(np.float32)).bfloat16().float().numpy()


@pytest.mark.parametrize("step", [0.0917, 1e-30, 3.3e8, 0.25])
@pytest.mark.parametrize("first", [-7, 2, 3])
def test_multiples_of_a_step_are_coded_as_integers(step: float, first: int) -> None:
    values = bfloat16(np.array([0.0, *np.arange(first, first + 12), 3 * first, -first]) * np.float32(step))
    found = step_of(values.tobytes())
    assert found is not None
    assert multiples_of(*found) == values.tobytes()
    onnx = model_of(values)
    packed = pack(onnx)
    assert unpack(packed) == onnx
    assert [entry.number for entry in PackedModel(packed).head.entries] == [MULTIPLES]


@pytest.mark.parametrize(
    "values",
    [
        np.float32([0.1, 0.2]),  # no bfloat16
        bfloat16(np.array([0.1, 0.2, np.inf])),
        bfloat16(np.array([0.1, 0.2, np.nan])),
        bfloat16(np.array([0.1, 0.2, -0.0])),
        bfloat16(np.array([1e-30, 1.0])),  # too many steps
        bfloat16(np.random.default_rng(0).standard_normal(30)),
        np.zeros(4, np.float32),
        np.zeros(0, np.float32),
        np.array([1], np.uint32).view(np.float32),  # below the smallest normal number
    ],
    ids=str,
)
def test_other_floats_are_no_multiples_and_come_back(values: np.ndarray) -> None:
    assert step_of(values.tobytes()) is None
    onnx = model_of(values)
    assert unpack(pack(onnx)) == onnx


@pytest.mark.parametrize(
    "integers", [[-5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6], [12, 127, -31, 127, 21, -127], [50, 49], [-64, 127]]
)
def test_products_that_lie_between_two_numbers_and_large_multiples_are_found(integers: list[int]) -> None:
    values = multiples_of(0.38671875, np.array(integers))  # of which 3 and 5 times lie between two bfloat16
    found = step_of(values)
    assert found is not None
    assert multiples_of(*found) == values


def test_the_rounding_of_multiples_is_that_of_torch() -> None:
    numbers = np.arange(-3000, 3000)
    step = float(np.float32(0.01234567))
    expected = bfloat16(numbers.astype(np.float32) * np.float32(step))
    assert multiples_of(step, numbers) == expected.tobytes()


def test_the_costs_of_tensors_add_up_to_the_file() -> None:
    packed = (GOLDEN / "version-1.mira").read_bytes()
    costs = costs_of(packed)
    total = costs.graph_bytes + sum(one.size_bytes for one in costs.tensors)
    assert len(packed) - 30 < total < len(packed), "what is left are digest and lengths"
    found = {one.name: one for one in costs.tensors}
    codes = PackedModel(packed).array("fc3.codes")
    shares = np.bincount(codes.ravel()) / codes.size
    assert found["fc3.codes"].entropy_bytes == pytest.approx(-codes.size * (shares * np.log2(shares)).sum() / 8)
    assert (found["fc3.codes"].kind, found["fc3.codes"].codec) == ("uint2", "histogram")
    assert found["nothing"].entropy_bytes == 0
    assert found["empty"].elements == 0
    for one in costs.tensors:  # at most a bit for each element above the entropy, which no code of whole bits is below
        assert one.entropy_bytes <= one.huffman_bytes <= one.entropy_bytes + one.elements / 8


def test_inspect_prints_the_bits_of_tensors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in (GOLDEN / "version-1.mira", GOLDEN / "version-0.mira", GOLDEN / "model.onnx"):
        assert run(["inspect", str(path), "--bits", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert [one["name"] for one in data["tensors"]] == PackedModel(pack(ONNX)).names
        if path.suffix == ".mira":
            assert data["size_bytes"] == path.stat().st_size
            assert data["graph_bytes"] + sum(one["size_bytes"] for one in data["tensors"]) < data["size_bytes"]
    assert run(["inspect", str(GOLDEN / "version-1.mira"), "--bits"]) == 0
    assert "product of two" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "none.mira"), "--bits"]) == 2
    assert "E130" in capsys.readouterr().err


def test_a_tensor_may_be_asked_for_often() -> None:
    codes = (np.random.default_rng(0).random((300, 784)) < 0.002).astype(np.int8)
    model = PackedModel(pack(model_of(codes)))
    bits = [model._codecs[6]._allowance.left for _ in range(3) if model.array("t0.x").any()]
    assert len(set(bits)) == 1, "the bits of a tensor are counted once"
    assert np.array_equal(model.array("t0.x"), codes)


def test_dense_codes_do_not_exhaust_the_head() -> None:
    draw = np.random.default_rng(0)
    rows = draw.choice([-127, 127], (64, 1)) * np.ones((1, 64), int)
    onnx = model_of(*[np.where(draw.random((64, 64)) < 0.05, -rows, rows).astype(np.int8) for _ in range(9)])
    assert unpack(pack(onnx)) == onnx


def test_a_graph_that_contexts_do_not_take_is_deflated() -> None:
    long = TensorProto(name="n" + "7" * 5000, data_type=1, dims=[1], raw_data=bytes(4))
    names = model_of(long)
    assert unpack(pack(names)) == names
    model = ModelProto.FromString(model_of(np.zeros(3, np.float32)))
    model.metadata_props.add(key="words", value="a" * 30_000)
    text = model.SerializeToString(deterministic=True)
    packed = pack(text)
    assert unpack(packed) == text
    assert len(packed) < 500


@pytest.mark.parametrize("shape", [[1] * 40, [1 << 40, 1 << 40, 0], [(1 << 63) - 1] * 300])
def test_shapes_that_no_array_has_are_refused(shape: list[int]) -> None:
    length = 4 if shape[0] == 1 else 0
    tensor = TensorProto(name="t", data_type=1, dims=shape, raw_data=bytes(length))
    model = helper.make_model(helper.make_graph([helper.make_node("Identity", ["t"], ["y"])], "g", [], [], [tensor]))
    with pytest.raises(UserError, match=r"E121.*shape that no array has"):
        pack(model.SerializeToString(deterministic=True))


def test_what_would_not_come_back_is_not_packed() -> None:
    model = ModelProto.FromString(model_of(np.zeros(3, np.float32)))
    model.graph.MergeFromString(b"\x18\x05")  # a field that ONNX does not know, which protobuf writes last
    for wrong in (b"", model.SerializeToString(deterministic=True), b"\x12\x09mirabelle"):
        with pytest.raises(UserError, match="E121"):
            pack(wrong)


def test_products_that_depend_on_the_processor_are_stored() -> None:
    tiny, other = np.float32(1e-30), np.array([1.5e-9, 2e-9, 3e-9], np.float32)
    onnx = model_of(np.array(tiny), other, tiny * other)  # below the smallest normal number
    assert [entry.number for entry in PackedModel(pack(onnx)).head.entries][-1] != PRODUCT
    with np.errstate(invalid="ignore"):
        lost = np.float32(0) * np.array([1, np.inf, 2], np.float32)
    onnx = model_of(np.array(np.float32(0)), np.array([1, np.inf, 2], np.float32), lost)
    assert unpack(pack(onnx)) == onnx
    assert PRODUCT not in [entry.number for entry in PackedModel(pack(onnx)).head.entries]


def test_a_product_of_other_types_is_refused(tiny: bytes) -> None:
    model = ModelProto(ir_version=10)
    for name, kind, dims in (("one", 1, [2]), ("other", 1, [2]), ("both", 1, [2])):
        model.graph.initializer.append(TensorProto(name=name, data_type=kind, dims=dims))
    coder = MixedEncoder()
    structure = Structure(coder)
    structure.fields(MODEL, fields_of(model.SerializeToString()))
    structure.number(0, "sealed", [()])
    for name in ("one", "other"):
        structure.number(0, "codec", [(), name, 1])
        structure.number(8, "length", [(), name])
    structure.number(PRODUCT, "codec", [(), "both", 1])
    structure.number(0, "factor", [()])
    structure.number(1, "factor", [()])
    head = b"\0" + coder.finished()
    with pytest.raises(UserError, match="no product of a number and floats"):
        unpack(resealed(tiny[:FRONT] + bytes([len(head)]) + head + bytes(16)))


@pytest.mark.parametrize("field", [(2, b""), (1 << 33 | 2, b""), (15 << 3, 1 << 64)])
def test_fields_that_protobuf_does_not_read_are_refused(field: tuple[int, object]) -> None:
    with pytest.raises(ValueError, match="impossible number or value"):
        fields_of(bytes_of([field]))
    with pytest.raises(ValueError, match="impossible number or value"):
        Structure(MixedEncoder()).fields(MODEL, [field])


def test_a_model_that_is_packed_again_is_not_coded_again(four_layers: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(four_layers)
    monkeypatch.setattr(mira, "packed_parts", None)
    assert pack(four_layers) == first
    with pytest.raises(TypeError):
        pack(ONNX)
