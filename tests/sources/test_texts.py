"""Files of texts as data, by the tokenizer of a model; and what one reads when they are not right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mirabelle import Task
from mirabelle.artifact.prediction import Predictor
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources import task_from
from mirabelle.sources.first_arguments import text_arguments
from mirabelle.task.loss import CrossEntropy
from mirabelle.task.preprocessing import Text, from_json, to_json
from word_tokenizer import save_bert

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import onnx
import transformers

WORDS = ["good", "fine", "great", "bad", "dull", "poor", "film", "plot", "a", "the"]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small model with a tokenizer of words."""
    settings = {"num_hidden_layers": 1, "intermediate_size": 32, "num_labels": 2}
    return save_bert(tmp_path / "bert", WORDS, "BertForSequenceClassification", **settings)


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, "praise" or "blame")."""
    generator = np.random.default_rng(seed)
    found = []
    for k in range(count):
        word = WORDS[generator.integers(0, 3) + 3 * (k % 2)]
        rest = generator.choice(WORDS[6:], generator.integers(1, 6)).tolist()
        found.append((" ".join([*rest, word]), ("praise", "blame")[k % 2]))
    return found


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"id": k, "text": text, "label": label}) for k, (text, label) in enumerate(rows)))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join(["label" + mark + "sentence", *(f"{label}{mark}{text}" for text, label in rows)]) + "\n")
    return path


def task(path: Path, **arguments: Any) -> Task:
    return task_from(f"./{path.name}", {"tokenizer": "./bert", **arguments}, data_folder=None, folder=path.parent)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".csv"])
def test_texts_become_tokens_of_one_length(suffix: str, bert: Path, tmp_path: Path) -> None:
    rows = sentences(50)
    found = task(write(tmp_path / f"films{suffix}", rows), max_length=10)
    assert found.labels == ("blame", "praise")
    assert (len(found.train), len(found.validation), len(found.test)) == (36, 4, 10)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    due = tokenizer([text for text, _ in rows], padding="max_length", max_length=10, truncation=True, return_tensors="pt")
    known = {tuple(row.tolist()): label for row, (_, label) in zip(due["input_ids"], rows, strict=True)}
    for part in (found.train, found.validation, found.test):
        assert set(part.inputs) == {"input_ids", "attention_mask"}
        assert torch.equal(part.inputs["attention_mask"], (part.inputs["input_ids"] != 0).long())
        for row, target in zip(part.inputs["input_ids"], part.targets, strict=True):
            assert known[tuple(row.tolist())] == found.labels[target]


def test_how_many_texts_are_cut_is_told(bert: Path, tmp_path: Path) -> None:
    rows = [("good film " * (1 + k % 5), ("blame", "praise")[k % 2]) for k in range(50)]  # 2 to 10 words, and two marks
    path = write(tmp_path / "films.tsv", rows)
    cut = "20 of 50 texts have more than 8 tokens, of which the rest is left out (`max_length`)."
    assert task(path, max_length=8).notes == (cut,)
    assert task(path, max_length=12).notes == ()


def test_validation_and_test_texts_may_lie_in_files_of_their_own(bert: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", sentences(30))
    (tmp_path / "dev.tsv").write_text("label\tcontent\npraise\tgood film\nblame\tbad plot\n")  # another name of the column
    found = task(tmp_path / "train.tsv", validation="dev.tsv", test="./dev.tsv", class_weights="balanced", metric="roc_auc")
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 2, 2)
    assert found.test.inputs["input_ids"].shape == (2, 128)
    assert isinstance(found.loss, CrossEntropy)
    assert found.metric.name == "roc_auc"
    assert found.labels == ("blame", "praise")
    assert task(tmp_path / "train.tsv", labels=["praise", "blame"]).labels == ("praise", "blame")


def test_pairs_of_texts_have_types(bert: Path, tmp_path: Path) -> None:
    rows = [{"premise": "a film", "text": "the plot", "label": k % 2} for k in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = task(
        tmp_path / "pairs.jsonl",
        text="premise",
        pair="text",
        max_length=8,
        inputs=["input_ids", "token_type_ids", "attention_mask"],
    )
    assert set(found.train.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert found.train.inputs["input_ids"][0].tolist() == [2, 12, 10, 3, 13, 11, 3, 0]
    assert found.train.inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


def test_a_quotation_mark_in_a_tsv_is_a_letter(bert: Path, tmp_path: Path) -> None:
    write(tmp_path / "quotes.tsv", [('" good film', "praise"), ('bad "plot', "blame")] * 10)
    found = task(tmp_path / "quotes.tsv")
    assert len(found.train) + len(found.validation) + len(found.test) == 20


TREC = "([A-Z]+):[a-z]+ (.+)"


def test_a_pattern_takes_lines_apart(bert: Path, tmp_path: Path) -> None:
    lines = [f"{kind}:x {word} film caf\xe9" for kind, word in zip(("NUM", "LOC") * 15, WORDS * 3, strict=True)]
    (tmp_path / "TREC.train").write_bytes("\n".join([*lines, ""]).encode("latin-1"))
    found = task(tmp_path / "TREC.train", pattern=TREC, encoding="latin-1", test="TREC.train", max_length=8)
    assert found.labels == ("LOC", "NUM")
    assert len(found.test) == 30
    assert found.test.targets.tolist() == [1, 0] * 15
    assert found.test.inputs["input_ids"][0].tolist() == [2, 4, 10, 1, 3, 0, 0, 0]


def test_training_texts_may_be_some_of_all(bert: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "films.tsv", sentences(200))
    whole, some = task(path, max_length=10), task(path, max_length=10, samples=50)
    assert [len(part) for part in (some.train, some.validation, some.test)] == [50, len(whole.validation), len(whole.test)]
    assert some.test.digest() == whole.test.digest()
    assert some.train.digest() == whole.train.drawn(50, 0).digest()
    assert len(task(path, samples=10_000).train) == len(whole.train)


def test_texts_of_a_parquet_file(bert: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = sentences(50)
    columns = {"label": [["blame", "praise"].index(label) for _, label in rows], "text": [text for text, _ in rows]}
    parquet.write_table(arrow.table(columns), tmp_path / "films.parquet")
    write(tmp_path / "films.tsv", rows)
    found, due = task(tmp_path / "films.parquet"), task(tmp_path / "films.tsv")
    assert found.labels == ("0", "1")
    assert found.train.digest() == due.train.digest()


def test_a_parquet_file_without_pyarrow_is_told(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "films.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for arguments in ({"tokenizer": str(bert)}, {}):
        with pytest.raises(UserError, match=r"E160.*parquet files need pyarrow"):
            task_from("./films.parquet", arguments, data_folder=None, folder=tmp_path)


@pytest.mark.usefixtures("bert")
@pytest.mark.parametrize(
    ("name", "text", "arguments", "words"),
    [
        ("a.tsv", "sentence\ngood film\n", {}, r'E131.*has no column "label" for the class of each text'),
        ("a.tsv", "label\tsentence\npraise\tgood\textra\n", {}, "E131.*line 2: 3 cells, but the header has 2"),
        ("a.tsv", "label\tsentence\n0\tgood\n1\t \n", {}, 'E131.*line 3: "sentence" is missing or empty'),
        ("a.tsv", "label\tsentence\n", {}, "E130.*no row"),
        ("a.tsv", "label\tsentence\n0\tgood\n0\tbad\n", {}, 'E131.*all texts have the class "0"'),
        ("a.tsv", "label\tone\ttwo\n0\tgood\tbad\n", {}, "E131.*several text columns"),
        ("a.tsv", "label\tone\n0\tgood\n", {"text": "on"}, r'E110.*has no column "on"'),
        (
            "a.tsv",
            "label\tone\n0\tgood\n2\tbad\n",
            {"labels": ["0", "1"]},
            'E131.*line 3: "2" is not a class; the classes are 0, 1',
        ),
        ("a.jsonl", '{"text": "good", "label": 0}\n{"text"\n', {}, "E131.*line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", {}, "E131.*line 1 is not a JSON object"),
        (
            "a.tsv",
            "label\tone\n0\tgood\n1\tbad\n",
            {"tokenizer": "./nowhere"},
            "E130.*no folder of a transformers model at ./nowhere",
        ),
        ("a.tsv", "label\tone\n0\tgood\n1\tbad\n", {"validation": "dev.tsv"}, "E130.*no texts at.*dev.tsv"),
        ("a.tsv", "label\tone\n0\tgood\n1\tbad\n", {"inputs": ["ids"]}, "E110.*inputs must be from input_ids"),
        ("a.tsv", "label\tone\n0\tgood\n1\tbad\n", {}, 'E131.*class "0" has 1 sample'),
        ("a.train", "LOC:x good\n", {}, "E131.*file without columns, and there is no pattern"),
        ("a.train", "LOC:x good\ngood\n", {"pattern": TREC}, r'E131.*line 2: "good" does not match'),
        ("a.train", "LOC:x good\n", {"pattern": "(.+)"}, "E110.*has 1 groups; it needs two"),
        ("a.train", "LOC:x good\n", {"pattern": "("}, "E110.*is not a regular expression"),
        ("a.tsv", "label\tone\n0\tcaf\xe9\n", {"tokenizer": "./nowhere"}, "E131.*is not encoded in UTF-8"),
    ],
)
def test_texts_that_cannot_be_used_are_told(
    name: str, text: str, arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, "latin-1")
    with pytest.raises(UserError, match=words):
        task(tmp_path / name, **arguments)


def test_what_is_stored_comes_back() -> None:
    text = Text(tokenizer="0123456789abcdef", inputs=("input_ids",), max_length=7, pairs=True)
    assert from_json(to_json(text)) == text
    assert text.shapes == ((7,),)


@pytest.mark.slow
def test_init_writes_a_recipe_for_texts(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "films.jsonl", sentences(60))
    capsys.readouterr()
    assert main.run(["init", "--model", str(bert), "--data", str(data)]) == 0
    text = capsys.readouterr().out
    assert f'arguments = {{ tokenizer = "{bert}"' in text
    (tmp_path / "recipe.toml").write_text(text)
    assert main.run(["check", str(tmp_path / "recipe.toml")]) == 0
    assert main.run(["init", "--model", "models/bert", "--data", "data/films.jsonl"]) == 2  # which are not there
    places = [(text_arguments("models/bert", data) or {})["tokenizer"] for data in ("films.jsonl", "data/films.jsonl")]
    assert places == ["models/bert", "../models/bert"]


RECIPE = """
schema = 1
seed = 0
[model]
from = "./bert"
[task]
data = "./films.tsv"
arguments = { tokenizer = "./bert", max_length = 12 }
[baseline]
train = { epochs = 12, batch_size = 20, lr = 3e-3, precision = "float32" }
[goal]
max_drop = "20pt"
[[step]]
use = "prune.Channels"
sparsity = 0.5
include = ["*intermediate*"]
scope = "group"
train = { epochs = 2, batch_size = 20, lr = 1e-3, precision = "float32" }
"""


def test_texts_go_in_and_what_ships_takes_texts(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "films.tsv", sentences(300))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    (tmp_path / "new.txt").write_text("the film a good\n\nthe plot a film bad\n")
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(Path(entry["input"]).name, entry["label"]) for entry in found] == [("new.txt:1", "praise"), ("new.txt:3", "blame")]
    model = onnx.load(tmp_path / "run" / "model.onnx")
    axes = [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert axes == [["batch", "tokens"]] * 2
    session, predictor = default_runtime().load(model.SerializeToString(), 1), Predictor(tmp_path / "run" / "model.mira")
    for length in (4, 12, 20):
        ids = np.full((1, length), 4)
        ids[0, 0], ids[0, -1] = 2, 3
        short = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        padded = np.concatenate([ids, np.zeros((1, 3), int)], 1)
        long = session.run({"input_ids": padded, "attention_mask": (padded > 0).astype(int)})[0]
        assert np.abs(short - long).max() < 1e-5
    assert predictor.labels == ("blame", "praise")
    (tmp_path / "run" / "tokenizer.json").unlink()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt")]) == 2
    assert "no tokenizer at" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "small")
    write(tmp_path / "films.tsv", sentences(60))
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('from = "./bert"', 'from = "./small"'))
    capsys.readouterr()
    assert main.run(["check", str(tmp_path / "recipe.toml")]) == 2
    assert "the model has 9 tokens: the tokenizer is that of another model" in capsys.readouterr().err
    write(tmp_path / "films.tsv", [("good", "praise"), ("fine", "blame")] * 30)  # texts of words that both know
    assert main.run(["check", str(tmp_path / "recipe.toml")]) == 2
    assert "the tokenizer has 14 tokens, the model 9: it is that of another model" in capsys.readouterr().err
    assert bert.is_dir()
