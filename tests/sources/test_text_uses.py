"""What models of texts are for: to continue, to fill gaps, to tag words, to write another text; from data to `predict`."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mirabelle import compress, quantize
from mirabelle.artifact.prediction import Predictor
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.job.dry_run import try_one_batch
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources import model_from, task_from
from mirabelle.task.task import Task
from word_tokenizer import save_word_tokenizer

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import transformers

WORDS = ["good", "fine", "great", "bad", "dull", "poor", "film", "plot", "a", "the"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip


def saved(folder: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A random model with a tokenizer of words, whose end symbol is [SEP] and which knows [MASK]."""
    tokens = save_word_tokenizer(folder, ["[MASK]", *WORDS])
    told = folder / "tokenizer_config.json"
    names = {"mask_token": "[MASK]", "eos_token": "[SEP]"}
    told.write_text(json.dumps({**json.loads(told.read_text("utf-8")), **names}), "utf-8")
    model = getattr(transformers, kind)
    torch.manual_seed(0)
    made = model(model.config_class(vocab_size=tokens, **settings))
    for parameter in made.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return made.eval()


def corpus(folder: Path) -> None:
    generator = np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(generator.choice(WORDS, 800)))


def task(folder: Path, data: str, **arguments: Any) -> Task:
    return task_from(f"./{data}", {"tokenizer": "./model", **arguments}, data_folder=None, folder=folder)


def ship(folder: Path, found: Task) -> Path:
    """The model as it is, exported with its preprocessing, in a folder of its own."""
    model, run = model_from("./model", {}, folder), folder / "run"
    run.mkdir()
    onnx = export(model, found.example(), found.labels, found.preprocessing, outputs=found.outputs)
    (run / "model.onnx").write_bytes(onnx)
    for name, data in found.extra_files.items():
        (run / name).write_bytes(data)
    return run


def test_a_causal_model_continues_a_text_as_transformers_does(tmp_path: Path) -> None:
    original = saved(tmp_path / "model", "GPT2LMHeadModel", GPT2)
    corpus(tmp_path)
    ship(tmp_path, task(tmp_path, "text.txt", window=12))
    (tmp_path / "new.txt").write_text("the film\ngood\n")
    found = Predictor(tmp_path / "run")([tmp_path / "new.txt"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text, prediction in zip(("the film", "good"), found, strict=True):
        start = torch.tensor([tokenizer(text)["input_ids"][:-1]])  # without the end symbol
        more = min(20, 12 - start.shape[1])
        due = original.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=more, do_sample=False)
        words = tokenizer.decode(due[0, start.shape[1] :], skip_special_tokens=True)
        assert prediction.text is not None
        assert prediction.text.split()[: len(words.split())] == words.split()
        assert prediction.top[0].index == int(due[0, start.shape[1]])


def test_a_masked_model_learns_and_fills_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = saved(tmp_path / "model", "BertForMaskedLM", {**SMALL, "max_position_embeddings": 32})
    corpus(tmp_path)
    found = task(tmp_path, "text.txt", kind="masked", window=22)
    inputs, targets = found.train.inputs["input_ids"], found.train.targets
    assert inputs.shape[1] == 22
    assert (inputs[:, 0] == 2).all()
    assert (inputs[:, -1] == 3).all()
    chosen = targets != -100
    assert (chosen.sum(1) == 3).all()  # 15 % of 20
    shares = [float((inputs[chosen] == 4).float().mean()), float((inputs[chosen] == targets[chosen]).float().mean())]
    assert abs(shares[0] - 0.8) < 0.15
    assert abs(shares[1] - 0.1) < 0.12
    ship(tmp_path, found)
    (tmp_path / "new.txt").write_text("the film [MASK] good\n")
    prediction = Predictor(tmp_path / "run")([tmp_path / "new.txt"], top=1)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    given = tokenizer("the film [MASK] good", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        scores = original(**given).logits[0, 3].softmax(-1)
    assert prediction.top[0].index == int(scores.argmax())
    assert abs(prediction.top[0].probability - float(scores.max())) < 1e-4
    (tmp_path / "new.txt").write_text("the film is good\n")
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "new.txt")]) == 2
    assert "write [MASK] for a word" in capsys.readouterr().err


