"""The shortest coding, and the length of levels before there is a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.artifact.mira import pack
from mirabelle.artifact.tensor_costs import costs_of
from mirabelle.codecs import Contexts, Deflate, Histogram
from mirabelle.codecs.shortest import length_of_levels, shortest
from mirabelle.quantize.codebook_layer import CodebookLayer
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch


@pytest.mark.parametrize(("shape", "density"), [((60, 80), 0.05), ((10, 40), 0.9), ((1, 12), 0.5), ((300, 200), 0.002)])
def test_levels_take_in_a_file_what_was_foretold(shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(0)
    levels = np.where(rng.random(shape) < density, np.rint(rng.normal(0, 2, shape)), 0)
    dense = nn.Linear(shape[1], shape[0], bias=False)
    layer = CodebookLayer.of_levels(dense, torch.from_numpy(levels).float(), torch.tensor(0.03125), None)
    costs = costs_of(pack(export(nn.Sequential(layer), Batch(torch.zeros(2, shape[1]), torch.zeros(2)))))
    stored = sum(one.size_bytes for one in costs.tensors)
    assert length_of_levels(levels) == pytest.approx(stored, rel=0.04, abs=6)


def test_the_shortest_is_found_and_named() -> None:
    symbols = np.random.default_rng(0).integers(0, 3, (40, 50)).astype(np.uint8)
    codecs = (Deflate(), Histogram(), Contexts())
    body, k = shortest(symbols, codecs)
    lengths = [len(codec.encode(symbols)) for codec in codecs]
    assert (len(body), k) == (min(lengths), int(np.argmin(lengths)))


def test_no_levels_take_nothing_and_zeros_next_to_nothing() -> None:
    assert length_of_levels(np.zeros((0, 3))) == 0
    assert length_of_levels(np.zeros((500, 800))) < 12
