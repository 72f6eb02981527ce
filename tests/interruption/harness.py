"""Kills real runs and looks at what is left: in chains, at random instants and at numbered ones.

A chain works on one folder: it starts a command, kills it, sees that every file is whole, and starts the same command again,
until one is let through to its end. That end must hold the bytes of a run which nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from forks import HERE, Ended, Server
from whole import damages

KINDS = ("train", "distill", "channels", "static", "dynamic")
SHIPPED = ("model.mira", "model.onnx", "model.safetensors")
AT_ONCE = min(4, os.cpu_count() or 1)
_RANDOM_EVERY, _POINTS_EVERY = 7, 130  # optimizer steps from one checkpoint to the next; 40 make an epoch
_SIGNALS = (signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGINT)
_STATUSES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
_MOST_KILLS = 5  # in a chain


@dataclass(frozen=True)
class Reference:
    """A run that nobody disturbed: the files it ships, how long it took, and the instants at which it can be killed."""

    kind: str
    shipped: dict[str, bytes]
    names: set[str]
    seconds: float
    points: list[str]


@dataclass
class Tally:
    """What came of kills.

    Args:
        kills: that landed while the run was alive.
        ends: runs that were let through to their end.
        identical: of these, those whose files are bit for bit those of the undisturbed run.
        damaged: files that were not whole after a kill.
        faults: everything that should not have been, in words.
        instants: what the kills hit, by name.
        taken_up: the steps of the optimizer from which trainings went on.
    """

    kills: int = 0
    ends: int = 0
    identical: int = 0
    damaged: int = 0
    faults: list[str] = field(default_factory=list)
    instants: Counter[str] = field(default_factory=Counter)
    taken_up: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.kills + other.kills,
            self.ends + other.ends,
            self.identical + other.identical,
            self.damaged + other.damaged,
            self.faults + other.faults,
            self.instants + other.instants,
            self.taken_up + other.taken_up,
        )


class Harness:
    """Chains of kills over one server, in folders under `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.server = Server()
        self._references: dict[str, Reference] = {}
        self._locks = {kind: threading.Lock() for kind in KINDS}

    def close(self) -> None:
        self.server.close()

    def reference(self, kind: str) -> Reference:
        """The undisturbed run of a kind. A second, with checkpoints that come often, gives the same bytes and the instants."""
        with self._locks[kind]:
            if kind not in self._references:
                self._references[kind] = self._undisturbed(kind)
            return self._references[kind]

    def _undisturbed(self, kind: str) -> Reference:
        plain, often = _Chain(self, kind, "plain"), _Chain(self, kind, "often")
        points = self.place / f"{kind}.points"
        assert plain.run().status == 0, plain.log()
        ended = often.run(every=_POINTS_EVERY, points=str(points))
        assert ended.status == 0, often.log()
        shipped = {name: (plain.folder / name).read_bytes() for name in SHIPPED}
        assert shipped == {name: (often.folder / name).read_bytes() for name in SHIPPED}, kind
        return Reference(kind, shipped, _names(plain.folder), ended.seconds, points.read_text().splitlines())

    def randomly(self, seed: int, kills: int, kinds: Sequence[str] = KINDS) -> Tally:
        """At least so many kills of each kind at instants drawn evenly over its duration, of three signals, in chains."""
        return self._all_at_once(partial(self._random_kills, kind, seed, kills) for kind in kinds)

    def at_points(self, seed: int, sample: int | None = None, kinds: Sequence[str] = KINDS, ending: str = "") -> Tally:
        """A kill at every instant of `Reference.points` of each kind, or at a sample drawn with the seed.

        With `ending` only at those whose words end so, such as "checkpoint.safetensors".
        """
        draw, calls = random.Random(seed), []
        for kind in kinds:
            points = enumerate(self.reference(kind).points, start=1)
            numbers = [number for number, point in points if point.endswith(ending)]
            calls += [partial(self._kill_at, kind, number) for number in (draw.sample(numbers, sample) if sample else numbers)]
        return self._all_at_once(calls)

    def _all_at_once(self, calls: Iterable[Callable[[], Tally]]) -> Tally:
        """The sum of many calls, as many at a time as there are processors."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return sum(pool.map(lambda call: call(), calls), Tally())

    def _random_kills(self, kind: str, seed: int, kills: int) -> Tally:
        draw, total, chain = random.Random(f"{kind} {seed}"), Tally(), 0
        while total.kills < kills:
            total += self._random_chain(kind, f"random-{seed}-{chain}", draw, min(_MOST_KILLS, kills - total.kills))
            chain += 1
        return total

    def _random_chain(self, kind: str, name: str, draw: random.Random, most: int) -> Tally:
        reference = self.reference(kind)
        chain = _Chain(self, kind, name)
        for _ in range(draw.randint(1, most)):
            number, instant = draw.choice(_SIGNALS), draw.uniform(0, reference.seconds)
            again = [instant + 0.01] * draw.randint(0, 1)  # who is impatient presses Ctrl-C twice
            what = f"{number.name} after {' and '.join(f'{seconds:.3f}' for seconds in [instant, *again])} s"
            ended = chain.run(every=_RANDOM_EVERY, signal=int(number), signals_after=[instant, *again])
            if ended.status == 0:
                return chain.ended(reference, what)
            chain.killed(ended, number, what, number.name)
        return chain.through(reference, every=_RANDOM_EVERY)

    def _kill_at(self, kind: str, number: int) -> Tally:
        """A kill at one numbered instant of the run, 1 the first."""
        reference, chain = self.reference(kind), _Chain(self, kind, f"point-{number}")
        point = reference.points[number - 1]
        ended = chain.run(every=_POINTS_EVERY, kill_at=number)
        chain.killed(ended, signal.SIGKILL, f"{point} (instant {number})", point.split()[0])
        return chain.through(reference, every=_POINTS_EVERY)


class _Chain:
    """One folder, killed and gone on with."""

    def __init__(self, harness: Harness, kind: str, name: str) -> None:
        self.kind, self.name, self.tally = kind, name, Tally()
        self.folder = harness.place / f"{kind}-{name}"
        self._log = harness.place / f"{kind}-{name}.log"
        self._server = harness.server

    def run(self, **order: Any) -> Ended:
        """The command, the same every time."""
        command = ["run", str(HERE / "recipes" / f"{self.kind}.toml"), "--out", str(self.folder), "--quiet"]
        self._log.unlink(missing_ok=True)
        return self._server.run(argv=command, folder=str(self.folder), log=str(self._log), **order)

    def killed(self, ended: Ended, number: signal.Signals, what: str, instant: str) -> None:
        """Take down a kill, and see that it left whole files and, where it could, one line."""
        self.tally.kills += 1
        self.tally.instants[instant] += 1
        log, damaged = self.log(), list(damages(self.folder))
        self.tally.damaged += len(damaged)
        for damage in damaged:
            self._fault(what, damage)
        if ended.status != _STATUSES[number]:
            self._fault(what, f"status {ended.status}: {log[-1000:]}")
        elif number != signal.SIGKILL and (len(log.strip().splitlines()) != 1 or "run the same command again" not in log):
            self._fault(what, f"it said {log!r}")

    def through(self, reference: Reference, **order: Any) -> Tally:
        """Let the same command reach its end."""
        ended = self.run(**order)
        if ended.status != 0:
            self._fault("going on", f"status {ended.status}: {self.log()}")
            return self.tally
        return self.ended(reference, "the end")

    def ended(self, reference: Reference, what: str) -> Tally:
        """Take down an end, and compare it."""
        tally, folder = self.tally, self.folder
        tally.ends += 1
        differing = [name for name in SHIPPED if (folder / name).read_bytes() != reference.shipped[name]]
        tally.identical += not differing
        if differing:
            self._fault(what, f"{', '.join(differing)} differ")
        for damage in damages(folder):
            tally.damaged += 1
            self._fault(what, damage)
        if _names(folder) != reference.names:
            self._fault(what, f"files too many or too few: {sorted(_names(folder) ^ reference.names)}")
        gates = json.loads((folder / "report.json").read_bytes())["gates"]
        if not gates or not all(gate["passed"] for gate in gates.values()):
            self._fault(what, f"gates: {gates}")
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines() if _parses(line)]
        tally.taken_up.update(event["step"] for event in events if event["event"] == "taken up")
        return tally

    def log(self) -> str:
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def _fault(self, what: str, fault: str) -> None:
        self.tally.faults.append(f"{self.kind}, {self.name}, {what}: {fault}")


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
