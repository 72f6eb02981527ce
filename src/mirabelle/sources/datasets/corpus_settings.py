"""The settings of a text corpus for a language model, under `[task.arguments]` of a recipe."""

from __future__ import annotations

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.sources.datasets.divided import Part


@record
class Corpus:
    """A language modelling task from a .txt file: predict the next token or character.

    The text is cut into windows; the targets of a window are its tokens shifted by one. The first part of the text is used for
    training, the next for validation, the last for test. `mirabelle predict` continues a text.

    Args:
        window: number of tokens or characters that the model sees at once.
        tokenizer: folder of a model with its tokenizer, "hf:organisation/model" or "ms:organisation/model"; inputs are then
            tensors by name ("input_ids", "attention_mask"). By default the tokens are the characters of the text.
        test_fraction: fraction of the text for test.
        validation_fraction: fraction of the text for validation.
        metric: a name that `Metric.of` accepts; by default "negative_perplexity".
        extra_metrics: further metrics, which are only reported.

    Raises:
        UserError: E130 if the file or the tokenizer is missing, E131 if it is not text, or too short for a window in each part,
            E110 if the fractions leave no training data, E160 if a tokenizer is given and transformers is not installed.
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
            message = f"test and validation fractions must add up to less than 1; got {got}"
            raise UserError("E110", message, "leave some text for training")
