"""Settings of running text as the data of a language model, under `[task.arguments]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record

Part = Annotated[float, Field(gt=0, lt=1)]


@record
class Corpus:
    """A task from a .txt file whose text a language model goes on with, symbol by symbol.

    The text is cut into windows; the targets of a window are its symbols one further on. It is divided where it stands: the
    beginning trains, what follows validates, the end tests. `predict` tells what follows a text.

    Args:
        window: symbols that the model sees at once.
        tokenizer: the folder of a model with its tokenizer, "hf:organisation/model" or "ms:organisation/model", for tokens by
            name ("input_ids", "attention_mask"); by default symbols are the characters of the text.
        test_fraction: of the symbols.
        validation_fraction: the same.
        metric: by name, as `Metric.of` knows it; by default "negative_perplexity".
        extra_metrics: further metrics that are reported and decide nothing.

    Raises:
        UserError: E130 when the file or the tokenizer is missing; E131 when it is no text, or too short for a window in each
            part; E110 for fractions that leave nothing; E160 for a tokenizer without transformers.
    """

    window: Count = 128
    tokenizer: str | None = None
    test_fraction: Part = 0.1
    validation_fraction: Part = 0.1
    metric: str | None = None
    extra_metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.test_fraction + self.validation_fraction >= 1:
            got = f"{self.test_fraction} and {self.validation_fraction}"
            raise UserError("E110", f"test and validation fractions must add up to less than 1; got {got}", "leave some")
