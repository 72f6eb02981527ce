"""The folder of a run is data: whatever it names, no command that reads it imports, calls, unpickles or fetches anything."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mirabelle
from hostile.conftest import Hostile
from mirabelle.errors import UserError
from mirabelle.job.reopening import model_of_run, recipe_of_run
from mirabelle.job.verification import verify_run
from mirabelle.run.files import read_json, write_json
from mirabelle.sources.zoo import digits_mlp

MODEL = ("[model.arguments]", "")
ZOO = 'from = "mirabelle.sources.zoo:digits_mlp"'
CALLS = {  # name of the function in the recipe -> arguments
    "os:system": '{ command = "touch MARK" }',
    "posix:system": '{ command = "touch MARK" }',
    "subprocess:run": '{ args = ["touch", "MARK"] }',
    "subprocess:Popen": '{ args = ["touch", "MARK"] }',
    "builtins:exec": "{}",
    "pathlib:Path.touch": '{ self = "MARK" }',
    "mirabelle.run.files:write_text": '{ path = "MARK", text = "x" }',
    "mirabelle.sources.zoo:nn": "{}",
    "payload:net": "{}",
    "./payload.py:net": "{}",
    "../run/payload.py:net": "{}",
    "FOLDER/payload.py:net": "{}",
}
STUDENT = 'model = "mirabelle.sources.zoo:digits_mlp"'
RECIPES: dict[str, tuple[tuple[str, str], ...]] = {
    **{f"model {name}": ((ZOO, f'from = "{name}"\narguments = {given}'), MODEL) for name, given in CALLS.items()},
    "student": ((STUDENT, 'model = "./payload.py:net"'),),
    "step": (('use = "prune.Weights"', 'use = "./payload.py:Halve"'),),
    "step of a module": (('use = "prune.Weights"', 'use = "payload:Halve"'),),
    "score": (('use = "Magnitude"', 'use = "./payload.py:Largest"'), ("order = 2", "")),
    "term of the baseline": (("[baseline.train]", '[baseline.train]\nobjective = [{ term = "./payload.py:Zero" }]'),),
    "term of a step": (("[step.train]", '[step.train]\nobjective = [{ term = "./payload.py:Zero" }]'),),
    "codec": (("[goal]", '[artifact]\ncodecs = ["./payload.py:Lzma"]\n[goal]'),),
    "teacher": (("[goal]", '[teacher]\nfrom = "./payload.py:net"\n[goal]'),),
    "teachers": (("[goal]", '[[teacher.members]]\nfrom = "payload:net"\n[goal]'),),
    "data": (('data = "digits"', 'data = "./payload.py:task"'),),
    "data by os": (
        ('data = "digits"', 'data = "os:system"'),
        ("[task.arguments]", '[task.arguments]\ncommand = "touch MARK"'),
    ),
    "metric": (
        ('data = "digits"', 'data = "./rows.csv"'),
        ("[task.arguments]", '[task.arguments]\ntarget = "y"\nmetric = "./payload.py:metric"'),
    ),
    "loss": (
        ('data = "digits"', 'data = "./rows.csv"'),
        ("[task.arguments]", '[task.arguments]\ntarget = "y"\nloss = "payload:loss"'),
    ),
    "weights": (("[goal]", '[baseline.weights]\npickle = "evil.pt"\n[goal]'), ("[baseline.train]", "[baseline.train]")),
    "arrays": (('data = "digits"', 'data = "./evil.npz"'),),
    "folder of arrays": (('data = "digits"', 'data = "./evil_arrays/"'),),
    "hub": ((ZOO, 'from = "hf:evil/model"'), MODEL),
    "ModelScope": ((ZOO, 'from = "ms:evil/model"'), MODEL),
    "tokenizer of a hub": (
        ('data = "digits"', 'data = "./texts.tsv"'),
        ("[task.arguments]", '[task.arguments]\ntokenizer = "hf:evil/model"'),
    ),
}

# What these name is of no use to a command that reads a run; arrays with pickles are refused as such.
NOT_NEEDED = (
    "codec",
    "teacher",
    "teachers",
    "term of the baseline",
    "arrays",
    "folder of arrays",
    "model mirabelle.sources.zoo:nn",
)


class Evil:
    """Leaves the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def forged(hostile: Hostile, request: pytest.FixtureRequest) -> Hostile:
    """The run with the recipe of the test's parameter, and all files that such recipes name."""
    (hostile.folder / "rows.csv").write_text("a,y\n" + "1,0\n2,1\n" * 30)
    (hostile.folder / "texts.tsv").write_text("text\tlabel\n" + "a word\t0\nanother\t1\n" * 30)
    (hostile.folder / "evil.pt").write_bytes(pickle.dumps(Evil(hostile.mark)))
    np.savez(hostile.folder / "evil.npz", x_train=np.array([Evil(hostile.mark)], object), y_train=np.zeros(1))
    (hostile.folder / "evil_arrays").mkdir()
    np.save(hostile.folder / "evil_arrays" / "x_train.npy", np.array([Evil(hostile.mark)], object))
    np.save(hostile.folder / "evil_arrays" / "y_train.npy", np.zeros(1))
    changes = [(before, after.replace("FOLDER", str(hostile.folder))) for before, after in RECIPES[request.param]]
    hostile.rewrite(*changes)
    return hostile


