"""How far a run has come, from what it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirabelle.errors import UserError
from mirabelle.report import progress_of

RECIPE = """
schema = 1
[baseline.train]
epochs = 3
[[step]]
use = "prune.Weights"
[[step]]
use = "quantize.Static"
"""


@pytest.fixture
def begun(tmp_path: Path, data) -> Path:
    """A run whose baseline is done and whose first step trains."""
    folder = tmp_path / "begun"
    (folder / "steps" / "0-baseline").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    done = {"profile": data["trail"][0]["profile"], "seconds": 3.1}
    (folder / "steps" / "0-baseline" / "profile.json").write_text(json.dumps(done))
    events = [
        {"event": "epoch", "where": "steps/0-baseline", "epoch": 3, "epochs": 3, "metric": 0.9, "seconds_left": 0.0},
        {"event": "epoch", "where": "steps/1-prune.weights", "epoch": 2, "epochs": 9, "metric": 0.8, "seconds_left": 65.2},
    ]
    (folder / "events.jsonl").write_text("\n".join(json.dumps(event) for event in events) + '\n{"event": "ep')
    return folder


def test_steps_done_the_present_epoch_and_what_lies_ahead(begun: Path) -> None:
    found = progress_of(begun)
    assert [entry.step for entry in found.done] == ["baseline"]
    assert found.ahead == ("prune.Weights", "quantize.Static")
    assert (found.now, found.epoch, found.epochs, found.metric, found.seconds_left) == ("prune.Weights", 2, 9, 0.8, 65.2)
    assert json.loads(json.dumps(found.to_data()))["ended"] is False


def test_after_the_last_step_the_gates_remain(begun: Path) -> None:
    for step in ("1-prune.weights", "2-quantize.static"):
        (begun / "steps" / step).mkdir()
        (begun / "steps" / step / "profile.json").write_bytes((begun / "steps" / "0-baseline" / "profile.json").read_bytes())
    found = progress_of(begun)
    assert (found.now, found.ahead, found.epoch) == ("gates and measurements", (), None)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.toml", "schema ="),
        ("recipe.toml", "schema = 1"),
        ("recipe.toml", "step = 3\nbaseline = 4"),
        ("steps/0-baseline/profile.json", "{"),
        ("steps/0-baseline/profile.json", '{"profile": 3, "seconds": 1}'),
        ("steps/0-baseline/profile.json", "[]"),
    ],
)
def test_damage_is_named(begun: Path, file: str, content: str) -> None:
    (begun / file).write_text(content)
    with pytest.raises(UserError, match=Path(file).name) as caught:
        progress_of(begun)
    assert caught.value.code == "E141"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder, what in ((tmp_path, "contains no run"), (tmp_path / "absent", "is not a folder")):
        with pytest.raises(UserError, match=what) as caught:
            progress_of(folder)
        assert caught.value.code == "E130"
