"""`mirabelle verify`: intact artifacts pass, and every kind of damage is caught by its gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from mirabelle import Task, compress, load, pack, prune, quantize, save
from mirabelle.errors import UserError
from mirabelle.run.files import read_tensors, write_tensors
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources.zoo import digits_mlp


def verdicts(call: Callable[..., int], capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, tuple[str, str]]:
    """Gate -> (verdict, detail); that the exit status fits is checked on the way."""
    raised, status = None, 0
    try:
        status = call("verify", *arguments, "--json")
    except UserError as error:
        raised, status = error.code, error.exit_status
    assert raised in (None, "E302")
    told = json.loads(capsys.readouterr().out)
    found = {gate["gate"]: (gate["verdict"], gate["detail"]) for gate in told["gates"]}
    failed = any(verdict == "failed" for verdict, _ in found.values())
    assert status == (4 if failed else 0)
    assert told["passed"] == (not failed)
    return found


def failed(found: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, (verdict, _) in found.items() if verdict == "failed"}


def test_gates_and_predictions_run_in_the_runtime_that_is_named(call, capsys, finished: Path) -> None:
    assert call("verify", finished, "--runtime", "onnxruntime_extended") == 0
    assert call("verify", finished / "model.onnx", "--runtime", "onnxruntime_extended") == 0
    with pytest.raises(UserError, match=r'E103.*no runtime "openvin"'):
        call("verify", finished, "--runtime", "openvin")
    with pytest.raises(UserError, match=r'E103.*no runtime "openvin"'):
        call("predict", finished, "x.npy", "--runtime", "openvin")


def test_an_intact_run_passes_every_gate(call, capsys, finished: Path) -> None:
    found = verdicts(call, capsys, finished)
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(
        ("torch_onnx", "packed_unpacked", "saved_loaded", "metric", "digests"), "passed"
    )
    assert call("verify", finished) == 0
    assert "packed_unpacked  passed       " in capsys.readouterr().out


def test_a_changed_weight_is_caught_and_its_layer_named(call, capsys, copied: Path) -> None:
    model = load(digits_mlp, copied)
    model.fc1.codes.neg_()
    save(model, copied)
    found = verdicts(call, capsys, copied)
    assert failed(found) == {"torch_onnx", "saved_loaded", "digests"}
    assert 'the first layer that differs is "fc1"' in found["torch_onnx"][1]
    assert 'tensor "fc1.codes" differs' in found["saved_loaded"][1]
    with pytest.raises(UserError, match=r'E302.*torch_onnx failed.*"fc1"'):
        call("verify", copied)


def test_one_small_weight_that_changes_no_output_much_is_caught_too(call, capsys, copied: Path) -> None:
    tensors = read_tensors(copied / "model.safetensors")[0]
    tensors["fc1.codes"][0, 0] += 1
    write_tensors(copied / "model.safetensors", tensors)
    found = verdicts(call, capsys, copied)
    assert failed(found) == {"torch_onnx", "saved_loaded", "digests"}
    assert "was not written together with architecture.json" in found["torch_onnx"][1]


def test_a_weight_that_changes_no_output_at_all_is_caught(call, capsys, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    model, task = (
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)),
        Task(train=(x, y), test=(x, y)),
    )
    with torch.no_grad():
        model[0].bias[2] = -1e6  # never passes the ReLU
    folder = compress(model, task, [prune.Weights(sparsity=0.1, include=("2.*",))], out=tmp_path / "run").folder
    proto = ModelProto.FromString((folder / "model.onnx").read_bytes())
    weight = next(one for one in proto.graph.initializer if one.name == "0.weight")
    values = numpy_helper.to_array(weight).copy()
    values[(2, 1) if values.shape == (6, 4) else (1, 2)] += 0.25
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    changed = proto.SerializeToString(deterministic=True)
    sessions = [default_runtime().load(one, 1) for one in ((folder / "model.onnx").read_bytes(), changed)]
    one, other = (session.run(session.feed(x))[0] for session in sessions)
    assert (one == other).all(), "this is what makes it hard to see"

    (tmp_path / "alone.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert failed(verdicts(call, capsys, tmp_path / "alone.onnx")) == set()
    (tmp_path / "alone.onnx").write_bytes(changed)
    (tmp_path / "alone.mira").write_bytes(pack(changed))
    for name in ("alone.onnx", "alone.mira"):
        found = verdicts(call, capsys, tmp_path / name)
        assert failed(found) == {"digest"}
        assert "changed since it was written" in found["digest"][1]
    (folder / "model.onnx").write_bytes(changed)
    assert failed(verdicts(call, capsys, folder / "model.onnx")) == {"decoded"}
    assert {"packed_unpacked", "digests"} <= failed(verdicts(call, capsys, folder))


def test_a_flipped_byte_of_the_packed_file_is_caught(call, capsys, copied: Path) -> None:
    data = bytearray((copied / "model.mira").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.mira").write_bytes(data)
    found = verdicts(call, capsys, copied)
    assert failed(found) == {"packed_unpacked", "digests"}
    assert "digest" in found["packed_unpacked"][1]
    alone = verdicts(call, capsys, copied / "model.mira")
    assert failed(alone) == {"decoded"}
    assert alone["outputs"][0] == "not checked"


def test_the_onnx_file_of_another_model_is_caught(call, capsys, copied: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    inputs = torch.rand(20, 1, 8, 8)
    task = Task(train=(inputs, torch.arange(20) % 10), test=(inputs, torch.arange(20) % 10), labels=tuple("0123456789"))
    (copied / "model.onnx").write_bytes(export(digits_mlp().eval(), task.example(), task.labels))
    found = verdicts(call, capsys, copied)
    assert failed(found) == {"torch_onnx", "packed_unpacked", "metric", "digests"}
    assert "report.json has" in found["metric"][1]
    wide = export(nn.Sequential(nn.Flatten(), nn.Linear(64, 12)).eval(), task.example())
    (copied / "model.onnx").write_bytes(wide)
    assert "torch_onnx" in failed(verdicts(call, capsys, copied))


GATES = {
    "model.onnx": {"torch_onnx", "packed_unpacked", "metric", "digests"},
    "model.mira": {"packed_unpacked", "digests"},
    "model.safetensors": {"torch_onnx", "saved_loaded", "digests"},
    "architecture.json": {"torch_onnx", "saved_loaded", "digests"},
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_what_is_truncated_or_gone_is_caught(call, capsys, copied: Path, name: str, damage: str) -> None:
    path = copied / name
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    assert failed(verdicts(call, capsys, copied)) == GATES[name]


def test_a_changed_report_is_caught(call, capsys, copied: Path) -> None:
    report = json.loads((copied / "report.json").read_text())
    report["end"]["metric"]["value"] += 0.0025
    (copied / "report.json").write_text(json.dumps(report))
    assert failed(verdicts(call, capsys, copied)) == {"metric", "digests"}


def test_a_run_that_has_not_ended_is_no_failed_gate_but_a_mistake(call, copied: Path, tmp_path: Path) -> None:
    (copied / "report.json").unlink()
    with pytest.raises(UserError, match=r"E130.*is not finished"):
        call("verify", copied)
    with pytest.raises(UserError, match=r"E130.*contains no run"):
        call("verify", tmp_path)
    with pytest.raises(UserError, match=r"E130.*no file"):
        call("verify", tmp_path / "absent.mira")
    with pytest.raises(UserError, match="E143"):
        call("verify", copied / "model.safetensors")


def test_what_a_run_in_python_leaves_unchecked_is_told(call, capsys, mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run")
    found = verdicts(call, capsys, tmp_path / "run")
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "torch_onnx": "not checked",
        "packed_unpacked": "passed",
        "saved_loaded": "passed",
        "metric": "not checked",
        "digests": "passed",
    }
    assert "the data are not available" in found["torch_onnx"][1]


def test_other_data_are_no_proof_of_the_reported_metric(call, capsys, finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import torch, mirabelle\n"
    code += "def data():\n    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 10\n"
    code += "    return mirabelle.Task(train=(x, y), test=(x, y))\n"
    Path("other.py").write_text(code)
    found = verdicts(call, capsys, finished, "--data", "./other.py:data")
    assert found["torch_onnx"][0] == "passed"
    assert found["metric"][0] == "not checked"
    assert "the test data differ from those of the run" in found["metric"][1]
    assert "on 60 test samples" in found["metric"][1]


@pytest.mark.parametrize("name", ["model.onnx", "model.mira"])
def test_a_file_alone_is_checked_on_drawn_inputs_or_on_data(call, capsys, finished: Path, name: str) -> None:
    drawn = verdicts(call, capsys, finished / name)
    assert {gate: verdict for gate, (verdict, _) in drawn.items()} == dict.fromkeys(
        ("decoded", "digest", "valid", "outputs"), "passed"
    )
    data = verdicts(call, capsys, finished / name, "--data", "digits")
    value = json.loads((finished / "report.json").read_text())["end"]["metric"]["value"]
    assert f"accuracy {value:.6g}" in data["metric"][1]


@pytest.mark.parametrize("name", ["model.onnx", "model.mira", ""])
def test_data_of_another_shape_are_wrong_input_and_no_failed_gate(
    call, capsys, finished: Path, tmp_path: Path, name: str
) -> None:
    code = "import torch\nfrom mirabelle import Task\ndef data():\n    x, y = torch.randn(90, 1, 5, 7), torch.arange(90) % 10\n"
    (tmp_path / "wide.py").write_text(code + "    return Task(train=(x, y), test=(x, y))\n")
    with pytest.raises(UserError, match=r"E131.*float32 \(2, 1, 5, 7\) .* float32 \(\?, 1, 8, 8\)") as caught:
        call("verify", finished / name, "--data", f"{tmp_path / 'wide.py'}:data")
    assert caught.value.exit_status == 2
    assert capsys.readouterr().out == ""


def test_outputs_that_are_not_finite_or_not_as_promised_are_caught(call, capsys, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sqrt", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert failed(verdicts(call, capsys, tmp_path / "m.onnx")) == {"outputs"}
    model.graph.node[0].op_type = "Sqroot"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert failed(verdicts(call, capsys, tmp_path / "m.onnx")) == {"valid", "outputs"}


def test_a_packed_file_of_an_invalid_graph_is_caught(call, capsys, finished: Path, tmp_path: Path) -> None:
    model = ModelProto.FromString((finished / "model.onnx").read_bytes())
    del model.graph.node[0]
    shutil.copy(finished / "model.mira", tmp_path / "m.mira")
    (tmp_path / "m.mira").write_bytes(pack(model.SerializeToString(deterministic=True)))
    found = verdicts(call, capsys, tmp_path / "m.mira")
    assert found["decoded"][0] == "passed"
    assert failed(found) == {"digest", "valid", "outputs"}


def test_a_run_whose_steps_were_tidied_away_is_told_as_not_checked_there(call, capsys, copied: Path) -> None:
    shutil.rmtree(copied / "steps")
    found = verdicts(call, capsys, copied)
    assert found.pop("saved_loaded")[0] == "not checked"
    assert {verdict for verdict, _ in found.values()} == {"passed"}


def test_sizes_of_free_axes_are_given_or_found_by_trial(call, capsys, tmp_path: Path) -> None:
    """A graph that takes only widths of a multiple of 32, as PP-OCR does, and one that no size fits."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "parts", "part"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [0, -1, 32])
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [x], [y], [shape])
    path = tmp_path / "m.onnx"
    opset = {"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 10}
    path.write_bytes(helper.make_model(graph, **opset).SerializeToString())
    assert "(sizes found by trial: x 2,32)" in verdicts(call, capsys, path)["outputs"][1]
    assert verdicts(call, capsys, path, "--input", "x=3,64")["outputs"] == (
        "passed",
        "finite and of the stated shape on 3 samples",
    )
    assert failed(verdicts(call, capsys, path, "--input", "20")) == {"outputs"}
    with pytest.raises(UserError, match=r'E111.*"y"; it takes "x" \(n,width\) float'):
        call("verify", path, "--input", "y=3")
    graph.initializer[0].CopyFrom(helper.make_tensor("shape", TensorProto.INT64, [3], [0, 7, 31]))
    path.write_bytes(helper.make_model(graph, **opset).SerializeToString())
    verdict, detail = verdicts(call, capsys, path)["outputs"]
    assert verdict == "not checked"
    assert "--input" in detail
