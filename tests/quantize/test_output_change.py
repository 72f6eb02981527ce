"""The change of a model's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, prune
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.quantize.output_change import OutputChange
from mirabelle.task.samples import Samples


class Reader(nn.Module):
    """The mean of the states of the tokens that count, and a class; it notes the lengths of the texts that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 3)
        self.widths: list[int] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.widths.append(input_ids.shape[1])
        weight = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * weight).sum(1) / weight.sum(1))


def texts(longest: int = 40) -> Samples:
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (60,), generator=drawn)
    lengths[7] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return Samples({"input_ids": torch.randint(1, 30, (60, longest), generator=drawn) * mask, "attention_mask": mask})


def test_padding_is_left_out_and_the_change_is_that_of_whole_texts() -> None:
    torch.manual_seed(0)
    model, other, data = Reader().eval(), Reader().eval(), texts()
    change = OutputChange.drawn(model, data, 50, 3)
    found = change.of(other)
    assert sorted(other.widths)[-2] < 9, "all batches but that with the longest text are short"
    with torch.no_grad():
        inputs = data.drawn(50, 3).inputs
        y, z = model(**inputs), other(**inputs)  # type: ignore[arg-type]
    assert found == pytest.approx(float((y - z).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-5)


def test_data_without_texts_are_taken_as_they_are() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2).eval(), nn.Linear(3, 2).eval()
    data = Samples(torch.randn(30, 3))
    whole = OutputChange(model, CalibrationSamples.of([data.inputs]).for_model(model))
    assert OutputChange.drawn(model, data, 30, 0).of(other) == pytest.approx(whole.of(other))


def test_programs_that_were_recorded_with_one_length_get_whole_texts(tmp_path: Path) -> None:
    class Written(Reader):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            weight = attention_mask[..., None].float()
            states = (self.table(input_ids) * weight).sum(1) / weight.sum(1)
            return self.head(states.reshape(-1, 8))

    torch.manual_seed(0)
    data = texts()
    task = Task(train=data, test=data)
    model = Written().eval()
    cut = prune.Channels(sparsity=0.5)(model, task, Run(tmp_path))
    assert architecture_of(cut).rewritten is not None
    assert 0 < OutputChange.drawn(model, data, 50, 3).of(cut) < 10


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = Reader().eval()
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        OutputChange.drawn(model, texts(), 50, 3)
