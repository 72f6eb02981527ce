"""Plain callables that hear of a run, cannot change what they hear, and may stop what is going on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mirabelle import Gradual, Run, Stop, Task, Training, compress, load, prune, quantize
from mirabelle.model.state import fingerprint
from mirabelle.training import fit
from mirabelle.training.checkpoint import Checkpoint

TRAIN = Training(epochs=8, batch_size=32, lr=0.02, precision="float32")


def stopping_at(kind: str, **what: Any) -> Any:
    """A callback that stops at the events of a kind which say all of `what`."""

    def callback(event: Mapping[str, Any]) -> Stop | None:
        said = event["event"] == kind and all(event[key] == value for key, value in what.items())
        return Stop("enough") if said else None

    return callback


def test_every_callback_hears_every_event_and_can_change_none(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    also: list[str] = []
    callbacks = [heard.append, lambda event: also.append(event["event"])]
    compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", baseline=TRAIN, callbacks=callbacks)
    written = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    kept = [event for event in heard if event["event"] != "progress"]
    assert [event["event"] for event in kept] == [event["event"] for event in written]
    assert also == [event["event"] for event in heard]
    epoch = next(event for event in kept if event["event"] == "epoch")
    assert {"where", "epoch", "epochs", "step", "loss", "metric", "metric_name", "lr", "seconds", "seconds_left"} <= set(epoch)
    with pytest.raises(TypeError):
        epoch["loss"] = 0.0  # type: ignore[index]
    profile = next(event for event in kept if event["event"] == "profile")["profile"]
    with pytest.raises(TypeError):
        profile["size_bytes"]["packed"] = 0


def test_stop_in_answer_to_an_epoch_ends_the_training_and_the_recipe_goes_on(
    mlp: nn.Module, blobs: Task, tmp_path: Path
) -> None:
    stop = stopping_at("epoch", where="steps/0-baseline", epoch=3)
    result = compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", baseline=TRAIN, callbacks=[stop])
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    assert [event["why"] for event in events if event["event"] == "stopped"] == ["enough"]
    assert result.profile.size_bytes.packed < result.start.size_bytes.packed
    assert all(gate.passed for gate in result.gates.values())


def test_stop_after_a_step_leaves_the_others_out_also_when_repeated(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5, train=TRAIN), quantize.Static()]
    stop = stopping_at("profile", step="prune.Weights")
    result = compress(mlp, blobs, steps, out=tmp_path / "run", callbacks=[stop])
    assert [path.name for path in (tmp_path / "run" / "steps").iterdir()] == ["1-prune.weights"]
    assert result.profile.nonzero_parameters < result.start.nonzero_parameters
    again = compress(mlp, blobs, steps, out=tmp_path / "run")  # without the callback: what was decided stays decided
    assert fingerprint(again.model) == fingerprint(result.model)
    assert not (tmp_path / "run" / "steps" / "2-quantize.static").exists()


def test_stop_after_the_baseline_takes_no_step(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    stop = stopping_at("profile", step="baseline")
    result = compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", baseline=TRAIN, callbacks=[stop])
    assert [path.name for path in (tmp_path / "run" / "steps").iterdir()] == ["0-baseline"]
    assert fingerprint(result.model) == fingerprint(load(mlp, tmp_path / "run" / "steps" / "0-baseline"))


def test_an_end_that_a_kill_left_untold_is_told_by_the_next_run(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run")
    journal = tmp_path / "run" / "events.jsonl"
    kept = [line for line in journal.read_text().splitlines(keepends=True) if '"event": "end"' not in line]
    journal.write_text("".join(kept))
    heard: list[str] = []
    compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", callbacks=[lambda event: heard.append(event["event"])])
    assert heard == ["progress", "resumed", "end", "ended before"]  # the first of the trial before the run


def test_stop_while_a_mask_grows_still_gives_what_the_step_promises(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    run.callbacks = (stopping_at("epoch", epoch=1),)
    step = prune.Weights(sparsity=0.75, schedule=Gradual(begin=0.0, end=1.0), train=TRAIN)
    pruned = step(mlp, blobs, run)
    assert int((pruned[0].weight == 0).sum()) == 96, "0.75 · 128"


def test_stop_in_answer_to_progress_ends_within_the_epoch(
    mlp: nn.Module, blobs: Task, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))
    run.callbacks = (stopping_at("progress", done=5),)
    fit(mlp, blobs, TRAIN, run)
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "epoch"] == [5]
    fit(mlp, blobs, TRAIN, Run(run.folder))  # what was stopped stays stopped, though nobody asks for it any more
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][-1] == "taken up"


def test_what_a_callback_raises_ends_the_run_which_can_be_gone_on_with(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    def raises(event: Mapping[str, Any]) -> None:
        if event["event"] == "epoch":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", baseline=TRAIN, callbacks=[raises])
    assert compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run", baseline=TRAIN).met
