"""An embedding as a candidate for factors, and how often its rows are looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mirabelle.calibration.layer_moments import Masked
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.factorize.candidate import Candidate, Cost, Ranks
from mirabelle.factorize.low_rank_embedding import LowRankEmbedding
from mirabelle.factorize.seen_inputs import Seen
from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics.low_rank import principal
from mirabelle.runtime.timing import Operator
from mirabelle.task.task import Task


def embedding_candidate(name: str, dense: nn.Embedding, seen: Seen, counts: Tensor | None) -> Candidate:
    """An embedding as a candidate.

    Args:
        name: of the layer.
        dense: the embedding.
        seen: its inputs.
        counts: how often each row is looked up, (entries,), by which its error counts; None for all rows alike.
    """
    entries, width = dense.weight.shape
    directions, lost = principal(dense.weight, counts)
    tokens = [math.prod(shape) for shape in seen.shapes]

    def cost(ranks: Ranks) -> Cost:
        if not ranks:
            return Cost(entries * width, 0, ())
        products = tuple(Operator("MatMul", (count, ranks[0]), (ranks[0], width)) for count in tokens)
        return Cost((entries + width) * ranks[0], ranks[0] * width * sum(tokens) // seen.samples, products)

    def made(ranks: Ranks) -> LowRankEmbedding:
        return LowRankEmbedding.factorized(dense, directions[:, : ranks[0]])

    return Candidate(name, (lost.numpy(),), cost, made)


def counts_of_rows(
    model: nn.Module, task: Task, layers: Mapping[str, nn.Embedding], *, samples: int, seed: int
) -> dict[str, Tensor]:
    """How often training samples look up each row of embeddings, plus one, so that every row counts: (entries,).

    Args:
        model: runs in eval mode.
        task: gives the samples.
        layers: embeddings by name.
        samples: number of training samples.
        seed: of the draw.
    """
    counts = {name: torch.ones(layer.num_embeddings, dtype=torch.float64) for name, layer in layers.items()}

    def count(run: LayerRun) -> None:
        assert run.input is not None, "an embedding takes a tensor"
        counts[run.name] += torch.bincount(batches.of_tokens(run.input).flatten().long(), minlength=len(counts[run.name]))

    batches = Masked(CalibrationSamples.drawn(task.train, samples, seed).for_model(model))
    watch(model, batches, layers, before=count)
    return counts
