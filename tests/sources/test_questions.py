"""Questions about paragraphs as data: tokens, targets, answers judged as texts; and what one reads when a file is not right."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mirabelle import Task
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.numerics.answers import answer_exact_match, answer_f1, normalized
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.objectives import SoftTargets
from mirabelle.sources import task_from
from mirabelle.sources.datasets.questions import read_articles
from word_tokenizer import save_bert

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)

PLACES = ("Rome", "Oslo", "Lima", "Kiev")
WORDS = ["who", "lives", "in", "?", "the", "old", "king", "of", "poet", ".", *PLACES]
DATA = Path(os.environ["MIRABELLE_DATA"]) / "xquad" / "xquad.en.json" if "MIRABELLE_DATA" in os.environ else None
MISPLACED = {"id": "7", "question": "b", "answers": [{"text": "poet", "answer_start": 3}]}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small model that marks answers, with a tokenizer of words."""
    return save_bert(tmp_path / "bert", WORDS, "BertForQuestionAnswering", num_hidden_layers=1, intermediate_size=16)


def article(place: str, count: int = 2) -> dict[str, Any]:
    """One paragraph; the second answer is in other words."""
    context = f"the old king lives in {place} . the poet of {place} lives ."
    answers = [{"text": "old king", "answer_start": 4}, {"text": "the old king", "answer_start": 0}]
    asked = [{"id": f"{place}{k}", "question": f"who lives in {place} ?", "answers": answers} for k in range(count)]
    return {"title": place, "paragraphs": [{"context": context, "qas": asked}]}


def written(path: Path, places: tuple[str, ...] = PLACES) -> Path:
    path.write_text(json.dumps({"data": [article(place) for place in places]}))
    return path


def task(path: Path, **arguments: Any) -> Task:
    return task_from(f"./{path.name}", {"tokenizer": "./bert", **arguments}, data_folder=None, folder=path.parent)


def marking(spans: Tensor, tokens: int) -> Tensor:
    """Scores of a model that is sure of these first and last tokens, and surer of tokens that are not of the paragraph."""
    outputs = torch.zeros(len(spans), tokens, 2)
    outputs.scatter_(1, spans[:, None, :2], 5.0)
    outputs[:, 0] = 9.0
    return outputs


def test_words_that_count_are_those_of_squad() -> None:
    assert normalized(" The  U.S. Army's, a man ") == ["us", "armys", "man"]
    assert answer_exact_match("an apple.", ["pear", "Apple"]) == 1.0
    assert answer_f1("the Super Bowl 50 game", ["Super Bowl 50"]) == pytest.approx(6 / 7)
    assert answer_f1("no no yes", ["no yes yes"]) == pytest.approx(2 / 3)  # as often as they occur
    assert (answer_f1("the", ["a"]), answer_f1("", ["x"]), answer_f1("y", ["x", "y z"])) == (1.0, 0.0, pytest.approx(2 / 3))


@pytest.mark.usefixtures("bert")
def test_targets_are_the_tokens_of_the_first_answer(tmp_path: Path) -> None:
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    found = task(written(tmp_path / "asked.json"), max_length=24, inputs=inputs)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4, 2, 2]  # two articles, one, one
    ids = found.train.inputs["input_ids"]
    first, last, _ = found.train.targets.unbind(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    for row in range(len(ids)):
        assert [words[k] for k in ids[row, first[row] : last[row] + 1]] == ["old", "king"]
    assert found.train.inputs["token_type_ids"][0, first[0]] == 1
    towns = [{int(k) for k in part.inputs["input_ids"].unique()} & set(range(14, 18)) for part in (found.train, found.test)]
    assert not towns[0] & towns[1]  # questions of an article stay together


@pytest.mark.usefixtures("bert")
def test_answers_are_judged_as_texts_by_the_best_reference(tmp_path: Path) -> None:
    found = task(
        written(tmp_path / "asked.json"), max_length=24, extra_metrics=["answer_exact_match", "exact_match", "span_f1"]
    )
    targets = found.test.targets

    def judged(outputs: Tensor) -> list[float]:
        metrics = (found.metric, *found.extra_metrics)
        return [metric.value(metric.of_samples(outputs, targets)) for metric in metrics]

    right = marking(targets, 24)
    assert [metric.name for metric in (found.metric, *found.extra_metrics)] == [
        "answer_f1",
        "answer_exact_match",
        "exact_match",
        "span_f1",
    ]
    assert judged(right)[:2] == [1.0, 1.0]  # although other tokens score higher, which stand outside of the paragraph
    longer = targets.clone()
    longer[:, 0] -= 1  # "the old king", which is another of the answers
    assert judged(marking(longer, 24))[:2] == [1.0, 1.0]
    longer[:, 1] += 1  # "the old king lives"
    assert judged(marking(longer, 24))[:2] == [pytest.approx(0.8), 0.0]
    inside = right.clone()
    inside[:, 0] = 0.0
    assert judged(inside) == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.usefixtures("bert")
def test_what_is_cut_off_is_judged_but_not_learned(tmp_path: Path) -> None:
    data = {"data": [article(place) for place in PLACES]}
    late = {"id": "late", "question": "who lives ?", "answers": [{"text": "poet", "answer_start": 33}]}
    for one in data["data"]:
        one["paragraphs"][0]["qas"].append(late)
    path = tmp_path / "asked.json"
    path.write_text(json.dumps(data))
    found = task(path, max_length=14)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4, 3, 3]
    assert found.test.targets[:, 0].tolist().count(UNLABELLED) == 1
    assert found.train.targets[:, 0].min() > 0
    assert found.notes == (
        "12 of 12 paragraphs are cut: with its question, an input has 14 tokens (`max_length`).",
        "2 of 6 training questions are left out: their answers are cut off.",
        "2 of 6 validation and test questions have answers that are cut off; they count as wrong.",
    )
    assert task(path, max_length=40).notes == ()
    with pytest.raises(UserError, match=r"E131.*leaves none of 6 tokens for its paragraph"):
        task(path, max_length=6)
    with pytest.raises(UserError, match=r"E131.*no answer is within the first 9 tokens"):
        task(path, max_length=9)


