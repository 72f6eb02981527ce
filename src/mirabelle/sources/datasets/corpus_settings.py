"""The settings of a text corpus for a language model, under `[task.arguments]` of a recipe."""

from __future__ import annotations

from typing import Literal

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.sources.datasets.divided import Part


@record
class Corpus:
    """A language modelling task from a .txt file: predict the next token or character, or tokens that are hidden.

    The text is cut into windows; the targets of a window are its tokens shifted by one. The first part of the text is used for
    training, the next for validation, the last for test. `mirabelle predict` continues a text, greedily.

    In a "masked" task 15 % of the tokens of each window are targets, at least one, drawn once with `seed`: 80 % of them are
    replaced by the mask token, 10 % by a random token, 10 % stay as they are. A window begins and ends with the tokenizer's
    special tokens. `mirabelle predict` fills the mask tokens in a text. Source: Devlin et al. 2019, arXiv:1810.04805.

    Args:
        kind: "masked" for a masked language model, which sees both sides of a token; needs a tokenizer.
        window: number of tokens or characters that the model sees at once.
        tokenizer: folder of a model with its tokenizer, "hf:organisation/model" or "ms:organisation/model"; inputs are then
            tensors by name ("input_ids", "attention_mask"). By default the tokens are the characters of the text.
        test_fraction: fraction of the text for test.
        validation_fraction: fraction of the text for validation.
        metric: a name that `Metric.of` accepts; by default "negative_perplexity".
        extra_metrics: further metrics, which are only reported.
        seed: of the tokens that are hidden.

    Raises:
        UserError: E130 if the file or the tokenizer is missing, E131 if it is not text, or too short for a window in each part,
            E110 if the fractions leave no training data, E111 for a masked task without tokenizer, E121 if it has no mask token
            or the window holds only special tokens, E160 if a tokenizer is given and transformers is not installed.
    """

    kind: Literal["masked"] | None = None
    window: Count = 128
    tokenizer: str | None = None
    test_fraction: Part = 0.1
    validation_fraction: Part = 0.1
    metric: str | None = None
    extra_metrics: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.test_fraction + self.validation_fraction >= 1:
            got = f"{self.test_fraction} and {self.validation_fraction}"
            message = f"test and validation fractions must add up to less than 1; got {got}"
            raise UserError("E110", message, "leave some text for training")
        if self.kind == "masked" and self.tokenizer is None:
            raise UserError("E111", "a masked task needs the mask token of a tokenizer", "set tokenizer to the model's folder")
