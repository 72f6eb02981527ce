"""Preprocessing of texts to token ids by the tokenizer stored next to the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.run import files
from mirabelle.task.preprocessing import lines
from mirabelle.task.preprocessing.raw_inputs import PreparedInputs, Preprocessing, Sizes
from mirabelle.task.preprocessing.text_results import DECODER, Beginnings, Gaps, Paragraphs, Sources, Tokens, Words

TOKENIZER = "tokenizer.json"
_FROM_ENCODING = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


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
        use: what the outputs become: "continue" (what follows a text), "fill" (what a mask token hides), "tag" (a class for
            each word), "write" (another text, by a model with a decoder input); by default they stay what they are.
        begin: first symbol of a decoder.
        end: symbol that ends a text that the model writes.
        mask: token that hides another one.
        written: tokens of the decoder input.
        prefix: put in front of every text.
        text_columns: names of the columns of texts in files with columns, such as those that the model was trained on.

    Raises:
        UserError: E110 for other names of inputs, E111 for answers without pairs, or a use without its tokens.
    """

    key: ClassVar[str] = "tokenizer"
    raw_inputs: ClassVar[str] = "texts"
    suffixes: ClassVar[tuple[str, ...]] = (*lines.SUFFIXES, *lines.ROWS, *lines.TAGGED, lines.QUESTIONS)
    takes_arrays: ClassVar[bool] = False
    dtype: ClassVar[str] = "int64"

    tokenizer: str
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    max_length: Count = 128
    pairs: bool = False
    answers: bool = False
    use: Literal["continue", "fill", "tag", "write"] | None = None
    begin: int | None = None
    end: int | None = None
    mask: int | None = None
    written: Count | None = None
    prefix: str = ""
    text_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs) - set(_FROM_ENCODING)) or len(set(self.inputs)) < len(self.inputs):
            names = ", ".join(_FROM_ENCODING)
            raise UserError(
                "E110", f"inputs must be from {names}; got {list(self.inputs)}", "name one or more of them, each only once"
            )
        if self.answers and not self.pairs:
            raise UserError("E111", "answers need pairs of texts: a question and a paragraph", "set pairs = true")
        due = {"fill": ("mask",), "write": ("begin", "end", "written")}.get(self.use or "", ())
        if absent := [name for name in due if getattr(self, name) is None]:
            raise UserError("E111", f'use = "{self.use}" needs {", ".join(due)}', f"set {', '.join(absent)}")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each model input, (tokens,)."""
        return (((self.max_length,),) * len(self.inputs)) + (((self.written,),) if self.written is not None else ())

    @property
    def input_names(self) -> tuple[str, ...]:
        return (*self.inputs, DECODER) if self.use == "write" else self.inputs

    @property
    def remedy(self) -> str:
        return lines.REMEDY

    def samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, text or pair of texts) of each line of a .txt file that is not empty, or each text of a file like that of the
        training, of which nothing else is read.

        Raises:
            UserError: E130 for a file without text, E131 if it is not UTF-8, is of another kind, or a line does not contain a
                pair.
        """
        suffix = path.suffix.lower()
        if suffix in lines.SUFFIXES:
            return lines.lines_of(path, pairs=self.pairs)
        if suffix == lines.QUESTIONS and self.answers:
            return lines.questions_of(path)
        if suffix in lines.TAGGED and self.use == "tag":
            return lines.tagged_lines_of(path)
        if suffix in lines.ROWS and self.text_columns:
            return lines.rows_of(path, self.text_columns)
        raise UserError("E131", f"the model takes texts, and was not trained on files like {path}", lines.REMEDY)

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
        fixed = sizes[0] is not None
        if self.use == "continue":
            rows = [self._beginning(resources, text) for text in samples]
            return Beginnings(dict.fromkeys(self.inputs, np.zeros(0)), rows, resources, self.max_length, fixed, self.end)
        encodings = self.encodings(samples, resources, whole=fixed)
        arrays = self.inputs_of(encodings)
        if self.answers:
            return Paragraphs(arrays, [paragraph for _, paragraph in samples], self.places(encodings))
        if self.use == "fill":
            assert self.mask is not None, "checked when the record was made"
            self._check_gaps(samples, arrays["input_ids"], resources)
            return Gaps(arrays, resources, self.mask)
        if self.use == "tag":
            return Words(arrays, [self._words(*pair) for pair in zip(samples, encodings, strict=True)])
        if self.use == "write":
            assert self.begin is not None, "checked when the record was made"
            assert self.end is not None, "checked when the record was made"
            decoder = np.zeros((len(encodings), self.written or 0), np.int64)
            return Sources({**arrays, DECODER: decoder}, resources, self.begin, self.end)
        return PreparedInputs(arrays)

    def _beginning(self, tokenizer: Any, text: str) -> list[int]:
        """The tokens of a text with those that the tokenizer puts in front of it, but not those at its end."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoding = tokenizer.encode(self.prefix + text)
        own = [k for k, special in enumerate(encoding.special_tokens_mask) if not special]
        if not own:
            raise UserError("E131", f'the text "{text[:40]}" has no token', "give a text that the tokenizer knows")
        return list(encoding.ids[: own[-1] + 1])

    def _check_gaps(self, texts: Sequence[Any], tokens: Tokens, tokenizer: Any) -> None:
        for text, row in zip(texts, tokens, strict=True):
            if not (row == self.mask).any():
                name = tokenizer.id_to_token(self.mask)
                where = f'in the first {self.max_length} tokens of "{str(text)[:40]}"'
                message = f"the model says what {name} hides, and there is none {where}"
                raise UserError("E131", message, f"write {name} for a word")

    @staticmethod
    def _words(text: str, encoding: Any) -> list[tuple[str, int]]:
        """The words of a text with the position of their first token."""
        places: dict[int, list[int]] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                places.setdefault(word, []).append(place)
        spans = [(encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1], own[0]) for own in places.values()]
        return [(text[begin:end].strip(), place) for begin, end, place in spans]

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

    def encodings(self, texts: Sequence[Any], tokenizer: Any, *, whole: bool = False, words: bool = False) -> list[Any]:
        """The encoding of each text by the tokenizer.

        Args:
            texts: texts, or pairs of texts.
            tokenizer: from `tokenizer_of`.
            whole: whether to pad to `max_length` instead of the longest text.
            words: whether a text is a list of its words.

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
            given = [self.prefix + text if isinstance(text, str) else text for text in texts] if self.prefix else list(texts)
            return list(tokenizer.encode_batch(given, is_pretokenized=words))
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
        columns = {"text_columns": list(self.text_columns)} if self.text_columns else {}
        names = ("pairs", "answers", "use", "begin", "end", "mask", "written", "prefix")
        told = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in told.items() if value not in (None, "") and value is not False}
        return {**plain, **columns, **given}


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
