"""Folders of transformers and ONNX files are data: no code in them runs, and nothing outside of their folder is read."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from hostile.conftest import PAYLOAD
from hostile.test_folders import Evil
from mirabelle.errors import UserError
from mirabelle.run.files import write_tensors
from mirabelle.sources import load_weights, model_from
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.sources.models.weights import StateDict

transformers = pytest.importorskip("transformers")

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 16,
}
OWN = {"AutoConfig": "payload.Net", "AutoModelForSequenceClassification": "payload.Net", "AutoTokenizer": ["payload.Net", None]}
CONFIGS = {
    "code for a known kind": {"auto_map": OWN},
    "code for an unknown kind": {"auto_map": OWN, "model_type": "mine"},
    "code of a hub": {"auto_map": {key: f"evil/repo--{value}" for key, value in OWN.items()}, "model_type": "mine"},
    "a kernel of a hub": {"attn_implementation": "evil/repo:payload", "_attn_implementation": "evil/repo"},
    "no model as its architecture": {"architectures": ["pipeline"]},
    "a module as its architecture": {"architectures": ["utils"]},
    "a function as its architecture": {"architectures": ["set_seed"]},
    "a backbone of a hub": {"backbone": "evil/repo", "use_pretrained_backbone": True, "use_timm_backbone": True},
    "a quantizer": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "a file elsewhere": {"_name_or_path": "evil/repo"},
}


def attempted(load: Callable[[], Any]) -> tuple[Any, str]:
    """(what was loaded, ""), or (None, code of the error)."""
    try:
        return load(), ""
    except UserError as error:
        return None, error.code


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects to another machine fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("an address in a file was called")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, quietly: None) -> Path:
    """A folder as transformers saves it, with code beside it."""
    place = tmp_path / "model"
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).save_pretrained(place)
    for name in ("payload.py", "custom_generate/generate.py", "modeling_mine.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(PAYLOAD.format(mark=str(mark)))
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_config_brings_no_code_and_no_address(folder: Path, mark: Path, change: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    model, refused = attempted(lambda: model_from(str(folder), {}, Path()))
    assert refused in ("", "E121", "E130", "E140")
    assert refused or type(model.model).__module__.startswith("transformers.models.bert")
    assert not mark.exists()


@pytest.mark.parametrize("beside", [True, False])
def test_weights_that_are_pickles_are_not_read(folder: Path, mark: Path, beside: bool) -> None:
    if not beside:
        (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/repo", "peft_type": "LORA"}))
    if beside:
        assert model_from(str(folder), {}, Path()) is not None
    else:
        with pytest.raises(UserError, match=r"E130|E143"):
            model_from(str(folder), {}, Path())
    assert not mark.exists()


def test_an_index_of_shards_leads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    state = transformers.BertForSequenceClassification.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    write_tensors(tmp_path / "outside.safetensors", state)
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "../outside.bin")}
    (tmp_path / "outside.bin").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"E130|E143|E140|E141"):
        model_from(str(folder), {}, Path())
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": OWN, "tokenizer_class": "Net"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        {"tokenizer_class": "os.system", "auto_map": {"AutoTokenizer": ["evil/repo--payload.Net", None]}},
        {"tokenizer_class": "BertTokenizer", "name_or_path": "evil/repo", "tokenizer_file": "/etc/passwd"},
    ],
)
def test_a_tokenizer_brings_no_code(folder: Path, mark: Path, config: dict[str, object]) -> None:
    vocabulary = {"[UNK]": 0, "a": 1}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found, refused = attempted(lambda: tokenizer_from(str(folder), Path()))
    assert refused in ("", "E121", "E130")
    assert refused or b"root:" not in found.data
    assert not mark.exists()


def test_a_pickled_state_dict_gives_tensors_alone(tmp_path: Path, mark: Path) -> None:
    for name, content in (("evil.pt", Evil(mark)), ("inside.pt", {"weight": torch.zeros(1), "state": Evil(mark)})):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match="E143"):
            load_weights(torch.nn.Linear(1, 1), StateDict(pickle=name), tmp_path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match=r"E14[13]"):
        load_weights(torch.nn.Linear(1, 1), StateDict(pickle="plain.pt"), tmp_path)
    assert not mark.exists()


def external(location: str, path: Path) -> Path:
    """An ONNX file whose weight lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("place", ["../secret.bin", "ABSOLUTE", "link.bin", "sub/../../secret.bin"])
def test_external_data_of_onnx_stay_in_its_folder(tmp_path: Path, status, place: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(16, np.float32).tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(secret)
    path = external(place.replace("ABSOLUTE", str(secret)), folder / "x.onnx")
    with pytest.raises(UserError, match=r"E1"):
        model_from(str(path), {}, Path())
    for command in (("inspect", path), ("verify", path), ("bench", path, "--seconds", "0.1"), ("predict", path, secret)):
        code, _, said = status(*command)
        assert code in (2, 4), said
        assert "Traceback" not in said


def test_operators_of_other_libraries_load_none(tmp_path: Path, status, mark: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node(
                "PyOp", ["x"], ["y"], domain="ai.onnx.contrib", module="os", class_name="system", command=f"touch {mark}"
            )
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    for key, value in (
        ("preprocessing", '{"use": "./payload.py:net", "os:system": "touch mark"}'),
        ("metric", "./payload.py:net"),
        ("ort_config", '{"session_options": {"custom_ops_library": "./payload.so"}}'),
    ):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    for command in (
        ("verify", path),
        ("bench", path, "--seconds", "0.1"),
        ("predict", path, tmp_path / "x.npy"),
        ("inspect", path, "--groups"),
        ("pack", path),
    ):
        code, _, said = status(*command)
        assert code in (2, 4) or command[0] == "pack", (command, said)
        assert "Traceback" not in said
    assert not mark.exists()
    with pytest.raises(UserError, match="E1"):
        model_from(str(path), {}, Path())
    assert onnx.load(path).metadata_props
