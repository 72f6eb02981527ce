"""Texts to token ids, by the tokenizer that lies beside the model."""

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
    """Questions with their paragraphs; outputs score each token to be the first, and the last, of the answer.

    Args:
        paragraphs: (samples,).
        places: first character of each token in its paragraph, and the one behind it, (samples, tokens, 2); −1 elsewhere.
    """

    paragraphs: Sequence[str]
    places: Tokens

    def answers(self, outputs: Sequence[Array], model: Path) -> list[str]:
        import torch

        from mirabelle.numerics.metrics import span_of

        scores, places = outputs[0], self.places
        if scores.shape != places.shape:
            message = f"{model} gives outputs of shape {scores.shape} for {places.shape[1]} tokens, no first and last ones"
            raise UserError("E141", message, "fetch the file again")
        spans = span_of(torch.from_numpy(scores), within=torch.from_numpy(places[:, :, 0] >= 0)).tolist()
        ends = [(place[first, 0], place[last, 1]) for place, (first, last) in zip(places, spans, strict=True)]
        return [paragraph[begin:end] for paragraph, (begin, end) in zip(self.paragraphs, ends, strict=True)]


@record
class Text(Preprocessing):
    """Token ids, a mask of real tokens and types of tokens, int64, (texts, tokens), padded at the end.

    Args:
        tokenizer: digest of tokenizer.json, which lies beside the model.
        inputs: names under which the model takes them: "input_ids", "attention_mask", "token_type_ids".
        max_length: in tokens; what is longer is cut at the end.
        pairs: whether a sample is two texts.
        answers: whether it is a question and a paragraph, in which the model marks the answer; only the paragraph is cut.

    Raises:
        UserError: E110 for other names, E111 for answers without pairs.
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
            raise UserError("E110", f"a tokenizer gives {names}; got {list(self.inputs)}", "name some of these, each once")
        if self.answers and not self.pairs:
            raise UserError("E111", "an answer stands in the second of a pair of texts", "give pairs")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one model input each: (tokens,)."""
        return ((self.max_length,),) * len(self.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.inputs

    @property
    def remedy(self) -> str:
        return lines.REMEDY

    def samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """The lines of a file, each a text or a pair of them; errors as of `lines_of`."""
        return lines.lines_of(path, pairs=self.pairs)

    def open_resources(self, folder: Path) -> Any:
        """The tokenizer; errors as of `tokenizer_of`."""
        return tokenizer_of(folder / TOKENIZER, self.tokenizer)

    def prepare(self, samples: Sequence[Any], sizes: Sizes, resources: Any) -> PreparedInputs:
        """Token ids, padded to `max_length` where the model takes no other number of tokens; errors as of `encodings`."""
        encodings = self.encodings(samples, resources, whole=sizes[0] is not None)
        arrays = self.inputs_of(encodings)
        if not self.answers:
            return PreparedInputs(arrays)
        return _Paragraphs(arrays, [paragraph for _, paragraph in samples], self.places(encodings))

    def tokens(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: Any, *, whole: bool = False
    ) -> dict[str, Tokens]:
        """Texts as model inputs, (texts, tokens) by name, as many tokens as the longest text has.

        Args:
            texts: or pairs of them.
            tokenizer: what `tokenizer_of` gives.
            whole: pad to `max_length`.
        """
        return self.inputs_of(self.encodings(texts, tokenizer, whole=whole))

    def encodings(self, texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: Any, *, whole: bool = False) -> list[Any]:
        """What the tokenizer says of each text; arguments as of `tokens`.

        Raises:
            UserError: E131 for a question that leaves no token to its paragraph.
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
            message = f'a question leaves no token of {self.max_length} to its paragraph: "{longest[:40]}…"'
            raise UserError("E131", message, "give a higher max_length, or leave it out") from error

    def inputs_of(self, encodings: Sequence[Any]) -> dict[str, Tokens]:
        """Model inputs by name, (texts, tokens)."""
        return {name: np.array([getattr(one, _FROM_ENCODING[name]) for one in encodings], np.int64) for name in self.inputs}

    @staticmethod
    def places(encodings: Sequence[Any]) -> Tokens:
        """First character of each token in the second text and the one behind it, (texts, tokens, 2); −1 for other tokens."""
        found = np.array([one.offsets for one in encodings], np.int64)
        second = np.array([[of == 1 for of in one.sequence_ids] for one in encodings])
        return np.where(second[:, :, None], found, -1)

    def to_data(self) -> dict[str, Any]:
        plain = {"tokenizer": self.tokenizer, "inputs": list(self.inputs), "max_length": self.max_length}
        return {**plain, **{name: True for name in ("pairs", "answers") if getattr(self, name)}}


def vocabulary_of(data: bytes) -> int:
    """How many tokens an embedding needs for all that a tokenizer.json may give: its highest id + 1."""
    import tokenizers

    return 1 + max(tokenizers.Tokenizer.from_str(data.decode()).get_vocab(with_added_tokens=True).values())


def tokenizer_of(path: Path, digest: str) -> Any:
    """The tokenizer in a tokenizer.json.

    Raises:
        UserError: E160 without the package tokenizers, E130 when the file is missing, E141 when it is another one than `digest`
            says.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("E160", f"texts need tokenizers: {error}", "pip install 'mirabelle[huggingface]'") from error
    if not path.is_file():
        raise UserError("E130", f"no tokenizer at {path}", f"put the {TOKENIZER} of the run there")
    data = path.read_bytes()
    if files.digest(data) != digest:
        raise UserError("E141", f"{path} is another tokenizer than the model was made with", f"take the {TOKENIZER} of its run")
    return tokenizers.Tokenizer.from_str(data.decode())
