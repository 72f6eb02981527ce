"""`mirabelle pack` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirabelle import unpack
from mirabelle.errors import UserError
from mirabelle.runtime.gates import Gate


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], [float(k % 7 == 0) for k in range(64 * 64)])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    path = tmp_path / "foreign.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())
    return path


def test_the_model_of_a_run_is_packed_to_the_file_of_the_run(call, capsys, finished: Path, tmp_path: Path) -> None:
    assert call("pack", finished / "model.onnx", "--out", tmp_path / "m.mira", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (tmp_path / "m.mira").read_bytes() == (finished / "model.mira").read_bytes()
    assert told["as_it_was"]
    assert told["packed_bytes"] == (tmp_path / "m.mira").stat().st_size
    assert told["ratio"] == pytest.approx(told["onnx_bytes"] / told["packed_bytes"])


def test_a_foreign_file_is_packed_beside_itself_and_the_change_of_form_is_told(call, capsys, foreign: Path) -> None:
    assert call("pack", foreign) == 0
    told = capsys.readouterr().out
    assert "gzip: " in told
    assert "unpacking gives the canonical form" in told
    packed = foreign.with_suffix(".mira").read_bytes()
    assert len(packed) < foreign.stat().st_size / 10
    assert b"w" in unpack(packed)


def test_a_failed_gate_leaves_no_file(call, foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Gate(passed=False, worst=1.0, detail="bytes differ")
    monkeypatch.setattr("mirabelle.artifact.foreign.same_bytes", lambda *_: bad)
    with pytest.raises(UserError, match=r"E302.*packed_unpacked failed: bytes differ"):
        call("pack", foreign)
    assert not foreign.with_suffix(".mira").exists()


def test_what_cannot_be_packed_is_told_with_its_name(call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for path, code in [
        (tmp_path / "text.onnx", "E141"),
        (tmp_path / "absent.onnx", "E130"),
        (finished / "model.mira", "E143"),
        (finished / "model.safetensors", "E143"),
    ]:
        with pytest.raises(UserError, match=code) as caught:
            call("pack", path)
        assert path.name in caught.value.message


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_no_file_of_anybodys_is_written_over(call, finished: Path, tmp_path: Path, command: str) -> None:
    suffix, other = (".onnx", ".mira") if command == "pack" else (".mira", ".onnx")
    source = tmp_path / f"model{suffix}"
    source.write_bytes((finished / f"model{suffix}").read_bytes())
    (tmp_path / "net.py").write_text("mine")
    (tmp_path / f"folder{other}").mkdir()
    for out, code in ((source, "E143"), (tmp_path / "net.py", "E143"), (tmp_path / f"folder{other}", "E151")):
        with pytest.raises(UserError, match=code):
            call(command, source, "--out", out)
    assert source.read_bytes() == (finished / f"model{suffix}").read_bytes()
    assert (tmp_path / "net.py").read_text() == "mine"


def test_a_file_with_tensors_beside_it_is_packed_with_them(call, capsys, foreign: Path) -> None:
    model = onnx.load(foreign)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]), "w"))
    onnx.save(model, foreign, save_as_external_data=True, location="foreign.onnx.data", size_threshold=0)
    assert call("pack", foreign) == 0
    assert "unpacking gives one file" in capsys.readouterr().out
    assert call("verify", foreign) == 0
    assert call("inspect", foreign) == 0
    assert call("unpack", foreign.with_suffix(".mira"), "--out", foreign.parent / "one.onnx") == 0
    restored = ModelProto.FromString((foreign.parent / "one.onnx").read_bytes())
    assert len(restored.graph.initializer[0].raw_data) == 64 * 64 * 4
    (foreign.parent / "foreign.onnx.data").unlink()
    with pytest.raises(UserError, match=r"E130.*foreign.onnx.data, which is missing"):
        call("pack", foreign)
