"""The settings of texts and of questions about them, under `[task.arguments]` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.sources.datasets.divided import Divided
from mirabelle.sources.names import CORPUS, QUESTIONS, TAGGED


@record
class TextFile(Divided):
    """Texts with a class, one in each row of a file.

    The file is .tsv or .jsonl, or, if `tokenizer` is given, .csv or .parquet; or it has the suffix .label, .train or .test (as
    in TREC), and its lines are parsed by `pattern`. Texts become token ids by the tokenizer of a transformers model, padded to
    one length. The tokenizer is stored with the compressed model, so that `mirabelle predict` accepts texts.

    Args:
        tokenizer: folder of a model with its tokenizer, relative to the folder of the file; or "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder".
        text: name of the text column; by default the only one besides the target, or "text", "sentence", "content" or
            "question".
        pair: name of the column of the second text, if a sample is a pair of texts.
        target: name of the column of classes.
        pattern: a regular expression that must match every whole line; its two groups are the class and the text, such as
            "([A-Z]+):[a-z]+ (.+)" for the six classes of TREC.
        encoding: character encoding of the file, "utf-8" or "latin-1".
        samples: most training texts, drawn with `seed`; by default all.
        labels: names of the classes in the order of the model's outputs; by default those in the column, sorted by length.
        validation: another file of this format in the same folder; by default a part of the first.
        test: the same for test.
        max_length: most tokens of a text; longer texts are truncated at the end.
        inputs: the model's inputs among "input_ids", "attention_mask" and "token_type_ids"; by default those of the tokenizer,
            "token_type_ids" only for pairs.
        kind: "unlabelled" for texts without classes: the compressed model is to give the outputs of the original one. A .txt
            file then has one text in each line.

    Raises:
        UserError: E160 if transformers is not installed, E130 if a file or the tokenizer is missing, E131 if texts have no
            class or a row cannot be read, E110 if a setting names a column that does not exist, or the pattern is not valid.
    """

    tokenizer: str
    text: str | None = None
    pair: str | None = None
    target: str = "label"
    pattern: str | None = None
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    samples: Count | None = None
    labels: tuple[str, ...] = ()
    validation: str | None = None
    test: str | None = None
    max_length: Count = 128
    inputs: tuple[str, ...] = ()
    kind: Literal["unlabelled"] | None = None


@record
class TokenFile(Divided):
    """Texts with a tag for each word, such as names of persons and places.

    In a .jsonl file each row has a list "tokens" (or "words") and a list "tags" (or "ner_tags", "pos_tags", "labels"). Other
    files have one word in each line, its tag behind the last space or tab, and an empty line after each text; a .conllu file
    has its ten columns, of which the second and the fourth (the universal part of speech) are read.

    The target of a word is that of its first token; further tokens, and special ones, have none.

    Args:
        kind: "tokens".
        tokenizer: folder of a model with its tokenizer, relative to the folder of the file; or "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder".
        labels: names of the tags in the order of the model's outputs; by default "O" and then those in the file, sorted.
        validation: another file of this format in the same folder; by default a part of the first.
        test: the same for test.
        max_length: most tokens of a text; words behind them are left out.
        inputs: the model's inputs among "input_ids", "attention_mask" and "token_type_ids"; by default the first two.
        class_weights: not available.

    Raises:
        UserError: E160 if transformers is not installed, E130 if a file or the tokenizer is missing, E131 if a line cannot be
            read, E111 for class weights.
    """

    tokenizer: str
    kind: Literal["tokens"] = "tokens"
    labels: tuple[str, ...] = ()
    validation: str | None = None
    test: str | None = None
    max_length: Count = 128
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")

    def __post_init__(self) -> None:
        _refuse_class_weights(self.class_weights, "tags of words")


@record
class SequenceFile(Divided):
    """Pairs of texts, such as sentences with their translations, for a model that writes the second for the first.

    The decoder reads its start token and the target text, shifted by one (teacher forcing); targets are the tokens of the
    text and its end symbol. `mirabelle predict` writes texts greedily.

    Args:
        kind: "sequences".
        tokenizer: folder of a model with its tokenizer, relative to the folder of the file; or "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder". It reads both texts.
        text: name of the column of the first text; by default the first column. A .txt file has no header: its lines are a
            text, a tab and a text.
        target: name of the column of the second text; by default the second column.
        prefix: put in front of every first text, such as "summarize: ".
        begin: first symbol of the decoder; by default `decoder_start_token_id` of the config.json in the tokenizer's folder.
        validation: another file of this format in the same folder; by default a part of the first.
        test: the same for test.
        max_length: most tokens of a first text.
        written: most tokens of a second text, with its end symbol; by default `max_length`.
        metric: by default "negative_perplexity".
        class_weights: not available.

    Raises:
        UserError: E160 if transformers is not installed, E130 if a file or the tokenizer is missing, E131 if a row cannot be
            read, E110 if a setting names a column that does not exist, E121 if the tokenizer has no end symbol or the start
            token is not known, E111 for class weights.
    """

    tokenizer: str
    kind: Literal["sequences"] = "sequences"
    text: str | None = None
    target: str | None = None
    prefix: str = ""
    begin: int | None = None
    validation: str | None = None
    test: str | None = None
    max_length: Count = 128
    written: Count | None = None

    def __post_init__(self) -> None:
        _refuse_class_weights(self.class_weights, "texts")


@record
class QuestionFile(Divided):
    """Questions about paragraphs, with answers that are parts of them, in a .json file in SQuAD's format.

    A sample is a question with its paragraph; the model predicts the first and the last token of the answer. Answers are
    compared as text, as in SQuAD: words in lower case, without articles and punctuation, with the most similar of the accepted
    answers. Question and paragraph are truncated at `max_length` tokens; questions whose answer is cut off are left out of the
    training data, but not of the validation and test data.

    Args:
        tokenizer: folder of a model with its tokenizer, relative to the folder of the file; or "hf:organisation/model",
            "ms:organisation/model" or "package:name/folder".
        validation: another file of this format in the same folder; by default a part of the articles of the first.
        test: the same for test.
        max_length: most tokens of question and paragraph together.
        inputs: the model's inputs among "input_ids", "attention_mask" and "token_type_ids"; by default those of the tokenizer.
        test_fraction: fraction of the articles for test, if there is no file of test questions; by default 0.2.
        validation_fraction: the same for validation; by default 0.1.
        metric: "answer_f1" (the default) or "answer_exact_match"; over tokens instead of words "span_f1" or "exact_match".
        extra_metrics: further metrics, which are only reported; by default "answer_exact_match".
        class_weights: not available, since a span is not a class.

    Raises:
        UserError: E160 if transformers is not installed, E130 if a file or the tokenizer is missing, E131 if a file is not in
            this format or a question has no answer, E111 for class weights.
    """

    tokenizer: str
    validation: str | None = None
    test: str | None = None
    max_length: Count = 384
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _refuse_class_weights(self.class_weights, "spans")


def _refuse_class_weights(given: str | None, targets: str) -> None:
    if given is not None:
        message = f"class_weights need classes, and the targets of this task are {targets}"
        raise UserError("E111", message, "leave them out", path=("class_weights",))


_BY_KIND: Mapping[str, type[TextFile | TokenFile | SequenceFile]] = {
    "unlabelled": TextFile,
    "tokens": TokenFile,
    "sequences": SequenceFile,
}


def text_settings(suffix: str, arguments: Mapping[str, Any]) -> type[TextFile | TokenFile | SequenceFile] | None:
    """The settings of a file of texts by its suffix and by `kind` and `tokenizer` among its arguments; None for other data."""
    if suffix in TAGGED:
        return TokenFile
    if "tokenizer" not in arguments or suffix == QUESTIONS:
        return None
    kind = arguments.get("kind")
    if isinstance(kind, str) and kind in _BY_KIND:
        return _BY_KIND[kind]
    return None if suffix == CORPUS else TextFile
