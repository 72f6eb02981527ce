"""Each kind of raw input reads, prepares and decodes by itself, so that nobody asks which kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from mirabelle.errors import UserError
from mirabelle.task.preprocessing import Characters, Image, Kaldi, Sound, Table, Text, Waveform
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.stored import FILE_CONTENTS, KINDS, from_json, to_json

EXAMPLES: tuple[Preprocessing, ...] = (
    Image(size=(2, 3)),
    Sound(rate=8000, seconds=1.0),
    Waveform(sampling_rate=8000, seconds=1.0),
    Kaldi(frames=8),
    Table(columns=("length", "width")),
    Text(tokenizer="0", pairs=True, answers=True),
    Characters(characters="abc", length=4),
)


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(one) for one in EXAMPLES} == set(KINDS)
    assert len({kind.key for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: type(kind).__name__)
def test_a_kind_says_what_it_takes_and_is_read_back(kind: Preprocessing) -> None:
    assert from_json(to_json(kind)) == kind
    assert kind.suffixes
    error = kind.refusal(Path("m.onnx"), Path("x.any"), "an array")
    assert (error.code, error.message) == ("E131", f"m.onnx takes {kind.raw_inputs}, not x.any")
    assert error.remedy == kind.remedy


def test_suffixes_of_different_kinds_are_told_apart() -> None:
    assert (FILE_CONTENTS[".png"], FILE_CONTENTS[".wav"], FILE_CONTENTS[".csv"]) == (
        "an image", "a recording", "rows of a table",
    )  # fmt: skip
    assert ".txt" not in FILE_CONTENTS


def test_an_image_gives_one_sample(tmp_path: Path) -> None:
    Picture.fromarray(np.full((2, 3), 255, np.uint8)).save(tmp_path / "a.png")
    kind = Image(size=(2, 3))
    ((name, sample),) = kind.samples(tmp_path / "a.png")
    prepared = kind.prepare([sample, sample], (1, 2, 3), kind.open_resources(tmp_path))
    assert name == str(tmp_path / "a.png")
    np.testing.assert_array_equal(prepared.arrays[""], np.ones((2, 1, 2, 3), np.float32))


def test_a_table_gives_a_sample_for_each_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("width,length\n1,2\n\n3,4\n")
    kind = Table(columns=("length", "width"))
    names, samples = zip(*kind.samples(path), strict=True)
    assert names == (f"{path}:2", f"{path}:4")
    np.testing.assert_array_equal(kind.prepare(samples, (2,), None).arrays[""], [[2, 1], [4, 3]])


def test_outputs_of_characters_are_those_at_the_end_of_each_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab\n\nabcabc\n")
    kind = Characters(characters="abc", length=4)
    names, samples = zip(*kind.samples(tmp_path / "t.txt"), strict=True)
    assert names == (f"{tmp_path / 't.txt'}:1", f"{tmp_path / 't.txt'}:3")
    prepared = kind.prepare(samples, (4,), None)
    np.testing.assert_array_equal(prepared.arrays[""], [[0, 1, 0, 0], [2, 0, 1, 2]])
    outputs = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    np.testing.assert_array_equal(prepared.select([outputs])[0], [outputs[0, 1], outputs[1, 3]])
    assert kind.labels(("x",)) == ("a", "b", "c")


class _Encoding:
    """Of the question "who" and the paragraph "Ada did"."""

    ids, attention_mask = [1, 2, 3], [1, 1, 1]
    offsets, sequence_ids = [(0, 3), (0, 3), (4, 7)], [0, 1, 1]


class _Tokenizer:
    padding = None

    def enable_truncation(self, *_: Any, **__: Any) -> None:
        pass

    def enable_padding(self, **_: Any) -> None:
        pass

    def token_to_id(self, _: str) -> int:
        return 0

    def encode_batch(self, texts: list[Any], **_: Any) -> list[_Encoding]:
        return [_Encoding()] * len(texts)


def test_outputs_of_questions_mark_the_answer_in_the_paragraph(tmp_path: Path) -> None:
    kind = Text(tokenizer="0", pairs=True, answers=True)
    (tmp_path / "t.txt").write_text("who\tAda did\n")
    ((_, sample),) = kind.samples(tmp_path / "t.txt")
    assert sample == ("who", "Ada did")
    prepared = kind.prepare([sample], (None,), _Tokenizer())
    assert set(prepared.arrays) == set(kind.input_names)
    outputs = np.zeros((1, 3, 2), np.float32)
    outputs[0, 0], outputs[0, 1] = 9.0, 1.0  # the question's own token is no answer
    assert prepared.answers([outputs], Path("m.onnx")) == ["Ada"]
    with pytest.raises(UserError, match=r"E141.*m\.onnx gives outputs of shape \(1, 2\) for 3 tokens"):
        prepared.answers([outputs[:, 0]], Path("m.onnx"))


def test_a_line_that_is_no_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\tb\nc\n")
    with pytest.raises(UserError, match=r"E131.*line 2: the model takes pairs"):
        list(Text(tokenizer="0", pairs=True).samples(tmp_path / "t.txt"))
