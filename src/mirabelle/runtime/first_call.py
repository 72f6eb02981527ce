"""The first call of a model in a process of its own: how long it takes to load and to answer, and in how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.errors import UserError

_SECONDS = 600.0


@dataclass(frozen=True)
class FirstCall:
    """The cost of the first answer.

    Args:
        seconds: from the bytes of the file to the first answer, without the import of the runtime.
        memory_bytes: by which the process grew to its largest size, without the bytes of the file; None if the system does
            not tell.
    """

    seconds: float
    memory_bytes: int | None


def first_call(onnx: bytes, feed: Mapping[str, Any], runtime: str, threads: int) -> FirstCall:
    """Load and call a model once in a new process.

    Args:
        onnx: bytes of an ONNX file.
        feed: an array for every input.
        runtime: name of a runtime.
        threads: number of threads of an operator.

    Raises:
        UserError: E141 if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model.onnx").write_bytes(onnx)
        np.savez(place / "feed.npz", **{f"input {name}": array for name, array in feed.items()})
        command = [sys.executable, "-m", __name__, folder, runtime, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 (ourselves)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError("E141", f"the first call in a new process failed: {why}", "measure without --memory")
        found = json.loads(done.stdout)
    return FirstCall(found["seconds"], found["memory_bytes"])


def _in_this_process(folder: str, runtime: str, threads: str) -> None:
    from mirabelle.runtime.runtime import runtime_named

    with np.load(Path(folder) / "feed.npz") as stored:
        feed = {name.removeprefix("input "): stored[name] for name in stored.files}
    onnx, found = (Path(folder) / "model.onnx").read_bytes(), runtime_named(runtime)
    found.describe()  # imports the package
    before = _largest(reset=True)
    begin = time.perf_counter()
    found.load(onnx, int(threads)).run(feed)
    seconds = time.perf_counter() - begin
    after = _largest()
    sys.stdout.write(json.dumps({"seconds": seconds, "memory_bytes": None if before is None else (after or 0) - before}))


def _largest(*, reset: bool = False) -> int | None:
    """The largest size of this process so far, in bytes; after `reset` that is its size now. None where Linux is not."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    _in_this_process(*sys.argv[1:])
