"""One way from a path to its ONNX model, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper
from torch import nn

from mirabelle import Task, pack
from mirabelle.artifact.reading import model_of, onnx_of
from mirabelle.errors import UserError
from mirabelle.runtime.export import export


@pytest.fixture
def onnx(mlp: nn.Module, blobs: Task) -> bytes:
    return export(mlp, blobs.example())


def test_a_file_a_packed_file_and_a_run_give_the_same_model(onnx: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx)
    (tmp_path / "model.mira").write_bytes(pack(onnx))
    assert {onnx_of(tmp_path / "model.onnx"), onnx_of(str(tmp_path / "model.mira")), onnx_of(tmp_path)} == {onnx}


def test_what_is_missing_damaged_or_of_another_kind_is_told_with_its_name(onnx: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    contents = {
        "cut.onnx": onnx[:-7],
        "cut.mira": pack(onnx)[:-7],
        "empty.onnx": b"",
        "text.onnx": b"not a model",
        "model.pt": onnx,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    codes = {"absent.onnx": "E130", "empty": "E130", "model.pt": "E143"}
    for name in (*contents, "absent.onnx", "empty"):
        with pytest.raises(UserError) as caught:
            onnx_of(tmp_path / name)
        assert caught.value.code == codes.get(name, "E141"), name
        assert str(tmp_path / name) in caught.value.message


def test_two_gigabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(UserError, match=r"E121.*huge.onnx has 2 GiB"):
        onnx_of(tmp_path / "huge.onnx")


@pytest.mark.parametrize("place", ["stored", "attribute", "subgraph", "sparse", "function"])
def test_tensors_outside_of_the_folder_are_refused_wherever_they_stand(place: str, tmp_path: Path) -> None:
    outside = TensorProto(name="outside", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["y"], value=outside)
    nodes, tensors = [helper.make_node("Identity", ["outside"], ["y"])], []
    if place == "stored":
        tensors = [outside]
    elif place == "attribute":
        nodes = [constant]
    elif place == "subgraph":
        branch = helper.make_graph([constant], "b", [], [output])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [output], tensors))
    if place == "sparse":
        sparse = model.graph.sparse_initializer.add(dims=[1])
        sparse.values.CopyFrom(outside)
    if place == "function":
        opset = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("own", "f", [], ["y"], [constant], opset))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path.parent / "secret").write_bytes(b"1234")
    with pytest.raises(UserError, match=r'E143.*"outside" is stored in another file, "../secret", not in the folder'):
        onnx_of(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r'E143.*"outside" is stored in another file'):
        model_of((tmp_path / "model.onnx").read_bytes())
