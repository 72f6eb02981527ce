"""Ctrl-C, SIGTERM and SIGKILL at any moment, then the same command: the same bytes, and no file that is not whole."""

from __future__ import annotations

import pytest
from harness import KINDS, Harness, Tally

SEED = 0


def held(tally: Tally) -> bool:
    """Whether every kill was followed by the same end; faults are told with kind, seed and instant."""
    assert tally.faults == []
    assert tally.damaged == 0
    return tally.identical == tally.ends > 0


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_runs_killed_at_random_instants_end_with_the_same_bytes(harness: Harness, kills: int) -> None:
    tally = harness.randomly(SEED, kills=kills)
    assert held(tally)
    assert tally.kills >= kills * len(KINDS)
    # few kills may all fall outside of trainings: the next test shows that a training is taken up
    assert len(tally.taken_up) >= 2 * (kills - 1), "hardly any training was taken up in its middle, so little was shown"


@pytest.mark.slow
def test_runs_killed_at_a_sample_of_writes_and_renames_end_with_the_same_bytes(harness: Harness) -> None:
    tally = harness.at_points(SEED, sample=1)
    assert held(tally)
    assert tally.kills == len(KINDS)


def test_a_training_killed_behind_a_checkpoint_is_taken_up_from_it(harness: Harness) -> None:
    ending = "renamed steps/1-training.joint/checkpoint.safetensors"
    tally = harness.at_points(SEED, sample=1, kinds=("distill",), ending=ending)
    assert held(tally)
    assert tally.kills == 1
    assert tally.taken_up.total() == 1


@pytest.mark.slow
def test_trainings_killed_around_a_checkpoint_end_with_the_same_bytes(harness: Harness) -> None:
    tally = harness.at_points(SEED, sample=3, kinds=("distill",), ending="checkpoint.safetensors")
    assert held(tally)
    assert tally.kills == 3
    assert tally.taken_up, "no training was taken up in its middle, so little was shown"


@pytest.mark.slow
def test_two_hundred_random_kills_change_nothing(harness: Harness) -> None:
    tally = harness.randomly(SEED + 1, kills=50)
    assert held(tally)
    assert tally.kills >= 200
    assert len(tally.taken_up) >= 20, "hardly any training was taken up in its middle, so little was shown"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_write_and_rename_changes_nothing(harness: Harness, kind: str) -> None:
    tally = harness.at_points(SEED, kinds=(kind,))
    assert held(tally)
    assert tally.kills == len(harness.reference(kind).points)
    assert set(tally.instants) == {"open", "rename", "renamed", "remove", "torn", "torn-line"}
