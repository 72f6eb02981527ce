"""Multiply-accumulates of whatever runs: against hand counts, against the traced program and against the exported file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle import Run, Task, prune
from mirabelle.graph.costs import multiply_accumulates
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import traced
from mirabelle.inspection import layers_of_module, layers_of_onnx
from mirabelle.model.counting import macs_of
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch

LENGTH, WIDTH = 5, 8


class Function(nn.Module):
    """A module of parameters and a function of them."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.weight, self.square = nn.Parameter(torch.randn(3, WIDTH)), nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.kernel = nn.Parameter(torch.randn(4, WIDTH, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.function)(x)

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def operator(self, x: Tensor) -> Tensor:
        return x @ self.square @ self.weight.T

    def einsum(self, x: Tensor) -> Tensor:
        return torch.einsum("blw,wv,ov->blo", x, self.square, self.weight)

    def vector(self, x: Tensor) -> Tensor:
        return x @ self.weight[0]

    def convolution(self, x: Tensor) -> Tensor:
        return F.conv1d(x.transpose(1, 2), self.kernel, padding=1)

    def transposed(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x.transpose(1, 2)[:, :4], self.kernel)

    def attention(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:, None], x[:, None, :2], x[:, None, :2, :6])

    def products(self, x: Tensor) -> Tensor:
        return torch.softmax(torch.bmm(x, x.transpose(1, 2)), -1) @ x

    def elementwise(self, x: Tensor) -> Tensor:
        return torch.einsum("blw,lw->blw", x, self.weight.mean() * x[0]) * self.weight[0] + x.mean(1, keepdim=True)

    def stored(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight @ self.square / (self.square @ self.square[0]).norm())

    def needless(self, x: Tensor) -> Tensor:
        _ = F.linear(x, self.square)
        return F.linear(x, self.weight)


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Encoder(nn.Module):
    """Torch's own layer, which runs fused in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Again(nn.Module):
    """A layer called three times, one that shares its weight, and a parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 9, bias=False)
        self.head.weight = self.table.weight
        self.place = nn.Parameter(torch.zeros(LENGTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place
        return self.head(self.inner(self.inner(self.inner(x))))


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 3)).eval()


POSITIONS = LENGTH * WIDTH
CASES = {
    "F.linear": (Function("linear"), POSITIONS * 3),
    "the operator @": (Function("operator"), POSITIONS * (WIDTH + 3)),
    "einsum of three": (Function("einsum"), POSITIONS * (WIDTH + 3)),
    "a vector": (Function("vector"), POSITIONS),
    "F.conv1d": (Function("convolution"), LENGTH * 4 * WIDTH * 3),
    "F.conv_transpose1d": (Function("transposed"), LENGTH * 4 * WIDTH * 3),
    "attention": (Function("attention"), LENGTH * 2 * (WIDTH + 6)),
    "products of activations": (Function("products"), 2 * LENGTH * LENGTH * WIDTH),
    "elementwise": (Function("elementwise"), 0),
    "stored numbers alone": (Function("stored"), POSITIONS * 3),
    "no output needs it": (Function("needless"), POSITIONS * 3),
    "LSTM": (Recurrent(nn.LSTM(WIDTH, 6, 2, bidirectional=True, batch_first=True)), LENGTH * 2 * 24 * (8 + 6 + 12 + 6)),
    "GRU": (Recurrent(nn.GRU(WIDTH, 6, batch_first=True)), LENGTH * 18 * (8 + 6)),
    "RNN": (Recurrent(nn.RNN(WIDTH, 6, batch_first=True)), LENGTH * 6 * (8 + 6)),
    "TransformerEncoderLayer": (Encoder(), POSITIONS * (3 * WIDTH + WIDTH + 16 + 16) + 2 * LENGTH * LENGTH * WIDTH),
    "shared and called again": (Again(), POSITIONS * (3 * WIDTH + 9)),
    "spectral norm": (spectral(), POSITIONS * 3),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3)), POSITIONS * 3),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_module_program_file_and_their_layers_give_the_count_by_hand(name: str) -> None:
    model, by_hand = CASES[name]
    example = Batch(torch.randn(2, LENGTH, WIDTH), torch.zeros(2))
    model.eval()
    assert macs_of(model, example).total == by_hand
    assert sum(layer.macs or 0 for layer in layers_of_module(model, example)) == by_hand
    flow = propagated(traced(model, (example.inputs,)))
    assert multiply_accumulates(flow, kept_without(flow, np.zeros(0, np.int64)), batch=2) == by_hand
    assert sum(layer.macs or 0 for layer in layers_of_onnx(export(model, example))) == by_hand


