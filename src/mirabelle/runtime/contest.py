"""Forms of a model in several runtimes and with several numbers of threads, timed in alternation: which is fastest?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array
from mirabelle.runtime import RUNTIMES
from mirabelle.runtime.latency import FEWEST_BLOCKS, Ratio, interleaved
from mirabelle.runtime.runtime import Session, runtime_named
from mirabelle.task.profile import Latency


@dataclass(frozen=True)
class Timing:
    """One form of a model in one runtime.

    Args:
        form: its name.
        latency: with the runtime, the number of threads and the batch.
        ratio: the latency over that of the first timing of the contest.
    """

    form: str
    latency: Latency
    ratio: Ratio

    @property
    def place(self) -> str:
        """The runtime and the threads in words."""
        count, runtime = self.latency.threads, self.latency.runtime
        return f"{RUNTIMES[runtime].title if runtime in RUNTIMES else runtime} with {count} thread{'s' * (count > 1)}"

    def to_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Contest:
    """The timings of all forms in all runtimes, and a sentence for each that could not run.

    Args:
        timings: the first is the one that others are compared with.
        refused: sentences.
    """

    timings: tuple[Timing, ...]
    refused: tuple[str, ...] = ()

    @property
    def fastest(self) -> Timing:
        return min(self.timings, key=lambda one: one.latency.median)

    def in_words(self) -> list[str]:
        """Which one is fastest, and what the runtime alone gives, without a change of the model."""
        first, best = self.timings[0], self.fastest
        if best is first or not best.ratio.faster:
            return [f"Nothing measured here is faster than {first.form} in {first.place}."]
        found = [f"Fastest: {best.form} in {best.place}, {best.ratio.in_words()} than {first.form} in {first.place}."]
        same = [one for one in self.timings if one.form == first.form and one.latency.runtime != first.latency.runtime]
        alone = min(same, key=lambda one: one.latency.median, default=None)
        if alone is not None and alone is not best and alone.ratio.faster:
            found.append(f"{alone.place} runs {first.form} unchanged {alone.ratio.in_words()} than {first.place}.")
        return found


def contest(
    forms: Mapping[str, bytes],
    feeds: Mapping[str, Mapping[str, Array]],
    runtimes: Sequence[str],
    *,
    threads: Sequence[int],
    batch: int,
    seconds: float,
) -> Contest:
    """Time forms of a model in alternation.

    Args:
        forms: name -> bytes of an ONNX file; the first one in the first runtime and with the first number of threads is the
            one that others are compared with.
        feeds: name of a form -> its inputs.
        runtimes: names of runtimes.
        threads: numbers of threads of an operator.
        batch: number of samples in the inputs.
        seconds: duration of the measurement.

    Raises:
        UserError: the error of the first form in the first runtime, if that cannot run.
    """
    sessions: dict[tuple[str, str, int], Session] = {}
    refused = []
    for form, onnx in forms.items():
        for runtime in runtimes:
            try:
                loaded = [runtime_named(runtime).load(onnx, count) for count in threads]
                loaded[0].run(feeds[form])
            except Exception as error:
                if not sessions or (isinstance(error, UserError) and error.code == "E160"):
                    raise
                told = error.message if isinstance(error, UserError) else f"fails: {str(error).strip().splitlines()[0]}"
                refused.append(f"{form} in {RUNTIMES[runtime].title}: {told}")
                continue
            sessions |= {(form, runtime, one.threads): one for one in loaded}
    return Contest(tuple(timings_of(sessions, feeds, batch=batch, seconds=seconds)), tuple(refused))


def timings_of(
    sessions: Mapping[tuple[str, str, int], Session],
    feeds: Mapping[str, Mapping[str, Array]],
    *,
    batch: int,
    seconds: float,
    enough: Callable[[Mapping[str, Ratio]], bool] | None = None,
    fewest: int = FEWEST_BLOCKS,
) -> list[Timing]:
    """Time sessions in alternation, beside the first of them.

    Args:
        sessions: (name of the form, name of the runtime, threads) -> the loaded model.
        feeds: name of a form -> its inputs.
        batch: number of samples in the inputs.
        seconds: duration of the measurement.
        enough: whether the ratios so far answer the question.
        fewest: blocks after which the measurement of slow models ends.
    """
    keys = {"/".join(map(str, key)): key for key in sessions}

    def load() -> dict[str, Callable[[], object]]:
        return {name: partial(sessions[key].anew().run, feeds[key[0]]) for name, key in keys.items()}

    latencies, ratios = interleaved(load, runtime="", threads=0, batch=batch, seconds=seconds, enough=enough, fewest=fewest)
    return [
        Timing(form, dataclasses.replace(latencies[name], runtime=runtime, threads=count), ratios[name])
        for name, (form, runtime, count) in keys.items()
    ]
