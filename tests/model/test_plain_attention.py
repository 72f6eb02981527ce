"""nn.MultiheadAttention in a form that calls its layers: the same function, found and quantized by steps, and loaded again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, prune, quantize
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model import PlainAttention, architecture_of, replayed
from mirabelle.model.plain_attention import with_plain_attention
from mirabelle.model.watch import every_layer_called
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import torch_equals_onnx

WIDTHS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"kdim": 6, "vdim": 10, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True, "bias": False, "batch_first": True},
]


def dense_of(settings: dict[str, Any]) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(12, 3, **settings).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return dense


def calls(settings: dict[str, Any]) -> list[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Inputs of 2 samples with 5 queries and 7 keys, in all combinations of masks, and single samples."""
    shape = (lambda n, width: (2, n, width)) if settings.get("batch_first") else (lambda n, width: (n, 2, width))
    inputs = tuple(
        torch.randn(shape(n, width)) for n, width in ((5, 12), (7, settings.get("kdim", 12)), (7, settings.get("vdim", 12)))
    )
    padding = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    masks = [None, torch.ones(5, 7, dtype=torch.bool).triu(1), torch.randn(5, 7), torch.randn(6, 5, 7)]
    paddings = [None, padding, torch.zeros(2, 7).masked_fill(padding, -torch.inf)]
    found = [
        (inputs, {"attn_mask": mask, "key_padding_mask": one, "need_weights": needed, "average_attn_weights": mean})
        for mask, one, (needed, mean) in itertools.product(masks, paddings, [(True, True), (True, False), (False, True)])
        if mask is None or one is None or mask.dtype == one.dtype
    ]
    alone = tuple(x[0] if settings.get("batch_first") else x[:, 0] for x in inputs)
    found += [(alone, {"need_weights": needed, "key_padding_mask": padding[0]}) for needed in (True, False)]
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    return [*found, (inputs, {"attn_mask": causal, "is_causal": True, "need_weights": False})]


@pytest.mark.parametrize("settings", WIDTHS, ids=str)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_it_is_the_same_function(settings: dict[str, Any]) -> None:
    dense = dense_of(settings)
    plain = PlainAttention(dense)
    for inputs, given in calls(settings):
        if given.get("is_causal") and settings.keys() & {"add_bias_kv", "add_zero_attn"}:
            continue
        with torch.no_grad():
            due, found = dense(*inputs, **given), plain(*inputs, **given)
        for one, other in zip(due, found, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=2e-6), given


def test_a_mask_is_needed_for_the_causal_hint() -> None:
    plain, x = PlainAttention(dense_of({})), torch.randn(5, 2, 12)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        plain(x, x, x, is_causal=True)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, x * 0.5).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def task() -> Task:
    torch.manual_seed(0)
    x = torch.randn(60, 6, 16)
    return Task(train=(x[:40], torch.arange(40) % 3), test=(x[40:], torch.arange(20) % 3))


STEPS = [quantize.Dynamic(), quantize.Static(), quantize.Weights()]


@pytest.mark.parametrize("step", STEPS, ids=["dynamic", "static", "weights"])
@pytest.mark.parametrize("net", [Encoder, Decoder])
def test_every_layer_of_torchs_transformers_is_quantized(step: Any, net: type[nn.Module], tmp_path: Path) -> None:
    dense, data = net().eval(), task()
    result = step(dense, data, Run(tmp_path)).eval()
    assert not [name for name, module in result.named_modules() if isinstance(module, (nn.Linear, nn.MultiheadAttention))]
    assert count_parameters(result)[0] == count_parameters(dense)[0]
    assert multiply_accumulates(result, data.example()) == multiply_accumulates(dense, data.example())
    x = data.test.at(torch.arange(20)).inputs
    with torch.no_grad(), every_layer_called():
        assert float((result(x) - dense(x)).abs().max()) < 0.1 * float(dense(x).abs().max())
    onnx = export(result, data.example())
    gate = torch_equals_onnx(result, onnx, list(data.test.batches(10)), quantized=True)
    assert gate.passed, gate.detail
    again = replayed(net(), architecture_of(result))
    again.load_state_dict(result.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), result(x))


def test_patterns_choose_among_its_layers(tmp_path: Path) -> None:
    result = quantize.Dynamic(include=("encoder.layers.0.self_attn",))(Encoder(), task(), Run(tmp_path))
    kinds = {name: type(module).__name__ for name, module in result.named_modules() if "proj" in name}
    assert {kind for name, kind in kinds.items() if "layers.0" in name} <= {"TokenLayer", "DynamicLayer"}
    assert isinstance(result.encoder.layers[1].self_attn, nn.MultiheadAttention)
    kept = quantize.Dynamic(exclude=("*.self_attn",))(Encoder(), task(), Run(tmp_path / "kept"))
    assert isinstance(kept.encoder.layers[0].self_attn, nn.MultiheadAttention)


def test_one_that_shares_a_tensor_stays(tmp_path: Path) -> None:
    net = Encoder()
    net.encoder.layers[1].self_attn.in_proj_weight = net.encoder.layers[0].self_attn.in_proj_weight
    assert with_plain_attention(net) is net


def test_it_is_cut_after_it_became_plain(tmp_path: Path) -> None:
    plain, data = with_plain_attention(Encoder().eval()), task()
    cut = prune.Channels(sparsity=0.5, recover="nothing")(plain, data, Run(tmp_path))
    assert multiply_accumulates(cut, data.example()) < multiply_accumulates(plain, data.example())


def test_a_run_loads_it_again(tmp_path: Path) -> None:
    net = Encoder()
    result = mirabelle.compress(net, task(), [quantize.Dynamic()], out=tmp_path / "run")
    loaded = mirabelle.load(Encoder, tmp_path / "run").eval()
    x = torch.randn(3, 6, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model.eval()(x))
