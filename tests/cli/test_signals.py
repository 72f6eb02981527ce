"""Ctrl-C and SIGTERM, once, and through whatever stands between them and the way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mirabelle.cli import main
from mirabelle.cli.signals import SignalHandler, Terminated, interruption_behind


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_raises_once_and_not_again_right_after(number: signal.Signals, kind: type[BaseException]) -> None:
    handler = SignalHandler()
    with pytest.raises(kind):
        handler(number, None)
    handler(number, None)
    handler._last -= 2.0
    with pytest.raises(kind):
        handler(number, None)


def test_signals_that_the_caller_ignores_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = []
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    monkeypatch.setattr(signal, "signal", lambda number, _: answered.append(number))
    SignalHandler().listen()
    assert answered == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (KeyboardInterrupt(), (130, "interrupted; run the same command again to continue from the last checkpoint\n")),
        (Terminated(), (143, "terminated; run the same command again to continue from the last checkpoint\n")),
        (ValueError("ours"), (1, "internal error: SystemError: returned a result with an exception set\n")),
    ],
)
def test_an_interruption_is_told_as_such_whatever_it_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, reason: BaseException, told: tuple[int, str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        try:
            raise reason  # noqa: TRY301
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr(main.mirabelle, "main", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main.run([]) == told[0]
    assert capsys.readouterr().err.startswith(told[1])


def test_errors_that_nobody_interrupted_stay_what_they_are() -> None:
    error = ValueError("no more")
    error.__context__ = click.UsageError("wrong")
    error.__context__.__context__ = error
    assert interruption_behind(error) is error


def test_the_first_instants_answer_too(tmp_path: Path) -> None:
    """A signal that comes while the command line itself is being imported."""
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "from mirabelle.cli.entry import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "interrupted before the command started\n"
