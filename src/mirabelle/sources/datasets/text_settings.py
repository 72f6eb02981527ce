"""The settings of texts and of questions about them, under `[task.arguments]` of a recipe."""

from __future__ import annotations

from typing import Literal

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.sources.datasets.divided import Divided


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
        if self.class_weights is not None:
            raise UserError(
                "E111",
                "class_weights need classes, and the targets of this task are spans",
                "leave them out",
                path=("class_weights",),
            )
