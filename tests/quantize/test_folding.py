"""Batch norms that quantized layers take in: which, that nothing changes, and what remains of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, load, quantize, save
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.surroundings import Consumer, Flow
from mirabelle.runtime.export import export
from mirabelle.sources.models.native import plain_tensors


class Net(nn.Module):
    """Norms behind convolutions, with and without bias, a sum, a layer that is read twice, dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm_sum = nn.BatchNorm2d(4)
        self.c, self.norm_c = nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.d, self.norm_d = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False)
        self.twice, self.shared = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.a(x)))
        x = self.norm_sum(x + self.norm_b(self.b(x)))
        y = self.c(x)
        x = (self.norm_c(y) + y).mean((2, 3))
        x = torch.relu(self.norm_d(self.d(x)))
        x = self.shared(self.twice(self.shared(self.twice(x))))
        out: Tensor = self.head(x)
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


@pytest.fixture
def task() -> Task:
    x = torch.randn(200, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    return Task(train=(x, x[:, 0, 0, 0].gt(0).long()), test=(x, x[:, 0, 0, 0].gt(0).long()))


def consumers(model: nn.Module, task: Task, run: Run) -> Mapping[str, Consumer]:
    """Of all layers."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return Flow.of(model, task.example(), run).around(layers).consumers


def test_a_norm_is_folded_where_it_alone_reads_a_layer(net: Net, task: Task, run: Run) -> None:
    found = consumers(net, task, run)
    assert {name: behind.norm for name, behind in found.items() if behind.norm} == {"a": "norm_a", "b": "norm_b", "d": "norm_d"}
    assert {name: behind.output for name, behind in found.items()} == {
        "a": "relu", "b": "plain", "c": "plain", "d": "", "head": "",
    }  # fmt: skip
    assert consumers(nn.Sequential(nn.Flatten(), nn.Linear(81, 2)), task, run) == {}


def test_what_the_next_layer_rounds_is_not_rounded_twice(task: Task, run: Run) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    behind = consumers(net, task, run)["0"]
    assert (behind.output, behind.layers) == ("relu", ("4",))
    assert behind.rounds_for(["0"])
    assert not behind.rounds_for(["0", "4"])
    whole, alone = quantize.Static()(net, task, run), quantize.Static(exclude=("4*",))(net, task, run)
    assert "output" not in whole[0].settings
    assert alone[0].settings["output"] == "relu"


@pytest.mark.parametrize(("layer", "norm"), [("a", "norm_a"), ("b", "norm_b"), ("d", "norm_d")])
def test_the_joined_layer_gives_what_both_gave(layer: str, norm: str, net: Net) -> None:
    before, after = net.get_submodule(layer), net.get_submodule(norm)
    shape = {"a": (2, 1, 9, 9), "b": (2, 4, 7, 7), "d": (2, 4)}[layer]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(folded(before, after)(x), after(before(x)), atol=1e-5)
    assert "bias" in dict(folded(before, after).named_parameters())


def test_a_quantized_model_has_no_norm_between_its_integers(net: Net, task: Task, run: Run, tmp_path: Path) -> None:
    small = quantize.Static()(net, task, run)
    assert isinstance(small.norm_a, FoldedNorm)
    assert isinstance(small.norm_b, FoldedNorm)
    assert isinstance(small.norm_c, nn.BatchNorm2d)
    x = task.test.inputs
    assert (small(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()
    proto = onnx.load_from_string(export(small, task.example()))
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert (kinds["Conv"], kinds["BatchNormalization"]) == (3, 4), "behind the sum, behind c, and the shared one twice"
    readers = {name: node.op_type for node in proto.graph.node for name in node.input}
    after = Counter(readers[node.output[0]] for node in proto.graph.node if node.op_type == "Conv")
    assert after == {"Relu": 1, "QuantizeLinear": 2}
    assert kinds["Relu"] == 2, "within the rounding of a, and behind d; the one behind the rounding of a does nothing"
    save(small, tmp_path)
    again = load(Net(), tmp_path)
    assert torch.equal(again(x), small(x))


def test_in_plain_numbers_the_norm_has_the_bias_that_its_layer_never_had(net: Net, task: Task, run: Run) -> None:
    small = quantize.Static()(net, task, run)
    tensors, plain = plain_tensors(small), Net().eval()
    assert set(plain.state_dict()) - set(tensors) <= {name for name in plain.state_dict() if name.endswith("batches_tracked")}
    assert "a.bias" not in tensors
    plain.load_state_dict({name: tensor for name, tensor in tensors.items() if name in plain.state_dict()}, strict=False)
    x = task.test.inputs
    assert (plain(x) - small(x)).abs().max() < 0.05 * small(x).abs().max()  # but for the rounding of activations
