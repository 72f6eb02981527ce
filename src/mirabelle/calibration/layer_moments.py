"""Change layers one after the other by the second moments of the inputs that they get once those before them have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.passes import layer_by_layer
from mirabelle.calibration.samples import DrawnRows, SampleBatches
from mirabelle.errors import UserError
from mirabelle.model.watch import LayerRun, watch
from mirabelle.task.batch import Batch, Inputs, tensors_of

_ROWS_OF_A_COLUMN, _FEWEST, _FEWEST_LARGE, _MOST = 8, 128, 32, 4096
_MOST_ROWS = 1 << 18  # of a layer; far more than columns, and those of large images resemble each other
_SHARE = 0.9  # of the weights, whose layers get as many rows
_EXACT_COLUMNS = 2048  # moments of wider layers are computed in float32, which halves memory and time


def change_by_moments(
    model: nn.Module,
    batches: SampleBatches,
    layers: Mapping[str, tuple[nn.Module, Columns]],
    change: Callable[[str, Moments], None],
    *,
    diagonal: bool = False,
    centred: bool = False,
) -> None:
    """Change layers in the order in which they run.

    Memory holds the moments of one layer, and the activations of one batch. If all batches with as many rows as the first would
    have more than 262,144, rows are drawn, the same share of every batch. Tokens that an input "attention_mask" masks do not
    count: in data that are padded to one length they could be most of all, and their results are not read.

    Args:
        model: its layers are changed in place.
        batches: of the model's inputs.
        layers: by name, with what they are as matrix products; each runs once in a forward pass.
        change: (name, moments of the inputs: E[x xᵀ], (groups, columns, columns), or with `diagonal` E[x²], (groups, columns))
            changes the layer.
        diagonal: whether the diagonal is enough.
        centred: whether the moments are those of x − E[x], and have the means.

    Raises:
        UserError: E131 if inputs of a layer are NaN or infinite.
    """

    masked = Masked(batches)

    def begin(name: str, _changes: bool) -> _Collected:  # noqa: FBT001  # as `layer_by_layer` calls it
        columns = layers[name][1]
        dtype = torch.float64 if columns.width <= _EXACT_COLUMNS else torch.float32
        return _Collected(name, columns, masked, change, Moments(centred=centred, diagonal=diagonal, dtype=dtype))

    layer_by_layer(model, masked, {name: layer for name, (layer, _) in layers.items()}, begin)


def runs_of(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> Counter[str]:
    """How often each layer runs in a forward pass."""
    runs = Counter[str]()

    def count(run: LayerRun) -> None:
        runs[run.name] += 1

    watch(model, [inputs], layers, before=count)
    return runs


def samples_needed(model: nn.Module, few: SampleBatches, layers: Mapping[str, tuple[nn.Module, Columns]]) -> int:
    """How many samples give layers with 90 % of the weights 8 rows for each column of theirs, from 128 to 4,096.

    Samples so large that 128 of them would need a pass for each layer may be fewer, down to 32.

    With fewer rows, moments tell of the samples that were drawn more than of the data. A layer that sees one row of each
    sample, such as a classifier, would ask for many times the samples of all others.

    Args:
        model: runs on the samples.
        few: samples by which the rows of one sample are counted; masked tokens do not count.
        layers: by name, with what they are as matrix products.
    """
    rows, masked = Counter[str](), Masked(few)

    def count(run: LayerRun) -> None:
        if run.input is not None:
            rows[run.name] += layers[run.name][1].rows_in(masked.read(run.input))

    watch(model, masked, {name: layer for name, (layer, _) in layers.items()}, before=count)
    drawn = sum(len(next(iter(tensors_of(inputs)))) for inputs in few)
    needed: list[tuple[int, int]] = [
        (-(-_ROWS_OF_A_COLUMN * layers[name][1].width * drawn // seen), layers[name][1].layer.weight.numel())
        for name, seen in rows.items()
        if seen
    ]
    fewest = min(_FEWEST, max(_FEWEST_LARGE, few.most_together(model)))
    due, served = _SHARE * sum(size for _, size in needed), 0
    for samples, size in sorted(needed):
        served += size
        if served >= due:
            return min(max(fewest, samples), _MOST)
    return fewest


class Masked:
    """Batches of inputs, which remember the mask of the batch that runs.

    Args:
        batches: of inputs, or of samples.
    """

    def __init__(self, batches: SampleBatches | Sequence[Batch]) -> None:
        self._batches = batches
        self._mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Inputs]:
        for batch in self._batches:
            inputs = batch.inputs if isinstance(batch, Batch) else batch
            two_texts = isinstance(inputs, Mapping) and any(name.startswith("decoder_") for name in inputs)
            named = isinstance(inputs, Mapping) and not two_texts  # which have a mask each
            found = inputs.get("attention_mask") if named else None
            self._mask = found.bool() if isinstance(found, Tensor) else None
            yield inputs

    def rows_in_all(self, rows_in_first: int) -> int:
        """As that of the batches; where a mask hides more in some batches than in others, about so many."""
        assert isinstance(self._batches, SampleBatches), "which know their sizes"
        return self._batches.rows_in_all(rows_in_first)

    def read(self, given: Tensor) -> Tensor:
        """The inputs of a layer, (samples, tokens, width), at the tokens that count, (tokens, width); others as given."""
        mask = self._mask
        return given[mask] if mask is not None and given.ndim > mask.ndim and given.shape[: mask.ndim] == mask.shape else given

    def of_tokens(self, numbers: Tensor) -> Tensor:
        """Numbers of tokens, (samples, tokens), that count, (tokens,); others as given."""
        return numbers[self._mask] if self._mask is not None and numbers.shape == self._mask.shape else numbers


class _Collected:
    """Collects the moments of a layer's inputs, and then has the layer changed."""

    def __init__(
        self, name: str, columns: Columns, masked: Masked, change: Callable[[str, Moments], None], moments: Moments
    ) -> None:
        self._name, self._columns, self._masked, self._change, self._moments = name, columns, masked, change, moments
        self._share: float | None = None  # of the rows of each batch
        self._taken = 0  # batches

    def take(self, given: Tensor) -> bool:
        read = self._masked.read(given)
        batched = read if self._columns.has_batch(read) else read.unsqueeze(0)
        rows = self._columns.rows_in(batched)
        if self._share is None:
            self._share = _MOST_ROWS / max(rows * len(self._masked), 1)
        if self._share >= 1:
            parts = self._columns.of(read)
        else:
            parts = self._columns.at(batched, DrawnRows.draw(rows, round(self._share * rows), seed=self._taken).numbers)
        self._taken += 1
        for part in parts:
            self._moments.add(part)
        return True

    def finish(self) -> None:
        if not self._moments.rows:
            message = f'no input of layer "{self._name}" counts on the calibration data: all its tokens are masked'
            raise UserError("E131", message, "correct the attention mask, or exclude the layer")
        if not bool(self._moments.mean().isfinite().all()):
            message = f'inputs of layer "{self._name}" are NaN or infinite on the calibration data'
            raise UserError("E131", message, "correct the data or the model, or exclude the layer")
        self._change(self._name, self._moments)
