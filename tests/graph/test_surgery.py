"""The cut module: ordinary, whatever its code looks like; on other batches, trained, and made again from a dense one."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from proof import difference, half_of, tensors_of
from test_zoo import chosen, made_or_skipped
from torch import nn
from torch.utils import _pytree as pytree
from zoo import ARCHITECTURES

from mirabelle import load, save
from mirabelle.errors import UserError
from mirabelle.graph.acceptance import difference as worst_difference
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced
from mirabelle.model.architecture import Architecture, architecture_of

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? self.*assigned during export:UserWarning")
FLOAT32 = 2e-4  # relative; sums of other lengths in another order, through a few layers
OTHER_FIRST_AXIS = {"stacked_gru", "clip"}  # time; the other modality
ONE_BATCH = {"literal_widths"}  # whose trace holds the batch of its example: another raises


# Large ones whose cut program the fast suite compares in test_exactness; their modules are cut in the slow one.
LARGE = {"t5", "llama", "gpt2", "wav2vec2", "mobilenet_v3", "densenet"}
CUT = [
    pytest.param(name, marks=pytest.mark.slow) if name in LARGE else case
    for name, case in zip(ARCHITECTURES, chosen(ARCHITECTURES), strict=True)
]


@pytest.mark.parametrize("name", CUT)
@torch.no_grad()
def test_the_cut_module_gives_what_was_masked(name: str) -> None:
    model, positional, named = made_or_skipped(name)
    model, positional, named = model.float(), *pytree.tree_map(to_float, (positional, named))
    program = traced(model, positional, named)
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    before = copy.deepcopy(model.state_dict())
    smaller = cut(model, program, flow, kept, (positional, named))
    masked = run_masked(program, flow, kept, pytree.tree_leaves((positional, named)))
    assert difference(list(tensors_of(smaller(*positional, **named))), masked) < FLOAT32
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items()), "the model itself is untouched"
    assert set(smaller.state_dict()) <= {*model.state_dict(), *program.unsaved}
    assert set(dict(smaller.named_parameters())) <= set(dict(model.named_parameters()))
    assert not {id(tensor) for tensor in smaller.parameters()} & {id(tensor) for tensor in model.parameters()}
    if name not in OTHER_FIRST_AXIS | ONE_BATCH:
        larger = pytree.tree_map(lambda part: torch.cat([part, part[:1]]), (positional, named))
        outputs = tensors_of(smaller(*larger[0], **larger[1]))
        assert difference([output[: len(one)] for output, one in zip(outputs, masked, strict=True)], masked) < FLOAT32


def to_float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class Widths(nn.Module):
    """Widths read from attributes in the forward, or written into it."""

    def __init__(self, *, literal: bool) -> None:
        super().__init__()
        self.width, self.literal = 12, literal
        self.conv, self.head = nn.Conv2d(3, 12, 3), nn.Linear(12 * 25, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().reshape(-1, (12 if self.literal else self.width) * 25))


@pytest.mark.parametrize("literal", [False, True])
def test_a_module_follows_its_attributes_or_its_program_is_rewritten(literal: bool) -> None:
    model, x = Widths(literal=literal), torch.randn(2, 3, 7, 7)
    program = traced(model, (x,))
    flow = propagated(program)
    (group,) = groups_of(program, flow)
    smaller = cut(model, program, flow, kept_without(flow, group.units[:5]), ((x,), {}))
    assert isinstance(smaller, Rewritten) == literal
    assert smaller.state_dict()["conv.weight"].shape == (7, 3, 3, 3)
    record = architecture_of(smaller)
    (edit,) = record.edits
    assert edit.slices_of("conv.weight") == {"0": "5-11"}
    assert (record.rewritten is not None) == literal
    if literal:
        assert "invalid for input of size" in record.rewritten
    else:
        assert edit.attributes == {"": {"width": 7}, "conv": {"out_channels": 7}, "head": {"in_features": 175}}


@pytest.mark.parametrize("literal", [False, True])
def test_a_cut_module_trains_and_is_cut_again(literal: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Widths(literal=literal), torch.randn(8, 3, 7, 7), torch.arange(8) % 5
    for left in (7, 4):
        program = traced(model, (x,))
        flow = propagated(program)
        (group,) = groups_of(program, flow)
        model = cut(model, program, flow, kept_without(flow, group.units[: len(group) - left]), ((x,), {}))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        losses = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert {name for name, tensor in model.named_parameters() if tensor.grad is not None} == set(model.state_dict())
        assert losses[-1] < losses[0]
    assert architecture_of(model).kept_since(Architecture(), "conv.weight", 0, 12) == [8, 9, 10, 11]


@pytest.mark.slow
@pytest.mark.parametrize("literal", [False, True])
def test_what_was_cut_is_loaded_onto_a_fresh_dense_module_in_another_process(literal: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Widths(literal=literal), torch.randn(2, 3, 7, 7)
    program = traced(model, (x,))
    flow = propagated(program)
    (group,) = groups_of(program, flow)
    smaller = cut(model, program, flow, kept_without(flow, group.units[[0, 3, 7]]), ((x,), {})).eval()
    save(smaller, tmp_path)
    torch.save(x, tmp_path / "x")
    code = (
        "import sys, torch, mirabelle; from test_surgery import Widths; "
        f"model = mirabelle.load(lambda: Widths(literal={literal}), sys.argv[1]); x = torch.load(sys.argv[1] + '/x'); "
        "print(model(x).flatten().tolist()); print(model(torch.cat([x, x, x])).shape[0])"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given, count = done.stdout.splitlines()
    assert json.loads(given) == pytest.approx(smaller(x).flatten().tolist(), rel=1e-5)
    assert count == "6"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slices": {"convv.weight": {"0": "0-3"}}}, 'cuts the tensor "convv.weight"'),
        ({"slices": {"conv.weight": {"0": "0-30"}}}, "does not fit"),
        ({"slices": {"conv.weight": {"0": "3,1"}}}, "does not fit"),
        ({"attributes": {"conv": {"forward": 3}}}, 'may not set "forward"'),
        ({"attributes": {"conv": {"out_channels": "3"}}}, 'may not set "out_channels"'),
        ({"attributes": {"conv": {"_modules": 3}}}, 'may not set "_modules"'),
        (
            {"program": {"inputs": {"args": [{"shape": [2, 3, 1 << 40], "type": "float32"}], "kwargs": {}}}},
            "inputs of its program",
        ),
        ({"program": {"inputs": {"args": [{"shape": [2], "type": "load"}], "kwargs": {}}}}, "inputs of its program"),
        ({"slices": [1]}, "not a table of tables"),
    ],
)
def test_a_record_that_does_not_fit_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(Widths(literal=False), tmp_path)
    record = {"schema": 1, "pruned": [], "modules": {}, **change}  # as it was before edits had an order
    (tmp_path / "architecture.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"E14[01].*{words}"):
        load(lambda: Widths(literal=False), tmp_path)


def test_a_number_that_is_none_is_a_difference_in_whichever_output_it_stands() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert worst_difference([good, bad], [good, good]) == math.inf
    assert worst_difference([bad, good], [good, good]) == math.inf
    endless = torch.tensor([1.0, float("inf")])
    assert worst_difference([good, endless], [good, endless]) == 0.0


def half_cut(model: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[nn.Module, list[Any]]:
    """The model with half of every group cut, and the outputs of the masked program."""
    program = traced(model, args, kwargs)
    flow = propagated(program)
    kept = kept_without(flow, half_of(groups_of(program, flow)))
    with torch.no_grad():
        smaller = cut(model, program, flow, kept, (args, kwargs)).eval()
        return smaller, run_masked(program, flow, kept, pytree.tree_leaves((args, kwargs)))


class ManyOutputs(nn.Module):
    """Truth values, a count, a mask of minus infinity, nothing at all, and what is right only at the width of the start."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head, self.other = nn.Linear(9, 12), nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        inner = self.fc(x).relu()
        y = self.head(inner)
        other = self.other(inner) * (1.0 if inner.shape[-1] == 12 else math.nan)
        return y, other, y > 0, y.argmax(-1), x.shape[0], x[:, :0], torch.where(y > 0.0, y, -math.inf)


