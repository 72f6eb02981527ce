"""Recordings with texts as data of a model of CTC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.sources.models.processors import symbols_of
from mirabelle.task.outputs import Form
from mirabelle.task.task import Task

TEXTS = ["AB", "B A", "AAAB", "A", "BB", "AB", "B", "A B", "AA", "BA"]


def speech(folder: Path, *texts: str, column: str = "transcription") -> Path:
    folder.mkdir(exist_ok=True)
    for k in range(len(texts)):
        wavfile.write(folder / f"{k}.wav", 8_000, np.random.default_rng(k).integers(-900, 900, 800).astype(np.int16))
    rows = [f"{k}.wav,{text}" for k, text in enumerate(texts)]
    (folder / "metadata.csv").write_text("\n".join([f"file_name,{column}", *rows]) + "\n")
    return folder


def read(folder: Path, **arguments: object) -> Task:
    given = {"kind": "transcription", "features": "waveform", "labels": ["", " ", "A", "B"], **arguments}
    return task_from(f"./{folder.name}", given, data_folder=None, folder=folder.parent)


def test_texts_become_symbols(tmp_path: Path) -> None:
    task = read(speech(tmp_path / "speech", *TEXTS))
    assert task.outputs.form is Form.SYMBOLS
    assert task.metric.name == "character_accuracy"
    rows = [row for data in (task.train, task.validation, task.test) for row in data.first(10).targets.tolist()]
    found = ["".join(task.labels[symbol] for symbol in row if symbol >= 0) for row in rows]
    assert sorted(found) == sorted(TEXTS)
    assert task.train.first(1).inputs.shape == (1, 800)


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("AC", {}, r'0\.wav, "AC", has "C", which is no symbol of the model'),
        ("", {}, r"0\.wav has no text"),
        ("A", {"labels": ["A", "B"]}, "the first is the blank"),
    ],
)
def test_texts_that_a_model_cannot_write_are_refused(
    text: str, arguments: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        read(speech(tmp_path / "speech", text, *TEXTS), **arguments)


def test_a_table_that_does_not_fit_is_told(tmp_path: Path) -> None:
    folder = speech(tmp_path / "speech", *TEXTS, column="words")
    with pytest.raises(UserError, match="has file_name, words"):
        read(folder)
    (folder / "metadata.csv").write_text("file_name,text\n../a.wav,A\n")
    with pytest.raises(UserError, match=r"line 2: \.\./a\.wav is outside of the folder"):
        read(folder)
    (folder / "metadata.csv").write_text("file_name,text\nno.wav,A\n")
    with pytest.raises(UserError, match=r"line 2: there is no file no\.wav"):
        read(folder)
    (folder / "metadata.csv").unlink()
    with pytest.raises(UserError, match=r"contains no metadata\.csv"):
        read(folder)


def test_symbols_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "B": 3, "A": 2}))
    assert symbols_of(tmp_path, {"pad_token_id": 0}) == ["", " ", "A", "B"]
    with pytest.raises(UserError, match=r"is symbol 3 of vocab\.json; only a blank of 0 is covered") as caught:
        symbols_of(tmp_path, {"pad_token_id": 3})
    assert caught.value.code == "E121"
    with pytest.raises(UserError, match="cannot be read"):
        symbols_of(tmp_path / "nowhere", {"pad_token_id": 0})
