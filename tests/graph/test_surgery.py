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

import numpy as np
import pytest
import torch
from proof import difference, half_of, tensors_of
from test_zoo import chosen, made_or_skipped
from torch import nn
from torch.utils import _pytree as pytree
from zoo import ARCHITECTURES

from mirabelle import load, save
from mirabelle.architecture import architecture_of
from mirabelle.errors import UserError
from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without, run_masked
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import _difference, cut
from mirabelle.graph.trace import traced

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes? self.*assigned during export:UserWarning")
FLOAT32 = 2e-4  # relative; sums of other lengths in another order, through a few layers
OTHER_FIRST_AXIS = {"stacked_gru", "clip"}  # time; the other modality
ONE_BATCH = {"literal_widths"}  # whose trace holds the batch of its example: another raises


@pytest.mark.parametrize("name", chosen(ARCHITECTURES))
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
    assert set(smaller.state_dict()) <= set(model.state_dict())
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
    assert record.slices["conv.weight"] == {"0": "5-11"}
    assert bool(record.program) == literal
    if literal:
        assert "invalid for input of size" in record.program["why"]
    else:
        assert record.attributes == {"": {"width": 7}, "conv": {"out_channels": 7}, "head": {"in_features": 175}}


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
    assert architecture_of(model).slices["conv.weight"] == {"0": "8-11"}


def test_units_are_counted_from_the_dense_model() -> None:
    kept = np.array([0, 2, 3, 5])
    from mirabelle.architecture import Architecture, indices_of

    record = Architecture().with_slices({"a": {0: kept.tolist()}}, {}).with_slices({"a": {0: [1, 3], 1: [0]}}, {})
    assert {d: indices_of(text) for d, text in record.slices["a"].items()} == {"0": [2, 5], "1": [0]}


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
        ({"slices": {"convv.weight": {"0": "0-3"}}}, 'cuts "convv.weight"'),
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
        ({"slices": [1]}, "lacks"),
    ],
)
def test_a_record_that_does_not_fit_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(Widths(literal=False), tmp_path)
    record = json.loads((tmp_path / "architecture.json").read_text())
    (tmp_path / "architecture.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(UserError, match=rf"E14[01].*{words}"):
        load(lambda: Widths(literal=False), tmp_path)


def test_a_number_that_is_none_is_a_difference_in_whichever_output_it_stands() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert _difference([good, bad], [good, good]) == math.inf
    assert _difference([bad, good], [good, good]) == math.inf
    endless = torch.tensor([1.0, float("inf")])
    assert _difference([good, endless], [good, endless]) == 0.0
