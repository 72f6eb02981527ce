"""What a person sees: progress on standard error while a run goes on, tables on standard output at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from mirabelle.job import Result
from mirabelle.report.page import rows


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
            self._console.print(line, markup=False)
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
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
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


def print_result(result: Result, verdict: str) -> None:
    """The verdict, the before/after table, the gates, and where everything lies."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in ("before", "after", "less by"):
        table.add_column(title, justify="right")
    for row in rows(result.start, result.profile):
        table.add_row(*row)
    console.print(table)
    passed = ", ".join(f"{name} {'passed' if gate.passed else 'FAILED'}" for name, gate in result.gates.items())
    console.print(f"\n{verdict}\ngates: {passed}", markup=False, soft_wrap=True)
    for shortfall in result.shortfalls:
        console.print(f"goal not met: {shortfall}", markup=False, soft_wrap=True)
    console.print(f"report: {Path(result.folder) / 'report.html'}", markup=False, soft_wrap=True)


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are numbers."""
    table = Table(box=None, pad_edge=False)
    for position, title in enumerate(titles):
        table.add_column(title, justify="right" if position > 1 else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False).print(table)


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
    "stopped": lambda event: f"stopped: {event['why']}",
    "taken up": lambda event: f"taken up at step {event['step']} of {event['steps']}",
    "resumed": lambda event: "resumed after a kill" if event["killed"] else "resumed",
    "profile": lambda event: f"done in {duration(event['seconds'])}",
}
