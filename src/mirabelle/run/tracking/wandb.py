"""Rows to Weights & Biases, through a process of its own (`wandb_process`).

In our own process wandb would put its hooks into `sys.exit`, `sys.excepthook`, the environment and `atexit`, could raise
SystemExit, and could keep a run waiting for a network. Here the worst it can do is to end.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from mirabelle.run import files
from mirabelle.run.tracking.rows import TrackedRow

_BEGIN_SECONDS = 40.0  # offline it takes 1.5 s
_WRITE_SECONDS = 10.0
_CLOSE_SECONDS = 45.0


class Wandb:
    """A run of project "mirabelle", named for its folder; one that was killed goes on under the same id.

    Args:
        folder: of the run; wandb keeps its files in <folder>/wandb.
        recipe: its text; becomes the configuration that wandb shows.

    Raises:
        RuntimeError: also by the methods, when wandb's process has failed, with its reason.
        TimeoutError: when it does not answer.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self._folder = folder
        self._ended = False
        # A session of its own, so that Ctrl-C reaches the run alone, which then decides when tracking ends.
        # -P keeps the folder of the script, where there is a wandb.py, and the current one out of the search for packages.
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
            [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("wandb_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        try:
            self._begin(tomllib.loads(recipe))
        except BaseException:
            self.abandon()
            raise

    def write(self, row: TrackedRow) -> None:
        self._ended = self._ended or row.group == "goal"
        self._send(row.to_data())

    def close(self) -> None:
        if self._ended:
            self._send({"finish": 0})  # a process whose requests just end takes the run for unfinished
        self._requests.close()
        try:
            status = self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            remedy = f'"wandb sync" of the latest folder in {self._folder / "wandb"} sends it'
            raise TimeoutError(f"not everything was sent within {_CLOSE_SECONDS:g} s; {remedy}") from None
        if status != 0:
            raise RuntimeError(self._last_words())
        self._answers.close()

    def abandon(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._requests.close()
        self._answers.close()

    def _begin(self, config: Mapping[str, Any]) -> None:
        os.set_blocking(self._requests.fileno(), False)
        name, identity = self._folder.name, files.digest(str(self._folder).encode())
        self._send({"project": "mirabelle", "name": name, "id": identity, "dir": str(self._folder), "config": config})
        # Waited for, because a process that starts up would disturb what the run measures.
        if not select.select([self._answers], [], [], _BEGIN_SECONDS)[0]:
            raise TimeoutError(f"wandb did not begin within {_BEGIN_SECONDS:g} s")
        answer = json.loads(self._answers.readline() or b"{}")
        if "ready" not in answer:
            raise RuntimeError(answer.get("error") or self._last_words())

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None, "asked for as a pipe"
        return self._process.stdin

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None, "asked for as a pipe"
        return self._process.stdout

    def _send(self, request: Mapping[str, Any]) -> None:
        """One line of JSON; never waits for longer than `_WRITE_SECONDS`."""
        pipe, data = self._requests.fileno(), json.dumps(request).encode() + b"\n"
        try:
            while data:
                if not select.select([], [pipe], [], _WRITE_SECONDS)[1]:
                    raise TimeoutError(f"wandb has taken nothing for {_WRITE_SECONDS:g} s")
                data = data[os.write(pipe, data) :]
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None

    def _last_words(self) -> str:
        """Why the process has ended, as it said itself or as its status tells."""
        status = self._process.wait(_WRITE_SECONDS)
        said = self._answers.read().splitlines()
        return str(json.loads(said[-1])["error"]) if said else f"wandb's process ended with status {status}"


def _environment() -> dict[str, str]:
    """Ours, without the service of a wandb in this process; wandb's reports to its makers are off unless asked for."""
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {"WANDB_ERROR_REPORTING": "false", **own}