def test_outputs_of_every_kind_are_held() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 9)
    smaller, masked = half_cut(ManyOutputs().eval(), x)
    assert isinstance(smaller, Rewritten), "its own code gives no numbers in the second place"
    given = smaller(x)
    assert given[4] == 7
    for one, due in zip(pytree.tree_leaves(given), masked, strict=True):
        assert not isinstance(one, torch.Tensor) or torch.allclose(one.float(), due.float(), atol=1e-5)


class Scrambled(nn.Module):
    """Its own code mixes other channels after a cut, which a sigmoid at its end hides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 16, 3), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).relu()
        x = x.unflatten(1, (3, x.shape[1] // 3)).transpose(1, 2).flatten(1, 2)
        return self.head(self.conv2(x).relu().sum((2, 3))).sigmoid()


def test_what_a_saturated_output_hides_is_found() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 11, 13)
    smaller, masked = half_cut(Scrambled().eval(), x)
    assert torch.allclose(smaller(x), masked[0], atol=1e-5)


class Sampled(nn.Module):
    """Draws numbers in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(self.fc(x).relu(), 0.5)
        return self.head(x + torch.randn_like(x))


def test_a_model_that_draws_numbers_is_cut() -> None:
    smaller, _ = half_cut(Sampled().eval(), torch.randn(7, 9))
    assert smaller.get_parameter("fc.weight").shape == (6, 9)
    assert not isinstance(smaller, Rewritten)


