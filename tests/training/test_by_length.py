"""Trainings whose batches have texts of similar lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kills import KilledAt, KilledError
from mirabelle import Run, Task
from mirabelle.errors import UserError
from mirabelle.model.state import copied, fingerprint
from mirabelle.objectives import HiddenStates, SoftTargets
from mirabelle.quantize.output_change import OutputChange
from mirabelle.run.journal import read_events
from mirabelle.task.samples import Samples
from mirabelle.training import Training, fit
from mirabelle.training.by_length import ByLength, batches_by_length, order_by_length
from mirabelle.training.checkpoint import Checkpoint

LONGEST, VOCABULARY = 24, 40


class Reader(nn.Module):
    """The mean of the states of the tokens that count, and a class."""

    def __init__(self, *, masked: bool = True, each: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.head = nn.Linear(8, 2)
        self.masked, self.each = masked, each

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.layers[0](self.table(input_ids)).relu()
        if self.each:
            return self.head(states)
        weight = (attention_mask if self.masked else torch.ones_like(attention_mask))[..., None].float()
        return self.head((states * weight).sum(1) / weight.sum(1))


def texts(count: int = 203) -> Samples:
    drawn = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, LONGEST + 1, (count,), generator=drawn)
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    ids = torch.randint(1, VOCABULARY, (count, LONGEST), generator=drawn) * mask
    return Samples({"input_ids": ids, "attention_mask": mask}, (ids[:, 0] % 2).long())


def seen(model: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of the token ids that the model sees in training mode."""
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, _given: object, named: dict[str, Tensor]) -> None:
        if module.training:
            shapes.append(tuple(named["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def task() -> Task:
    data = texts()
    pair = (data.inputs, data.targets)
    return Task(train=pair, validation=pair, test=pair)


def test_an_epoch_has_each_sample_once_in_an_order_that_depends_on_the_seed() -> None:
    data = texts()
    grouped = ByLength(data, Reader())
    one, same, other = (
        torch.cat([batch.index for batch in data.shuffled(8, seed, grouped.order)])  # type: ignore[misc]
        for seed in (5, 5, 6)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(one.unique()) == len(one) == len(data) // 8 * 8


def test_a_batch_has_texts_of_neighbouring_lengths() -> None:
    lengths = torch.tensor([5, 1, 7, 3, 8, 2, 6, 4])
    order = order_by_length(torch.arange(8), lengths, 2, torch.Generator().manual_seed(0))
    assert {tuple(sorted(pair)) for pair in lengths[order].reshape(4, 2).tolist()} == {(1, 2), (3, 4), (5, 6), (7, 8)}


def test_training_sees_each_text_whole_without_the_common_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader()
    shapes = seen(model)
    fit(model, task(), Training(epochs=1, batch_size=8, group_by_length=True, precision="float32"), Run(tmp_path))
    learned = shapes[-(len(texts()) // 8) :]
    mean = float(texts().inputs["attention_mask"].sum(1).float().mean())
    assert sum(width for _, width in learned) / len(learned) < 1.25 * mean < LONGEST
    cut = ByLength.cut(texts().first(3))
    kept = cut.inputs["attention_mask"].sum(1)
    assert torch.equal(kept, texts().first(3).inputs["attention_mask"].sum(1))
    assert cut.inputs["input_ids"].shape[1] == int(kept.max())


def test_the_loss_is_that_of_whole_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader().eval()
    batch = texts().at(torch.tensor([0, 4, 9]))
    assert torch.allclose(model(**batch.inputs), model(**ByLength.cut(batch).inputs), atol=1e-6)


def test_a_teacher_guides_outputs_and_hidden_states_of_cut_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Reader(), Reader()
    objective = SoftTargets() + 1.0 * HiddenStates(layers=("layers.0",), teacher_layers=("layers.0",))
    training = Training(epochs=8, batch_size=8, lr=0.02, objective=objective, group_by_length=True)
    data = texts()

    @torch.no_grad()
    def apart() -> float:
        return float((student(**data.inputs) - teacher(**data.inputs)).abs().mean())

    before = apart()
    fit(student, task().with_teacher(teacher), training, Run(tmp_path))
    assert apart() < before / 3


@pytest.mark.parametrize("kill_at", [7, 31])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))
    torch.manual_seed(0)
    whole = Reader()
    killed, resumed = copied(whole), copied(whole)
    training = Training(epochs=2, batch_size=8, group_by_length=True, keep="last", precision="float32")
    fit(whole, task(), training, Run(tmp_path / "whole"))
    with pytest.raises(KilledError):
        fit(killed, task(), training, Run(tmp_path / "killed"), controls=[KilledAt(kill_at)])
    fit(resumed, task(), training, Run(tmp_path / "killed"), controls=[KilledAt(0)])
    taken_up = [one["step"] for one in read_events(tmp_path / "killed") if one["event"] == "taken up"]
    assert taken_up == [kill_at - 1]
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize(
    ("model", "words"),
    [(Reader(masked=False), "depend on the padding"), (Reader(each=True), "outputs for each token")],
)
def test_a_model_that_reads_the_padding_is_refused(model: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ByLength(texts(), model)
    assert caught.value.code == "E111"


def test_data_without_a_mask_are_refused(tmp_path: Path) -> None:
    data = Samples(torch.randn(8, 3), torch.zeros(8).long())
    with pytest.raises(UserError, match='no "attention_mask"') as caught:
        ByLength(data, nn.Linear(3, 2))
    assert caught.value.code == "E111"


class OneLength(Reader):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids.reshape(-1, LONGEST), attention_mask.reshape(-1, LONGEST))


def test_a_model_of_one_length_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="does not work with shorter texts"):
        ByLength(texts(41), OneLength().eval())


def test_batches_by_length_have_all_samples_and_no_shared_padding() -> None:
    data, model = texts(41), Reader().eval()
    batches = batches_by_length(data, 8, model)
    assert batches is not None
    assert torch.cat([batch.index for batch in batches]).sort().values.tolist() == list(range(41))
    for batch in batches:
        mask = batch.inputs["attention_mask"]  # type: ignore[index, call-overload]
        assert mask.shape[1] == mask.sum(1).max() == data.inputs["attention_mask"][batch.index].sum(1).max()  # type: ignore[index, call-overload]
    widths = [batch.inputs["attention_mask"].shape[1] for batch in batches]  # type: ignore[index, call-overload]
    assert widths == sorted(widths)
    for other in (Reader(masked=False), Reader(each=True), OneLength()):
        assert batches_by_length(data, 8, other.eval()) is None
    assert batches_by_length(Samples(torch.zeros(4, 3)), 2, nn.Linear(3, 2)) is None


class WithMore(Reader):
    """Returns its classes in a structure, beside what is no number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        y = super().forward(input_ids, attention_mask)
        first = input_ids[:, 0]
        return {"dict": {"logits": y}, "nested": (y, (y, first)), "flags": (y, y > 0), "squeezed": y[:, :1].squeeze()}[
            self.kind
        ]


@pytest.mark.parametrize("kind", ["dict", "nested", "flags", "squeezed"])
def test_outputs_of_any_structure_are_compared(kind: str) -> None:
    data, model = texts(33), WithMore(kind).eval()
    batches = batches_by_length(data, 16, model)
    assert batches is not None
    assert [len(batch.targets) for batch in batches] == [11, 11, 11], "no batch of a single sample, which some models squeeze"
    assert OutputChange.drawn(model, data, 33, 0).of(model) < 1e-9