@pytest.mark.parametrize("forged", RECIPES, indirect=True)
def test_no_command_follows_what_a_recipe_in_a_folder_names(
    forged: Hostile, request: pytest.FixtureRequest, status, tmp_path: Path
) -> None:
    name = request.node.callspec.params["forged"]
    code, out, _ = status("verify", forged.folder, "--json")
    assert code in (0, 4)
    gates = {gate["gate"]: gate for gate in json.loads(out)["gates"]}
    assert gates["packed_unpacked"]["verdict"] == "passed"
    assert any("not followed; give --trust" in gate["detail"] for gate in gates.values()) or name in NOT_NEEDED, out
    code, _, said = status("export", forged.folder, "--out", tmp_path / "out.onnx")
    assert code in (0, 2), said
    assert "Traceback" not in said
    status("inspect", forged.folder, "--groups", "--input", "1x8x8")
    status("inspect", forged.folder, "--sensitivity", "--samples", "8", "--data", "digits", "--quiet")
    assert not forged.mark.exists()
    assert "payload" not in sys.modules


@pytest.mark.parametrize("forged", ["model ./payload.py:net", "step", "codec"], indirect=True)
def test_no_other_command_reads_the_recipe_at_all(forged: Hostile, status) -> None:
    np.save(forged.folder / "x.npy", np.zeros((1, 8, 8), np.float32))
    for command in (
        ("inspect", forged.folder),
        ("report", forged.folder),
        ("predict", forged.folder, forged.folder / "x.npy"),
        ("predict", forged.folder / "model.mira", forged.folder / "x.npy"),
        ("bench", forged.folder, forged.folder / "model.mira", "--seconds", "0.1", "--runtime", "onnxruntime", "--no-memory"),
        ("unpack", forged.folder / "model.mira", "--out", forged.folder / "again.onnx"),
    ):
        assert status(*command)[0] == 0, command
    assert not forged.mark.exists()


@pytest.mark.parametrize("forged", ["model ./payload.py:net"], indirect=True)
def test_what_takes_the_code_is_said_in_one_line_and_the_rest_is_done(forged: Hostile, status, tmp_path: Path) -> None:
    code, out, _ = status("verify", forged.folder)
    assert code == 4  # its digest no longer is that of the run
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "not checked" in lines["torch_onnx"]
    assert "run names " in lines["torch_onnx"]
    assert "payload.py:net, which is code or an address and is not followed; give --trust" in lines["torch_onnx"]
    assert all("passed" in lines[gate] for gate in ("packed_unpacked", "saved_loaded", "metric"))
    code, out, said = status("export", forged.folder, "--out", tmp_path / "out.onnx")
    assert code == 0
    assert "gate packed_unpacked: passed" in out
    assert said.count("\n") == 1
    assert "torch and ONNX are not compared, and the model.onnx of the run is written; give --trust" in said
    assert (tmp_path / "out.onnx").read_bytes() == (forged.folder / "model.onnx").read_bytes()
    code, out, said = status("inspect", forged.folder, "--groups")
    assert code == 0
    assert "the layers are those of its model.onnx; give --trust" in said
    assert "neurons of a layer" in out


@pytest.mark.parametrize("forged", ["model ./payload.py:net"], indirect=True)
def test_with_trust_it_is_a_program(forged: Hostile, status) -> None:
    code, out, _ = status("verify", forged.folder, "--trust", "--json")
    assert forged.mark.read_text() == "called"
    assert {gate["gate"]: gate["verdict"] for gate in json.loads(out)["gates"]}["torch_onnx"] == "passed"
    assert code == 4


