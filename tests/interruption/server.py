"""A process that has imported everything and forks a run for every line it reads: `python server.py`.

A command costs three seconds of imports before its first write; a fork of this process has them behind it. What runs in the
fork is the command itself: its arguments, its signal handlers, its exit status. The server itself has one thread only, since a
fork keeps the locks of the others but not them. A run that lives too long writes where it stands into its log, and is killed.

Reads one JSON object a line: {id, argv, folder, log, signal, signals_after, every, kill_at, points}, the last five as needed.
Writes one for each run that has ended: {id, status, seconds}; a status below zero is a signal's.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import math
import os
import select
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import ASKED_TO_STOP, install

_POLL_SECONDS = 0.001
_PATIENCE_SECONDS = 240.0  # a run takes two


@dataclass
class Alive:
    """A run that has not ended."""

    order: dict[str, Any]
    begun: float
    signals_at: list[float]
    hangs_at: float


def serve() -> None:
    """Run what standard input asks for until it closes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts us in the background has it ignored
    warm_up()
    alive: dict[int, Alive] = {}
    waiting, buffer = True, b""
    _say({"ready": True})
    while waiting or alive:
        if waiting and select.select([0], [], [], _POLL_SECONDS if alive else None)[0]:
            read = os.read(0, 1 << 16)
            waiting = bool(read)
            if not waiting:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)  # nobody is left to tell
            *lines, buffer = (buffer + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid, begun = _forked(order), time.monotonic()
                signals_at = [begun + seconds for seconds in order.get("signals_after", [])]
                alive[pid] = Alive(order, begun, signals_at, begun + _PATIENCE_SECONDS)
        elif not waiting:
            time.sleep(_POLL_SECONDS)
        _look_after(alive)


def _look_after(alive: dict[int, Alive]) -> None:
    """Tell which runs have ended, send the signals that are due, and end what hangs."""
    for pid, run in list(alive.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del alive[pid]
            seconds = time.monotonic() - run.begun
            _say({"id": run.order["id"], "status": os.waitstatus_to_exitcode(status), "seconds": seconds})
        elif time.monotonic() >= run.hangs_at:
            run.hangs_at = math.inf
            os.kill(pid, signal.SIGABRT)  # which faulthandler answers with the stacks of all threads
        elif run.signals_at and time.monotonic() >= run.signals_at[0]:
            del run.signals_at[0]
            os.kill(pid, run.order["signal"])


def warm_up() -> None:
    """Import what a run imports, and export once: torch makes its tables of operators then."""
    warnings.simplefilter("ignore")
    import torch
    import tqdm

    import mirabelle.cli.display
    import mirabelle.cli.run
    import mirabelle.job.job
    import mirabelle.recipe.file
    from mirabelle.inspection.measure import exported, measure
    from mirabelle.job import fastest
    from mirabelle.job.never_slower import Trial
    from mirabelle.report import charts, page
    from mirabelle.runtime.runtime import time_side_by_side

    del mirabelle, charts, page
    import task as tasks

    torch.set_num_threads(1)  # no thread but this one may exist before a fork: what it holds would be locked for ever
    tqdm.tqdm.monitor_interval = 0
    time_side_by_side.__kwdefaults__["seconds"] = 0.0  # milliseconds are no matter here
    fastest.runtimes_present = lambda: ["onnxruntime"]  # type: ignore[assignment]
    Trial.undone = lambda *_: "[]"  # type: ignore[method-assign]
    data, model = tasks.task(), tasks.stateful().eval()
    measure(model, data, data.validation, exported(model, data))
    gc.collect()
    gc.freeze()
    threads = sorted(path.name for path in Path("/proc/self/task").glob("*"))
    assert len(threads) <= 1, f"threads before the first fork: {threads}"


def _forked(order: dict[str, Any]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_STOP)  # until the command answers them, as `install` says
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED_TO_STOP)
        return pid
    status = 1
    try:
        status = _run(order)
    finally:
        os._exit(status)


def _run(order: dict[str, Any]) -> int:
    """The command, as the installed script runs it; its exit status."""
    from mirabelle.cli.main import main

    os.setpgid(0, 0)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable(log)
    warnings.simplefilter("default")
    sys.argv = ["mirabelle", *order["argv"]]
    install(order)
    try:
        main()
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else 1
    except BaseException:  # noqa: BLE001 (told, as the interpreter would)
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