class TwoInputs(nn.Module):
    """A width written into the code, and two inputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(9, 12), nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head((self.one(x).relu() * self.other(y)).reshape(-1, 12))


def test_a_rewritten_program_takes_names_in_any_order_and_the_sizes_of_its_trace() -> None:
    x, y = torch.randn(7, 9), torch.randn(7, 9)
    smaller, masked = half_cut(TwoInputs().eval(), y=y, x=x)
    assert isinstance(smaller, Rewritten)
    for given in (smaller(x=x, y=y), smaller(y=y, x=x)):
        assert torch.allclose(given, masked[0], atol=1e-5)
    with pytest.raises(TypeError, match="same arguments as when it was traced"):
        smaller(x, y)
    with pytest.raises(ValueError, match="holds for inputs of the sizes"):
        smaller(x=x[:, :8], y=y)


class KeepsWhatItSaw(nn.Module):
    """Attention is kept on the module, and in a dict; a weight is made by a hook, as the older weight norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.utils.weight_norm(nn.Linear(9, 12)), nn.Linear(12, 3)
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.seen["last"] = self.fc(x).relu()
        return self.head(self.last)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_a_model_that_keeps_tensors_is_cut_before_and_after_it_ran() -> None:
    torch.manual_seed(0)
    model, x = KeepsWhatItSaw().eval(), torch.randn(7, 9)
    half_cut(model, x)
    assert not hasattr(model, "last")
    assert model.seen == {}
    model(x)
    smaller, masked = half_cut(model, x)
    assert model.last.grad_fn is not None, "the model itself stays as it was"
    assert torch.allclose(smaller(x), masked[0], atol=1e-5)


class Counts(nn.Module):
    """Counts its calls and keeps a running mean, in eval mode, too; the count goes into the result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(9, 12), nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = self.head(self.fc(x).relu().reshape(-1, 12)) / self.calls
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        return y - self.mean


def test_a_rewritten_program_sets_the_buffers_that_its_code_sets() -> None:
    torch.manual_seed(0)
    model, x = Counts().eval(), torch.randn(7, 9)
    weights = [tensor.clone() for tensor in model.state_dict().values()]
    smaller, _ = half_cut(model, x)
    assert isinstance(smaller, Rewritten)
    assert all(map(torch.equal, model.state_dict().values(), weights)), "the model itself stays as it was"
    due = copy.deepcopy(model)
    gone = [k for k in range(12) if not (smaller.fc.weight == model.fc.weight[k]).all(1).any()]
    due.fc.weight.data[gone], due.fc.bias.data[gone] = 0.0, 0.0
    for number in range(1, 4):
        assert torch.allclose(smaller(x), due(x), atol=1e-6)
        assert smaller.calls == number
        assert torch.allclose(smaller.mean, due.mean, atol=1e-6)


class Nested(nn.Module):
    """A width written into the code, and a pair as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.head(self.fc(pair[0] + pair[1]).relu().reshape(-1, 12))


def test_a_program_of_nested_inputs_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="the program that replaces it takes tensors only; got tuple"):
        half_cut(Nested().eval(), (torch.randn(7, 9), torch.randn(7, 9)))


class WithConstant(nn.Module):
    """A number of its code becomes a constant of the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        return self.head(torch.where(x > 0, x, torch.tensor(0.1)))


def test_a_constant_in_the_code_is_no_reason_to_rewrite_it() -> None:
    smaller, masked = half_cut(WithConstant().eval(), torch.randn(7, 9))
    assert not isinstance(smaller, Rewritten)
    assert smaller.fc.out_features == 6
    assert masked[0].shape == (7, 3)


class HooksItself(nn.Module):
    """Installs a hook at its first call, and remembers that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head, self.installed = nn.Linear(9, 12), nn.Linear(12, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.installed:
            self.fc.register_forward_hook(lambda module, given, result: 2 * result)
            self.installed = True
        return self.head(self.fc(x))


def test_a_trace_takes_its_hooks_away_with_what_the_model_remembers_of_them() -> None:
    torch.manual_seed(0)
    model, x = HooksItself().eval(), torch.randn(7, 9)
    smaller, masked = half_cut(model, x)
    assert not isinstance(smaller, Rewritten)
    assert not model.fc._forward_hooks
    assert torch.allclose(smaller(x), masked[0], atol=1e-5)
    assert torch.allclose(model(x), model.head(2 * nn.functional.linear(x, model.fc.weight, model.fc.bias)), atol=1e-6)
