"""GELU and attention go out to ONNX in forms that ONNX Runtime joins, and mean what they mean in torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.quantize import TokenLayer
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch

CONTRIBUTED = "com.microsoft"


def joined(data: bytes, folder: Path) -> Counter[str]:
    """The operators of a file after ONNX Runtime's own optimization."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def close(model: nn.Module, *inputs: Tensor, rows: int = 2) -> bytes:
    """Export a model with the first rows of the inputs; the file computes for all of them what torch does."""
    given = tuple(x[:rows] for x in inputs)
    data = export(model, Batch(given if len(given) > 1 else given[0], torch.zeros(rows)))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert {entry.domain for entry in onnx.load_from_string(data).opset_import} <= {""}
    session = onnxruntime.InferenceSession(data)
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        expected = model.eval()(*inputs).numpy()
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=2e-6)
    return data


class Attention(nn.Module):
    """Attention of x with itself, in heads."""

    def __init__(self, heads: int = 2, groups: int = 2, **settings: object) -> None:
        super().__init__()
        self.heads, self.groups, self.settings = heads, groups, settings

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = query[:, : self.groups]
        return F.scaled_dot_product_attention(query, key, key + 2, attn_mask=mask, **self.settings).transpose(1, 2).flatten(2)


def test_a_layer_quantized_per_token_is_one_product_of_integers(tmp_path: Path) -> None:
    net = nn.Sequential(TokenLayer.quantized(nn.Linear(8, 16), 8), nn.ReLU(), TokenLayer.quantized(nn.Linear(16, 4), 8))
    operators = joined(close(net, torch.randn(4, 3, 8)), tmp_path)
    assert operators["MatMulIntegerToFloat"] == operators["QuantizeLinear"] == 2
    assert not {"MatMul", "MatMulInteger", "Cast", "DequantizeLinear"} & operators.keys()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_its_bias_are_one_operator(approximate: str, tmp_path: Path) -> None:
    x = torch.linspace(-6, 6, 4 * 3 * 8).reshape(4, 3, 8)
    data = close(nn.Sequential(nn.Linear(8, 16), nn.GELU(approximate), nn.Linear(16, 8)), x)
    operators = joined(data, tmp_path)
    assert operators["BiasGelu"] + operators["FastGelu"] == 1
    assert not {"Erf", "Tanh", "Pow", "Mul"} & operators.keys()


def masks() -> dict[str, Tensor]:
    """Masks (4, 1, 5, 5) whose second sample has rows without any key."""
    keys = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    padding = keys[:, None, None, :].expand(4, 1, 5, 5)
    causal = padding & torch.ones(5, 5, dtype=torch.bool).tril()  # the last sample is padded on the left
    return {
        "padding": padding.contiguous(),
        "causal and padding": causal,
        "added": torch.zeros(4, 1, 5, 5).masked_fill(~causal, -torch.inf),
        "added bias": torch.randn(4, 1, 5, 5).masked_fill(~causal, -torch.inf),
        "smallest number": torch.zeros(4, 1, 5, 5).masked_fill(~causal, torch.finfo(torch.float32).min),
    }


@pytest.mark.parametrize("kind", masks())
def test_a_row_without_any_key_gives_what_torch_gives(kind: str) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 5, 8), masks()[kind]
    found = Attention()(x, mask)
    assert bool((found[1] == 0).all()) == (kind != "smallest number")
    close(Attention(), x, mask)


@pytest.mark.parametrize(
    "settings", [{}, {"is_causal": True}, {"scale": 0.3}, {"groups": 1, "heads": 4, "enable_gqa": True, "is_causal": True}]
)
def test_attention_without_a_mask_has_no_guard(settings: dict[str, object], tmp_path: Path) -> None:
    data = close(Attention(**settings), torch.randn(4, 5, 8))
    operators = joined(data, tmp_path)
    assert not {"IsNaN", "Mul", "ReduceMax"} & operators.keys()
    assert operators["FusedMatMul"] == 1


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class OfChannels(nn.Module):
    """Attention between channels, whose width is the number of tokens."""

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = (ids * attention_mask).float()[:, None, None] * torch.ones(1, 1, 3, 1)
        return F.scaled_dot_product_attention(x, x, x).sum(dim=(1, 2))


def test_attention_of_three_dimensions_is_exported() -> None:
    close(Wide(), torch.randn(4, 5, 8))


def test_attention_over_a_free_width_is_exported() -> None:
    ids, mask = torch.randint(1, 9, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    session = onnxruntime.InferenceSession(export(OfChannels(), Batch({"ids": ids, "attention_mask": mask}, torch.zeros(2))))
    longer = torch.randint(1, 9, (3, 11)), torch.ones(3, 11, dtype=torch.int64)
    found = session.run(None, {"ids": longer[0].numpy(), "attention_mask": longer[1].numpy()})[0]
    np.testing.assert_allclose(found, OfChannels()(*longer).numpy(), rtol=1e-5)


def test_large_scores_are_as_in_torch() -> None:
    x = torch.randn(4, 5, 8) * 1e4
    close(Attention(), x / x.abs().max() * 300, masks()["padding"])
