"""The threads and the device with which a run computes: those with which it began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mirabelle.errors import UserError
from mirabelle.model.device import CPU, computing_on, device_of_jobs, named_device
from mirabelle.run.launch import launched
from mirabelle.run.run import known_decisions, threads_of_run, torch_threads

DEVICE = "device"  # the decision


@contextmanager
def as_begun(folder: Path, decisions: Mapping[str, Any], device: str = "auto") -> Iterator[torch.device]:
    """A context in which torch computes with the threads and on the device of the run in a folder.

    Args:
        folder: of the run; without one there, all threads, and the device asked for.
        decisions: of an earlier run, which a new run adopts.
        device: "auto" for that with which the run began, or of the job within which this one is, or else the first accelerator
            of the machine; a name, as of `model.device.named_device`, for another one.

    Raises:
        UserError: E122 if the device is not there; E110 for no name of a device; E103 if the number of threads is none.
    """
    with torch_threads(threads_of_run(folder, decisions)), computing_on(_chosen(folder, decisions, device)) as chosen:
        yield chosen


def _chosen(folder: Path, decisions: Mapping[str, Any], device: str) -> torch.device:
    outer = device_of_jobs()
    if device != "auto":
        return named_device(device)
    if outer is not None:
        return outer
    known = known_decisions(folder, decisions)
    if "threads" not in known:  # nothing has begun there
        return named_device(device)
    begun = str(known.get(DEVICE, CPU))
    try:
        return named_device(begun if launched() is None else begun.partition(":")[0])
    except UserError as error:
        message = f"{folder} began on {begun}, which is not there"
        raise UserError("E122", message, f"{error.remedy}; --device cpu goes on there, and ends with other bits") from error
