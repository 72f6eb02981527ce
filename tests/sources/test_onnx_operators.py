"""Every operator of ONNX against the standard's own examples, and the table that is made of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "onnx_operators.py"
SPEC = importlib.util.spec_from_file_location("onnx_operators", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
operators = importlib.util.module_from_spec(SPEC)
sys.modules["onnx_operators"] = operators  # for its data classes
SPEC.loader.exec_module(operators)

pytestmark = pytest.mark.usefixtures("quietly")


def test_every_operator_gives_what_the_standard_says_or_is_refused_by_name() -> None:
    found = operators.results()
    assert not [line for result in found.values() for line in result.wrong]
    covered = [name for name, result in found.items() if result.covered]
    assert (len(covered), len(found)) == (179, 191)
    assert sum(result.right for result in found.values()) > 5800, "an example counts for each operator in it"
    page = operators.PAGE.read_text("utf-8")
    table = operators.section(found).partition("| operator |")[2]
    assert table in page, "run `python docs/onnx_operators.py`"
