"""A tracker begins with the run, cannot hurt it, and changes nothing in its process."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Task, Training, UserError, prune
from mirabelle.job.job import Source
from mirabelle.run.tracking import Tracker, require, tracker_for
from mirabelle.run.tracking.tracker import _WRITERS

if TYPE_CHECKING:
    from conftest import Small


@pytest.mark.parametrize("name", _WRITERS)
def test_an_extra_that_is_not_installed_is_a_mistake_before_anything_begins(
    small: Small, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    for asked in (lambda: require(name), lambda: tracker_for(name, small.folder, print)):
        with pytest.raises(UserError) as caught:
            asked()
        assert caught.value.exit_status == 2
        assert str(caught.value) == (
            f'error[E160]: tracking with "{name}" needs the package {name}, which is not installed\n'
            f"help: pip install 'mirabelle[{name}]'"
        )


def test_a_folder_that_wandb_left_is_not_taken_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="E160"):
        require("wandb")


@pytest.mark.parametrize("name", _WRITERS)
def test_an_installed_extra_passes_without_being_imported(name: str) -> None:
    loaded = name in sys.modules
    require(name)
    assert (name in sys.modules) == loaded


def test_an_unknown_tracker_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r'E110.*"tensorbord"\nhelp: did you mean "tensorboard"\?'):
        require("tensorbord")


class Failing:
    """A writer that raises at every call of one kind."""

    def __init__(self, verb: str, error: BaseException) -> None:
        self.verb, self.error, self.calls = verb, error, []

    def begin(self, folder: Path, recipe: str) -> Failing:
        self._call("begin")
        return self

    def write(self, row: Any) -> None:
        self._call("write")

    def close(self) -> None:
        self._call("close")

    def abandon(self) -> None:
        self._call("abandon")
        raise RuntimeError("cannot even be abandoned")

    def _call(self, verb: str) -> None:
        self.calls.append(verb)
        if verb == self.verb:
            raise self.error


@pytest.mark.parametrize(("verb", "abandoned"), [("begin", 0), ("write", 1), ("close", 1)])
def test_a_failing_writer_is_turned_off_with_one_warning(small: Small, verb: str, abandoned: int) -> None:
    writer = Failing(verb, ValueError("first line\nsecond line"))
    tracker = Tracker("such", small.folder, writer.begin, small.warnings.append)
    small.happen(tracker, *small.events)
    tracker.close()
    tracker.close()
    small.happen(tracker, *small.events)
    assert small.warnings == ["tracking with such is turned off, the run continues: ValueError: first line second line"]
    assert (writer.calls.count(verb), writer.calls.count("abandon")) == (1, abandoned)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_passes(small: Small, error: BaseException) -> None:
    tracker = Tracker("such", small.folder, Failing("write", error).begin, small.warnings.append)
    with pytest.raises(type(error)):
        tracker(small.epoch(1))
    assert small.warnings == []


def test_an_event_of_a_form_unknown_turns_it_off_rather_than_ending_the_run(small: Small) -> None:
    tracker = Tracker("such", small.folder, Failing("never", ValueError()).begin, small.warnings.append)
    tracker({"event": "profile", "where": 3})
    assert len(small.warnings) == 1


def test_it_begins_with_the_first_event_and_not_before(tmp_path: Path) -> None:
    folder = tmp_path / "not yet"
    tracker = tracker_for("tensorboard", folder, print)
    tracker({"event": "progress", "where": "", "done": 1, "total": 2})
    tracker.close()
    assert not folder.exists()


def consumers() -> dict[str, Any]:
    """What a run's outcome, or the program around it, could depend on."""
    return {
        "random": torch.get_rng_state().tolist(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "python threads": {thread.name for thread in threading.enumerate()},
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, sys.exit, sys.displayhook, threading.excepthook, sys.stdout, sys.stderr),
        "imports": list(sys.meta_path),
        "environment": dict(os.environ),
        "place": Path.cwd(),
    }


@pytest.mark.usefixtures("bare_wandb")
def test_a_run_with_trackers_has_the_same_weights_and_the_same_surroundings(
    small: Small, tmp_path: Path, mlp: nn.Module, blobs: Task, capfd: pytest.CaptureFixture
) -> None:
    steps = [prune.Weights(sparsity=0.5, train=Training(epochs=3, lr=1e-2))]
    alone = mirabelle.compress(mlp, blobs, steps, out=tmp_path / "alone").folder
    decisions = tomllib.loads((alone / "recipe.toml").read_text())["decisions"]
    tracked = tmp_path / "tracked"
    trackers = [tracker_for(name, tracked, small.warnings.append) for name in ("tensorboard", "wandb")]
    before, seen = consumers(), []

    def listener(event: Any) -> None:
        during = consumers()
        for tracker in trackers:
            tracker(event)
        seen.append(consumers() == during)

    mirabelle.compress(mlp, blobs, steps, out=tracked, source=Source(decisions=decisions), callbacks=[listener])
    for tracker in trackers:
        tracker.close()
    assert small.warnings == []
    assert all(seen)
    assert consumers() == before
    for name in ("model.safetensors", "model.onnx", "model.mira"):
        assert (tracked / name).read_bytes() == (alone / name).read_bytes()
    assert list((tracked / "tensorboard").iterdir())
    assert list((tracked / "wandb").glob("offline-run-*/*.wandb"))
    assert capfd.readouterr() == ("", "")
