"""Small models and tasks that many tests share."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers that share the cores take one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from torch import nn

from mirabelle import Run, Task
from mirabelle.job import fastest
from mirabelle.job.never_slower import Form, Trial
from mirabelle.planning import measuring
from mirabelle.runtime.runtime import time_alone, time_side_by_side

signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background it is ignored, and so in every child


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: "tests/interruption/" not in item.nodeid)


@pytest.fixture
def quietly() -> Iterator[None]:
    """Without what exporters of other people's say."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


_UNDONE = Trial.undone


@pytest.fixture
def undone() -> Callable[[Trial, Form], str]:
    """What runs do outside of tests: see `_hurry`."""
    return _UNDONE


@pytest.fixture(scope="session", autouse=True)
def _hurry() -> None:
    """Runs time their models for a tenth of a second, not for two: no test speaks of milliseconds that close.

    Nor do they undo what makes a model slower: of tests with tiny models, only those of `job.never_slower` do.
    What was imported stays; the collector need not look through it at each of the millions of objects that exporters make.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    for timed in (time_alone, time_side_by_side):
        timed.__kwdefaults__["seconds"] = 0.1
    measuring.TIMED_SECONDS = 0.05
    fastest.runtimes_present = lambda: ["onnxruntime"]  # type: ignore[assignment]
    Trial.undone = lambda *_: "[]"  # type: ignore[method-assign]


@pytest.fixture
def blobs() -> Task:
    """Three classes of points in eight dimensions that a small network learns in seconds."""
    generator = torch.Generator().manual_seed(0)
    centers = 2.0 * torch.randn(3, 8, generator=generator)
    targets = torch.arange(600) % 3
    inputs = centers[targets] + torch.randn(600, 8, generator=generator)
    return Task(
        train=(inputs[:400], targets[:400]),
        validation=(inputs[400:500], targets[400:500]),
        test=(inputs[500:], targets[500:]),
        labels=("a", "b", "c"),
        name="blobs",
    )


@pytest.fixture
def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))


@pytest.fixture
def images() -> Task:
    """Three classes of 8×8 images: noise with a bright row, column or nothing."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(300) % 3
    inputs = 0.3 * torch.randn(300, 1, 8, 8, generator=generator)
    inputs[targets == 0, :, 3, :] += 1.0
    inputs[targets == 1, :, :, 3] += 1.0
    return Task(
        train=(inputs[:200], targets[:200]),
        validation=(inputs[200:250], targets[200:250]),
        test=(inputs[250:], targets[250:]),
        name="images",
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture
def data_folder() -> Path:
    """Where real data sets lie; the test is skipped where they are absent."""
    place = os.environ.get("MIRABELLE_DATA")
    if not place or not (Path(place) / "mnist").is_dir():
        pytest.skip("MIRABELLE_DATA does not name a folder with mnist in it")
    return Path(place)
