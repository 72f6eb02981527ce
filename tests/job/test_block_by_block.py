"""Language models block by block: what from_pretrained loads, codes beside it, resuming, memory, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mirabelle import compress_large, prune, quantize
from mirabelle.errors import UserError
from mirabelle.job import block_by_block
from mirabelle.numerics.masks import keep_highest_by_row
from mirabelle.sources.models.blocks import Blocks

transformers = pytest.importorskip("transformers")

BOTH = [prune.Weights(sparsity=0.5, score="SparseGPT"), quantize.Weights(weight_bits=4, group_size=32, method="gptq")]
CONFIGS: dict[str, Any] = {
    "LlamaConfig": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "GPT2Config": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None, "eos_token_id": None},
    "GPTNeoXConfig": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip


def made(kind: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, kind)(vocab_size=61, **CONFIGS[kind])
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=tokens).logits.float()
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_transformers_loads_what_was_pruned_and_quantized(kind: str, tokens: Tensor, tmp_path: Path) -> None:
    dense = made(kind, tmp_path / "dense")
    result = compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "small")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert small.dtype == torch.bfloat16
    apart = (logits(small, tokens) - logits(dense, tokens)).norm() / logits(dense, tokens).norm()
    assert 0 < apart < 0.6
    for name, error in result.errors.items():
        assert 0 < error < 0.2
        weight = small.get_submodule(name).weight
        assert abs(float((weight == 0).float().mean()) - result.sparsity[name]) < 1e-5
        assert result.sparsity[name] >= 0.5
    assert len(result.errors) == {"LlamaConfig": 21, "GPT2Config": 8, "GPTNeoXConfig": 8}[kind]
    unchanged = {name for name, value in small.named_parameters() if torch.equal(value, dense.get_parameter(name))}
    assert {name for name, _ in small.named_parameters()} - unchanged == {f"{name}.weight" for name in result.errors}


def test_packed_codes_stand_for_the_values(tokens: Tensor, tmp_path: Path) -> None:
    made("LlamaConfig", tmp_path / "dense")
    steps = [quantize.Weights(weight_bits=4, group_size=32, method="gptq", zero_points=True)]
    compress_large(tmp_path / "dense", steps, tokens, tmp_path / "small")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    codes = load_file(tmp_path / "small" / "codes" / "model.layers.1.safetensors")
    name = "model.layers.1.mlp.down_proj"
    rows, columns = codes[f"{name}.weight_shape"].tolist()
    numbers = torch.stack([(codes[f"{name}.weight_packed"] >> shift) & 15 for shift in range(0, 32, 4)], 2).reshape(
        rows, columns
    )
    zeros = codes[f"{name}.weight_zero_point"].repeat_interleave(32, 1) + 8
    values = (numbers - zeros) * codes[f"{name}.weight_scale"].float().repeat_interleave(32, 1)
    assert torch.equal(values.bfloat16(), small.get_submodule(name).weight)


def test_wanda_looks_at_what_pruned_blocks_give(tokens: Tensor, tmp_path: Path) -> None:
    dense = made("LlamaConfig", tmp_path / "dense")
    compress_large(tmp_path / "dense", [prune.Weights(sparsity=0.5, score="Wanda")], tokens, tmp_path / "small")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    seen: list[Tensor] = []
    layer = small.model.layers[2].mlp.down_proj
    with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].float().flatten(0, 1))):
        for sample in tokens.split(1):
            logits(small, sample)
    norms = torch.cat(seen).square().mean(0).sqrt()
    weight = dense.model.layers[2].mlp.down_proj.weight.detach().float()
    keep = keep_highest_by_row(weight.abs() * norms, 0.5)
    assert ((layer.weight != 0) == keep).float().mean() > 0.999  # norms of equal size may be ranked the other way


def test_a_killed_run_goes_on_at_the_next_block_and_ends_with_the_same_bits(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("LlamaConfig", tmp_path / "dense")
    whole = compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "whole")
    work, done = block_by_block._Work._block, []

    def dying(self: Any, position: int, hidden: Tensor) -> Tensor:
        done.append(position)
        if done == [0, 1]:
            raise KeyboardInterrupt
        return work(self, position, hidden)

    monkeypatch.setattr(block_by_block._Work, "_block", dying)
    with pytest.raises(KeyboardInterrupt):
        compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "killed")
    again = compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "killed")
    assert done == [0, 1, 1, 2]
    assert (again.errors, again.sparsity) == (whole.errors, whole.sparsity)
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        one, other = load_file(path), load_file(tmp_path / "killed" / path.relative_to(tmp_path / "whole"))
        assert set(one) == set(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not list((tmp_path / "killed").glob("inputs-*"))
    finished = compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "killed")
    assert (finished.errors, done) == (whole.errors, [0, 1, 1, 2])
    with pytest.raises(UserError, match=r"E150.*another steps"):
        compress_large(tmp_path / "dense", BOTH[:1], tokens, tmp_path / "killed")


def test_one_block_is_in_memory_at_a_time(tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = made("LlamaConfig", tmp_path / "dense")
    held: list[int] = []
    write = block_by_block._Work._write

    def counting(self: Any, position: int, block: nn.Module, codes: dict[str, Tensor]) -> None:
        real = [weight for weight in self._blocks.model.parameters() if weight.device.type != "meta"]
        held.append(sum(weight.numel() for weight in real))
        write(self, position, block, codes)

    monkeypatch.setattr(block_by_block._Work, "_write", counting)
    compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "small")
    block = sum(weight.numel() for weight in dense.model.layers[0].parameters())
    outside = dense.model.embed_tokens.weight.numel() + dense.model.norm.weight.numel()
    assert held == [block + outside] * 3


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([], "E111"),
        ([quantize.Weights(), prune.Weights(sparsity=0.5)], "E105"),
        ([quantize.Dynamic()], "E111"),
        ([quantize.Weights(weight_bits=4, method="awq")], "E111"),
        ([prune.Weights(sparsity=0.5, score="Taylor")], "E111"),
        ([prune.Weights(threshold=0.5)], "E111"),
        ([prune.Weights(sparsity=0.5, scope="global")], "E111"),
    ],
)
def test_steps_that_need_the_whole_model_are_refused(steps: list[Any], code: str, tokens: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=code):
        compress_large(tmp_path / "nothing", steps, tokens, tmp_path / "small")


def test_data_and_folders_that_cannot_be_used_are_refused(tokens: Tensor, tmp_path: Path) -> None:
    dense: Any = made("LlamaConfig", tmp_path / "dense")
    for wrong in (tokens[:0], tokens.float(), tokens[0], tokens + 61):
        with pytest.raises(UserError, match="E131"):
            compress_large(tmp_path / "dense", BOTH, wrong, tmp_path / "small")
    with pytest.raises(UserError, match="E151"):
        compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "dense")
    with pytest.raises(UserError, match="E130"):
        compress_large(tmp_path, BOTH, tokens, tmp_path / "small")
    with torch.no_grad():
        dense.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    dense.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match=r'E131.*"model.layers.1.mlp.gate_proj" are NaN'):
        compress_large(tmp_path / "nan", BOTH, tokens, tmp_path / "small")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match=r"E121.*quantized already"):
        compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "other")


def test_a_file_that_lacks_weights_of_a_block_is_refused(tokens: Tensor, tmp_path: Path) -> None:
    made("LlamaConfig", tmp_path / "dense")
    index = tmp_path / "dense" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"E140.*layers.1.mlp.up_proj.weight"):
        compress_large(tmp_path / "dense", BOTH, tokens, tmp_path / "small")
    assert Blocks(tmp_path / "dense").names == [f"model.layers.{k}" for k in range(3)]
