"""`mirabelle bench` as a user types it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mirabelle.errors import UserError
from mirabelle.runtime.latency import Ratio
from mirabelle.runtime.onnxruntime import OnnxSession
from mirabelle.runtime.runtime import runtimes_present

ONCE = ("--runtime", "onnxruntime", "--no-memory")


def written(path: Path, name: str, axes: list, width: int = 8) -> Path:
    """A model that multiplies a matrix with itself `width` wide."""
    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, axes) for value in (name, "y"))
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [width, width], np.ones(width * width))
    graph = helper.make_graph([helper.make_node("MatMul", [name, "w"], ["y"])], "g", [x], [y], [tensor])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())
    return path


def test_files_are_called_in_turn_and_compared_with_the_first(
    call, capsys, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = written(tmp_path / "other.onnx", "another_name", ["n", 8])
    called: list[object] = []
    run = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", lambda self, feed: (called.append(self), run(self, feed))[1])
    models = [finished / "model.onnx", finished, finished / "model.mira", other]
    assert call("bench", *models, *ONCE, "--seconds", "0.1", "--threads", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    tried, rounds = called[: len(models)], len(called) // len(models)
    assert len(set(tried)) == len(models)
    for number in range(1, rounds):  # every round calls every model once
        assert len(set(called[number * len(models) : (number + 1) * len(models)])) == len(models)
    assert not set(tried) & set(called[len(models) :])  # measured are models that were loaded for a block
    assert [entry["file"] for entry in told["models"]] == [str(model) for model in models]
    assert (told["threads"], told["batch"]) == (1, 1)
    assert told["models"][0]["ratio"]["median"] == 1
    for entry in told["models"]:
        assert 0 < entry["median_ms"] <= entry["p95_ms"]
        assert entry["ratio"]["low"] <= entry["ratio"]["median"] <= entry["ratio"]["high"]
        assert entry["ratio"]["median"] == pytest.approx(entry["median_ms"] / told["models"][0]["median_ms"])


def test_files_that_take_other_inputs_are_told_apart(call, capsys, tmp_path: Path) -> None:
    narrow, wide = (written(tmp_path / f"{width}.onnx", "x", ["n", width], width) for width in (8, 16))
    assert call("bench", narrow, wide, *ONCE, "--seconds", "0.1") == 0
    assert "input 1x16 here, 1x8 for the first; the work is not the same" in capsys.readouterr().out
    assert call("bench", narrow, wide, *ONCE, "--seconds", "0.1", "--json") == 0
    assert [entry["inputs"] for entry in json.loads(capsys.readouterr().out)["models"]] == [[[1, 8]], [[1, 16]]]


def test_a_shape_that_no_input_has_is_refused(call, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'E110.*"x" is 8 without its batch axis; got 9'):
        call("bench", written(tmp_path / "m.onnx", "x", ["n", 8]), "--input", "9")


def test_a_table_and_a_sentence_for_every_file_but_the_first(call, capsys, finished: Path) -> None:
    assert call("bench", finished, finished / "model.mira", *ONCE, "--seconds", "0.1", "--batch", "4") == 0
    told = capsys.readouterr().out
    assert "median ms" in told
    assert "batch 4" in told
    sentence = told.strip().splitlines()[-1]
    assert sentence.startswith(f"{finished / 'model.mira'}: ")
    assert any(words in sentence for words in ("faster (", "slower (", "no difference shown ("))


def test_the_words_of_a_ratio() -> None:
    assert Ratio(1 / 1.62, 1 / 1.7, 1 / 1.55).in_words() == "1.62× faster (1.55 to 1.70)"
    assert Ratio(1.5, 1.4, 1.6).in_words() == "1.50× slower (1.40 to 1.60)"
    for ratio in (Ratio(0.8, 0.5, 1.1), Ratio(1.01, 1.005, 1.015)):
        assert ratio.in_words().startswith("no difference shown")


@pytest.mark.slow
def test_every_runtime_batch_and_thread_is_measured_with_memory_and_first_call(call, capsys, tmp_path: Path) -> None:
    model = written(tmp_path / "m.onnx", "x", ["n", 8])
    asked = ("--seconds", "0.1", "--batch", "1,4", "--threads", "1,2")
    assert call("bench", model, *asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    rows = {(row["runtime"], row["batch"], row["threads"]): row for row in told["models"]}
    assert set(rows) == set(itertools.product(runtimes_present(), (1, 4), (1, 2)))
    assert {"onnxruntime", "onnxruntime_extended"} <= {row["runtime"] for row in told["models"]}
    assert [row["inputs"] for row in told["models"][:1]] == [[[1, 8]]]
    assert all(row["first_call_ms"] > 0 for row in rows.values())
    assert [best["latency"]["batch"] for best in told["fastest"]] == [1, 4]
    assert call("bench", model, *asked[:2], "--no-memory") == 0
    told = capsys.readouterr().out
    assert "Fastest: " in told or "Nothing measured here is faster than" in told


def test_what_is_asked_must_be_there(call, tmp_path: Path) -> None:
    model = written(tmp_path / "m.onnx", "x", ["n", 8])
    with pytest.raises(UserError, match=r'E103.*no runtime "onxruntime"'):
        call("bench", model, "--runtime", "onxruntime")
    with pytest.raises(UserError, match=r"E100.*--batch takes whole numbers.*'1,x'"):
        call("bench", model, "--batch", "1,x")


def test_a_free_axis_is_given_by_input(call, capsys, tmp_path: Path) -> None:
    model = written(tmp_path / "free.onnx", "x", ["n", "length", 8])
    with pytest.raises(UserError, match=r'E110.*free.onnx.*axis 1 \("length"\)'):
        call("bench", model)
    assert call("bench", model, "--input", "5x8", *ONCE, "--seconds", "0.1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"]
    with pytest.raises(UserError, match=r"E121.*fails on random inputs"):
        call("bench", written(tmp_path / "wrong.onnx", "x", ["n", "length", "width"]), "--input", "5x9")


def test_files_that_cannot_be_measured_are_told(call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((finished / "model.onnx").read_bytes()[:-9])
    for name, code in [("absent.onnx", "E130"), ("cut.onnx", "E141")]:
        with pytest.raises(UserError, match=f"{code}.*{name}"):
            call("bench", finished, tmp_path / name)


def test_shapes_are_given_by_name_and_with_the_batch(call, capsys, tmp_path: Path) -> None:
    axes = {"ids": ["n", "length"], "mask": ["n", "other"]}
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name, sizes in axes.items())
    graph = helper.make_graph(
        [helper.make_node("Mul", ["ids", "mask"], ["y"])], "g", [ids, mask], [helper.make_empty_tensor_value_info("y")]
    )
    model = tmp_path / "two.onnx"
    model.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())
    quick = (*ONCE, "--seconds", "0.1", "--json")
    assert call("bench", model, "--input", "ids=4,16", "--input", "mask=4,16:int64", *quick) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["batch"], told["models"][0]["inputs"]) == (4, [[4, 16], [4, 16]])
    assert call("bench", model, "--input", "16", "--input", "1", "--batch", "3", *quick) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["inputs"] == [[3, 16], [3, 1]]
    wrong = r'"ids" \(n,length\) int64, "mask" \(n,other\) int64'
    for arguments, message in [
        (("--input", "16", "--input", "8"), f"E121.*fails on random inputs.*\n.*{wrong}"),
        (("--input", "ids=16"), f'E110.*"mask" does not define axis 1.*\n.*{wrong}'),
        (("--input", "idz=16"), f'E111.*"idz".*{wrong}'),
        (("--input", "16", "--input", "16", "--input", "16"), f"E111.*3 shapes.*{wrong}"),
        (("--input", "ids=4,16", "--input", "mask=4,16", "--batch", "2"), "E111.*--batch"),
    ]:
        with pytest.raises(UserError, match=message):
            call("bench", model, *arguments)