def test_products_belong_to_the_weight_they_use() -> None:
    example = Batch(torch.randn(2, LENGTH, WIDTH), torch.zeros(2))
    rows = {layer.name: (layer.macs, layer.parameters) for layer in layers_of_module(Encoder(), example)}
    assert rows["layer.self_attn.out_proj"] == (POSITIONS * WIDTH, WIDTH * WIDTH + WIDTH)  # read by a function, never called
    assert rows["layer.self_attn"] == (POSITIONS * 3 * WIDTH + 2 * LENGTH * LENGTH * WIDTH, 3 * WIDTH * (WIDTH + 1))
    rows = {layer.name: (layer.macs, layer.parameters) for layer in layers_of_module(Again(), example)}
    assert rows["table"] == (POSITIONS * 9, 9 * WIDTH)
    assert rows["model"] == (0, POSITIONS)  # a parameter of the root, not the sum of all
    assert "head" not in rows


def test_a_cut_of_torchs_fused_layer_costs_less(run: Run) -> None:
    inputs, targets = torch.randn(20, LENGTH, WIDTH), torch.arange(20) % 3
    task = Task(train=(inputs, targets), test=(inputs, targets))
    model = nn.Sequential(Encoder(), nn.Flatten(), nn.Linear(POSITIONS, 3)).eval()
    cut = prune.Channels(sparsity=0.5)(model, task, run)
    before, after = (macs_of(one, task.example()).total for one in (model, cut))
    assert before == CASES["TransformerEncoderLayer"][1] + 3 * POSITIONS
    assert after == sum(layer.macs or 0 for layer in layers_of_onnx(export(cut, task.example())))
    assert after < 0.7 * before


def test_a_bilinear_layer_and_an_unusual_operator_are_counted() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(WIDTH, WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x, x)

    assert macs_of(Pair(), Batch(torch.randn(2, WIDTH), torch.zeros(2))).by_tensor == {"pair.weight": 3 * WIDTH * WIDTH}


@torch.library.custom_op("test_counting::twice", mutates_args=())
def twice(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.linear(x, weight), weight)


def test_an_operator_of_a_users_own_is_looked_into() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return twice(x, self.weight)

    assert macs_of(Own(), Batch(torch.randn(2, WIDTH), torch.zeros(2))).by_tensor == {"weight": 2 * WIDTH * WIDTH}


def test_the_branch_that_runs_counts_and_a_script_is_seen() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(WIDTH, 3), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.large, self.small, (x,))

    for sign, macs in ((1, WIDTH * (WIDTH + 3)), (-1, WIDTH * 3)):
        assert macs_of(Choice(), Batch(sign * torch.ones(2, WIDTH), torch.zeros(2))).total == macs
    with pytest.warns(DeprecationWarning, match="script"):
        script = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 3)))
    assert macs_of(script, Batch(torch.ones(2, WIDTH), torch.zeros(2))).total == WIDTH * 4 + 4 * 3


def test_a_model_for_one_batch_size_is_counted_by_sample() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.reshape(4, WIDTH))

    assert macs_of(Fixed(), Batch(torch.ones(4, WIDTH), torch.zeros(4))).total == WIDTH * 3


def test_fused_kernels_are_allowed_again_afterwards() -> None:
    macs_of(Encoder(), Batch(torch.randn(2, LENGTH, WIDTH), torch.zeros(2)))
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_a_call_computes_from_no_input_counts_for_every_sample() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(x.shape[1] * WIDTH, dtype=x.dtype).reshape(x.shape[1], WIDTH)
            return x + self.place(places)

    example = Batch(torch.randn(2, LENGTH, WIDTH), torch.zeros(2))
    flow = propagated(traced(Positions(), (example.inputs,)))
    in_program = multiply_accumulates(flow, kept_without(flow, np.zeros(0, np.int64)), batch=2)
    assert macs_of(Positions(), example).total == in_program == POSITIONS * WIDTH
