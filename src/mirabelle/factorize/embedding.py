"""Embeddings as a narrower table and a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.factorize.factorizing import Factorizes
from mirabelle.factorize.rank_rule import Keep, RankRule
from mirabelle.records.record import Count, Patterns, PositiveShare, record
from mirabelle.training import Training

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.factorize.candidate import Candidate
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Embedding(Factorizes):
    """Embeddings as a narrower table and a linear layer: a table of (entries, width) ≈ (entries, rank) (rank, width).

    Files become smaller, inference does not become faster: a row that was only looked up is multiplied by rank · width weights.
    With the method "svd" the error of all rows counts alike; with "whitened" that of a row counts as often as training samples
    look it up, plus one. A table that has other holders, such as the output layer of a language model, is left alone, since
    the other holder needs the whole; so is one with `max_norm`, which changes while it is read.

    Args:
        energy: share of the squared norm to keep, in (0, 1].
        rank: rank of all tables; one of lower full rank is left alone.
        ratio: rank as a fraction of the full rank, in (0, 1].
        ranks: patterns of module names -> rank.
        parameters: limit on parameters of the model, such as "20k" or "60%".
        size: limit on the size of the parameters in float32, such as "80 kB" or "60%".
        method: "svd" or "whitened".
        samples: number of training samples for "whitened".
        multiple: ranks are rounded up to a multiple of this.
        include: patterns of module names; by default all embeddings.
        exclude: patterns of names of modules that stay as they are.
        train: training of the factors (fine-tuning); None for no training.

    Raises:
        UserError: as `factorize.Linear`.

    Example:
        >>> import mirabelle, torch
        >>> table, ids = torch.nn.Embedding(100, 16), torch.randint(0, 100, (40,))
        >>> task = mirabelle.Task(train=(ids, torch.zeros(40, 16)), test=(ids, torch.zeros(40, 16)), loss="mse")
        >>> small = Embedding(rank=4)(table, task, mirabelle.Run("runs/example"))
        >>> small.rows.weight.shape, small.expand.weight.shape, small(ids).shape
        (torch.Size([100, 4]), torch.Size([16, 4]), torch.Size([40, 16]))

    Source: Lan, Chen, Goodman, Gimpel, Sharma, Soricut 2020, arXiv:1909.11942 (ALBERT, factorized embeddings); Chen, Si, Li,
    Chelba, Hsieh 2018, arXiv:1806.06950 (weighted by frequency).
    """

    keep: ClassVar[Keep] = "smaller"

    energy: PositiveShare | None = None
    rank: Count | None = None
    ratio: PositiveShare | None = None
    ranks: Mapping[str, Count] | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    method: Literal["svd", "whitened"] = "svd"
    samples: Count = 1024
    multiple: Count = 8
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def __post_init__(self) -> None:
        RankRule.of(self)

    def kinds(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return (nn.Embedding,)

    def _candidates(
        self, model: nn.Module, layers: Mapping[str, nn.Module], task: Task, run: Run
    ) -> tuple[list[Candidate], dict[str, str]]:
        from torch import nn

        from mirabelle.factorize.embedding_candidate import counts_of_rows, embedding_candidate
        from mirabelle.factorize.seen_inputs import seen_inputs

        tables = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Embedding)}
        refused = {name: "its `max_norm` changes it while it is read" for name, table in tables.items() if table.max_norm}
        seen = seen_inputs(model, task, tables)
        refused |= {name: why for name, own in seen.items() if (why := own.why_unusable())}
        tables = {name: table for name, table in tables.items() if name not in refused}
        counts = (
            counts_of_rows(model, task, tables, samples=self.samples, seed=run.seed_for("calibration"))
            if self.method == "whitened"
            else {}
        )
        return [embedding_candidate(name, table, seen[name], counts.get(name)) for name, table in tables.items()], refused
