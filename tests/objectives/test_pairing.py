"""Which layers look at which: by name, and found in models of many kinds."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.model.architecture import replace_module
from mirabelle.objectives import RKD, AttentionMaps, AttentionTransfer, Hint
from mirabelle.objectives.layer_matching import Kind, head_of, pairs_of
from mirabelle.prune.skipped import Skipped
from mirabelle.task.batch import Batch
from students import Convolutional, Transformer

ANY: tuple[Kind, ...] = ("maps", "tokens", "vectors")


def batch_of(*shape: int, count: int = 2) -> Batch:
    return Batch(torch.randn(count, *shape), torch.zeros(count, dtype=torch.long))


def names(student: nn.Module, teacher: nn.Module, example: Batch, kinds: tuple[Kind, ...] = ANY, **named: tuple[str, ...]):
    patterns = named.get("layers", ()), named.get("teacher_layers", ())
    return [(pair.student.name, pair.teacher.name) for pair in pairs_of(student, teacher, example, patterns, kinds)]


def test_whole_names_are_taken_in_their_order_and_patterns_take_the_outermost_layers() -> None:
    student, teacher, example = Convolutional(4), Convolutional(8), batch_of(1, 8, 8)
    order = ("coarse", "fine")
    assert names(student, teacher, example, layers=order, teacher_layers=order[::-1]) == [
        ("coarse", "fine"),
        ("fine", "coarse"),
    ]
    assert names(student, teacher, example, layers=("fine", "fine"), teacher_layers=order) == [
        ("fine", "coarse"),
        ("fine", "fine"),
    ]
    assert names(student, teacher, example, layers=("*coarse*",), teacher_layers=("*coarse*",)) == [("coarse", "coarse")]
    assert names(student, teacher, example, layers=("coarse.*",), teacher_layers=("coarse.*",))[0] == ("coarse.0", "coarse.0")


def test_what_a_layer_gives_besides_is_named_with_brackets(images: Task) -> None:
    student, teacher = Transformer(12, 2, 2), Transformer(24, 4, 4)
    taps = ("layers.1.attention[1]",)
    assert names(student, teacher, images.example(), ("attention",), layers=taps, teacher_layers=taps) == [taps * 2]
    found = names(student, teacher, images.example(), ("attention",), layers=("layers.*.attention[1]",))
    assert found == [(f"layers.{k}.attention[1]", f"layers.{2 * k + 1}.attention[1]") for k in (0, 1)]
    term = RKD(layers=("head:input",), teacher_layers=("norm",)) if hasattr(teacher, "norm") else RKD(layers=("head:input",))
    bound = (1.0 * term).bind(student, images.with_teacher(teacher), images.example())
    assert bound.student_layers == ("head:input",)


class HandsOn(nn.Module):
    """An attention whose outputs the module around it hands on, as those of transformers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, weights = self.inner(x)
        return states + 0.0, weights


def test_attention_that_is_handed_on_counts_once(images: Task) -> None:
    pair = []
    for model in (Transformer(12, 2, 2), Transformer(24, 4, 4)):
        for layer in model.layers:
            layer.attention = HandsOn(layer.attention)
        pair.append(model)
    found = names(pair[0], pair[1], images.example(), ("attention",))
    assert [(one.split(".")[1], other.split(".")[1]) for one, other in found] == [("0", "1"), ("1", "3")]


def test_what_only_passes_the_input_on_and_the_outputs_are_no_depth() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
    assert names(student, teacher, batch_of(1, 8, 8)) == [("2", "4")]


def test_a_width_that_comes_again_counts_where_it_is_last() -> None:
    def net(*widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for into, out in itertools.pairwise(widths):
            layers += [nn.Linear(into, out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 3))

    assert names(net(5, 16, 8, 16), net(5, 12, 6), batch_of(5)) == [("3", "1"), ("5", "3")]


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch, self.inner = nn.Conv2d(1, width, 4, 4), Transformer(width, 2, 2)
        self.inner.enter = nn.Identity()  # type: ignore[assignment]
        self.inner.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.patch(x).flatten(2).transpose(1, 2))
        return out


