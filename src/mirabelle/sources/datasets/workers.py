"""Work on many files that is shared by threads, where that is faster.

Pillow and NumPy leave Python free while they decode, so threads share the cores, and no row has to be sent from process to
process: measured on two cores, a JPEG file of 500 × 500 pixels takes 1.8 ms with one, 1.0 ms with two threads, 1.1 ms with two
processes. Below a few tenths of a millisecond for a file, threads wait for each other; then there are none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from mirabelle.run.launch import launched

_TIMED, _QUICK = 8, 1.5e-4  # files by which the work is timed, and seconds for a file below which threads do not help
_LEAST, _LONG = 2, 0.05  # fewest files that are timed (the first may import packages), and seconds after which that is enough


class Workers:
    """Threads that share work.

    Args:
        asked: their number, 0 for none; by default one for each core that this process may use, or none if a file takes so
            little time that they would wait for each other.
    """

    def __init__(self, asked: int | None) -> None:
        self.number = asked

    def do(self, work: Callable[[range], None], count: int) -> None:
        """Do work on 0, …, count − 1, of which each thread gets a range; the first error in order is raised."""
        begin = 0
        if self.number is None and count:
            seconds: list[float] = []
            while len(seconds) < min(_TIMED, count) and (len(seconds) < _LEAST or sum(seconds) < _LONG):
                seconds.append(_seconds(work, len(seconds)))
            begin, self.number = len(seconds), 0 if min(seconds) < _QUICK else _cores()
        number = min(self.number or 1, count - begin)
        if number <= 1:
            work(range(begin, count))
            return
        ends = np.linspace(begin, count, number + 1).astype(int).tolist()
        with ThreadPoolExecutor(number) as pool:
            for _ in pool.map(work, [range(first, end) for first, end in pairwise(ends)]):
                pass


def _seconds(work: Callable[[range], None], place: int) -> float:
    begin = time.perf_counter()
    work(range(place, place + 1))
    return time.perf_counter() - begin


def _cores() -> int:
    """The cores that this process may use; processes of one training on the same machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launch = launched()
    return max(1, cores // (1 if launch is None else max(1, launch.local_count)))
