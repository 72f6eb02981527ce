"""Preprocessing of texts to token ids by the tokenizer stored next to the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.run import files
from mirabelle.task.preprocessing import lines
from mirabelle.task.preprocessing.raw_inputs import Array, PreparedInputs, Preprocessing, Sizes

Tokens = npt.NDArray[np.int64]
TOKENIZER = "tokenizer.json"
_FROM_ENCODING = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True)
class _Paragraphs(PreparedInputs):
    """Questions with their paragraphs, for outputs that score each token to be the first, and the last, of the answer.

    Args:
        paragraphs: the paragraph of each sample.
        places: start and end of each token in its paragraph, in characters, (samples, tokens, 2); −1 for other tokens.
    """

    paragraphs: Sequence[str]
    places: Tokens

    def answers(self, outputs: Sequence[Array], model: Path) -> list[str]:
        import torch

        from mirabelle.numerics.metrics import span_of

        scores, places = outputs[0], self.places
        if scores.shape != places.shape:
            message = (
                f"{model} gives outputs of shape {scores.shape} for {places.shape[1]} tokens, not scores of the first and last "
                "token of an answer"
            )
            raise UserError("E141", message, "download or copy the file again")
        spans = span_of(torch.from_numpy(scores), within=torch.from_numpy(places[:, :, 0] >= 0)).tolist()
        ends = [(place[first, 0], place[last, 1]) for place, (first, last) in zip(places, spans, strict=True)]
        return [paragraph[begin:end] for paragraph, (begin, end) in zip(self.paragraphs, ends, strict=True)]


@record
class Text(Preprocessing):
    """Token ids, attention mask and token types of texts, each int64, (texts, tokens), padded at the end.

    Args:
        tokenizer: digest of the tokenizer.json next to the model.
        inputs: names of the model's inputs: "input_ids", "attention_mask", "token_type_ids".
        max_length: largest number of tokens; longer texts are truncated at the end.
        pairs: whether a sample is a pair of texts.
        answers: whether a sample is a question with a paragraph in which the model marks the answer; then only the paragraph is
            truncated.

    Raises:
        UserError: E110 for other names of inputs, E111 for answers without pairs.
    """

    key: ClassVar[str] = "tokenizer"
    raw_inputs: ClassVar[str] = "texts"
    suffixes: ClassVar[tuple[str, ...]] = lines.SUFFIXES
    takes_arrays: ClassVar[bool] = False
    dtype: ClassVar[str] = "int64"

    tokenizer: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    max_length: Count = 128
    pairs: bool = False
    answers: bool = False

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs) - set(_FROM_ENCODING)) or len(set(self.inputs)) < len(self.inputs):
            names = ", ".join(_FROM_ENCODING)
            raise UserError(
                "E110", f"inputs must be from {names}; got {list(self.inputs)}", "name one or more of them, each only once"
            )
        if self.answers and not self.pairs:
            raise UserError("E111", "answers need pairs of texts: a question and a paragraph", "set pairs = true")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each model input, (tokens,)."""
        return ((self.max_length,),) * len(self.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.inputs

    @property
    def remedy(self) -> str:
        return lines.REMEDY

    def samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, text or pair of texts) of each line of a text file that is not empty.

        Raises:
            UserError: E130 for a file without text, E131 if it is not UTF-8, or a line does not contain a pair.
        """
        return lines.lines_of(path, pairs=self.pairs)

    def open_resources(self, folder: Path) -> Any:
        """The tokenizer from the folder of the model.

        Raises:
            UserError: E130 if the file is missing, E141 if it is not the tokenizer of the model, E160 without the package
                tokenizers.
        """
        return tokenizer_of(folder / TOKENIZER, self.tokenizer)

    def prepare(self, samples: Sequence[Any], sizes: Sizes, resources: Any) -> PreparedInputs:
        """Token ids, padded to `max_length` if the model's input has a fixed number of tokens.

        Raises:
            UserError: E131 if a question leaves no token for its paragraph.
        """
        encodings = self.encodings(samples, resources, whole=sizes[0] is not None)
        arrays = self.inputs_of(encodings)
        if not self.answers:
            return PreparedInputs(arrays)
        return _Paragraphs(arrays, [paragraph for _, paragraph in samples], self.places(encodings))

    def tokens(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: Any, *, whole: bool = False
    ) -> dict[str, Tokens]:
        """Texts as model inputs, (texts, tokens) by name, padded to the longest text.

        Args:
            texts: texts, or pairs of texts.
            tokenizer: from `tokenizer_of`.
            whole: whether to pad to `max_length` instead.

        Raises:
            UserError: E131 if a question leaves no token for its paragraph.
        """
        return self.inputs_of(self.encodings(texts, tokenizer, whole=whole))

    def encodings(self, texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: Any, *, whole: bool = False) -> list[Any]:
        """The encoding of each text by the tokenizer.

        Args:
            texts: texts, or pairs of texts.
            tokenizer: from `tokenizer_of`.
            whole: whether to pad to `max_length` instead of the longest text.

        Raises:
            UserError: E131 if a question leaves no token for its paragraph.
        """
        tokenizer.enable_truncation(self.max_length, strategy="only_second" if self.answers else "longest_first")
        padding = tokenizer.padding or {}
        tokenizer.enable_padding(
            direction="right",
            pad_id=padding.get("pad_id", tokenizer.token_to_id("[PAD]") or 0),
            pad_token=padding.get("pad_token", "[PAD]"),
            length=self.max_length if whole else None,
        )
        try:
            return list(tokenizer.encode_batch(list(texts)))
        except Exception as error:
            if not self.answers:
                raise
            longest = max((pair[0] for pair in texts), key=len)
            message = f'a question leaves none of {self.max_length} tokens for its paragraph: "{longest[:40]}…"'
            raise UserError("E131", message, "give a higher max_length, or leave it out") from error

    def inputs_of(self, encodings: Sequence[Any]) -> dict[str, Tokens]:
        """Model inputs from the encodings of a tokenizer, (texts, tokens) by name."""
        return {name: np.array([getattr(one, _FROM_ENCODING[name]) for one in encodings], np.int64) for name in self.inputs}

    @staticmethod
    def places(encodings: Sequence[Any]) -> Tokens:
        """Start and end of each token in the second text, in characters, (texts, tokens, 2); −1 for other tokens."""
        found = np.array([one.offsets for one in encodings], np.int64)
        second = np.array([[of == 1 for of in one.sequence_ids] for one in encodings])
        return np.where(second[:, :, None], found, -1)

    def to_data(self) -> dict[str, Any]:
        plain = {"tokenizer": self.tokenizer, "inputs": list(self.inputs), "max_length": self.max_length}
        return {**plain, **{name: True for name in ("pairs", "answers") if getattr(self, name)}}


def vocabulary_of(data: bytes) -> int:
    """The size of an embedding for all tokens of a tokenizer.json: its highest token id + 1."""
    import tokenizers

    return 1 + max(tokenizers.Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True).values())


def tokenizer_of(path: Path, digest: str) -> Any:
    """Load a tokenizer.json.

    Args:
        path: the file.
        digest: the digest that the file must have.

    Raises:
        UserError: E160 without the package tokenizers, E130 if the file is missing, E141 if it has another digest.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("E160", f"texts need tokenizers: {error}", "pip install 'mirabelle[huggingface]'") from error
    if not path.is_file():
        raise UserError("E130", f"no tokenizer at {path}", f"copy the {TOKENIZER} of the run there")
    data = path.read_bytes()
    if files.digest(data) != digest:
        raise UserError("E141", f"{path} is not the tokenizer of the model", f"use the {TOKENIZER} of the model's run")
    return tokenizers.Tokenizer.from_str(data.decode())
