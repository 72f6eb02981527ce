"""Flips a bit of every byte of every file of a run, cuts, empties, removes and swaps its files, and lets Mirabelle read them again.

Three states of one small run: ended; killed after its first step; killed in the training of its second step, with a checkpoint.
Every byte is read by the functions with which the commands read its file. The same call for a killed run, up to the work that
follows, meets every 64th byte (--calls). The whole commands (the same call again
to its end, `verify`, `load`, `report`, `unpack`, `predict`) meet --commands bytes of each file, and every cut, empty, missing or
swapped file. What happens is one of

    noticed      refused with an error that has a code, or told; nothing wrong was used
    made again   told, and afterwards the file is as it was
    harmless     nothing was told, and everything that was read and computed is as without the damage
    WRONG        anything else: another result, a traceback, a good file overwritten by a worse one
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditions import write
from mirabelle import Task, Training, UserError, artifact, compress, prune, quantize
from mirabelle.artifact.reading import onnx_of
from mirabelle.job import steps as job_steps
from mirabelle.job.digests import digests_of, faults_of_files, faults_of_run
from mirabelle.job.verification import verify_run
from mirabelle.model.state import tensors_of_module
from mirabelle.report import read_events, read_report, write_pages
from mirabelle.run import files
from mirabelle.run.journal import damaged_lines
from mirabelle.run.lock import NAMES
from mirabelle.runtime.runtime import default_runtime, time_alone, time_side_by_side
from mirabelle.step import folder_of
from mirabelle.training.checkpoint import Checkpoint

SHIPPED = ("model.onnx", "model.mira", "model.safetensors", "architecture.json")
OUTCOMES = ("noticed", "made again", "harmless", "WRONG")
TRAIN = Training(epochs=2, batch_size=20, lr=0.02, precision="float32")
STEPS = [prune.Weights(sparsity=0.5, train=TRAIN), prune.Weights(sparsity=0.7, train=TRAIN), quantize.Dynamic()]
PLACES = [folder_of(position, step) for position, step in enumerate(STEPS, start=1)]


class KilledError(BaseException):
    """Ends a run as a kill would: what is written stays."""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def data() -> Task:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(120) % 3
    inputs = 2.5 * torch.randn(3, 4, generator=generator)[targets] + torch.randn(120, 4, generator=generator)
    parts = {name: (inputs[at], targets[at]) for name, at in zip(("train", "validation", "test"), _thirds(), strict=True)}
    return Task(**parts, labels=("a", "b", "c"), name="blobs")


def _thirds() -> list[slice]:
    return [slice(0, 60), slice(60, 90), slice(90, 120)]


class Called:
    """The same call of `compress` once more: what it told, and the digests of the models that it went on with."""

    def __init__(self, folder: Path, stop: Callable[[Any], bool] = lambda _: False) -> None:
        self.told: list[str] = []
        self.begun: dict[str, Any] = {}
        self._stop = stop
        try:
            compress(MODEL, TASK, STEPS, out=folder, baseline=TRAIN, callbacks=[self._hear])
        except KilledError:
            return

    def _hear(self, event: Any) -> None:
        if event["event"] == "warning":
            self.told.append(event["text"])
        if event["event"] == "begin" and "made_from" in event:
            self.begun[event["where"]] = dict(event["made_from"])
        if self._stop(event):
            raise KilledError


class State:
    """A folder of a run in one state, that is restored after every damage.

    Args:
        name: of the state.
        folder: of the run; it is damaged and restored.
        whole: the folder of the whole run, as it ended.
    """

    def __init__(self, name: str, folder: Path, whole: Path) -> None:
        self.name, self.folder = name, folder
        self.names = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in NAMES
        )
        self.bytes = {one: (folder / one).read_bytes() for one in self.names}
        self.end = {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        self._seen = {one: self._stat(one) for one in self.names}
        self.ended = (folder / "report.json").is_file()
        self._read = {one: self.read(one) for one in self.names}
        self._digests = digests_of(folder, SHIPPED) if self.ended else {}

    def _stat(self, name: str) -> tuple[int, int] | None:
        path = self.folder / name
        return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None

    def restore(self) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file()]:
            if str(path.relative_to(self.folder)) not in self.bytes:
                path.unlink()
        for name in self.names:
            if self._stat(name) != self._seen[name]:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(self.bytes[name])
                self._seen[name] = self._stat(name)

    def read(self, name: str) -> Any:  # noqa: PLR0911 (a table of kinds)
        """What the readers of a file give, in a form that can be compared."""
        path = self.folder / name
        if path.suffix == ".onnx":
            return onnx_of(path)
        if path.suffix == ".mira":
            return onnx_of(path), artifact.unpack(path.read_bytes())
        if path.name == "report.json":
            return read_report(self.folder)
        if path.name == "events.jsonl":
            return read_events(self.folder)
        if path.name in ("model.safetensors", "architecture.json"):
            return {key: one.numpy().tobytes() for key, one in tensors_of_module(artifact.load(MODEL, path.parent)).items()}
        if path.suffix == ".safetensors":
            tensors, told = files.read_tensors(path)
            return {key: one.numpy().tobytes() for key, one in tensors.items()}, told
        if path.suffix == ".json":
            return files.read_json(path)
        return files.read_text(path)

    def up_to_work(self) -> Called:
        """The same call again, up to the work that follows; that of a training is done, but its result is not measured."""
        with patched(job_steps, "exported", _killed):
            return Called(
                self.folder, lambda event: event["event"] == "begin" and event["where"] == PLACES[1] and self.name == AFTER
            )

    def quickly(self, name: str) -> str:
        """The outcome of a damaged file for the functions that read it."""
        try:
            found = self.read(name)
        except UserError:
            return "noticed"
        if name == "events.jsonl" and damaged_lines(self.folder):
            kept = all(event in self._read[name] for event in found)
            return "noticed" if kept else "WRONG: an event is another"
        if self.ended and name in SHIPPED and faults_of_files(self.folder, {name: self._digests[name]}):
            return "noticed"
        return "harmless" if found == self._read[name] else "WRONG: another content is read"

    def gone_on(self, name: str) -> str:
        """The outcome for the same call again for a killed run, up to the next work."""
        try:
            called = self.up_to_work()
        except UserError as error:
            return self._untouched(name, f"refused with {error.code}")
        made = self.folder / PLACES[1] / "model.safetensors"
        wrong = [place for place, given in called.begun.items() if given != self._expected(place)]
        if wrong:
            return f"WRONG: {wrong[0]} went on with another model"
        if made.is_file() and made.read_bytes() != self.end[f"{PLACES[1]}/model.safetensors"]:
            return "WRONG: the training gave other weights"
        if called.told:
            again = (self.folder / name).is_file() and (self.folder / name).read_bytes() == self.bytes[name]
            return "made again" if again else "noticed"
        return "harmless"

    def _faults(self) -> list[str]:
        try:
            return faults_of_run(self.folder, [(self.folder / place, step) for place, step in zip(PLACES, STEPS, strict=True)])[
                0
            ]
        except UserError as error:
            return [error.message]

    def _expected(self, place: str) -> dict[str, Any]:
        return EXPECTED[place]

    def _untouched(self, name: str, said: str) -> str:
        changed = [one for one in self.names if one not in (name, "events.jsonl") and self._stat(one) != self._seen[one]]
        return f"WRONG: {said}, but {changed[0]} was written" if changed else "noticed"

    def wholly(self, *damaged: str) -> str:
        """The outcome of damaged files for whole commands."""
        told, before = [], {name: (self.folder / name).read_bytes() for name in damaged if (self.folder / name).is_file()}
        if self.ended:
            told += self._commands()
            if told and told[0].startswith("WRONG"):
                return told[0]
        try:
            told += Called(self.folder).told
        except UserError as error:
            rest = [
                one
                for one in self.names
                if one not in (*damaged, "events.jsonl") and (self.folder / one).read_bytes() != self.bytes[one]
            ]
            return f"WRONG: refused with {error.code}, but {rest[0]} was written" if rest else "noticed"
        other = [name for name in SHIPPED if (self.folder / name).read_bytes() != self.end[name]]
        if other:
            return f"WRONG: {other[0]} is another"
        restored = all((self.folder / name).is_file() and self._same(name) for name in damaged)
        if restored and before != {name: self.bytes[name] for name in damaged}:
            return "made again"
        return "noticed" if told else "harmless"

    def _same(self, name: str) -> bool:
        """Whether a file is as it was; a report and a profile differ in milliseconds and seconds."""
        return (self.folder / name).read_bytes() == self.bytes[name] or (
            name.endswith((".json", ".html", ".md")) and not self._bad(name)
        )

    def _bad(self, name: str) -> bool:
        try:
            self.read(name)
        except UserError:
            return True
        return False

    def _commands(self) -> list[str]:
        """What `verify`, `load`, `unpack`, `predict` and `report` tell of an ended run; "WRONG: …" first if one is misled."""
        told = list(self._faults())
        expected = {name: self._read[name] for name in ("model.onnx", "model.mira", "model.safetensors")}
        try:
            told += [check.detail for check in verify_run(self.folder, TASK, trust=True) if check.verdict == "failed"]
        except UserError as error:
            told.append(error.message)
        for name, given in expected.items():
            try:
                if self.read(name) != given:
                    return [f"WRONG: {name} is read as another"]
            except UserError as error:
                told.append(error.message)
        try:
            session = default_runtime().load(onnx_of(self.folder), 1)
            if session.run(session.feed(TASK.example().inputs))[0].tobytes() != ANSWERS:
                return ["WRONG: predictions differ"]
        except UserError as error:
            told.append(error.message)
        try:
            with tempfile.TemporaryDirectory() as place:
                write_pages(read_report(self.folder), Path(place))
                if (Path(place) / "report.html").read_bytes() != self.bytes["report.html"]:
                    return ["WRONG: the report is another"]
        except UserError as error:
            told.append(error.message)
        return told


def patched(module: Any, name: str, value: Any) -> Any:
    from unittest import mock

    return mock.patch.object(module, name, value)


def _killed(*_: Any) -> Any:
    raise KilledError


AFTER, WITHIN = "killed after a step", "killed in a training"
STATES = ("ended", AFTER, WITHIN)
MODEL, TASK = net(), data()
EXPECTED: dict[str, Any] = {}
ANSWERS = b""


def states(place: Path) -> Iterator[State]:
    """The three states, each with its own folder."""
    global ANSWERS  # noqa: PLW0603 (of the whole run)
    whole = place / "whole"
    EXPECTED.update(Called(whole).begun)
    session = default_runtime().load(onnx_of(whole), 1)
    ANSWERS = session.run(session.feed(TASK.example().inputs))[0].tobytes()
    yield State("ended", shutil.copytree(whole, place / "ended"), whole)
    Called(place / "after", lambda event: event["event"] == "begin" and event["where"] == PLACES[1])
    yield State(AFTER, place / "after", whole)
    with patched(Checkpoint, "due", property(lambda _: True)):
        Called(place / "within", lambda event: event["event"] == "epoch" and event["where"] == PLACES[1])
    yield State(WITHIN, place / "within", whole)


def outcome(trial: Callable[[], str]) -> str:
    try:
        return trial()
    except Exception as error:  # noqa: BLE001 (a traceback is what must not be)
        return f"WRONG: {type(error).__name__}: {error}"


def kind_of(name: str) -> str:
    place, _, last = name.rpartition("/")
    return f"steps/…/{last}" if place.startswith("steps/") else "teacher/….safetensors" if place == "teacher" else name


class Table:
    """Outcomes by state and kind of file."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Counter[str]] = {}
        self.wrong: list[str] = []

    def add(self, state: State, what: str, name: str, found: str) -> None:
        word = found.partition(":")[0]
        self.rows.setdefault((state.name, what, kind_of(name)), Counter())[word] += 1
        if word == "WRONG":
            self.wrong.append(f"{state.name}, {what}, {name}: {found}")
            print(self.wrong[-1], file=sys.stderr, flush=True)


