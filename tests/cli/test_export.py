"""`mirabelle export` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto

from mirabelle.errors import UserError
from mirabelle.run.files import read_tensors, write_tensors
from mirabelle.runtime.gates import Gate
from mirabelle.runtime.program import LoadedProgram
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.signature import signature_of

NET = """
import torch
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
def broken():
    raise RuntimeError("no disk")
def nothing():
    return 7
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return "./net.py:net"


def test_a_run_gives_exactly_its_own_file(call, capsys, finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--out", tmp_path / "m.onnx", "--json") == 0
    assert (tmp_path / "m.onnx").read_bytes() == (finished / "model.onnx").read_bytes()
    gates = json.loads(capsys.readouterr().out)["gates"]
    assert {name: gate["passed"] for name, gate in gates.items()} == {"torch_onnx": True, "as_in_the_run": True}


def test_a_run_whose_weights_were_changed_is_not_exported(call, copied: Path, tmp_path: Path) -> None:
    tensors = read_tensors(copied / "model.safetensors")[0]
    tensors["fc1.codes"] = -tensors["fc1.codes"]
    write_tensors(copied / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"E141.*model.safetensors is damaged, or was not written together"):
        call("export", copied, "--out", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_factory_with_its_weights_gives_the_outputs_of_torch(call, capsys, factory: str, tmp_path: Path) -> None:
    from mirabelle.sources import model_from

    torch.manual_seed(5)
    module = model_from(factory, {}, tmp_path).eval()
    write_tensors(tmp_path / "w.safetensors", module.state_dict())
    arguments = ("--input", "1x8x8", "--weights", "w.safetensors", "--label", "a", "--label", "b", "--label", "c")
    assert call("export", factory, "--out", "m.onnx", *arguments) == 0
    assert "gate torch_onnx: passed" in capsys.readouterr().out
    exported = (tmp_path / "m.onnx").read_bytes()
    session, inputs = default_runtime().load(exported, 1), torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        assert session.run(session.feed(inputs))[0] == pytest.approx(module(inputs).numpy(), abs=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.ModelProto.FromString(exported).metadata_props}
    assert json.loads(metadata["labels"]) == ["a", "b", "c"]


def test_a_run_as_a_program_of_torch_gives_what_its_onnx_file_gives(call, capsys, finished: Path, tmp_path: Path) -> None:
    assert call("export", finished, "--out", tmp_path / "m.pt2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: gate["passed"] for name, gate in told["gates"].items()} == {
        "torch_onnx": True,
        "as_in_the_run": True,
        "pt2_onnx": True,
    }
    assert told["pt2_bytes"] == (tmp_path / "m.pt2").stat().st_size
    session, inputs = default_runtime().load((finished / "model.onnx").read_bytes(), 1), torch.rand(9, 1, 8, 8)
    given = LoadedProgram((tmp_path / "m.pt2").read_bytes())(inputs).detach().numpy()
    assert given == pytest.approx(session.run(session.feed(inputs))[0], abs=0.02 * float(abs(given).max()))


def test_a_factory_as_a_program_of_torch(call, capsys, factory: str) -> None:
    assert call("export", factory, "--input", "1x8x8", "--out", "m.pt2") == 0
    assert "gate pt2_onnx: passed" in capsys.readouterr().out
    assert LoadedProgram(Path("m.pt2").read_bytes())(torch.rand(3, 1, 8, 8)).shape == (3, 3)
    assert call("export", factory, "--input", "1x8x8", "--out", "few.pt2", "--largest-batch", "4") == 0
    with pytest.raises((AssertionError, RuntimeError), match="size"):
        LoadedProgram(Path("few.pt2").read_bytes())(torch.rand(5, 1, 8, 8))
    with pytest.raises(UserError, match=r"E110.*at least 2; got 1"):
        call("export", factory, "--input", "1x8x8", "--out", "one.pt2", "--largest-batch", "1")
    with pytest.raises(UserError, match=r"E111.*--largest-batch is for a \.pt2 file"):
        call("export", factory, "--input", "1x8x8", "--out", "m.onnx", "--largest-batch", "4")
    with pytest.raises(UserError, match=r"E143.*must end in \.onnx or \.pt2"):
        call("export", factory, "--input", "1x8x8", "--out", "m.pte")


def test_data_give_shape_and_labels(call, tmp_path: Path) -> None:
    call("export", "mirabelle.sources.zoo:digits_mlp", "--data", "digits", "--out", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][1:] == [1, 8, 8]
    assert json.loads(model.metadata_props[0].value) == list("0123456789")


def test_a_failed_gate_leaves_no_file(call, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Gate(passed=False, worst=1.0, detail='the first layer that differs is "3"')
    monkeypatch.setattr("mirabelle.runtime.gates.torch_equals_onnx", lambda *_, **__: bad)
    with pytest.raises(UserError, match=r"E302.*torch_onnx failed") as caught:
        call("export", factory, "--input", "1x8x8", "--out", "m.onnx")
    assert caught.value.exit_status == 4
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./net.py:net",), "E130.*is unknown"),
        (("./net.py:net", "--input", "1x9x9"), "E121.*inputs of 1x9x9"),
        (("./net.py:net", "--input", "1x,8"), "E110"),
        (("./net.py:net", "--input", "1x8x8", "--data", "digits"), "E111"),
        (("./net.py:net", "--input", "1x8x8", "--weights", "other.safetensors"), "E140.*missing"),
        (("./net.py:net", "--input", "1x8x8", "--weights", "absent.safetensors"), "E130"),
        (("./net.py:net", "--input", "1x8x8", "--weights", "pickle.pt"), "E143"),
        (("./net.py:broken", "--input", "1x8x8"), "E120.*no disk"),
        (("./net.py:nothing", "--input", "1x8x8"), "E121.*int"),
        (("./absent.py:net", "--input", "1x8x8"), "E120"),
        ((".", "--data", "digits"), "E130.*contains no run"),
        ((".", "--input", "1x8x8"), "E111.*--input"),
    ],
)
def test_mistakes_are_told_and_leave_no_file(call, factory: str, arguments: tuple[str, ...], message: str) -> None:
    write_tensors(Path("other.safetensors"), {"0.weight": torch.zeros(4, 1, 3, 3)})
    with pytest.raises(UserError, match=message):
        call("export", *arguments, "--out", "m.onnx")
    assert not Path("m.onnx").exists()


def test_a_model_of_several_inputs_is_exported_with_their_names(call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    code += "        self.table = nn.Embedding(5, 4)\n"
    code += "    def forward(self, ids, scale):\n        return self.table(ids) * scale[:, None]\n"
    Path("two.py").write_text(code)
    assert call("export", "./two.py:Net", "--input", "ids=7:int64", "--input", "scale=2,4", "--out", "two.onnx") == 0
    inputs, _ = signature_of(ModelProto.FromString(Path("two.onnx").read_bytes()))
    assert [(value.name, value.sizes[1:]) for value in inputs] == [("ids", (7,)), ("scale", (4,))]
    assert call("export", "./two.py:Net", "--input", "7:int64", "--input", "4", "--out", "two.onnx") == 0
    with pytest.raises(UserError, match=r"E111.*first axis of every input is the batch"):
        call("export", "./two.py:Net", "--input", "ids=3,7:int64", "--input", "scale=2,4", "--out", "other.onnx")
    assert not Path("other.onnx").exists()
