"""Folders of transformers as modules, and back: what the config can say goes back, what it cannot is told."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mirabelle
from mirabelle import Task, Training, prune, quantize
from mirabelle.cli import main
from mirabelle.errors import UserError, UserErrors
from mirabelle.recipe.file import read_recipe
from mirabelle.sources import model_from
from mirabelle.sources.models.huggingface import HuggingFaceModel

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import transformers

WORDS = {"vocab_size": 50, "max_position_embeddings": 16, "num_labels": 3}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def saved(folder: Path, kind: str = "BertForSequenceClassification") -> Path:
    torch.manual_seed(0)
    labels = 2 if kind == "BertForQuestionAnswering" else 3
    config = transformers.BertConfig(**SIZES, **{**WORDS, "num_labels": labels})
    model = getattr(transformers, kind)(config)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    return folder


def reading() -> Task:
    """Which third of the words a sentence begins with."""
    words = torch.randint(0, 48, (240, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    parts = [
        ({name: tensor[rows] for name, tensor in inputs.items()}, words[rows, 0] // 16)
        for rows in (slice(200), slice(200, 240))
    ]
    return Task(train=parts[0], test=parts[1], name="reading")


def test_a_folder_goes_in_and_a_smaller_one_comes_out(tmp_path: Path) -> None:
    folder, task = saved(tmp_path / "bert"), reading()
    model = model_from("./bert", {}, tmp_path)
    training = Training(epochs=2, batch_size=40, lr=2e-3, precision="float32")
    steps = [prune.Channels(sparsity=0.5, include=("*intermediate*",), scope="group", train=training), quantize.Dynamic()]
    result = mirabelle.compress(model, task, steps, out=tmp_path / "run")
    assert result.profile.parameters < result.start.parameters
    again: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "huggingface")
    assert again.config.intermediate_size == 16
    assert (tmp_path / "run" / "huggingface" / "vocab.txt").is_file()
    inputs = task.test.inputs
    with torch.no_grad():
        due, found = result.model(**inputs), again(**inputs).logits
    assert float((found - due).abs().max()) < 0.05 * float(due.abs().max())
    assert folder.is_dir()


@pytest.mark.slow
def test_heads_that_are_gone_cannot_be_said_in_a_config(tmp_path: Path) -> None:
    saved(tmp_path / "bert")
    model, events = model_from("./bert", {}, tmp_path), list[Any]()
    step = prune.Channels(sparsity=0.5, include=("*attention*",))
    result = mirabelle.compress(model, reading(), [step], out=tmp_path / "run", callbacks=[events.append])
    told = [event["text"] for event in events if event["event"] == "warning"]
    assert any("cannot be written in its original framework" in text and "attention" in text for text in told), told
    assert (tmp_path / "run" / "model.onnx").is_file()
    assert result.profile.parameters < result.start.parameters


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("BertForQuestionAnswering", (2, 9, 2)),
        ("BertForTokenClassification", (2, 9, 3)),
        ("BertForMaskedLM", (2, 9, 50)),
        ("BertModel", (2, 9, 16)),
    ],
)
def test_every_head_gives_one_tensor(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    saved(tmp_path / "bert", kind)
    model = model_from("./bert", {}, tmp_path)
    assert isinstance(model, HuggingFaceModel)
    assert type(model.model).__name__ == kind
    assert model(input_ids=torch.ones(2, 9, dtype=torch.int64)).shape == shape


def test_a_model_of_modelscope_is_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = saved(tmp_path / "bert"), []

    def snapshot_download(place: str, revision: str | None = None) -> str:
        asked.append((place, revision))
        if place == "org/none":
            raise ValueError("no such model\nat all")
        return str(folder)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    model = model_from("ms:org/bert@v2", {}, tmp_path)
    assert isinstance(model, HuggingFaceModel)
    assert asked == [("org/bert", "v2")]
    assert model.origin == folder
    with pytest.raises(UserError, match="ModelScope cannot download org/none: no such model") as caught:
        model_from("ms:org/none", {}, tmp_path)
    assert caught.value.code == "E130"
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="need the package modelscope") as caught:
        model_from("ms:org/bert", {}, tmp_path)
    assert caught.value.code == "E160"


def test_what_cannot_come_in_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "bert")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = 1\n[model]\nfrom = "./brt"\n[task]\ndata = "digits"\n[[step]]\nuse = "quantize.Dynamic"\n')
    assert main.run(["check", str(recipe)]) == 2
    assert "no transformers model at" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClasification"]}))
    with pytest.raises(UserError, match='has no "BertForSequenceClasification"') as caught:
        model_from("./bert", {}, tmp_path)
    assert "BertForSequenceClassification" in caught.value.remedy
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(
        transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **WORDS)).state_dict(),
        folder / "pytorch_model.bin",
    )
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickles are not read") as caught:
        model_from("./bert", {}, tmp_path)
    assert caught.value.code == "E143"
    assert main.run(["init", "--model", str(tmp_path / "bert"), "--data", "digits", "--no-look"]) == 0
    assert "\n[baseline]" not in capsys.readouterr().out
    assert main.run(["init", "--model", str(tmp_path / "bert"), "--data", "digits"]) == 2
    assert "error[E143]: --model: " in capsys.readouterr().err


def test_a_head_of_ones_own_is_drawn_by_the_seed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "bert", "BertModel")
    capfd.readouterr()  # a bar while the folder is written
    arguments = {"head": "sequence-classification", "labels": 5}
    found: list[Any] = [model_from("./bert", arguments, tmp_path, seed) for seed in (0, 0, 1)]
    words = torch.ones(2, 9, dtype=torch.int64)
    assert found[0](input_ids=words).shape == (2, 5)
    weights = [model.model.classifier.weight for model in found]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(
        found[0].model.bert.embeddings.word_embeddings.weight, found[2].model.bert.embeddings.word_embeddings.weight
    )
    assert model_from("./bert", {"head": "question-answering"}, tmp_path)(input_ids=words).shape == (2, 9, 2)
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match="classifier") as caught:
        model_from("./bert", {"head": "classifier"}, tmp_path)
    assert caught.value.code == "E103"


def test_a_folder_may_lie_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("raise RuntimeError('nothing of it is run')\n")
    saved(tmp_path / "nets" / "bert")
    monkeypatch.syspath_prepend(tmp_path)
    model = model_from("package:nets/bert", {}, Path("elsewhere"))
    assert isinstance(model, HuggingFaceModel)
    assert model.origin == tmp_path / "nets" / "bert"
    with pytest.raises(UserError, match='the package "nots", which is not installed') as caught:
        model_from("package:nots/bert", {}, tmp_path)
    assert caught.value.code == "E130"
    recipe = tmp_path / "recipe.toml"
    text = 'schema = 1\n[model]\nfrom = "package:nets/NAME"\n[task]\ndata = "digits"\n[[step]]\nuse = "quantize.Dynamic"\n'
    recipe.write_text(text.replace("NAME", "bert"))
    assert read_recipe(recipe).model.factory == "package:nets/bert"
    recipe.write_text(text.replace("NAME", "brt"))
    with pytest.raises(UserErrors, match="no transformers model at package:nets/brt"):
        read_recipe(recipe)


def test_a_folder_is_inspected_without_more_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "bert")
    assert main.run(["inspect", str(folder), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)
    found = {layer["name"]: layer["macs"] for layer in layers}
    assert found["model.classifier"] == 16 * 3
    assert main.run(["inspect", str(folder), "--groups"]) == 0
    assert "neurons of a layer" in capsys.readouterr().out


def test_inputs_that_the_model_does_not_take_are_told_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path / "bert")
    model = model_from("./bert", {}, tmp_path)
    assert isinstance(model, HuggingFaceModel)
    words = torch.ones(2, 9, dtype=torch.int64)
    model.check({"input_ids": words, "attention_mask": words})
    for inputs, says in (
        (words, "E131.*takes inputs by name, such as input_ids; the data have none"),
        ({"input_ids": words, "pixels": words}, "E131.*BertForSequenceClassification does not take pixels"),
        ({"input_ids": torch.ones(2, 17, dtype=torch.int64)}, "E110.*have 17 tokens, the model takes at most 16"),
    ):
        with pytest.raises(UserError) as caught:
            model.check(inputs)
        assert re.search(says, f"{caught.value.code} {caught.value.message}")


@pytest.mark.parametrize(
    ("kind", "data", "arguments"),
    [
        ("BertForSequenceClassification", "x.tsv", 'tokenizer = "./bert", max_length = 14'),
        ("BertForSequenceClassification", "x.csv", 'tokenizer = "./bert", max_length = 14'),
        ("BertForTokenClassification", "x.jsonl", 'tokenizer = "./bert", kind = "tokens", max_length = 14'),
        ("BertForMaskedLM", "x.txt", 'tokenizer = "./bert", kind = "masked", window = 14'),
        ("BertLMHeadModel", "x.txt", 'tokenizer = "./bert", window = 14'),
    ],
)
def test_init_reads_texts_as_the_model_needs_them(
    kind: str, data: str, arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "bert", kind)
    (tmp_path / data).touch()
    capsys.readouterr()
    assert main.run(["init", "--model", str(folder), "--data", str(tmp_path / data), "--no-look"]) == 0
    printed = capsys.readouterr().out.replace(str(folder), "./bert")
    assert f"arguments = {{ {arguments} }}" in printed
    assert 'use = "quantize.Dynamic"' in printed


def test_sentence_vectors_are_pooled_and_normalized(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", "BertModel")
    plain = model_from("./bert", {}, tmp_path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()])
    )
    (folder / "1_Pooling").mkdir()
    words = torch.randint(0, 48, (2, 9))
    mask = torch.ones_like(words)
    mask[0, 4:] = 0
    states = plain(input_ids=words, attention_mask=mask).detach()
    due = {"mean_tokens": states[0, :4].mean(0), "cls_token": states[0, 0], "max_tokens": states[0, :4].amax(0)}
    for mode, expected in due.items():
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        model: Any = model_from("./bert", {}, tmp_path)
        found = model(input_ids=words, attention_mask=mask).detach()
        torch.testing.assert_close(found[0], expected / expected.norm())
    assert model.write_back(model, tmp_path / "out") == "huggingface"
    assert (tmp_path / "out" / "huggingface" / "1_Pooling" / "config.json").is_file()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(UserError, match="pools by pooling_mode_weightedmean_tokens; supported is one of"):
        model_from("./bert", {}, tmp_path)
