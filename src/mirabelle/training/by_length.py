"""Batches of texts of similar lengths, without the padding that all texts of a batch share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.state import in_eval_mode
from mirabelle.task.batch import Batch, Inputs, call, tensors_of
from mirabelle.task.indexed import Indexed
from mirabelle.task.samples import Samples, Stream

_MASK = "attention_mask"
_OF_TOKENS = (_MASK, "input_ids", "token_type_ids", "position_ids")
_SORTED_TOGETHER = 50  # batches
_COMPARED = 4  # samples of which a shortened batch is compared with the whole one
_TOLERANCE = 1e-3  # of the largest output: far above rounding, far below what a token changes that is read and should not be


class ByLength:
    """Cuts batches after the last token that counts in any of their texts.

    Args:
        data: texts with an input "attention_mask", (samples, tokens), 0 for padding.
        models: the model and its teacher, whose outputs must not depend on padding.

    Raises:
        UserError: E111 if the data are no such texts, or outputs of a model depend on the padding or have its length.
    """

    def __init__(self, data: Samples | Stream, *models: nn.Module) -> None:
        if isinstance(data, Stream):
            raise _refused("the data come from a loader, which determines the batches")
        if isinstance(data, Indexed):
            raise _refused("the data are read when they are needed")
        mask = data.inputs.get(_MASK) if isinstance(data.inputs, Mapping) else None
        if mask is None or mask.ndim != 2:  # noqa: PLR2004 (samples, tokens)
            raise _refused(f'the inputs have no "{_MASK}" of one number for each token')
        self.lengths = _lengths(mask)
        shortest = data.at(self.lengths.argsort(stable=True)[:_COMPARED])
        for model in models:
            _check_padding_has_no_influence(model, shortest)

    def order(self, order: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """`order_by_length` of these data."""
        return order_by_length(order, self.lengths, batch_size, generator)

    @staticmethod
    def cut(batch: Batch, length: int | None = None) -> Batch:
        """The batch without the columns behind its longest text, or behind a length."""
        return Batch(_cut(batch.inputs, length), batch.targets, batch.index, batch.view)

    @staticmethod
    def longest(batch: Batch) -> int:
        """The length of the longest text of a batch."""
        return int(_lengths(batch.inputs[_MASK]).max())


def batches_by_length(data: Samples, batch_size: int, model: nn.Module) -> list[Batch] | None:
    """All samples in the order of their lengths, in batches without the columns behind their longest text.

    Args:
        data: samples of a task.
        batch_size: largest number of samples in a batch; all have nearly as many.
        model: whose outputs must not depend on padding.

    Returns:
        The batches; None where `ByLength` would refuse the data or the model.
    """
    try:
        lengths = ByLength(data, model).lengths
    except UserError:
        return None
    parts = torch.tensor_split(lengths.argsort(stable=True), -(-len(lengths) // batch_size))  # none of a single sample
    return [ByLength.cut(data.at(index)) for index in parts]


def texts_of(data: Samples | Stream) -> Samples | None:
    """The data, if they are texts in memory that say with an "attention_mask" which tokens count."""
    given = data.first(1).inputs if isinstance(data, Samples) else None
    named = isinstance(given, Mapping) and _MASK in given
    return data if named and isinstance(data, Samples) else None


def without_shared_padding(data: Samples, model: nn.Module) -> Samples:
    """The samples without the columns behind the longest text of all, if that changes nothing; otherwise as they are."""
    try:
        ByLength(data, model)
    except UserError:
        return data
    return Samples(_cut(data.inputs), data.targets)


def order_by_length(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """An order in which full batches have texts of similar lengths, and follow each other at random.

    Every 50 batches of the given order are sorted by length; then all batches are shuffled.

    Args:
        order: indices of the samples of full batches, at random.
        lengths: of all samples.
        batch_size: divides the number of indices.
        generator: shuffles the batches.

    Example:
        >>> lengths = torch.tensor([3, 9, 4, 8])
        >>> order_by_length(torch.arange(4), lengths, 2, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3])
    """
    parts = [part[lengths[part].argsort(stable=True)] for part in torch.split(order, _SORTED_TOGETHER * batch_size)]
    batches = torch.cat(parts).reshape(-1, batch_size)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


def _lengths(mask: Tensor) -> Tensor:
    """The number of tokens up to the last that counts, at least 1, (samples,)."""
    return (mask.bool() * torch.arange(1, mask.shape[1] + 1)).amax(1).clamp_min(1)


def _cut(inputs: Inputs, length: int | None = None) -> Inputs:
    assert isinstance(inputs, Mapping), "texts have named inputs"
    mask = inputs[_MASK]
    length = length or int(_lengths(mask).max())
    return {
        name: given[:, :length] if name in _OF_TOKENS and given.shape[:2] == mask.shape else given
        for name, given in inputs.items()
    }


@torch.no_grad()
def _check_padding_has_no_influence(model: nn.Module, batch: Batch) -> None:
    with in_eval_mode(model):
        whole = tensors_of(call(model, batch.inputs))
        try:
            short = tensors_of(call(model, _cut(batch.inputs)))
        except Exception as error:  # code that was written, or recorded, for one length raises anything
            raise _refused("the model does not work with shorter texts") from error
    if [before.shape for before in whole] != [after.shape for after in short]:
        raise _refused("the model has outputs for each token, whose number would change from batch to batch")
    if not all(_equal(before, after) for before, after in zip(whole, short, strict=True)):
        raise _refused("outputs of the model depend on the padding")


def _equal(before: Tensor, after: Tensor) -> bool:
    """Whether outputs are the same but for rounding."""
    if not before.is_floating_point():
        return torch.equal(before, after)
    largest = float(before.abs().max()) if before.numel() else 0.0
    return bool(((before.float() - after.float()).abs() <= _TOLERANCE * max(largest, 1.0)).all())


def _refused(why: str) -> UserError:
    return UserError(
        "E111", f"texts cannot be grouped by length: {why}", "leave group_by_length out", path=("group_by_length",)
    )
