"""Threads share work on files: all of it is done, in whatever number, and what fails first is told."""

from __future__ import annotations

import threading
import time

import pytest

from mirabelle.errors import UserError
from mirabelle.sources.datasets import workers
from mirabelle.sources.datasets.workers import Workers


@pytest.mark.parametrize("asked", [None, 0, 1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_everything_is_done_once(asked: int | None, count: int) -> None:
    done: list[int] = []
    Workers(asked).do(done.extend, count)
    assert sorted(done) == list(range(count))


def test_as_many_threads_as_asked_and_none_for_quick_work(monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.get_ident()

    def used(asked: int | None, seconds: float, due: int) -> int:
        seen: set[int] = set()
        together = threading.Barrier(max(due, 1))

        def work(part: range) -> None:
            seen.add(threading.get_ident())
            if threading.get_ident() != here:
                together.wait(timeout=20)  # until so many threads work at the same time
            time.sleep(seconds * len(part))

        Workers(asked).do(work, 60)
        return len(seen - {here})

    assert used(0, 0.0, 0) == 0
    assert used(3, 0.0, 3) == 3
    monkeypatch.setattr(workers, "_cores", lambda: 4)
    assert used(None, 0.001, 4) == 4
    assert used(None, 0.0, 0) == 0


def test_processes_of_one_training_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for beside, due in (("1", 8), ("4", 2), ("100", 1), ("0", 8)):
        for name, value in {"RANK": "0", "WORLD_SIZE": "200", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": beside}.items():
            monkeypatch.setenv(name, value)
        assert workers._cores() == due


def test_the_first_error_in_order_is_raised() -> None:
    def work(part: range) -> None:
        for k in part:
            time.sleep(0.001 * (40 - k))  # the last ones fail first
            if k % 10 == 5:
                raise UserError("E131", f"file {k}", "")

    for asked in (None, 0, 4):
        with pytest.raises(UserError, match="file 5"):
            Workers(asked).do(work, 40)