@pytest.mark.usefixtures("bert")
def test_a_teacher_of_spans_is_matched_over_the_tokens(tmp_path: Path) -> None:
    found = task(written(tmp_path / "asked.json"), max_length=24)
    assert found.outputs.classes_axis == 1
    batch = found.train.first(3)
    teacher = marking(batch.targets, 24)
    from mirabelle.objectives import Forward

    term = SoftTargets(temperature=1.0).bind(torch.nn.Identity(), found, batch)
    student = torch.zeros_like(teacher)
    due = -(teacher.softmax(1) * (torch.full_like(teacher, 1 / 24).log() - teacher.log_softmax(1))).sum(1).mean()
    assert float(term(Forward(batch, student, Forward(batch, teacher)))) == pytest.approx(float(due), rel=1e-5)


@pytest.mark.usefixtures("bert")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "E131.*is not valid JSON"),
        ("[1]", "E131.*is not in SQuAD's format"),
        ('{"data": []}', "E130.*has no questions"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "7"}]}]}]}', "E131.*'question' is missing"),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "7", "question": "b", "answers": []}]}]}]}',
            'E131.*question "7" has no answer',
        ),
        (
            json.dumps({"data": [{"paragraphs": [{"context": "the poet", "qas": [MISPLACED]}]}]}),
            'E131.*the answer is "poet", but at position 3 the paragraph has " poe"',
        ),
    ],
)
def test_questions_that_cannot_be_used_are_told(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(text)
    with pytest.raises(UserError, match=words):
        task(tmp_path / "asked.json")


@pytest.mark.usefixtures("bert")
def test_settings_that_make_no_sense_are_told(tmp_path: Path) -> None:
    path = written(tmp_path / "asked.json", PLACES[:2])
    with pytest.raises(UserError, match=r"E131.*by articles.*2 samples; a split needs 3"):
        task(path)
    with pytest.raises(UserError, match=r"E111.*this task are spans"):
        task(path, class_weights="balanced")
    with pytest.raises(UserError, match=r"E110.*answer_f2"):
        task(written(tmp_path / "asked.json"), max_length=24, metric="answer_f2")


RECIPE = """
schema = 1
[model]
from = "./bert"
arguments = { head = "question-answering" }
[task]
data = "./asked.json"
arguments = { tokenizer = "./bert", max_length = 24 }
[baseline]
train = { steps = 2, batch_size = 4, precision = "float32" }
[[step]]
use = "prune.Weights"
sparsity = 0.5
train = { steps = 2, batch_size = 4, precision = "float32" }
"""


@pytest.mark.usefixtures("bert")
def test_what_ships_answers_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "asked.json")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    context = "the old king lives in Oslo ."
    (tmp_path / "new.txt").write_text(f"who lives in Oslo ?\t{context}\n")
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["answer"]
    assert found["answer"] in context
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt")]) == 0
    assert found["answer"] in capsys.readouterr().out
    (tmp_path / "new.txt").write_text("who lives in Oslo ?\n")
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt")]) == 2
    assert "the model takes pairs of texts" in capsys.readouterr().err


@pytest.mark.skipif(DATA is None or not DATA.is_file(), reason="MIRABELLE_DATA names no folder with xquad/xquad.en.json")
def test_the_questions_of_xquad_are_read() -> None:
    assert DATA is not None
    articles = read_articles(DATA)
    assert (len(articles), sum(map(len, articles))) == (48, 1190)
    assert articles[0][0].answers == ("308",)
