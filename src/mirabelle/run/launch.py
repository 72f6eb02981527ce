"""The place of a process among those that torchrun, accelerate or Slurm has started together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mirabelle.errors import UserError

_STEPS = 1009  # ports between two steps of a job
_PORTS = 20_000, 20_000  # the first port for jobs of Slurm, and the number of ports


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that were started together.

    Args:
        rank: its number, from 0.
        count: of all processes.
        local_rank: its number among those on this machine.
        local_count: of the processes on this machine.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """The place of this process, as torchrun, accelerate or Slurm tell it in the environment; None for a process of its own.

    A job of Slurm counts only within `srun`, which starts the processes.

    Raises:
        UserError: E100 if a variable is no number.

    Example:
        >>> launched({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
        Launch(rank=3, count=4, local_rank=1, local_count=2)
        >>> launched({"RANK": "0", "WORLD_SIZE": "1"})
    """
    known = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in known or "WORLD_SIZE" not in known:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
        if "SLURM_PROCID" not in known or "SLURM_STEP_NUM_TASKS" not in known:
            return None
    rank, count = (_number(name, known) for name in names[:2])
    if count < 2:  # noqa: PLR2004 (several processes)
        return None
    local_rank = _number(names[2], known) if names[2] in known else rank
    counted = re.match(r"\d+", known.get(names[3], ""))  # Slurm writes "2(x4)" for four machines with two each
    return Launch(rank, count, local_rank, int(counted[0]) if counted else count)


def by_slurm() -> bool:
    """Whether Slurm's `srun` has started this process, and no other launcher."""
    return "SLURM_STEP_NUM_TASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def _number(name: str, environment: Mapping[str, str]) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UserError(
            "E100", f'the variable {name} must be a whole number; it is "{text}"', "start the processes by torchrun"
        )
    return int(text)


def meeting_point(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which processes find the first one; for Slurm, its machine, and a port that follows from the job."""
    found = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment}
    if "MASTER_ADDR" not in found:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        found["MASTER_ADDR"] = first_host(nodes)
    if "MASTER_PORT" not in found:
        first, count = _PORTS
        job, step = (int(environment.get(name, "0") or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        found["MASTER_PORT"] = str(first + (job + _STEPS * step) % count)  # several steps of a job may run at once
    return found


def first_host(nodes: str) -> str:
    """The first machine in a list of Slurm.

    Example:
        >>> first_host("gpu[007-012,020]"), first_host("a1,a2"), first_host("rack[2]-node[1-4]")
        ('gpu007', 'a1', 'rack2-node1')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def is_first() -> bool:
    """Whether this process writes and prints: the first of those that were started together, or the only one."""
    launch = launched()
    return launch is None or launch.rank == 0