def test_a_transformer_behind_patches_is_one() -> None:
    found = names(Patches(8), Patches(12), batch_of(1, 8, 8))
    assert found == [("inner.layers.0", "inner.layers.0"), ("inner.layers.1", "inner.layers.1")]


def signal_net(width: int) -> nn.Sequential:
    def stage(into: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(into, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU())

    return nn.Sequential(stage(2), nn.MaxPool1d(2), stage(width), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 3))


def test_convolutions_of_signals_give_maps() -> None:
    student, teacher, example = signal_net(4), signal_net(8), batch_of(2, 12)
    pairs = pairs_of(student, teacher, example, ((), ()), ("maps",))
    assert [(pair.student.name, pair.student.width, pair.student.places) for pair in pairs][:2] == [
        ("0", 4, (12,)),
        ("2", 4, (6,)),
    ]
    task = Task(train=(torch.randn(8, 2, 12), torch.arange(8) % 3), test=(torch.randn(8, 2, 12), torch.arange(8) % 3))
    task = task.with_teacher(teacher)
    for term in (Hint(layers=("0",), teacher_layers=("2",)), AttentionTransfer()):
        bound = (1.0 * term).bind(student, task, task.example())
        assert float(bound(bound.seen(student, task.train.first(4), teacher)).detach()) > 0


class SequenceFirst(nn.Module):
    """Tokens in the first dimension inside, samples outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.mix, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(self.enter(x.transpose(0, 1))).mean(0))
        return out


def test_layers_that_do_not_hold_samples_first_are_refused() -> None:
    student, teacher, example = SequenceFirst(6), SequenceFirst(9), batch_of(5, 4)
    with pytest.raises(UserError, match=r'E111.*"mix", \(5, 2, 6\), does not have the samples'):
        names(student, teacher, example, layers=("mix",), teacher_layers=("mix",))
    with pytest.raises(UserError, match=r"E112.*do not both have layers"):
        names(student, teacher, example)


class Squeezed(nn.Module):
    """A convolutional head; the only linear layer weighs channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weigh, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.weigh(x.mean((2, 3))))[:, :, None, None]
        out: Tensor = self.head(x).mean((2, 3))
        return out


def test_a_head_is_the_linear_layer_that_gives_the_outputs() -> None:
    assert head_of(Convolutional(4), batch_of(1, 8, 8)) == "head"
    with pytest.raises(UserError, match=r"E112.*Squeezed does not end with a linear layer"):
        head_of(Squeezed(), batch_of(1, 8, 8))


def test_maps_of_attention_are_not_averaged_into_others(images: Task) -> None:
    class Halved(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, ::2])

    task = images.with_teacher(Transformer(24, 4, 4))
    with pytest.raises(UserError, match=r"E111.*cannot be compared"):
        (1.0 * AttentionMaps()).bind(Halved(12, 2, 2), task, task.example())


def test_layers_that_were_dropped_are_left_out_and_the_others_paired_by_name(images: Task) -> None:
    student, teacher, example = Transformer(24, 6, 4), Transformer(24, 6, 4), images.example()
    for name in ("layers.0", "layers.3"):
        student = replace_module(student, name, Skipped())
    kept = ["layers.1", "layers.2", "layers.4", "layers.5"]
    assert names(student, teacher, example, ("tokens",)) == [(name, name) for name in kept]
    assert names(student, teacher, example, ("tokens",), layers=("layers.?",), teacher_layers=tuple(kept)) == [
        (name, name) for name in kept
    ]
    for pattern in ("layers.3", "*s.3"):
        with pytest.raises(UserError, match="a layer that an earlier step has dropped") as caught:
            names(student, teacher, example, ("tokens",), layers=(pattern,), teacher_layers=("layers.5",))
        assert caught.value.code == "E112"
    small = Transformer(24, 3, 4)
    assert names(small, teacher, example, ("tokens",)) == [(f"layers.{k}", f"layers.{2 * k + 1}") for k in range(3)]
