"""A run computes with its own number of threads, and the process has its number again afterwards."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Source, Task, Training, compress, quantize
from mirabelle.errors import UserError
from mirabelle.job import verification
from mirabelle.job.comparison import compare

TRAIN = Training(epochs=1, batch_size=100, precision="float32")
STEPS = [quantize.Static(samples=20)]


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    """A number that no run is given here."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Listening:
    """The numbers of threads at the events of a run; it fails at the first event of a kind."""

    def __init__(self, fails_at: str = "") -> None:
        self.heard: set[int] = set()
        self.fails_at = fails_at

    def __call__(self, event: Any) -> None:
        if event["event"] not in ("decision", "resumed"):  # which come before the number is set
            self.heard.add(torch.get_num_threads())
        if event["event"] == self.fails_at:
            raise KeyboardInterrupt


def test_a_run_that_reproduces_a_number_of_threads_gives_it_back(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    listening = Listening()
    source = Source(decisions={"threads": 1})
    compress(mlp, blobs, STEPS, out=tmp_path / "run", baseline=TRAIN, source=source, callbacks=[listening])
    assert listening.heard == {1}
    assert torch.get_num_threads() == 3


def test_a_run_without_a_number_takes_that_of_the_process(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    listening = Listening()
    compress(mlp, blobs, STEPS, out=tmp_path / "run", baseline=TRAIN, callbacks=[listening])
    assert listening.heard == {3}
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["decisions"]["threads"] == 3
    assert torch.get_num_threads() == 3


def test_an_interrupted_run_gives_them_back_and_goes_on_with_its_own(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    source = Source(decisions={"threads": 1})
    with pytest.raises(KeyboardInterrupt):
        compress(mlp, blobs, STEPS, out=tmp_path / "run", baseline=TRAIN, source=source, callbacks=[Listening("epoch")])
    assert torch.get_num_threads() == 3
    listening = Listening()
    compress(mlp, blobs, STEPS, out=tmp_path / "run", baseline=TRAIN, callbacks=[listening])
    assert listening.heard == {1}
    assert torch.get_num_threads() == 3


def test_a_run_that_cannot_be_opened_changes_nothing(tmp_path: Path) -> None:
    Run.opened(tmp_path / "run", {"seed": 0}, decisions={"threads": 1}).close()
    for document, decisions, code in (({"seed": 1}, {}, "E150"), ({"seed": 2}, {"threads": 0}, "E103")):
        folder = tmp_path / ("run" if code == "E150" else "other")
        with pytest.raises(UserError) as caught:
            Run.opened(folder, document, decisions=decisions)
        assert caught.value.code == code
        assert torch.get_num_threads() == 3
    Run.opened(tmp_path / "run", {"seed": 0}).close()  # the folder is free again


def test_a_number_that_the_process_takes_after_the_run_stays(tmp_path: Path) -> None:
    run = Run.opened(tmp_path, {"seed": 0}, decisions={"threads": 1})
    assert torch.get_num_threads() == 1
    run.close()
    torch.set_num_threads(2)
    run.close()
    assert torch.get_num_threads() == 2


def test_a_comparison_gives_them_back(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    listening = Listening()
    compare(mlp, blobs, {"int8": STEPS}, out=tmp_path, seeds=(0,), callbacks=[listening])
    assert listening.heard == {3}
    assert torch.get_num_threads() == 3


computed_with: set[int] = set()


class Heard(nn.Module):
    """Notes the numbers of threads with which it is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        computed_with.add(torch.get_num_threads())
        out: torch.Tensor = self.inner(x)
        return out


@pytest.fixture
def unlabelled(blobs: Task) -> Task:
    computed_with.clear()
    return Task(train=blobs.train.inputs, validation=blobs.validation.inputs, test=blobs.test.inputs)


def test_targets_from_the_model_are_computed_with_the_threads_of_the_run(unlabelled: Task, tmp_path: Path) -> None:
    """Otherwise their last bits, and with them the identity of the run, would depend on the process."""
    source = Source(decisions={"threads": 1})
    with pytest.raises(KeyboardInterrupt):
        compress(Heard(), unlabelled, STEPS, out=tmp_path / "run", source=source, callbacks=[Listening("begin")])
    assert computed_with == {1}
    torch.set_num_threads(2)
    compress(Heard(), unlabelled, STEPS, out=tmp_path / "run")
    assert computed_with == {1}
    assert torch.get_num_threads() == 2


def test_a_comparison_goes_on_with_the_threads_with_which_it_was_begun(unlabelled: Task, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    compare(Heard(), unlabelled, {"int8": STEPS}, out=tmp_path, seeds=(0,))
    torch.set_num_threads(3)
    compare(Heard(), unlabelled, {"int8": STEPS}, out=tmp_path, seeds=(0, 1))
    assert computed_with == {1}
    assert torch.get_num_threads() == 3


def test_a_run_is_verified_with_its_threads(mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: Any) -> None:
    compress(mlp, blobs, STEPS, out=tmp_path / "run", source=Source(decisions={"threads": 1}))
    heard = []
    known = verification.torch_equals_onnx

    def listening(*args: Any, **kwargs: Any) -> Any:
        heard.append(torch.get_num_threads())
        return known(*args, **kwargs)

    monkeypatch.setattr(verification, "torch_equals_onnx", listening)
    monkeypatch.setattr(verification, "_rebuilt", lambda *_: mlp)
    verification.verify_run(tmp_path / "run", blobs)
    assert heard == [1]
    assert torch.get_num_threads() == 3


def test_a_number_of_threads_that_is_none_is_told_before_anything_is_computed(unlabelled: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E103.*decisions.threads must be a whole number"):
        compress(Heard(), unlabelled, STEPS, out=tmp_path / "run", source=Source(decisions={"threads": 0}))
    assert not computed_with