def flips(state: State, table: Table, options: argparse.Namespace, draw: random.Random) -> None:
    """Flip one bit of every byte of every file."""
    for name in state.names:
        path, size, begin = state.folder / name, len(state.bytes[name]), time.monotonic()
        wholly = {size * k // options.commands for k in range(options.commands)}
        trials = [
            ("one bit", state.quickly, set(range(0, size, options.every))),
            ("one bit, the same call", state.gone_on, set() if state.ended else set(range(0, size, options.calls))),
            ("one bit, whole commands", state.wholly, wholly),
        ]
        for at in range(size):
            flipped = bytearray(state.bytes[name])
            flipped[at] ^= 1 << draw.randrange(8)
            for what, trial, places in trials:
                if at in places:
                    path.write_bytes(flipped)
                    table.add(state, what, name, outcome(lambda: trial(name)))  # noqa: B023 (called at once)
                    state.restore()
        print(f"{state.name}: {name}, {size} bytes, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def cuts(state: State, table: Table) -> None:
    """Cut, empty, remove and swap files."""
    for name in state.names:
        whole, path = state.bytes[name], state.folder / name
        for what, data in (
            ("cut by a byte", whole[:-1]),
            ("cut in half", whole[: len(whole) // 2]),
            ("empty", b""),
            ("missing", None),
        ):
            path.unlink() if data is None else path.write_bytes(data)
            table.add(state, what, name, outcome(lambda: state.wholly(name)))  # noqa: B023 (called at once)
            state.restore()
    for one, other in itertools.combinations(state.names, 2):
        if Path(one).suffix == Path(other).suffix and state.bytes[one] != state.bytes[other]:
            (state.folder / one).write_bytes(state.bytes[other])
            (state.folder / other).write_bytes(state.bytes[one])
            table.add(state, "swapped", one, outcome(lambda: state.wholly(one, other)))  # noqa: B023 (called at once)
            state.restore()


def page(table: Table) -> str:
    """The table for people."""
    lines = ["| run | damage | file | damages | noticed | made again | harmless | WRONG |", "|---|---|---|--:|--:|--:|--:|--:|"]
    for (state, what, kind), found in table.rows.items():
        lines.append(f"| {state} | {what} | `{kind}` | {found.total()} | {' | '.join(str(found[word]) for word in OUTCOMES)} |")
    return "\n".join([*lines, ""])


def of_state(name: str, options: argparse.Namespace) -> Table:
    """The outcomes of one state, in a process of its own."""
    torch.set_num_threads(1)
    for timed in (time_alone, time_side_by_side):  # no one reads the milliseconds of these runs
        timed.__kwdefaults__["seconds"] = 0.01
    table, draw = Table(), random.Random(options.seed)  # noqa: S311 (bits to flip)
    with tempfile.TemporaryDirectory() as place:
        state = next(state for state in states(Path(place)) if state.name == name)
        flips(state, table, options, draw)
        cuts(state, table)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="bytes from one that is read to the next")
    parser.add_argument("--calls", type=int, default=64, help="bytes from one to the next for the same call of a killed run")
    parser.add_argument("--commands", type=int, default=4, help="bytes of each file that whole commands meet")
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    parser.add_argument("--only", choices=STATES, help="one state alone; nothing is kept")
    options = parser.parse_args()
    begin, names = time.monotonic(), [options.only] if options.only else list(STATES)
    with ProcessPoolExecutor(len(names), get_context("spawn")) as pool:
        tables = list(pool.map(of_state, names, [options] * len(names)))
    whole = Table()
    for table in tables:
        whole.rows.update(table.rows)
        whole.wrong += table.wrong
    if options.only:
        print(page(whole))
    else:
        rows = [{"run": run, "damage": what, "file": kind, **found} for (run, what, kind), found in whole.rows.items()]
        numbers = {"seed": options.seed, "every": options.every, "calls": options.calls, "commands": options.commands}
        seconds = round(time.monotonic() - begin)
        write("rotten_bits", {**numbers, "seconds": seconds, "rows": rows, "wrong": whole.wrong}, page(whole))
    sys.exit(bool(whole.wrong))


if __name__ == "__main__":
    main()
