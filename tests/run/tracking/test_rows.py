"""One table of names for all trackers; each row once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mirabelle.run.journal import read_events
from mirabelle.run.tracking.rows import Rows

if TYPE_CHECKING:
    from conftest import Small


def test_the_events_of_a_run_give_these_names(small: Small) -> None:
    rows = Rows()
    shown = [row for row in map(rows.row, small.events) if row is not None]
    assert {name for row in shown for name in row.scalars} == small.names
    assert [row.index for row in shown] == list(range(len(shown)))
    assert all(name.startswith(f"{row.group}/") for row in shown for name in row.scalars)


def test_an_epoch_stands_at_its_optimizer_step_or_at_its_number_where_the_step_is_absent(small: Small) -> None:
    with_step, without = small.epoch(3), small.epoch(3)
    del without["step"], without["lr"], without["metric_name"]
    assert Rows().row(with_step).position == 30
    row = Rows().row(without)
    assert row.position == 3
    assert set(row.scalars) == {"1-prune.weights/train/loss", "1-prune.weights/validation/metric"}


def test_the_trail_stands_at_the_position_of_its_step_and_a_teacher_apart(small: Small) -> None:
    rows = Rows()
    found = [
        rows.row(small.profile("0-teacher", "teacher")),
        rows.row(small.profile("0-baseline", "baseline")),
        rows.row(small.profile("2-quantize.static", "quantize.Static")),
    ]
    assert [(row.group, row.position) for row in found] == [("teacher", 0), ("trail", 0), ("trail", 2)]


def test_what_a_resumed_run_repeats_is_left_out_and_indices_go_on(small: Small) -> None:
    rows = Rows()
    for event in (small.epoch(1), small.epoch(2), {"event": "resumed", "where": ""}):
        rows.row(event)
    assert rows.row(small.epoch(2)) is None
    assert rows.row(small.epoch(3)).index == 2


def test_a_torn_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "begin"}\n[1]\n\xff\xfe\n{"event": "epo')
    assert read_events(tmp_path) == [{"event": "begin"}]
    assert read_events(tmp_path / "absent") == []
