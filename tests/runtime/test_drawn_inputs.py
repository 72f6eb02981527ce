"""Inputs drawn to fit: of fixed sizes, of sizes that a user gives, and of sizes that the model accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array
from mirabelle.runtime.drawn_inputs import GivenInput, accepted_inputs, batch_of, described, drawn_inputs, sizes_are_known
from mirabelle.runtime.runtime import Session
from mirabelle.runtime.signature import Value

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IDS, MASK = Value("ids", INT64, ("batch", "length")), Value("mask", TensorProto.BOOL, ("batch", "length"))
IMAGE = Value("x", FLOAT, ("n", 3, "h", "w"))
STATE = Value("state", FLOAT, (2, "n", 4))


class Picky(Session):
    """A session that takes only inputs of which `fits` is true, and keeps what it was given."""

    def __init__(self, fits: Any) -> None:
        super().__init__("picky", 1, ["x"], ["y"])
        self.fits, self.calls = fits, 0

    def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
        self.calls += 1
        if not self.fits(**{name: array.shape for name, array in feed.items()}):
            raise RuntimeError("sizes do not fit\nin node 7")
        return list(feed.values())


def test_inputs_are_drawn_to_fit_and_equal_for_an_equal_seed() -> None:
    values = [
        Value("ids", INT64, ("batch", "length")),
        Value("scores", TensorProto.FLOAT16, ("batch", 4)),
        Value("mask", TensorProto.BOOL, ("batch", "length")),
        Value("image", TensorProto.UINT8, ("batch", 2, "batch")),
        Value("scalar", FLOAT, ()),
    ]
    drawn = drawn_inputs(values, batch=3, given=[GivenInput((40,))])
    assert {name: (str(array.dtype), array.shape) for name, array in drawn.items()} == {
        "ids": ("int64", (3, 40)),
        "scores": ("float16", (3, 4)),
        "mask": ("bool", (3, 40)),
        "image": ("uint8", (3, 2, 3)),
        "scalar": ("float32", ()),
    }
    assert set(np.unique(drawn["ids"])) == {0, 1}
    assert drawn["image"].max() > 1
    again, other = drawn_inputs(values, 3, [GivenInput((40,))]), drawn_inputs(values, 3, [GivenInput((40,))], seed=1)
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)
    assert not np.array_equal(other["scores"], drawn["scores"])


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (Value("x", FLOAT, ("batch", 3, "width")), None, r'E110.*"x" does not define axis 2 \("width"\)'),
        (Value("x", FLOAT, None), None, "E110.*its shape"),
        (Value("x", FLOAT, ("batch", 3, "width")), (4, 8), r"E110.*3x\?.*got 4x8"),
        (Value("x", FLOAT, ("batch", 3, "width")), (8,), "E110.*got 8"),
        (Value("x", FLOAT, (1, 3)), None, "E110.*fixed batch size 1; got 2"),
        (Value("x", TensorProto.STRING, ("batch",)), None, "E121.*STRING"),
        (Value("x", TensorProto.COMPLEX64, ("batch",)), None, "E121.*complex64"),
    ],
)
def test_what_cannot_be_drawn_is_told(value: Value, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn_inputs([value], 2, [] if shape is None else [GivenInput(shape)])


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        ([GivenInput((16,), "ids")], {"ids": (2, 16), "mask": (2, 16)}),  # axes of one name have one size
        ([GivenInput((5, 16), "ids", whole=True)], {"ids": (5, 16), "mask": (5, 16)}),
        ([GivenInput((16,)), GivenInput((8,))], {"ids": (2, 16), "mask": (2, 8)}),
        ([GivenInput((16,), "mask"), GivenInput((8,), "ids", dtype="int64")], {"ids": (2, 8), "mask": (2, 16)}),
    ],
)
def test_shapes_are_given_by_name_or_in_order(given: list[GivenInput], shapes: dict[str, tuple[int, ...]]) -> None:
    assert {name: array.shape for name, array in drawn_inputs([IDS, MASK], 2, given).items()} == shapes


def test_a_state_keeps_its_first_axis() -> None:
    x = Value("x", FLOAT, ("n", 8))
    assert batch_of([x, STATE]) is None
    assert drawn_inputs([x, STATE], 3)["state"].shape == (2, 3, 4)
    assert drawn_inputs([x, STATE], 3, [GivenInput((2, 5, 4), "state", whole=True)])["state"].shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([GivenInput((16,), "idz")], r'E111.*no input "idz"; it takes "ids" \(batch,length\) int64, "mask" .*\n.*mean "ids"'),
        ([GivenInput((16,), "ids"), GivenInput((16,))], "E111.*name every --input.*got ids=16, 16"),
        ([GivenInput((16,), "ids"), GivenInput((8,), "ids")], "E111.*each differently"),
        ([GivenInput((16,))] * 3, r'E111.*3 shapes are given, but the model takes "ids" .*"mask"'),
        ([GivenInput((16,), "ids", dtype="float32")], 'E110.*"ids" is int64; got float32'),
        ([GivenInput((2, 16), "ids")], r'E110.*"ids" is \? without its batch axis; got 2x16'),
        ([GivenInput((2, 4, 16), "ids", whole=True)], r'E110.*"ids" is \?,\?; got 2,4,16'),
    ],
)
def test_given_shapes_that_do_not_fit_are_told_with_the_inputs(given: list[GivenInput], message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn_inputs([IDS, MASK], 2, given)
    with pytest.raises(UserError, match=message):
        sizes_are_known([IDS, MASK], given)


@pytest.mark.parametrize(
    ("inputs", "fits", "found"),
    [
        ([IMAGE], lambda x: x[2] % 32 == x[3] % 32 == 0, "x 2,3,32,32"),
        ([IMAGE], lambda x: x[2] == 48 and x[3] >= 64, "x 2,3,48,64"),
        ([Value("x", FLOAT, ("n", "samples"))], lambda x: x[1] > 1000, "x 2,4096"),
        ([IMAGE], lambda x: x[0] == 1, "x 1,3,16,16"),
        (
            [Value("x", FLOAT, ("", "")), Value("state", FLOAT, (2, "", 4))],
            lambda x, state: x[0] == state[1],
            "x 1,32 and state 2,1,4",
        ),
        (
            [IDS, Value("past", FLOAT, ("batch", "past")), Value("mask", INT64, ("batch", "past + length"))],
            lambda ids, past, mask: ids[1] + past[1] == mask[1],
            "ids 2,16 and past 2,16 and mask 2,32",
        ),
        ([Value("x", FLOAT, (4, 8))], lambda x: x == (4, 8), ""),
    ],
)
def test_sizes_that_the_model_accepts_are_found_and_told(inputs: list[Value], fits: Any, found: str) -> None:
    accepted = accepted_inputs(Picky(fits), inputs)
    assert accepted.found == found
    assert fits(**{name: array.shape for name, array in accepted.feed.items()})
    assert [array.shape for array in accepted.outputs] == [array.shape for array in accepted.feed.values()]


def test_a_model_that_accepts_nothing_is_told_with_its_own_reason_and_soon_given_up() -> None:
    session = Picky(lambda **_: False)
    with pytest.raises(
        UserError, match=r'E121.*random inputs of x 2,3,16,16 and \d+ other sizes: sizes do not fit\n.*"x" \(n,3,h,w'
    ):
        accepted_inputs(session, [IMAGE])
    assert session.calls <= 128
    given = Picky(lambda **_: False)
    with pytest.raises(UserError, match=r"E121.*random inputs of x 2,3,8,8.* fit\n"):
        accepted_inputs(given, [IMAGE], [GivenInput((3, 8, 8))])
    assert given.calls == 2


def test_sizes_at_which_outputs_are_empty_or_not_finite_are_the_last_choice() -> None:
    class Pooling(Picky):
        def run(self, feed: Mapping[str, Array]) -> Sequence[Any]:
            (x,) = super().run(feed)
            pooled = x[..., : x.shape[-1] // self.width]
            return [pooled, pooled / (pooled.size > 0)]

        width = 100

    assert accepted_inputs(Pooling(lambda **_: True), [IMAGE]).found == "x 2,3,224,224"
    session = Pooling(lambda **_: True)
    session.width = 10**6
    assert accepted_inputs(session, [IMAGE]).found == "x 2,3,16,16"


def test_no_trial_takes_more_than_some_memory() -> None:
    seen: list[int] = []
    session = Picky(lambda x: seen.append(int(np.prod(x))))
    with pytest.raises(UserError, match="E121"):
        accepted_inputs(session, [IMAGE])
    assert 0 < max(seen) <= 1 << 21


def test_inputs_are_described_in_one_line() -> None:
    assert described([IMAGE, STATE]) == '"x" (n,3,h,w) float, "state" (2,n,4) float'
    assert described([Value("sr", INT64, ())]) == '"sr" (one number) int64'
