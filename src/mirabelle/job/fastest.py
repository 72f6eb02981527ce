"""The run's own contest: the model before and after compression in every runtime that is installed, and with fewer threads.

A goal with `runtime = "fastest"` keeps the runtime in which the compressed model is fastest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import product

from mirabelle.errors import UserError
from mirabelle.job.conditions import Conditions
from mirabelle.run.run import Run
from mirabelle.runtime.contest import Contest, Timing, timings_of
from mirabelle.runtime.latency import FEWEST_TO_ANSWER, Ratio
from mirabelle.runtime.runtime import runtime_named, runtimes_present
from mirabelle.task.batch import map_tensors
from mirabelle.task.goal import FASTEST, Goal
from mirabelle.task.profile import Latency

START, END = "the model before", "the compressed model"
SECONDS = 0.5  # for each runtime and number of threads, at most
_EXACT = ("onnxruntime", "onnxruntime_extended", "onnxruntime_cuda", "openvino")  # compute in the precision that the file says
_MOST_BYTES = 200_000_000  # of an ONNX file; larger ones take minutes to load so often


def fastest_of(
    goal: Goal, timed: Conditions, start: tuple[bytes, Latency], end: tuple[bytes, Latency], ratio: Ratio
) -> Contest:
    """The timings of both models under the conditions of the goal, and under others as far as the goal leaves them open.

    Three models are loaded at a time: both in another runtime or with other threads, and the one before as the reference.

    Args:
        goal: if it names a runtime, or threads, there is no choice.
        timed: the conditions under which the run has measured both.
        start: the ONNX file before compression, and its latency.
        end: the file after compression, and its latency.
        ratio: of these latencies, end / start.
    """
    known = [Timing(START, start[1], Ratio(1.0, 1.0, 1.0)), Timing(END, end[1], ratio)]
    refused: list[str] = []
    if max(len(start[0]), len(end[0])) > _MOST_BYTES:
        return Contest(tuple(known), (f"files of more than {_MOST_BYTES // 10**6} MB: `mirabelle bench` compares runtimes",))
    own = timed.runtime.describe().name
    runtimes = [own] if goal.names_a_runtime else runtimes_present()
    threads = [timed.threads] if goal.threads is not None else sorted({timed.threads, 1}, reverse=True)
    reference = timed.load(start[0])
    inputs = map_tensors(timed.inputs, lambda tensor: tensor[: timed.batch])
    for name, count in product(runtimes, threads):
        if (name, count) == (own, timed.threads):
            continue
        sessions = {("reference", own, timed.threads): reference}
        for form, onnx in ((START, start[0]), (END, end[0])):
            try:
                session = runtime_named(name).load(onnx, count)
                session.run(session.feed(inputs))
            except Exception as error:  # noqa: BLE001 (whatever another runtime raises for a file that it cannot run)
                told = error.message if isinstance(error, UserError) else str(error).strip().partition("\n")[0]
                refused.append(f"{form} in {name}: {told}")
            else:
                sessions[(form, name, count)] = session
        feeds = {form: session.feed(inputs) for (form, _, _), session in sessions.items()}
        if len(sessions) > 1:
            known += timings_of(sessions, feeds, batch=timed.batch, seconds=SECONDS, enough=_decided, fewest=FEWEST_TO_ANSWER)[
                1:
            ]
    return Contest(tuple(known), tuple(dict.fromkeys(refused)))


def kept_runtime(goal: Goal, timed: Conditions, onnx: bytes, run: Run) -> Conditions:
    """The conditions in which the compressed model is judged: another runtime if the goal asks for the fastest.

    It is a decision of the run. A runtime is left out if it cannot run the file.

    Args:
        goal: of the run.
        timed: the conditions under which the steps were judged.
        onnx: the file of the compressed model.
        run: records the decision.
    """
    if goal.runtime != FASTEST:
        return timed
    own = timed.runtime.describe().name

    def fastest() -> str:
        sessions = {(END, own, timed.threads): timed.load(onnx)}
        feed = sessions[(END, own, timed.threads)].feed(map_tensors(timed.inputs, lambda tensor: tensor[: timed.batch]))
        for name in (name for name in runtimes_present() if name in _EXACT and name != own):
            try:
                session = runtime_named(name).load(onnx, timed.threads)
                session.run(feed)
            except Exception as error:  # noqa: BLE001 (whatever another runtime raises for a file that it cannot run)
                run.event("note", text=f"{name} cannot run the model: {str(error).strip().partition(chr(10))[0]}")
            else:
                sessions[(END, name, timed.threads)] = session
        found = timings_of(sessions, {END: feed}, batch=timed.batch, seconds=SECONDS * len(sessions), enough=_decided)
        best = min(found, key=lambda one: one.latency.median)
        return best.latency.runtime if best.ratio.faster else own

    return dataclasses.replace(timed, runtime=runtime_named(str(run.decide("runtime", fastest))))


def _decided(ratios: Mapping[str, Ratio]) -> bool:
    """Whether every ratio but that of the reference itself is clearly above or below 1."""
    return all(ratio.low > 1 or ratio.high < 1 for ratio in list(ratios.values())[1:])