def test_what_a_model_cannot_learn_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BertForMaskedLM", {**SMALL, "max_position_embeddings": 32})
    corpus(tmp_path)
    with pytest.raises(UserError, match="sees both sides of a token") as caught:
        try_one_batch(model_from("./model", {}, tmp_path), task(tmp_path, "text.txt", window=8))
    assert 'kind = "masked"' in caught.value.remedy
    with pytest.raises(UserError, match="needs the mask token of a tokenizer"):
        task_from("./text.txt", {"kind": "masked"}, data_folder=None, folder=tmp_path)


@pytest.mark.parametrize(
    ("kind", "data", "told", "head"),
    [
        (
            "BertForMaskedLM",
            "films.tsv",
            "gives the tokens that are hidden, the data ask for one class",
            "sequence-clas",
        ),
        ("GPT2LMHeadModel", "films.tsv", "gives the token that follows, the data ask for one class", "sequence-class"),
        ("BertForTokenClassification", "films.tsv", "gives a class for each word, the data ask for one", "sequence-cl"),
        (
            "BertForSequenceClassification",
            "words.conll",
            "one class for each text, the data ask for a class",
            "token-cl",
        ),
        ("BertForMaskedLM", "questions.json", "the data ask for the answer as a part of a text", "question-answering"),
    ],
)
def test_a_head_for_another_use_than_the_data_is_refused(kind: str, data: str, told: str, head: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", kind, GPT2 if kind.startswith("GPT2") else SMALL)
    (tmp_path / "films.tsv").write_text("text\tlabel\n" + "good film\tpos\nbad film\tneg\n" * 20)
    (tmp_path / "words.conll").write_text(TAGGED * 20)
    asked = {"id": "0", "question": "a film", "answers": [{"text": "fine", "answer_start": 5}]}
    article = {"title": "", "paragraphs": [{"context": "good fine film", "qas": [asked]}]}
    (tmp_path / "questions.json").write_text(json.dumps({"version": "1.1", "data": [article] * 20}))
    with pytest.raises(UserError, match=told) as caught:
        try_one_batch(model_from("./model", {}, tmp_path), task(tmp_path, data, max_length=12))
    assert (caught.value.code, head in caught.value.remedy) == ("E111", True)


TAGGED = "the\tO\nfilm\tB-THING\nfine\tO\n\na\tO\nplot\tB-THING\n\n"


@pytest.mark.parametrize(
    ("data", "names"), [("films.tsv", ["Pos", "neg", "neutral"]), ("words.conll", ["B-THING", "I-THING", "O"])]
)
def test_init_writes_classes_in_the_order_of_the_model(
    data: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "BertForTokenClassification" if data == "words.conll" else "BertForSequenceClassification"
    saved(tmp_path / "model", kind, {**SMALL, "id2label": dict(enumerate(names))})
    (tmp_path / "films.tsv").write_text("text\tlabel\n" + "good film\tpos\nbad film\tneg\n" * 20)
    (tmp_path / "words.conll").write_text(TAGGED * 20)
    monkeypatch.chdir(tmp_path)
    call = ["init", "--model", "./model", "--data", f"./{data}", "--no-look"]
    assert main.run(call) == 0
    arguments = tomllib.loads(capsys.readouterr().out)["task"]["arguments"]
    assert [name.casefold() for name in arguments["labels"]] == [name.casefold() for name in names]
    found = task(tmp_path, data, **{**arguments, "tokenizer": "./model"})
    assert found.labels == tuple(arguments["labels"])
    assert try_one_batch(model_from("./model", {}, tmp_path), found).shape[-1] == len(names)
    with (tmp_path / data).open("a") as file:
        file.write("fine film\tfunny\n" if data == "films.tsv" else "film\tB-FILM\n")
    assert main.run(call) == 2
    assert "which is no class of the model: " in capsys.readouterr().err


def test_words_and_their_tags_are_read(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BertForTokenClassification", {**SMALL, "max_position_embeddings": 32, "num_labels": 2})
    (tmp_path / "words.conll").write_text(TAGGED * 20)
    found = task(tmp_path, "words.conll", max_length=8)
    assert found.labels == ("O", "B-THING")
    rows = {tuple(row) for row in found.train.targets.tolist()}
    assert rows == {(-100, 0, 1, 0, -100, -100, -100, -100), (-100, 0, 1, -100, -100, -100, -100, -100)}
    lines = [json.dumps({"tokens": ["a", "film"], "ner_tags": ["O", "B-THING"]})] * 20
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    assert task(tmp_path, "words.jsonl", kind="tokens", max_length=8).labels == ("O", "B-THING")
    (tmp_path / "bad.conll").write_text("word\n" * 9)
    with pytest.raises(UserError, match='line 1: "word" is not a word and its tag'):
        task(tmp_path, "bad.conll")


@pytest.mark.slow
def test_words_are_tagged(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BertForTokenClassification", {**SMALL, "max_position_embeddings": 32, "num_labels": 2})
    (tmp_path / "words.conll").write_text(TAGGED * 20)
    ship(tmp_path, task(tmp_path, "words.conll", max_length=8))
    (tmp_path / "new.conll").write_text("good\tO\nplot\tO\n\n")
    (tmp_path / "new.txt").write_text("good plot\n")
    tagged, plain = (Predictor(tmp_path / "run")([tmp_path / name])[0].text for name in ("new.conll", "new.txt"))
    assert tagged == plain
    assert tagged is not None
    assert [part.partition("/")[0] for part in tagged.split()] == ["good", "plot"]


def written_backwards(folder: Path) -> list[tuple[str, str]]:
    """Pairs of three words and the same words backwards, which are written to pairs.tsv, too."""
    drawn = np.random.default_rng(0).choice(WORDS, (40, 3)).tolist()
    pairs = [(" ".join(words), " ".join(reversed(words))) for words in drawn]
    (folder / "pairs.tsv").write_text("one\ttwo\n" + "".join(f"{one}\t{two}\n" for one, two in pairs))
    return pairs


@pytest.mark.slow
def test_a_model_of_sequences_writes_as_transformers_does(tmp_path: Path) -> None:
    original = saved(tmp_path / "model", "BartForConditionalGeneration", {**BART, "max_position_embeddings": 32})
    pairs = written_backwards(tmp_path)
    found = task(tmp_path, "pairs.tsv", kind="sequences", max_length=8, written=9)
    ship(tmp_path, found)
    (tmp_path / "new.tsv").write_text("one\ttwo\n" + "".join(f"{one}\t{two}\n" for one, two in pairs[:4]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for (one, _), prediction in zip(pairs, Predictor(tmp_path / "run")([tmp_path / "new.tsv"]), strict=False):
        given = tokenizer(one, return_tensors="pt", return_token_type_ids=False)
        due = original.generate(**given, max_new_tokens=9, do_sample=False, num_beams=1)
        assert prediction.text == tokenizer.decode(due[0], skip_special_tokens=True)


def test_pairs_of_texts_are_read(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BartForConditionalGeneration", {**BART, "max_position_embeddings": 32})
    written_backwards(tmp_path)
    found = task(tmp_path, "pairs.tsv", kind="sequences", max_length=8, written=9)
    inputs, targets = found.train.first(1).inputs, found.train.first(1).targets
    assert inputs["decoder_input_ids"][0, 0] == 2
    assert torch.equal(inputs["decoder_input_ids"][0, 1:5], targets[0, :4])
    assert targets[0].tolist()[4:] == [3, -100, -100, -100, -100]
    (tmp_path / "alone.txt").write_text("good film\n")
    with pytest.raises(UserError, match="needs a text, a tab and a text"):
        task(tmp_path, "alone.txt", kind="sequences")
    model: Any = model_from("./model", {}, tmp_path)
    with pytest.raises(UserError, match="writes texts, and the data have none"):
        model.check({"input_ids": torch.ones(2, 4, dtype=torch.int64)})


def test_a_file_like_that_of_the_training_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "model", "BertForSequenceClassification", {**SMALL, "max_position_embeddings": 32})
    rows = [f"{word} film\t{'praise' if k < 3 else 'blame'}\t{k}" for k, word in enumerate(WORDS[:6])] * 8
    (tmp_path / "films.tsv").write_text("\n".join(["review\tlabel\tpage", *rows]) + "\n")
    found = task(tmp_path, "films.tsv", text="review", max_length=8)
    ship(tmp_path, found)
    (tmp_path / "new.txt").write_text("good film\nbad film\n")
    (tmp_path / "new.tsv").write_text("page\treview\n1\tgood film\n2\tbad film\n")
    (tmp_path / "new.jsonl").write_text('{"review": "good film"}\n{"review": "bad film"}\n')
    predictor = Predictor(tmp_path / "run")
    tops = [[one.top for one in predictor([tmp_path / f"new.{suffix}"])] for suffix in ("txt", "tsv", "jsonl")]
    assert tops[0] == tops[1] == tops[2]
    (tmp_path / "other.tsv").write_text("text\nbad film\n")
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "other.tsv")]) == 2
    assert 'no text in "review"' in capsys.readouterr().err


@pytest.mark.slow
def test_texts_need_no_labels(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BertModel", {**SMALL, "max_position_embeddings": 32})
    (tmp_path / "lines.txt").write_text("".join(f"{word} film\n" for word in WORDS * 4))
    found = task(tmp_path, "lines.txt", kind="unlabelled", max_length=8)
    assert not found.labelled
    assert found.metric.name == "fidelity"


@pytest.mark.slow
def test_a_model_keeps_what_it_says_of_texts_without_labels(tmp_path: Path) -> None:
    saved(tmp_path / "model", "BertModel", {**SMALL, "max_position_embeddings": 32})
    (tmp_path / "lines.txt").write_text("".join(f"{word} film\n" for word in WORDS * 4))
    found = task(tmp_path, "lines.txt", kind="unlabelled", max_length=8)
    result = compress(model_from("./model", {}, tmp_path), found, [quantize.Dynamic()], out=tmp_path / "run")
    assert result.profile.metric is not None
    assert result.profile.metric.value > 0.9


@pytest.mark.slow
def test_a_file_tells_the_lengths_that_it_takes(tmp_path: Path) -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    saved(tmp_path / "model", "MambaForCausalLM", settings)
    corpus(tmp_path)
    model, found = model_from("./model", {}, tmp_path), task(tmp_path, "text.txt", window=6)
    session = default_runtime().load(export(model, found.example()), 1)
    assert session._session.get_inputs()[0].shape == ["batch", 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GPT2LMHeadModel", GPT2),
        ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 1}),
        ("GPTNeoXForCausalLM", SMALL),
        ("OPTForCausalLM", {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 32,
                            "word_embed_proj_dim": 16, "max_position_embeddings": 32, "pad_token_id": 0}),
        ("Qwen2ForCausalLM", {**SMALL, "num_key_value_heads": 1}),
        ("MistralForCausalLM", {**SMALL, "num_key_value_heads": 1}),
        ("GemmaForCausalLM", {**SMALL, "num_key_value_heads": 1, "head_dim": 8}),
        ("PhiForCausalLM", {**SMALL, "bos_token_id": 2, "eos_token_id": 3}),
        ("BloomForCausalLM", {"hidden_size": 16, "n_head": 2, "n_layer": 1}),
        ("DebertaV2ForSequenceClassification", {**SMALL, "relative_attention": True, "position_buckets": 4,
                                                "pos_att_type": "p2c|c2p", "position_biased_input": False}),
        ("MPNetForSequenceClassification", {**SMALL, "max_position_embeddings": 34, "pad_token_id": 0}),
    ],
)  # fmt: skip
def test_files_compute_texts_of_any_length(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "model", kind, settings)
    model: Any = model_from("./model", {}, tmp_path)
    words = torch.randint(4, 15, (2, 12))
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    zeros = torch.zeros(2, dtype=torch.int64)
    found = Task(train=(inputs, zeros), test=(inputs, zeros), validation=(inputs, zeros), loss="cross_entropy")
    session = default_runtime().load(export(model, found.example()), 1)
    for batch, length in ((1, 1), (3, 5), (2, 20)):
        given = torch.randint(4, 15, (batch, length))
        mask = torch.ones_like(given)
        mask[0, max(1, length // 2) :] = 0
        with torch.no_grad():
            due = model(input_ids=given, attention_mask=mask).numpy()
        got = session.run({"input_ids": given.numpy(), "attention_mask": mask.numpy()})[0]
        seen = mask.numpy() > 0 if due.ndim == 3 else slice(None)
        assert np.abs(got - due)[seen].max() < 1e-4 * np.abs(due).max()
