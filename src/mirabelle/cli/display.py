"""Terminal output: progress on standard error during a run, tables on standard output at its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from mirabelle.model.left_alone import LeftAlone, few
from mirabelle.report import Report, RunProgress
from mirabelle.report.table import rows, value
from mirabelle.report.verdict import of_constant

_UNBOUNDED = 100_000
_LONG_SECONDS = 2.0  # what takes no longer is not told


class Watcher:
    """A callback that prints the events of a run as lines and, on a terminal, a progress bar for the current training."""

    def __init__(self, *, quiet: bool, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        # The stream itself: while a model is exported, `sys.stderr` is another one, so that torch's messages are not shown.
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._waiting: threading.Timer | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        self._end_waiting()
        if event["event"] == "progress" and (event["done"], event["total"]) == (0, 1):
            self._tell_if_it_lasts(f"{event['where'] or 'run'}  {event['text']}")
            return
        if event["event"] == "progress":
            self._advance(event["done"], event["total"], event["seconds_left"], f"{event['where']} {event['text']}")
            return
        line = _line(event) or (_raw_line(event) if self._verbose else "")
        if line:
            self._console.print(line, markup=False, soft_wrap=True)
        if event["event"] not in ("epoch", "decision", "teacher", "taken up"):
            self.close()

    def close(self) -> None:
        self._end_waiting()
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _tell_if_it_lasts(self, line: str) -> None:
        """Print a line unless another event comes within two seconds."""
        tell = partial(self._console.print, line, markup=False, soft_wrap=True)
        self._waiting = threading.Timer(_LONG_SECONDS, tell)
        self._waiting.daemon = True
        self._waiting.start()

    def _end_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _advance(self, done: int, total: int, seconds_left: float, text: str) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TextColumn("{task.fields[left]} left"), console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(text, total=total, left="")
        assert self._task is not None, "a progress bar has a task"
        self._bar.update(self._task, completed=done, description=text, left=duration(seconds_left))


def warn(text: str) -> None:
    """Print a warning as one line on standard error."""
    Console(stderr=True, highlight=False).print(f"warning: {text}", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A duration as hours, minutes and seconds, such as "1:02:03" or "0:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_report(report: Report, page: Path, *, shortfalls: bool = True) -> None:
    """Print the before/after table, the verdict, the gates, unmet goals if `shortfalls` is set, and the path of the report."""
    print_table(("", "before", "after", "reduction"), rows(report), numbers_from=1)
    passed = ", ".join(f"{name} {'passed' if gate.passed else 'FAILED'}" for name, gate in report.gates.items())
    lines = ["", report.verdict, f"gates: {passed}"]
    lines += [f"{left.step} left as it is: {left.what}" for left in report.left]
    lines += [f"{speed.step}: {speed.in_words()}" for speed in report.speeds]
    lines += [] if report.contest is None else report.contest.in_words()
    lines += [f"goal not met: {shortfall}" for shortfall in report.goal.shortfalls if shortfalls]
    lines += report.certainty
    lines += [] if report.constant is None else of_constant(report.end, report.constant)
    _print_lines([*lines, f"report: {page}"])


def print_progress(progress: RunProgress, worker: str | None) -> None:
    """Print the progress of an unfinished run. `worker` names the process that runs it, or is None."""
    titles = ("step", "metric", "non-zero", "packed, bytes", "seconds")
    lines = [
        (
            entry.step,
            value(entry.profile.metric),
            f"{entry.profile.nonzero_parameters:,}",
            f"{entry.profile.size_bytes.packed or 0:,}",
            f"{entry.seconds:.1f}",
        )
        for entry in progress.done
    ]
    if lines:
        print_table(titles, lines, numbers_from=1)
    now = f"{progress.now}"
    if progress.epoch is not None:
        now += f", epoch {progress.epoch}/{progress.epochs}"
    if progress.seconds_left is not None:
        now += f", {duration(progress.seconds_left)} left"
    done = f"{len(progress.done)} of {len(progress.done) + len(progress.ahead)} steps done; now: {now}"
    then = f"then: {', '.join(progress.ahead[1:])}"
    status = "This run is unfinished and no process is working on it; run the same command again to continue."
    if worker is not None:
        status = f"This run is unfinished; {worker} is working on it."
    _print_lines([*([""] if lines else []), done, *([then] if progress.ahead[1:] else []), status])


def print_table(titles: Sequence[str], lines: Sequence[Sequence[str]], *, numbers_from: int = 2) -> None:
    """Print a table. Columns from `numbers_from` on are right-aligned, the others left-aligned."""
    table = Table(box=None, pad_edge=False)
    for position, title in enumerate(titles):
        table.add_column(title, justify="right" if position >= numbers_from else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _UNBOUNDED  # no line breaks in output that a program reads
    console.print(table)


def _print_lines(lines: Sequence[str]) -> None:
    Console(highlight=False).print("\n".join(lines), markup=False, soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    """An event as one line of text; empty for events that are not shown."""
    describe = _LINES.get(event["event"])
    text = describe(event) if describe else ""
    return f"{event['where'] or 'run'}  {text}" if text else ""


def _raw_line(event: Mapping[str, Any]) -> str:
    """An event without a text of its own, as a list of its values, for --verbose."""
    values = ", ".join(f"{key} = {value}" for key, value in event.items() if key not in ("time", "event", "where", "profile"))
    return f"{event['where'] or 'run'}  {event['event']}: {values}"


def _epoch(event: Mapping[str, Any]) -> str:
    return (
        f"epoch {event['epoch']}/{event['epochs']}  loss {event['loss']:.4f}  validation {event['metric']:.4f}  "
        f"{duration(event['seconds_left'])} left"
    )


def _gate(event: Mapping[str, Any]) -> str:
    return f"gate {event['name']}: {'passed' if event['passed'] else 'FAILED'} ({event['detail']})"


def _left_alone(event: Mapping[str, Any]) -> str:
    return "\n".join(f"left as it is: {LeftAlone.from_data(part)}" for part in event["parts"])


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "begin": lambda event: str(event["step"]),
    "epoch": _epoch,
    "gate": _gate,
    "decision": lambda event: f"chosen: {event['name']} = {event['value']}",
    "folded": lambda event: f"computed weights become plain parameters: {few(event['tensors'])}",
    "left alone": _left_alone,
    "note": lambda event: f"note: {event['text']}",
    "warning": lambda event: f"warning: {event['text']}",
    "round": lambda event: f"round {event['round']} of {event['rounds']}: {event['sparsity']:.1%} of the weights are pruned",
    "idle units": lambda event: f"units that do nothing lose what is left of them: {few(list(event['cleared']))}",
    "stopped": lambda event: f"stopped: {event['why']}",
    "taken up": lambda event: f"continued at step {event['step']} of {event['steps']}",
    "resumed": lambda event: "resumed after an interruption" if event["killed"] else "resumed",
    "ended before": lambda _: "this run was already complete; nothing to do",
    "profile": lambda event: f"done in {duration(event['seconds'])}",
}
