"""Other runtimes compute what ONNX Runtime does; each needs an environment of its own (benchmarks/other_runtimes.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "other_runtimes.py"
ROADS = {"executorch": "MIRABELLE_EXECUTORCH", "coreml": "MIRABELLE_COREML", "litert": "MIRABELLE_LITERT"}


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS)
def test_another_runtime_gives_what_onnx_runtime_gives(road: str, tmp_path: Path) -> None:
    python = os.environ.get(ROADS[road])
    if python is None:
        pytest.skip(f"{ROADS[road]} does not name the Python of an environment with {road}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, SCRIPT, "make", tmp_path], check=True)
    subprocess.run([python, SCRIPT, road, tmp_path], check=True, env=environment)
    found = json.loads((tmp_path / f"{road}.json").read_text("utf-8"))["found"]
    failed = {entry["file"].partition(", ")[2] for entry in found if entry["differences"] is None}
    assert failed <= {"Dynamic per tensor"}, "ranges that are found at run time are not known to every converter"
    tolerance = 0.05  # XNNPACK sums integers and finds the ranges of each sample alone
    assert all(max(entry["differences"], default=0) < tolerance for entry in found if entry["differences"] is not None)
