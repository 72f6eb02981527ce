"""What is measured of a model: options of widths, groups that the code fixes, and steps on the lower hull."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import onnx_file
from mirabelle.planning.measured import Measured
from mirabelle.planning.measuring import Wanted, measured, quantizing, without_codes
from mirabelle.planning.options import after_fitting, coded_options, counts_of
from mirabelle.quantize.level_search import Option
from mirabelle.runtime.layer_times import layer_milliseconds
from mirabelle.runtime.runtime import default_runtime


@pytest.mark.parametrize(
    ("size", "multiple", "counts"),
    [
        (16, 1, (2, 4, 6, 8, 10, 12, 14, 16)), (16, 8, (8, 16)), (64, 8, (8, 16, 24, 32, 40, 48, 56, 64)),
        (12, 8, (2, 3, 4, 6, 8, 9, 10, 12)), (3, 1, (2, 3)), (1, 1, (1,)), (20, 8, (8, 16, 20)),
    ],
)  # fmt: skip
def test_widths_are_eighths_and_multiples(size: int, multiple: int, counts: tuple[int, ...]) -> None:
    assert counts_of(size, range(1, size + 1), multiple) == counts


def test_steps_that_another_one_beats_in_both_are_left_out() -> None:
    options = [
        Option(4.0, 1.0, 10.0),
        Option(2.0, 0.5, 40.0),
        Option(1.0, 0.4, 20.0),
        Option(0.5, 0.1, 50.0),
        Option(0.2, 0.2, 60.0),
    ]
    part = coded_options("layer", options)
    assert part.sizes == (10.0, 20.0, 50.0)
    assert part.changes == (1.0, 0.4, 0.1)


def test_changes_after_a_fit_follow_the_cuts_that_were_fitted() -> None:
    counts, changes = (2, 4, 8, 12, 16), {2: 1.0, 4: 0.5, 8: 0.2, 12: 0.05, 16: 0.0}
    found = after_fitting(counts, changes, {4: 0.1, 12: 0.4})
    assert found == pytest.approx([0.1, 0.05, 0.2 * 0.2, 0.02, 0.0])
    assert after_fitting(counts, changes, {}) == list(changes.values()), "nothing is fitted"
    assert after_fitting(counts, changes, {4: 3.0})[1] == 0.5, "a fit that fails leaves what was there"


class Fixed(nn.Module):
    """The code has the width of the first convolution written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x).relu().reshape(-1, 8, 6, 6)
        return self.three(self.two(x).relu().flatten(1))


def test_groups_whose_cut_replaces_the_code_stay_whole(images: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    told: list[str] = []
    kept = tmp_path / "measured.json"
    wanted = Wanted(coded=False, timed=False)
    found = measured(Fixed().eval(), images, Run(tmp_path / "run"), wanted, told.append, kept=kept)
    options = {part.name: part.options for part in found.units}
    assert options["one.weight:0"] == (8.0,)
    assert options["two.weight:0"] == (2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 10.0, 12.0)
    assert "one.weight:0: all units stay" in " ".join(found.notes)
    assert found.recovered[0] == (0.0, 0.0)
    assert len(found.recovered) > 1
    measured(Fixed().eval(), images, Run(tmp_path / "run"), wanted, told.append, kept=kept)
    assert not any("are used" in line for line in told), "another model is measured anew"


def test_a_cut_whose_weights_cannot_be_coded_is_noted(blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, asked = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3)).eval(), []
    real = quantize.RateDistortion.survey

    def survey(*arguments: Any) -> Any:
        asked.append(sum(parameter.numel() for parameter in arguments[1].parameters()))
        if len(asked) > 1:
            raise UserError("E121", "a program has no layers", "")
        return real(*arguments)

    monkeypatch.setattr(quantize.RateDistortion, "survey", survey)
    wanted = Wanted(coded=True, timed=False)
    found = measured(model, blobs, Run(tmp_path / "run"), wanted, str, kept=tmp_path / "measured.json")
    assert asked[1] < asked[0], "the second one is the cut model"
    assert found.codes
    assert found.fewer_power == Measured.fewer_power
    assert "no coded weights of a cut model: a program has no layers" in found.notes


def test_measurements_serve_goals_that_need_no_more_and_none_is_lost(blobs: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, kept = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3)).eval(), tmp_path / "measured.json"

    def found(wanted: Wanted, place: Path = kept) -> tuple[Measured, bool]:
        told: list[str] = []
        one = measured(model, blobs, Run(tmp_path / "run"), wanted, told.append, kept=place)
        return one, any("are used" in line for line in told)

    coded, used = found(Wanted(coded=True, timed=False))
    assert not used
    plain, used = found(Wanted(coded=False, timed=False, batch=32))
    assert used, "the batch counts where calls are timed"
    alone, _ = found(Wanted(coded=False, timed=False), tmp_path / "other.json")
    assert json.dumps(plain.to_data()) == json.dumps(alone.to_data())
    timed, used = found(Wanted(coded=False, timed=True))
    assert not used
    assert timed.units[0].options != plain.units[0].options, "multiples of 8 where milliseconds count"
    again, used = found(Wanted(coded=True, timed=False))
    assert used
    assert json.dumps(again.to_data()) == json.dumps(coded.to_data()), "a later goal replaces nothing"
    assert not Wanted(coded=True, timed=True, batch=8).covers(Wanted(coded=False, timed=True))
    assert Wanted(coded=True, timed=True).covers(Wanted(coded=False, timed=True))


class Named(nn.Module):
    """Takes its inputs by name, as models of transformers do, so the exporter wraps it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.body(inputs["x"])


def test_layers_of_a_wrapped_model_are_found_in_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wrapped, x = Named().eval(), torch.randn(40, 8)
    named, plain = (
        Task(train=(given, torch.zeros(40).long()), test=(given, torch.zeros(40).long())) for given in ({"x": x}, x)
    )
    onnx = onnx_file(wrapped, named)
    feed = {"x": x[:1].numpy()}
    found = layer_milliseconds(default_runtime(), onnx, feed, ["body.0", "body.2"], threads=1, whole_ms=0.01)
    assert found.keys() == {"body.0", "body.2"}
    rest = []
    for k, (model, task) in enumerate(((wrapped, named), (wrapped.body, plain))):
        (step,) = quantizing("coded", 300.0)
        shown = step.preview(model, task, Run(tmp_path / str(k))).model
        rest.append(without_codes(onnx_file(shown, task), shown))
    assert rest[0] == pytest.approx(rest[1], abs=60), "the codes of both are left out"
