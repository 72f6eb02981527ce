"""The client of the server of forks: a command goes out, how it ended comes back; several at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_PATIENCE_SECONDS = 300  # more than the server has with a run


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its exit status (below zero: the signal that killed it), and how long it lived."""

    status: int
    seconds: float


class Server:
    """Commands run in forks of a process that has its imports behind it; several at a time."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HERE.parents[1] / "src"), *sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        command = [sys.executable, str(HERE / "server.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._waiting: dict[int, Future[Ended]] = {}
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        assert json.loads(self._answers.readline())["ready"]
        self._listener.start()

    def run(self, **order: Any) -> Ended:
        """Run one command to its end, or to the kill that the order asks for."""
        ended: Future[Ended] = Future()
        with self._lock:
            number = len(self._waiting)
            self._waiting[number] = ended
            self._orders.write((json.dumps({"id": number, **order}) + "\n").encode())
            self._orders.flush()
        return ended.result(_PATIENCE_SECONDS)

    def close(self) -> None:
        self._orders.close()
        self._process.wait(_PATIENCE_SECONDS)
        self._listener.join()
        self._answers.close()

    def _listen(self) -> None:
        for line in self._answers:
            answer = json.loads(line)
            self._waiting[answer.pop("id")].set_result(Ended(**answer))
