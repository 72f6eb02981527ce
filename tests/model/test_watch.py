"""Observers see every run of the layers they name, and a model is left without hooks and in its modes, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle.model.watch import EndOfForward, LayerRun, layer_of, watch, watched
from mirabelle.task.batch import Batch


class Net(nn.Module):
    """A layer that runs twice, one called by keyword, and one that gives several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.split, self.head = nn.Linear(4, 4), Split(), nn.Linear(2, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        left, _ = self.split(self.twice(self.twice(x)), parts=2)
        return self.head(input=self.drop(left))


class Split(nn.Module):
    def forward(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return x.chunk(parts, 1)


def clean(model: nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_observers_see_every_run_in_order_with_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    net, x = Net().train(), torch.randn(5, 4)
    net.split.eval()
    seen: list[tuple[str, LayerRun]] = []
    modules = {name: module for name, module in net.named_modules() if name != "drop"}
    watch(net, [x], modules, before=lambda run: seen.append(("before", run)), after=lambda run: seen.append(("after", run)))
    assert [(when, run.name) for when, run in seen] == [
        ("before", ""), ("before", "twice"), ("after", "twice"), ("before", "twice"), ("after", "twice"),
        ("before", "split"), ("after", "split"), ("before", "head"), ("after", "head"), ("after", ""),
    ]  # fmt: skip
    runs = [run for when, run in seen if when == "after"]
    assert torch.equal(runs[0].input, x)
    assert runs[1].input is runs[0].output
    assert list(runs[2].outputs()) == ["split", "split[1]"]
    assert list(runs[2].values()) == ["split", "split[1]", "split:input"]
    assert runs[3].args == ()
    assert torch.equal(runs[3].values()["head:input"], runs[2].outputs()["split"]), "without dropout"
    assert seen[0][1].output is None, "it has not run yet"
    assert not any(tensor.requires_grad for run in runs for tensor in run.outputs().values())
    assert clean(net)
    assert [module.training for module in net.modules()] == [True, True, False, True, True]


def test_a_forward_ends_where_nothing_more_is_needed_and_the_next_batch_follows() -> None:
    net, seen = Net(), []

    def first_only(run: LayerRun) -> None:
        seen.append((run.name, len(run.input)))
        if run.name == "twice":
            raise EndOfForward

    watch(net, [torch.zeros(5, 4), Batch(torch.zeros(3, 4), torch.zeros(3))], dict(net.named_modules()), before=first_only)
    assert seen == [("", 5), ("twice", 5), ("", 3), ("twice", 3)]
    assert clean(net)


def test_a_mistake_of_an_observer_leaves_no_hook_and_no_mode_behind() -> None:
    net = Net().train()

    def fails(_: LayerRun) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        watch(net, [torch.zeros(1, 4)], {"head": net.head}, after=fails)
    assert clean(net)
    assert net.training
    assert torch.is_grad_enabled()


def test_within_a_context_modes_and_gradients_are_the_callers() -> None:
    net, kept = Net().train(), []
    with watched({"one": net.twice, "other": net.twice}, after=kept.append):
        net(torch.randn(2, 4)).sum().backward()
    assert [run.name for run in kept] == ["one", "other", "one", "other"]
    assert kept[0].output.requires_grad
    assert net.training
    assert clean(net)


def test_an_observer_may_change_a_module_before_it_runs() -> None:
    layer = nn.Linear(2, 1, bias=False)
    outputs: list[Any] = []
    watch(
        layer,
        [torch.ones(1, 2)],
        {"": layer},
        before=lambda _: layer.weight.fill_(3.0),
        after=lambda run: outputs.append(run.output.item()),
    )
    assert outputs == [6.0]


def test_layers_inside_of_fused_attention_are_seen() -> None:
    layer, names = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True).eval(), []
    watch(layer, [torch.zeros(2, 3, 4)], dict(layer.named_modules()), after=lambda run: names.append(run.name))
    assert {"linear1", "linear2", "norm1"} <= set(names)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_layer_of_a_value() -> None:
    assert [layer_of(name) for name in ("a.b", "a.b[2]", "a.b:input", "")] == ["a.b", "a.b", "a.b", ""]
