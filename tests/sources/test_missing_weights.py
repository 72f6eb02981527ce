"""Weights that a file does not contain are refused, or told if they are of a head that is asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mirabelle import Task, quantize
from mirabelle.errors import UserError
from mirabelle.job.dry_run import JobPlan
from mirabelle.job.notes import notes_of
from mirabelle.recipe.recipe import Recipe
from mirabelle.sources import model_from
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.goal import Goal

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import transformers

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BERT = transformers.BertConfig(**SIZES, vocab_size=30, max_position_embeddings=16)
LAYER = "bert.encoder.layer.0.output.dense.weight"
Tensors = dict[str, torch.Tensor]


def saved(folder: Path, kind: str = "BertForSequenceClassification", change: Callable[[Tensors], Any] = len) -> Any:
    """A folder of transformers whose tensors are changed afterwards; the model as it was."""
    model = getattr(transformers, kind)(BERT).eval()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def old_names(tensors: Tensors) -> None:
    for name in [name for name in tensors if "LayerNorm" in name]:
        tensors[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(
            name
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(LAYER), f"do not contain 1 of its tensors.*: {LAYER}\n"),
        (lambda tensors: tensors.update({LAYER: torch.zeros(2, 2)}), rf"{LAYER} \(2, 2\) instead of \(8, 16\)"),
        (lambda tensors: tensors.pop("classifier.weight"), "classifier.weight"),
    ],
    ids=["missing", "another shape", "the trained head"],
)
def test_a_tensor_that_is_not_there_is_refused(change: Callable[[Tensors], Any], words: str, tmp_path: Path) -> None:
    saved(tmp_path / "bert", change=change)
    with pytest.raises(UserError, match=words) as caught:
        model_from("./bert", {}, tmp_path)
    assert caught.value.code == "E140"


@pytest.mark.parametrize("change", [lambda tensors: tensors.pop(LAYER), lambda tensors: tensors.update({LAYER: torch.ones(1)})])
def test_a_head_that_is_asked_for_excuses_no_other_tensor(change: Callable[[Tensors], Any], tmp_path: Path) -> None:
    saved(tmp_path / "bert", change=change)
    with pytest.raises(UserError, match=rf"1 of its tensors.*{LAYER}"):
        model_from("./bert", {"labels": 5}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "arguments", "untrained"),
    [
        ("BertForSequenceClassification", {"labels": 5}, ["classifier.bias", "classifier.weight"]),
        ("BertModel", {"head": "sequence-classification"}, ["classifier.bias", "classifier.weight"]),
        (
            "BertForMaskedLM",
            {"head": "sequence-classification"},
            ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
        ),
    ],
)
def test_a_head_that_is_asked_for_is_told(kind: str, arguments: dict[str, Any], untrained: list[str], tmp_path: Path) -> None:
    saved(tmp_path / "bert", kind)
    model = model_from("./bert", arguments, tmp_path)
    assert isinstance(model, HuggingFaceModel)
    assert list(model.untrained) == untrained
    words = {"input_ids": torch.ones(20, 4, dtype=torch.long)}
    task = Task(train=(words, torch.arange(20) % 2), test=(words, torch.arange(20) % 2))
    told = " ".join(notes_of(JobPlan(model, task, Recipe([quantize.Dynamic()]), Goal())))
    assert f"random until they are trained: {', '.join(untrained)}." in told
    assert ("tensors that the model does not have" in told) == (kind == "BertForMaskedLM")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("BertForSequenceClassification", old_names),
        ("BertForSequenceClassification", lambda tensors: tensors.update({"bert.embeddings.position_ids": torch.zeros(1, 16)})),
        ("BertForMaskedLM", len),
    ],
    ids=["gamma and beta", "a buffer that is computed", "tied decoder"],
)
def test_what_may_be_absent_or_differ_loads_the_same_values(kind: str, change: Callable[..., Any], tmp_path: Path) -> None:
    model = saved(tmp_path / "bert", kind, change)
    loaded = model_from("./bert", {}, tmp_path)
    words = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=words), model(input_ids=words).logits)
    assert loaded.untrained == loaded.unused == ()


@pytest.mark.parametrize(
    "model",
    [
        transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16)),
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)
        ),
    ],
    ids=["gpt2", "t5"],
)
def test_a_tied_output_layer_is_not_missing(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    loaded = model_from("./tied", {}, tmp_path)
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight)
    assert loaded.untrained == ()


def test_layers_that_the_config_leaves_out_are_told(tmp_path: Path) -> None:
    saved(tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "num_hidden_layers": 1}))
    model = model_from("./bert", {}, tmp_path)
    assert len(model.unused) == 16
    assert all(name.startswith("bert.encoder.layer.1.") for name in model.unused)


def test_shards_that_are_incomplete_are_refused(tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification(BERT)
    model.save_pretrained(tmp_path / "bert", max_shard_size="2KB")
    shards = sorted((tmp_path / "bert").glob("*.safetensors"))
    assert len(shards) > 2
    tensors = load_file(shards[1])
    gone = next(iter(tensors))
    save_file({name: part for name, part in tensors.items() if name != gone}, shards[1], metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"E140.*{gone}"):
        model_from("./bert", {}, tmp_path)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"E130.*{shards[1].name}"):
        model_from("./bert", {}, tmp_path)
