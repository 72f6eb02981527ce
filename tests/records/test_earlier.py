"""What runs of earlier versions wrote is read under its present name."""

from __future__ import annotations

import dataclasses

import pytest

from mirabelle import Training, prune
from mirabelle.records.earlier import ADDED_TO_TRAININGS, in_todays_names
from mirabelle.step import step_from_data, step_to_data
from mirabelle.task.loss import LOSSES, CrossEntropy, Matching, public_name


def as_before(loss: object) -> str:
    """How a loss stood in a fingerprint when it was named by the place of its code."""
    if loss is LOSSES["cross_entropy"]:
        return "torch.nn.functional:cross_entropy"
    return f"mirabelle.loss:{loss!r}" if dataclasses.is_dataclass(loss) else f"mirabelle.loss:{loss.__qualname__}"


@pytest.mark.parametrize(
    "loss", [*LOSSES.values(), CrossEntropy(weights=(1.0, 2.5)), Matching(variances=(0.5,))], ids=public_name
)
def test_a_loss_that_was_named_by_its_place_is_the_same_loss(loss: object) -> None:
    before = {"seed": 3, "fingerprint": {"model": "12", "judged_by": f"{as_before(loss)}, accuracy, 3 labels"}}
    now = {"seed": 3, "fingerprint": {"model": "12", "judged_by": f"{public_name(loss)}, accuracy, 3 labels"}}
    assert in_todays_names(before) == now
    assert in_todays_names(now) == now


def test_a_function_of_the_users_keeps_its_module() -> None:
    def mine() -> None: ...

    assert public_name(mine).startswith(f"{__name__}:")


def test_what_chooses_parameters_has_its_present_keys() -> None:
    objective = [{"term": "L1", "weight": 0.1, "targets": []}, {"term": "SoftTargets"}]
    before = {
        "task": {"data": "x.csv", "arguments": {"also": ["f1"], "ignore": ["id"]}},
        "step": [
            {"use": "training.Joint", "steps": [{"use": "prune.Weights", "targets": ["a"], "ignore": []}]},
            {"use": "quantize.Dynamic", "targets": [], "train": {"targets": "teacher", "objective": objective}},
        ],
    }
    assert in_todays_names(before) == {
        "task": {"data": "x.csv", "arguments": {"extra_metrics": ["f1"], "ignore": ["id"]}},
        "step": [
            {"use": "training.Joint", "steps": [{"use": "prune.Weights", "include": ["a"], "exclude": []}]},
            {
                "use": "quantize.Dynamic",
                "include": [],
                "train": {
                    "targets": "teacher",
                    "objective": [{"term": "L1", "weight": 0.1, "include": []}, {"term": "SoftTargets"}],
                },
            },
        ],
    }
    assert in_todays_names({"task": {"data": "./mine.py:task", "arguments": {"also": 1}}})["task"]["arguments"] == {"also": 1}


def test_a_keras_model_that_was_named_by_its_place_is_the_same_model() -> None:
    before = {"model": {"from": "mirabelle.sources.keras_model.module:KerasModule"}}
    assert in_todays_names(before) == {"model": {"from": "mirabelle.sources.models.keras_model.module:KerasModule"}}


@pytest.mark.parametrize(("kind", "default"), [(prune.Weights, 0.1), (prune.Channels, 0.2)])
def test_a_ranking_over_layers_of_an_earlier_version_had_no_floor(kind: type, default: float) -> None:
    use = f"prune.{kind.__name__}"
    assert kind(sparsity=0.5).floor == default
    steps = [{"use": use, "sparsity": 0.5}, {"use": use, "sparsity": 0.5, "scope": "global"}, {"use": "quantize.Static"}]
    alone, ranked, other = in_todays_names({"step": steps})["step"]
    assert (alone["floor"], ranked["floor"]) == (default, 0.0)
    assert "floor" not in other
    kept = {"use": use, "sparsity": 0.5, "scope": "global", "floor": 0.3}
    kept |= {"revive": False, "rounds": 1, "rewind": "learning-rate"} if kind is prune.Weights else {}  # came later
    assert in_todays_names({"step": [kept]})["step"] == [kept]


def test_settings_that_were_added_and_change_nothing_are_no_difference() -> None:
    plain, other = {"use": "quantize.Static"}, {"use": "quantize.Static", "equalize": True}
    found = in_todays_names({"step": [plain, other, {"use": "prune.Weights", "train": {"batch_size": 8}}]})["step"]
    now = step_to_data(step_from_data(plain))
    assert {key: now[key] for key in found[0]} == found[0]
    assert found[1]["equalize"] is True
    assert found[2]["train"] == {"batch_size": 8, **dict.fromkeys(ADDED_TO_TRAININGS, False)}
    assert all(getattr(Training(epochs=1), name) is False for name in ADDED_TO_TRAININGS)
