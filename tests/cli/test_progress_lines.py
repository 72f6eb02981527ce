"""A line is printed for what takes longer than two seconds, also while a model is exported."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mirabelle.cli import display
from mirabelle.runtime.export import quiet


def event(text: str) -> dict[str, Any]:
    return {"event": "progress", "where": "run", "done": 0, "total": 1, "seconds_left": 0.0, "text": text}


def test_what_lasts_is_told_also_during_an_export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(display, "_LONG_SECONDS", 0.05)
    watcher = display.Watcher(quiet=False)
    with quiet():
        watcher(event("export"))
        time.sleep(0.5)
    watcher(event("short"))
    watcher.close()
    told = capsys.readouterr().err
    assert "run  export" in told
    assert "short" not in told
