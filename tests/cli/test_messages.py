"""Nothing but Mirabelle's own lines reaches the terminal."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mirabelle.cli.messages import own_lines_only

NET = """
import logging, warnings
from torch import nn

def net():
    warnings.warn("a library warns")
    for name in ("torch.onnx", "transformers", "absl"):
        logging.getLogger(name).warning("a library logs a warning")
        logging.getLogger(name).error("a library logs an error")
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
"""


def typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whose whole stderr is seen, also that of libraries in C++."""
    command = [sys.executable, "-m", "mirabelle.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)


@pytest.mark.slow
def test_messages_of_libraries_are_kept_back_unless_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    export = ("export", "./net.py:net", "--input", "1x8x8", "--out", "m.onnx")
    done = typed(tmp_path, *export)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith(("m.onnx: ", "gate ")) for line in done.stdout.splitlines())
    assert "a library logs a warning" in typed(tmp_path, *export, "-v").stderr


def test_sizes_that_the_runtime_refuses_leave_no_line_of_its_log(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in "xy")
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 48])
    unused = helper.make_tensor("unused", TensorProto.FLOAT, [2], [1, 2])  # about which ONNX Runtime warns
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", [x], [y], [shape, unused])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    done = typed(tmp_path, "verify", "m.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sizes found by trial" in done.stdout


def test_a_process_logs_and_warns_as_before_afterwards() -> None:
    with own_lines_only():
        assert not logging.getLogger("torch").isEnabledFor(logging.ERROR)
        assert logging.getLogger("torch").isEnabledFor(logging.CRITICAL)
        warnings.warn("not shown", stacklevel=1)
    assert logging.getLogger("torch").isEnabledFor(logging.ERROR)
    with pytest.warns(UserWarning, match="shown"), own_lines_only(verbose=True):
        warnings.warn("shown", stacklevel=1)
