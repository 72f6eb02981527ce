"""The processes that worked on a run, where they differ in machine or versions, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def different_conditions(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence that names every fact in which the processes differ, with its values in their order; none if all are equal.

    Args:
        processes: machine and versions of each process, as `run.environment` returns them.

    Example:
        >>> different_conditions([{"threads": 2, "versions": {"torch": "2.12"}}, {"threads": 2, "versions": {"torch": "2.13"}}])
        ['The run was computed by 2 processes under different conditions: torch 2.12, then 2.13.']
    """
    facts = [
        {"device": "cpu", "processes": 1, **process, **process.get("versions", {})} for process in processes
    ]  # an early one has no device
    names = dict.fromkeys(name for one in facts for name in one if name != "versions")
    changed = []
    for name in names:
        values = [str(one.get(name, "absent")) for one in facts]
        if len(set(values)) > 1:
            steps = [value for k, value in enumerate(values) if k == 0 or value != values[k - 1]]
            changed.append(f"{name} {', then '.join(steps)}")
    if not changed:
        return []
    return [f"The run was computed by {len(processes)} processes under different conditions: {'; '.join(changed)}."]
