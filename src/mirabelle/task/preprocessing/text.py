"""Texts to token ids, by the tokenizer that lies beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.run import files

Tokens = npt.NDArray[np.int64]
TOKENIZER = "tokenizer.json"
_FROM_ENCODING = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@record
class Text:
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