@pytest.mark.parametrize("forged", ["model ./payload.py:net", "step", "student"], indirect=True)
def test_the_same_in_python(forged: Hostile) -> None:
    with pytest.raises(UserError, match="E144"):
        model_of_run(forged.folder)
    assert {check.verdict for check in verify_run(forged.folder) if check.name == "torch_onnx"} == {"not checked"}
    assert recipe_of_run(forged.folder).trusted is False
    assert not forged.mark.exists()


@pytest.mark.parametrize("use", ["os:system", "./payload.py:LowRank", "payload:LowRank", "subprocess:Popen", "prune.Weights"])
@pytest.mark.parametrize("key", ["edit", "use"])
def test_a_class_that_an_architecture_names_is_not_imported(hostile: Hostile, status, use: str, key: str) -> None:
    record = read_json(hostile.folder / "architecture.json")
    replace = {"edit": "model.Replace", "module": "fc1", "use": use, "settings": {"command": f"touch {hostile.mark}"}}
    record["edits"] = [{**replace, key: use}]
    write_json(hostile.folder / "architecture.json", record)
    with pytest.raises(UserError, match=r"E106|E141"):
        mirabelle.load(digits_mlp, hostile.folder)
    status("verify", hostile.folder)
    assert not hostile.mark.exists()


FILES_OF_MODULES = ("numpy.py", "torch.py", "onnxruntime.py", "sitecustomize.py", "usercustomize.py", "payload.py", "yaml.py")


@pytest.mark.slow
def test_modules_that_lie_in_the_folder_are_not_taken_for_packages(hostile: Hostile) -> None:
    for name in FILES_OF_MODULES:
        (hostile.folder / name).write_text(f"open({str(hostile.mark)!r}, 'w')\nraise SystemExit\n")
    command = [str(Path(sys.executable).with_name("mirabelle"))]
    for arguments in (
        ["verify", "."],
        ["inspect", "."],
        ["report", "."],
        ["bench", ".", "--seconds", "0.1", "--runtime", "onnxruntime"],
    ):
        done = subprocess.run(command + arguments, cwd=hostile.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not hostile.mark.exists()


@pytest.mark.parametrize("name", ["README.md", "README.md.writing", "report.html", "report.html.writing", ".lock"])
def test_a_link_in_the_folder_leads_no_writing_out_of_it(hostile: Hostile, status, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (hostile.folder / name).unlink(missing_ok=True)
    (hostile.folder / name).symlink_to(victim)
    if name == ".lock":
        (hostile.folder / "report.json").unlink()  # the progress of a run asks who works on it
    assert status("report", hostile.folder)[0] == 0
    assert status("verify", hostile.folder)[0] in (0, 2)
    assert victim.read_text() == "precious"


def test_texts_in_a_report_are_no_templates(hostile: Hostile, status) -> None:
    code = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}<script>alert(1)</script>"
    report = read_json(hostile.folder / "report.json")
    report["name"] = code
    report["recipe"]["model"]["from"] = code
    write_json(hostile.folder / "report.json", report)
    assert status("report", hostile.folder)[0] == 0
    page = (hostile.folder / "report.html").read_text("utf-8")
    assert "{{ &#39;&#39;.__class__" in page
    assert "<script" not in page
    assert "<script" not in (hostile.folder / "README.md").read_text("utf-8").replace("\\<", "")


def test_a_pickle_is_no_model_of_a_run(hostile: Hostile, status) -> None:
    for name in ("model.safetensors", "model.onnx", "model.mira", "report.json", "architecture.json"):
        (hostile.folder / name).write_bytes(pickle.dumps(Evil(hostile.mark)))
    torch.save(Evil(hostile.mark), hostile.folder / "x.pt")
    for command in (
        ("verify", hostile.folder),
        ("verify", hostile.folder / "model.mira"),
        ("inspect", hostile.folder),
        ("report", hostile.folder),
        ("bench", hostile.folder, "--seconds", "0.1", "--runtime", "onnxruntime", "--no-memory"),
        ("predict", hostile.folder, hostile.folder / "x.pt"),
        ("inspect", hostile.folder / "x.pt"),
    ):
        code, _, said = status(*command)
        assert code in (2, 4), (command, said)
        assert "Traceback" not in said
    assert not hostile.mark.exists()
