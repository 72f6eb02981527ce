"""The ONNX file of a large model: the logits of transformers, codes of 4 bits, resuming, and what is refused early."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mirabelle import compress_large, prune, quantize
from mirabelle.errors import UserError
from mirabelle.job import block_by_block, block_onnx
from mirabelle.sources.models.blocks import Blocks

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, Any] = {
    "LlamaConfig": {
        "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "GPT2Config": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None, "eos_token_id": None},
    "GPTNeoXConfig": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
    "MistralConfig": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "sliding_window": 5,
    },
}  # fmt: skip


def made(kind: str, folder: Path, **changed: Any) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{"vocab_size": 61, **CONFIGS[kind], **changed})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, max_shard_size="60KB")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 61, (4, 24), generator=torch.Generator().manual_seed(0))


def loaded(folder: Path, group_size: int) -> Any:
    """The model of transformers in float32, with the weights that the codes stand for."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for path in (folder / "codes").glob("*.safetensors"):
        codes = load_file(path)
        for name in {key.rpartition(".")[0] for key in codes}:
            rows, columns = codes[f"{name}.weight_shape"].tolist()
            shifted = [(codes[f"{name}.weight_packed"] >> shift) & 15 for shift in range(0, 32, 4)]
            numbers = torch.stack(shifted, 2).reshape(rows, -1)[:, :columns] - 8
            if f"{name}.weight_zero_point" in codes:
                numbers -= codes[f"{name}.weight_zero_point"].repeat_interleave(group_size, 1)[:, :columns]
            scales = codes[f"{name}.weight_scale"].float().repeat_interleave(group_size, 1)[:, :columns]
            weight = model.get_submodule(name).weight.data
            weight.copy_((numbers * scales).t() if kind_of(model, name) == "Conv1D" else numbers * scales)
    return model


def kind_of(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name)).__name__


def check_logits(folder: Path, model: nn.Module) -> None:
    """Equal for one sample and for several with padding on both sides, and for lengths of 1, 9 and 20."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for samples, length in ((1, 1), (1, 20), (3, 9)):
        given = torch.randint(0, 61, (samples, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(given)
        if samples > 1:
            mask[1, :4], mask[2, -3:] = 0, 0
        feed = {"input_ids": given.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(["logits"], feed)
        with torch.no_grad():
            expected = model(input_ids=given, attention_mask=mask, use_cache=False).logits
        assert torch.from_numpy(found).shape == expected.shape
        assert float((torch.from_numpy(found) - expected).abs()[mask.bool()].max()) < 1e-4 * float(expected.abs().max())


def graph_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


class Dying:
    """In the place of the graph, a process that is killed when the file is to be written."""

    def __init__(self, *of: Any) -> None:
        del of

    def write(self, folder: Path) -> None:
        assert (folder / "compression.json").is_file()
        raise KeyboardInterrupt


def test_codes_of_four_bits_are_multiplied_by_and_a_call_killed_before_the_export_goes_on(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("LlamaConfig", tmp_path / "dense", vocab_size=500)
    steps = [quantize.Weights(weight_bits=4, group_size=32, method="gptq", zero_points=True)]
    with monkeypatch.context() as patched:
        patched.setattr(block_by_block, "OnnxGraph", Dying)
        with pytest.raises(KeyboardInterrupt):
            compress_large(tmp_path / "dense", steps, tokens, tmp_path / "small", onnx=True)
    assert not (tmp_path / "small" / "model.onnx").exists()
    done: list[int] = []
    compress_large(
        tmp_path / "dense", steps, tokens, tmp_path / "small", onnx=True, progress=lambda *of: done.append(int(of[0]))
    )
    assert not done
    check_logits(tmp_path / "small", loaded(tmp_path / "small", 32))
    graph = graph_of(tmp_path / "small")
    assert Counter(node.op_type for node in graph.node)["MatMulNBits"] == 14
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    coded = sum(weight.numel() for name, weight in small.named_parameters() if "_proj" in name)
    embedding = small.get_input_embeddings().weight.numel() * 4
    # Tied embeddings once; 4 bits a weight, and for each group of 32 a scale of 32 bits and a zero point of 4.
    size = (tmp_path / "small" / "model.onnx.data").stat().st_size
    assert coded * 4 / 8 < size - embedding < coded * (4 + 40 / 32) / 8
    assert not list((tmp_path / "small").glob("*.writing"))


def test_rows_shorter_than_a_group_and_biases_are_exact(tokens: Tensor, tmp_path: Path) -> None:
    made("GPT2Config", tmp_path / "dense", n_embd=48)
    steps = [
        prune.Weights(sparsity=0.5, score="Wanda"),
        quantize.Weights(weight_bits=4, group_size=64, method="nearest", exclude=("*.1.attn.*",)),
    ]
    compress_large(tmp_path / "dense", steps, tokens, tmp_path / "small", onnx=True)
    check_logits(tmp_path / "small", loaded(tmp_path / "small", 64))
    assert Counter(node.op_type for node in graph_of(tmp_path / "small").node)["MatMulNBits"] == 6


def test_other_widths_are_floats_and_a_window_of_attention_holds_for_longer_texts(tokens: Tensor, tmp_path: Path) -> None:
    made("MistralConfig", tmp_path / "dense")
    steps = [quantize.Weights(weight_bits=3, group_size=16, method="nearest")]
    compress_large(tmp_path / "dense", steps, tokens, tmp_path / "small", onnx=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    check_logits(tmp_path / "small", model)
    assert "MatMulNBits" not in {node.op_type for node in graph_of(tmp_path / "small").node}


def test_what_cannot_be_exported_is_refused_before_the_first_block(tokens: Tensor, tmp_path: Path) -> None:
    steps = [quantize.Weights(weight_bits=4, group_size=32, method="nearest")]
    made("LlamaConfig", tmp_path / "dense", tie_word_embeddings=False)
    index = tmp_path / "dense" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = {key: file for key, file in content["weight_map"].items() if key != "lm_head.weight"}
    index.write_text(json.dumps(content | {"weight_map": lost}))
    with pytest.raises(UserError, match=r'E140.*"lm_head.weight" is not in the files of the model under this name'):
        compress_large(tmp_path / "dense", steps, tokens, tmp_path / "small", onnx=True)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    made("LlamaConfig", tmp_path / "dynamic", num_hidden_layers=1, rope_parameters=rope)
    with pytest.raises(UserError, match=r"E121.*torch.onnx cannot export the model"):
        compress_large(tmp_path / "dynamic", steps, tokens, tmp_path / "small", onnx=True)
    assert not list((tmp_path / "small").glob("*.safetensors"))


def test_an_output_layer_is_found_under_the_name_under_which_transformers_saves_it(tmp_path: Path) -> None:
    made("GPTNeoXConfig", tmp_path / "dense")
    assert block_onnx._sources(Blocks(tmp_path / "dense"))["lm_head.weight"] == "embed_out.weight"
