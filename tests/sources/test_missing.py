"""Paths that do not exist are told as such, with the one that may be meant, and never looked for on a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirabelle.errors import UserError
from mirabelle.sources import model_from
from mirabelle.sources.checks import check_model
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.sources.missing import similar_path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models; whoever asks a hub fails the test."""
    (tmp_path / "nets" / "bert").mkdir(parents=True)
    (tmp_path / "nets" / "bert" / "config.json").write_text("{}")
    (tmp_path / "bert-base").mkdir()
    for name in ("net.onnx", "weights.pt", "weights.safetensors", "net.py", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", asked)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nets/bertt", r'E130.*no transformers model at ./nets/bertt\n.*did you mean ".*nets/bert"\?'),
        ("./nest/bert", r'E130.*no transformers model at ./nest/bert\n.*did you mean ".*nets/bert"\?'),
        ("./other", r"E130.*no transformers model at ./other\n.*check the path"),
        ("bert/base", r'E130.*no transformers model at bert/base\n.*"hf:bert/base" for the Hugging Face Hub'),
        ("bert-base", r'E130.*"bert-base" is neither a path nor a function\n.*did you mean "./bert-base"'),
        ("bert-large-uncased", r'E130.*no model at bert-large-uncased\n.*"hf:bert-large-uncased" for the Hugging Face Hub'),
        ("./Net.onx", r"E130.*no transformers model at ./Net.onx\n.*did you mean \".*net.onnx\""),
        ("./nett.onnx", r"E130.*no model at ./nett.onnx\n.*did you mean \".*net.onnx\""),
        ("./nets/bert.onnx", r"E130.*no model at"),
        ("./nets", r"E130.*there is no config.json"),
        ("weights.pt", r"E143.*weights.pt holds weights, but not the model.*\n.*weights = "),
        ("weights.safetensors", r"E143.*holds weights"),
        ("./notes.txt", r"E143.*./notes.txt is no model"),
        ("notes.txt", r"E143.*notes.txt is no model"),
        ("./net.py", r"E120.*is not a function"),
    ],
)
def test_a_model_that_is_not_there_is_told_by_its_path(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(name, folder)
    with pytest.raises(UserError, match=message):
        model_from(name, {}, folder)


def test_a_tokenizer_that_is_not_there_is_told_by_its_path(folder: Path) -> None:
    with pytest.raises(UserError, match=r'E130.*at ./nets/brt\n.*did you mean ".*nets/bert"'):
        tokenizer_from("./nets/brt", folder)


def test_the_similar_path_exists_and_differs_in_one_name(folder: Path) -> None:
    assert similar_path(Path("nets/brt")) == "./nets/bert"
    assert similar_path(folder / "Nets" / "bert" / "config.json") == str(folder / "nets" / "bert" / "config.json")
    for other in ("nets/bert", "nest/brt", "nest/vit", "something/else"):
        assert similar_path(Path(other)) is None
