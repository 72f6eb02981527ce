"""The statistics of timings on synthetic times with known effects of blocks and of repetitions."""

from __future__ import annotations

import numpy as np
import pytest

from mirabelle.numerics.statistics import interval_of_repeats
from mirabelle.runtime import latency
from mirabelle.runtime.latency import interleaved, of_blocks

RATIO = 0.6


def repetition(generator: np.random.Generator, *, block: float, common: float, process: float) -> list[dict[str, list[float]]]:
    """Twelve blocks of two models: calls scatter, blocks differ alone and together, and so do whole repetitions."""
    together, alone = generator.normal(0, common), generator.normal(0, process)
    found = []
    for _ in range(12):
        load = generator.normal(0, common)
        times = {}
        for name, middle in (("start", 1.0), ("end", RATIO)):
            own = together + load + generator.normal(0, block) + (alone if name == "end" else 0.0)
            times[name] = list(middle * np.exp(own + np.abs(generator.normal(0, 0.1, 25))))
        found.append(times)
    return found


@pytest.mark.parametrize(
    ("block", "common", "process"),
    [(0.03, 0.0, 0.0), (0.03, 0.2, 0.0), (0.002, 0.05, 0.008), (0.1, 0.3, 0.01), (0.0, 0.0, 0.0)],
    ids=["blocks", "load of the machine", "processes", "everything", "nothing"],
)
def test_intervals_hold_the_ratios_of_repetitions(block: float, common: float, process: float) -> None:
    generator = np.random.default_rng(0)
    told = []
    for _ in range(120):
        times = repetition(generator, block=block, common=common, process=process)
        ratio = of_blocks(times, runtime="none", threads=1, batch=1)[1]["end"]
        told.append((ratio.median, ratio.low, ratio.high))
    value, low, high = np.array(told).T
    middle = np.median(value)
    assert np.mean((low <= middle) & (middle <= high)) >= 0.93
    others = [(low[i] <= value[j]) and (value[j] <= high[i]) for i in range(120) for j in range(120) if i != j]
    assert np.mean(others) >= 0.93


def test_a_repeated_mean_falls_into_the_interval_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    for k in (6, 12):
        held = 0
        for _ in range(3000):
            first, second = generator.normal(5.0, 0.7, (2, k))
            _, low, high = interval_of_repeats(first)
            held += low <= second.mean() <= high
        assert held / 3000 == pytest.approx(0.95, abs=0.015)  # two standard errors are 0.008, and t is exact


def test_the_ratio_is_that_of_the_two_latencies_beside_it() -> None:
    generator = np.random.default_rng(2)
    times = repetition(generator, block=0.2, common=0.5, process=0.0)
    latencies, ratios = of_blocks(times, runtime="none", threads=2, batch=4)
    assert ratios["end"].median == pytest.approx(latencies["end"].median / latencies["start"].median, rel=1e-12)
    assert (ratios["start"].low, ratios["start"].median, ratios["start"].high) == (1, 1, 1)
    assert latencies["end"].median == pytest.approx(np.exp(np.mean([np.log(np.median(block["end"])) for block in times])))
    for one in latencies.values():
        assert one.median <= one.p95
        assert (one.threads, one.batch) == (2, 4)


def test_calls_of_microseconds_have_wider_intervals() -> None:
    widths = []
    for scale in (1.0, 0.008):
        times = [{"start": [1.0 * scale] * 5, "end": [0.5 * scale] * 5} for _ in range(12)]
        ratio = of_blocks(times, runtime="none", threads=1, batch=1)[1]["end"]
        widths.append(ratio.high / ratio.low - 1)
    assert widths[0] == pytest.approx(0.051, abs=0.002)
    assert widths[1] > 0.2  # 0.4 microseconds of 4


def test_blocks_load_anew_and_take_both_orders_in_turn() -> None:
    called: list[str] = []
    loads = [0]

    def load() -> dict[str, object]:
        loads[0] += 1
        called.append("|")
        return {name: lambda name=name: called.append(name) for name in "ab"}

    interleaved(load, runtime="none", threads=1, batch=1, seconds=0.0)
    blocks = "".join(called).split("|")[1:]
    assert loads[0] == len(blocks) == latency.FEWEST_BLOCKS
    assert blocks[0] == "abab" + "abbaab"  # two rounds to warm up, then rounds in alternating order
    assert blocks[1] == "baba" + "baabba"
    assert {(block.count("a"), block.count("b")) for block in blocks} == {(5, 5)}
