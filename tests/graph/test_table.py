"""docs/zoo.md is the table of the zoo as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from zoo import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "zoo.md"


def zoo_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_table", ROOT / "docs" / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_every_architecture_and_no_fault() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ARCHITECTURES), "run `make zoo`"
    assert not [row for row in rows if "**" in row]


def test_most_architectures_lose_two_fifths_of_their_parameters() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    enough = [float(row[2].rstrip("%")) >= 40 for row in rows]
    assert sum(enough) >= 0.95 * len(rows)


def test_a_row_is_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = zoo_module()
    good = {"name": "a", "exact": 1e-16, "removed": 0.5, "forms": 1e-7, "rewritten": "", "not_in_onnx": "", "seconds": 1.0}
    good |= {"batches": 2e-7, "step": None}
    good |= {
        "faults": [],
        "frozen": [["fc.weight", 1, 3, ['operator "sort" in fc needs all elements', "it is an output of the model"]]],
    }
    bad = {"name": "b", "seconds": 300.0, "faults": ["no answer within 300 s"]}
    monkeypatch.setattr(table, "KNOWN", tmp_path / "rows")
    lines = [
        json.dumps({**row, "state": state}) for row, state in ((good, "now"), (bad, "now"), ({**good, "name": "c"}, "then"))
    ]
    table.KNOWN.write_text("\n".join(lines), encoding="utf-8")
    assert list(table.known_rows("now")) == ["a"]
    text = table.page([good, bad])
    assert "**1 exact, 1 not**" in text
    assert "| a | 1e-16 | 50% | 1e-07 | 2e-07 | – | module | sort: `fc.weight:1` | 1.0 |" in text
    assert "| b | **no answer within 300 s** | | | | | | | 300.0 |" in text
