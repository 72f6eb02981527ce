"""Sends rows to Weights & Biases through a separate process (`wandb_process`).

In the process of the run, wandb would hook into `sys.exit`, `sys.excepthook`, the environment and `atexit`, could raise
SystemExit, and could make the run wait for a network. In a separate process, the worst that can happen is that this process
ends.
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
    """A run of the wandb project "mirabelle", named after its folder; a resumed run keeps its id.

    The constructor and the methods raise the same errors.

    Args:
        folder: of the run; wandb keeps its files in <folder>/wandb.
        recipe: text of the resolved recipe, shown by wandb as the configuration.

    Raises:
        RuntimeError: if the process of wandb failed, with the reason.
        TimeoutError: if it does not answer in time.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self._folder = folder
        self._ended = False
        # A new session, so that Ctrl-C reaches only the run, which then decides when tracking ends.
        # -P keeps the folder of the script (which contains a wandb.py) and the current folder out of sys.path.
        self._process = subprocess.Popen(  # noqa: S603 (this interpreter and a file of this package)
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
            self._send({"finish": 0})  # without this request, wandb marks the run as crashed
        self._requests.close()
        try:
            status = self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            remedy = f'"wandb sync" of the latest folder in {self._folder / "wandb"} sends it'
            raise TimeoutError(f"not everything was sent within {_CLOSE_SECONDS:g} s; {remedy}") from None
        if status != 0:
            raise RuntimeError(self._failure())
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
        # Wait until it is ready, because a starting process would disturb the measurements of the run.
        if not select.select([self._answers], [], [], _BEGIN_SECONDS)[0]:
            raise TimeoutError(f"wandb did not start within {_BEGIN_SECONDS:g} s")
        answer = json.loads(self._answers.readline() or b"{}")
        if "ready" not in answer:
            raise RuntimeError(answer.get("error") or self._failure())

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None, "opened as a pipe"
        return self._process.stdin

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None, "opened as a pipe"
        return self._process.stdout

    def _send(self, request: Mapping[str, Any]) -> None:
        """Send a request as one line of JSON; never waits longer than `_WRITE_SECONDS`."""
        pipe, data = self._requests.fileno(), json.dumps(request).encode() + b"\n"
        try:
            while data:
                if not select.select([], [pipe], [], _WRITE_SECONDS)[1]:
                    raise TimeoutError(f"wandb has read nothing for {_WRITE_SECONDS:g} s")
                data = data[os.write(pipe, data) :]
        except BrokenPipeError:
            raise RuntimeError(self._failure()) from None

    def _failure(self) -> str:
        """The reason why the process ended: its last error message, or its exit status."""
        status = self._process.wait(_WRITE_SECONDS)
        lines = self._answers.read().splitlines()
        return str(json.loads(lines[-1])["error"]) if lines else f"the process of wandb ended with status {status}"


def _environment() -> dict[str, str]:
    """The environment of this process without WANDB_SERVICE, and with error reports to the makers of wandb off by default."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {"WANDB_ERROR_REPORTING": "false", **inherited}
