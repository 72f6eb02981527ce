"""`mirabelle doctor` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mirabelle.run import installation, machine
from mirabelle.run.installation import Extra, Package


def test_it_tells_machine_versions_and_advice_without_loading_torch() -> None:
    code = "import sys; from mirabelle.cli.main import mirabelle; mirabelle(['doctor'], standalone_mode=False)"
    code += "; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("processor", "cores", "memory", "disk", "torch", "mirabelle", "\n- "):
        assert word in done.stdout
    assert done.stdout.endswith("[]\n")


def test_json_holds_the_same(call, capsys) -> None:
    assert call("doctor", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["threads"] >= 1
    assert told["packages"]["torch"]["version"]
    assert told["advice"] == machine.advice(machine.this_machine())
    assert told["faults"] == []


def test_a_missing_package_is_named_and_an_extra_has_its_command(call, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [Package("torch", None, "is not installed"), Package("click", "8.1", "")]
    extra = Extra("wandb", (Package("wandb", None, "is not installed"),))
    monkeypatch.setattr(installation, "installed", lambda: (needed, [extra]))
    assert call("doctor") == 0
    told = capsys.readouterr().out
    assert "FAULT: torch is not installed" in told
    assert "absent; pip install 'mirabelle[wandb]'" in told
