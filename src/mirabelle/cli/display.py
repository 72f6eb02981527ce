"""What a person sees: progress on standard error while a run goes on, tables on standard output at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mirabelle.report import Report, RunProgress
from mirabelle.report.table import rows, value

_UNBOUNDED = 100_000


class Watcher:
    """A listener that prints a run's events as lines, with a bar for the training under way on a terminal."""

    def __init__(self, *, quiet: bool, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        if event["event"] == "progress":
            self._advance(event["done"], event["total"], event["seconds_left"], f"{event['where']} {event['text']}")
            return
        line = _line(event) or (_plainly(event) if self._verbose else "")
        if line:
            self._console.print(line, markup=False, soft_wrap=True)
        if event["event"] not in ("epoch", "decision", "teacher", "taken up"):
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _advance(self, done: int, total: int, seconds_left: float, text: str) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TextColumn("{task.fields[left]} left"), console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(text, total=total, left="")
        assert self._task is not None, "a bar has its task"
        self._bar.update(self._task, completed=done, description=text, left=duration(seconds_left))


def warn(text: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False).print(f"warning: {text}", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as "1:02:03" or "0:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_report(report: Report, page: Path, *, shortfalls: bool = True) -> None:
    """The before/after table, the verdict, the gates, what of the goal is missed unless told elsewhere, the page's place."""
    print_table(("", "before", "after", "less by"), rows(report), numbers_from=1)
    passed = ", ".join(f"{name} {'passed' if gate.passed else 'FAILED'}" for name, gate in report.gates.items())
    lines = ["", report.verdict, f"gates: {passed}"]
    lines += [f"goal not met: {shortfall}" for shortfall in report.goal.shortfalls if shortfalls]
    _print_lines([*lines, f"report: {page}"])


def print_progress(found: RunProgress, worker: str | None) -> None:
    """How far a run has come that has not ended."""
    titles = ("step", "metric", "non-zero", "packed, bytes", "seconds")
    lines = [
        (
            entry.step,
            value(entry.profile.metric),
            f"{entry.profile.nonzero_parameters:,}",
            f"{entry.profile.size_bytes.packed or 0:,}",
            f"{entry.seconds:.1f}",
        )
        for entry in found.done
    ]
    if lines:
        print_table(titles, lines, numbers_from=1)
    now = f"{found.now}"
    if found.epoch is not None:
        now += f", epoch {found.epoch}/{found.epochs}"
    if found.seconds_left is not None:
        now += f", {duration(found.seconds_left)} left of it"
    done = f"{len(found.done)} of {len(found.done) + len(found.ahead)} steps done; now: {now}"
    then = f"then: {', '.join(found.ahead[1:])}"
    told = ["This run has not ended; nobody is at work on it: the same command goes on from here."]
    if worker is not None:
        told = [f"This run has not ended; {worker} is at work on it."]
    _print_lines([*([""] if lines else []), done, *([then] if found.ahead[1:] else []), *told])


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, numbers_from: int = 2) -> None:
    """A table whose columns from `numbers_from` on are numbers, and whose others are text."""
    table = Table(box=None, pad_edge=False)
    for position, title in enumerate(titles):
        table.add_column(title, justify="right" if position >= numbers_from else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _UNBOUNDED  # a program that reads it wants whole lines
    console.print(table)


def _print_lines(lines: Sequence[str]) -> None:
    Console(highlight=False).print("\n".join(lines), markup=False, soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    """An event as one line, or nothing for events that a person need not see."""
    words = _WORDS.get(event["event"])
    text = words(event) if words else ""
    return f"{event['where'] or 'run'}  {text}" if text else ""


def _plainly(event: Mapping[str, Any]) -> str:
    """An event that has no words of its own, with all that it says."""
    said = ", ".join(f"{key} = {value}" for key, value in event.items() if key not in ("time", "event", "where", "profile"))
    return f"{event['where'] or 'run'}  {event['event']}: {said}"


def _epoch(event: Mapping[str, Any]) -> str:
    return (
        f"epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.4f}  validation {event['metric']:.4f}  "
        f"{duration(event['seconds_left'])} left"
    )


def _gate(event: Mapping[str, Any]) -> str:
    return f"gate {event['name']}: {'passed' if event['passed'] else 'FAILED'} ({event['detail']})"


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "begin": lambda event: str(event["step"]),
    "epoch": _epoch,
    "gate": _gate,
    "decision": lambda event: f"decided: {event['name']} = {event['value']}",
    "quantized": lambda event: f"left in floating point: {', '.join(event['left_alone'])}" if event["left_alone"] else "",
    "warning": lambda event: f"warning: {event['text']}",
    "stopped": lambda event: f"stopped: {event['why']}",
    "taken up": lambda event: f"taken up at step {event['step']} of {event['steps']}",
    "resumed": lambda event: "resumed after a kill" if event["killed"] else "resumed",
    "ended before": lambda _: "this run had ended before; nothing was left to do",
    "profile": lambda event: f"done in {duration(event['seconds'])}",
}
