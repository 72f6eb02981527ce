"""A running text as data for a language model, what one reads when it is none, and what ships telling what follows a text."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, compress, quantize
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.task.preprocessing import Characters, from_json, to_json
from mirabelle.training import Training

TEXT = "abcd" * 100


def task(path: Path, **arguments: Any) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


class Successor(nn.Module):
    """Scores of what follows each character, from that character alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.scores = nn.Embedding(4, 8), nn.Linear(8, 4)

    def forward(self, symbols: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.table(symbols))
        return scores


def test_targets_are_the_characters_one_further_on(corpus: Path) -> None:
    found = task(corpus, window=7, test_fraction=0.25, validation_fraction=0.125)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [35, 7, 14]  # 250, 50, 100 characters
    first = found.train.first(2)
    assert first.inputs.tolist() == [[0, 1, 2, 3, 0, 1, 2], [3, 0, 1, 2, 3, 0, 1]]
    assert first.targets.tolist() == [[1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2]]
    assert found.test.first(1).inputs[0].tolist() == [0, 1, 2, 3, 0, 1, 2]  # the last quarter, from where it begins
    assert found.notes == ("5 of 400 tokens are left out: the ends of the parts, shorter than a window.",)  # 4 + 0 + 1
    assert found.metric.name == "negative_perplexity"
    assert found.preprocessing == Characters(characters="abcd", length=7)


def test_a_model_that_knows_nothing_is_as_surprised_as_there_are_characters(corpus: Path) -> None:
    found = task(corpus, window=10)
    scores = found.metric.of_samples(torch.zeros(len(found.test), 10, 4), found.test.targets)
    assert math.isclose(found.metric.value(scores), -4.0, rel_tol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_tokens_of_transformers_are_taken_by_name(tmp_path: Path) -> None:
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "tokens")
    (tmp_path / "text.txt").write_text("one two " * 100)
    found = task(tmp_path / "text.txt", window=5, tokenizer="./tokens")
    first = found.train.first(1)
    assert first.inputs["input_ids"].tolist() == [[1, 2, 1, 2, 1]]
    assert first.targets.tolist() == [[2, 1, 2, 1, 2]]
    assert bool(first.inputs["attention_mask"].all())
    assert list(found.extra_files) == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        (b"abc", {}, r"E131.*has 3 tokens; the number of windows of 128 is 0 for train.*smaller window"),
        (b"\xff\xfe\xfa", {}, "E131.*is not encoded in UTF-8"),
        (TEXT.encode(), {"test_fraction": 0.6, "validation_fraction": 0.4}, "E110.*add up to less than 1"),
        (TEXT.encode(), {"windows": 4}, 'E102.*did you mean "window"'),
    ],
)
def test_what_is_no_corpus_is_told(text: bytes, arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(UserError) as caught:
        task(tmp_path / "text.txt", **arguments)
    error = caught.value
    assert re.search(says, f"{error.code} {error.message} {error.remedy}")


def test_a_missing_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text at"):
        task(tmp_path / "text.txt")


def test_characters_survive_the_file_they_travel_in() -> None:
    characters = Characters(characters='\n "\\aé', length=3)
    assert from_json(to_json(characters)) == characters
    np.testing.assert_array_equal(characters(["aé\n\n"]), [[5, 0, 0]])
    with pytest.raises(UserError, match="does not know the character 'b'"):
        characters(["ab"])
    with pytest.raises(UserError, match="must occur exactly once"):
        Characters(characters="aa", length=3)


def test_what_ships_tells_what_follows(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = task(corpus, window=8)
    training = Training(epochs=30, batch_size=8, lr=0.05, precision="float32")
    result = compress(Successor(), found, [quantize.Dynamic()], out=tmp_path / "run", baseline=training)
    assert result.profile.metric is not None
    assert result.profile.metric.value > -1.1  # each character has one successor
    (tmp_path / "new.txt").write_text("ab\nabcabcabcabcd\n")
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt"), "--json"]) == 0
    assert [entry["label"] for entry in json.loads(capsys.readouterr().out)] == ["c", "a"]
    np.save(tmp_path / "x.npy", np.zeros((1, 8), np.int64))
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "x.npy")]) == 2
    assert "takes texts" in capsys.readouterr().err
