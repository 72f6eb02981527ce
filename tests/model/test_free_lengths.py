"""However the code of a model reads its batch size, the program that replaces it takes any batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mirabelle.graph.groups import groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.rewritten import Rewritten
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced


def batch_of(x: torch.Tensor) -> int:
    return len(x)


def first(batch: int, *_: int) -> int:
    return batch


class Heads(nn.Module):
    """Twelve channels as three heads of four, both written down, for a batch that is read in one of many ways."""

    def __init__(self, batch: Callable[[torch.Tensor], int]) -> None:
        super().__init__()
        self.batch = batch
        self.enter, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.enter(x).reshape(self.batch(x), -1, 3, 4)
        assert isinstance(self.batch(x), (int, torch.SymInt))
        weights = heads.softmax(1) + torch.zeros(self.batch(x), 1, 1, 1)
        return self.head((heads * weights).reshape(self.batch(x) * 5, 12)).reshape(self.batch(x), 15)


FORMS = {
    "len": lambda x: len(x),  # noqa: PLW0108 (the name that the trace replaces)
    "len_of_a_product": lambda x: len(x * 2.0),
    "helper": batch_of,
    "int_of_shape": lambda x: int(x.shape[0]),
    "size": lambda x: x.size(0),
    "shape": lambda x: x.shape[0],
    "negative": lambda x: x.shape[-3],
    "unpacked": lambda x: first(*x.size()),
    "numel": lambda x: x.numel() // (x.shape[1] * x.shape[2]),
    "nelement": lambda x: x.nelement() // 30,
    "product": lambda x: math.prod(x.shape) // 30,
    "first_of": lambda x: next(iter(x.shape)),
    "minimum": lambda x: min(x.shape[0], 1000),
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_any_batch_passes_through_the_rewritten_program(form: str) -> None:
    torch.manual_seed(0)
    model, x = Heads(FORMS[form]).eval(), torch.randn(3, 5, 6)
    program = traced(model, (x,))
    flow = propagated(program)
    groups = {len(group): group for group in groups_of(program, flow)}
    assert set(groups) == {3, 4}, "heads, and channels of each"
    for group in groups.values():
        model.head.weight[:, [0, 1, 2, 3] if len(group) == 3 else [0, 4, 8]] = 0  # what is cut has no part in the outputs
    removed = torch.tensor([groups[3].units[0], groups[4].units[0]]).numpy()
    smaller = cut(model, program, flow, kept_without(flow, removed), ((x,), {}))
    assert isinstance(smaller, Rewritten)
    assert smaller.state_dict()["head.weight"].shape == (3, 6)
    for batch in (1, 2, 3, 8):
        inputs = torch.randn(batch, 5, 6)
        torch.testing.assert_close(smaller(inputs), model(inputs))


def test_names_are_what_they_were_after_a_trace_that_succeeds_or_fails() -> None:
    before = dict(globals())
    traced(Heads(FORMS["len"]).eval(), (torch.randn(3, 5, 6),))
    with pytest.raises(Exception, match="cannot be traced"):
        traced(Heads(lambda x: int(len(x) / x.sum())).eval(), (torch.randn(3, 5, 6),))
    assert globals().keys() == before.keys()
    assert len("ab") == int("2") == 2
