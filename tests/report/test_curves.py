"""Epochs out of a journal that was torn and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirabelle.report import curves, read_events


def epoch(where: str, number: int, **more: Any) -> str:
    event = {"time": 1.0, "event": "epoch", "where": where, "epoch": number, "epochs": 3, "loss": 1.0 / number, "metric": 0.5}
    return json.dumps({**event, **more}) + "\n"


def test_a_resumed_run_counts_each_epoch_once_and_last(tmp_path: Path) -> None:
    begin = json.dumps({"event": "begin", "where": "steps/1-prune.weights", "step": "prune.Weights"}) + "\n"
    first, second = "steps/0-baseline", "steps/1-prune.weights"
    (tmp_path / "events.jsonl").write_text(
        epoch(first, 1) + epoch(first, 2) + begin + epoch(second, 1) + epoch(second, 2, loss=9.0)
        + begin + epoch(second, 2, loss=0.25, lr=0.01) + epoch(second, 3)
    )  # fmt: skip
    one, two = curves(read_events(tmp_path))
    assert (one.step, two.step, two.where) == ("0-baseline", "prune.Weights", second)
    assert [(entry.epoch, entry.loss, entry.lr) for entry in two.epochs] == [(1, 1.0, None), (2, 0.25, 0.01), (3, 1 / 3, None)]


def test_a_torn_line_is_left_out_wherever_it_stands(tmp_path: Path) -> None:
    line = epoch("steps/0-baseline", 2)
    torn = epoch("steps/0-baseline", 1) + line[:40]
    (tmp_path / "events.jsonl").write_text(torn)
    assert [entry.epoch for entry in curves(read_events(tmp_path))[0].epochs] == [1]
    (tmp_path / "events.jsonl").write_bytes(torn.encode() + b"\xff\n[1]\n" + epoch("steps/0-baseline", 3).encode())
    assert [entry.epoch for entry in curves(read_events(tmp_path))[0].epochs] == [1, 3]


def test_what_is_not_finite_is_none_since_json_has_no_word_for_it(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(epoch("a", 1, loss=float("nan"), metric=None))
    (curve,) = curves(read_events(tmp_path))
    assert (curve.epochs[0].loss, curve.epochs[0].metric) == (None, None)


def test_a_run_without_a_journal_has_no_curves(tmp_path: Path) -> None:
    assert curves(read_events(tmp_path)) == []
