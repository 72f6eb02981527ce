"""The environment of a run says under which conditions it computes."""

from __future__ import annotations

import pytest
import torch

from mirabelle.run.environment import environment


def test_several_processes_and_tf32_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"processes", "tf32"} & environment().keys()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert environment(device="cuda:0 (one)")["tf32"] == "convolutions"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert environment(device="cuda:0 (one)")["tf32"] == "nothing"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert environment()["processes"] == 4
