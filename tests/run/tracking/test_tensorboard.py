"""TensorBoard's own reader finds what was written, and a resumed run once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mirabelle.run.tracking import Tracker

if TYPE_CHECKING:
    from conftest import Small


@pytest.fixture
def tracker(small: Small) -> Tracker:
    return small.tracker("tensorboard")


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, as TensorBoard reads them."""
    return {name: [(scalar.step, scalar.value) for scalar in scalars] for name, scalars in accumulated(folder).items()}


def accumulated(folder: Path) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: accumulator.Scalars(name) for name in accumulator.Tags()["scalars"]}


def test_names_steps_values_and_times_are_read_back(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, *small.events)
    tracker.close()
    scalars = accumulated(small.folder)
    assert set(scalars) == small.names
    loss = scalars["1-prune.weights/train/loss"]
    assert [point.step for point in loss] == [10, 20, 30, 40, 50]
    assert [point.value for point in loss] == pytest.approx([1 / number for number in range(1, 6)])
    assert [point.wall_time for point in loss] == [1e9 + number for number in range(1, 6)]
    assert [(point.step, point.value) for point in scalars["trail/size_bytes/packed"]] == [(1, 1000)]
    assert [point.value for point in scalars["gates/torch_onnx"] + scalars["goal/met"]] == [1, 0]
    assert small.warnings == []


def test_the_recipe_is_there_as_text(small: Small, tracker: Tracker) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small.happen(tracker, small.epoch(1))
    tracker.close()
    accumulator = EventAccumulator(str(small.folder / "tensorboard")).Reload()
    assert accumulator.SummaryMetadata("recipe").plugin_data.plugin_name == "text"
    text = accumulator.Tensors("recipe")[0].tensor_proto.string_val[0].decode()
    assert 'use = "prune.Weights"' in text


def test_what_was_shown_survives_a_kill_without_close(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, small.epoch(1), small.epoch(2))
    assert [step for step, _ in read(small.folder)["1-prune.weights/lr"]] == [10, 20]
    tracker.close()


def test_a_killed_and_resumed_run_is_not_doubled(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, *small.events[:5])  # three epochs, the last two of them after the last checkpoint
    resumed = small.tracker("tensorboard")
    small.happen(resumed, {"time": 1e9, "event": "resumed", "where": ""}, *small.events[3:])
    for one in (tracker, resumed):
        one.close()
    assert len(list((small.folder / "tensorboard").iterdir())) == 2
    curves = read(small.folder)
    assert [step for step, _ in curves["1-prune.weights/train/loss"]] == [10, 20, 30, 40, 50]
    assert curves["goal/met"] == [(0, 0)]
    assert small.warnings == []


def test_a_run_that_is_tracked_late_is_shown_whole(small: Small, tracker: Tracker) -> None:
    small.happen(lambda event: None, *small.events[:5])
    small.happen(tracker, *small.events[5:])
    tracker.close()
    assert [step for step, _ in read(small.folder)["1-prune.weights/train/loss"]] == [10, 20, 30, 40, 50]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_turns_it_off_with_one_warning(small: Small, tracker: Tracker) -> None:
    small.happen(tracker, small.epoch(1))
    writer = tracker._writer
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115 (the tracker closes it)
    writer._records._writer = writer._file
    small.happen(tracker, *small.events)
    tracker.close()
    assert len(small.warnings) == 1
    assert "tensorboard is turned off, the run continues: OSError: [Errno 28] No space left on device" in small.warnings[0]


def test_a_folder_that_cannot_be_made_turns_it_off(small: Small, tracker: Tracker) -> None:
    (small.folder / "tensorboard").write_text("a file stands in its way")
    small.happen(tracker, *small.events)
    tracker.close()
    assert len(small.warnings) == 1
    assert "FileExistsError" in small.warnings[0]
