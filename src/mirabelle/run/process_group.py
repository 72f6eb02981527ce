"""Several processes that work on one job: the first leads it, and the others take part in what it calls in all of them.

Such processes are started by `torchrun`, by `accelerate launch`, or by Slurm's `srun`. The first process alone has the run: its
folder, journal, decisions and reports. What it calls by `in_all_processes` is sent to the others with its arguments, and then
all of them compute it, and exchange values by the functions of this module.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from mirabelle.errors import UserError, first_line
from mirabelle.run.group import Group
from mirabelle.run.launch import launched

T = TypeVar("T")
_JOINED: list[Group] = []


def joined() -> Group | None:
    """The group of the processes that were started together, which this process enters now if it has not yet; None if alone."""
    launch = launched() if not _JOINED else None
    if launch is not None:
        _JOINED.append(Group(launch))
    return _JOINED[0] if _JOINED else None


def is_joined() -> bool:
    """Whether this process has entered a group."""
    return bool(_JOINED)


def together() -> Group | None:
    """The group if all of its processes compute the same call now, else None."""
    return _JOINED[0] if _JOINED and _JOINED[0].together else None


def in_all_processes(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """The result of a function, which the other processes of a job call with copies of its arguments, too.

    Args:
        function: at the top of a module.
        arguments: that can be pickled.
        named: further arguments.
    """
    group = _leading()
    if group is None:
        return function(*arguments, **named)
    return group.call(group.packed(function, arguments, named), function, arguments, named)


def in_all_processes_if_possible(function: Callable[..., T], *arguments: Any) -> T:
    """As `in_all_processes`; what cannot be sent is computed by the first process alone."""
    group = _leading()
    if group is None:
        return function(*arguments)
    try:
        content = group.packed(function, arguments, {})
    except UserError:
        return function(*arguments)
    return group.call(content, function, arguments, {})


def _leading() -> Group | None:
    """The group if this process leads it, and its processes wait for a call."""
    return _JOINED[0] if _JOINED and _JOINED[0].has_followers and not _JOINED[0].together else None


def agreed(measure: Callable[[], T]) -> T:
    """What the first process measures, in every process that computes the same call; errors of the first are those of all."""
    group = together()
    if group is None:
        return measure()
    value, failure = _outcome(measure, group) if group.leads else (None, None)
    _raised(group.share(failure))
    return group.share(value)


def from_all(work: Callable[[], T]) -> list[T]:
    """The results of some work of each process that computes the same call, in the first; an empty list in the others.

    An error of any process is that of all.
    """
    group = together()
    if group is None:
        return [work()]
    outcomes = group.gather(_outcome(work, group))
    _raised(group.share(next((failure for _, failure in outcomes if failure is not None), None)))
    return [value for value, _ in outcomes]  # type: ignore[misc]


def _outcome(work: Callable[[], T], group: Group) -> tuple[T | None, Exception | None]:
    """(the result, the error) of work that a process does by itself within a call."""
    group.together = False
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 (raised in every process)
        return None, _sendable(error)
    finally:
        group.together = True


def _raised(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (written here)
    except Exception:  # noqa: BLE001 (whatever its class does)
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    return error


def in_order(places: Sequence[Any], work: Callable[[Any], T]) -> Iterator[T]:
    """The results of some work at several places, in their order; several processes share the work.

    In the processes behind the first, nothing is yielded, but the iterator has to be exhausted, too.

    Args:
        places: the same in every process.
        work: of one place.
    """
    group = together()
    if group is None:
        yield from map(work, places)
        return
    for start in range(0, len(places), group.launch.count):
        mine = places[start + group.launch.rank :][:1]
        yield from from_all(partial(_at, work, mine))[: len(places) - start]


def _at(work: Callable[[Any], T], place: Sequence[Any]) -> T:
    """The result at the only place; None without one, which is left out by the caller."""
    return work(place[0]) if place else None  # type: ignore[return-value]


def own_part(items: Sequence[T]) -> Sequence[T]:
    """Of the processes that compute the same call, each has a part of some items; a single process has all."""
    group = together()
    return items if group is None else items[group.launch.rank :: group.launch.count]
