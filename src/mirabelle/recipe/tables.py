"""The tables of a recipe file that name models, data, teachers and codecs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any

from pydantic import PlainValidator

from mirabelle import records
from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.records.record import Positive, fields_to_data, record
from mirabelle.sources.models.weights import StateDict
from mirabelle.task.augmentation import Augmentation
from mirabelle.training import Training

_DEVICE = re.compile(r"auto|cpu|(cuda|xpu|mps)(:\d+)?")


@record
class ModelTable:
    """`[model]`: the model to compress, and its weights.

    Args:
        factory: "package.module:function" or "./file.py:function", a function that returns a torch module; a file
            (.onnx, .keras, .h5); or a transformers model (a folder, "hf:organisation/model", "ms:organisation/model", or
            "package:name/folder" in an installed package).
        arguments: keyword arguments of the function; for a transformers model { head = "sequence-classification", labels = 2 }.
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a torch state dict.
    """

    factory: str = field(metadata={"key": "from"})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | StateDict | None = None


@record
class RunTable:
    """`[run]`: where and how a run computes; it has no part in what the run is.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu"; "auto" takes the accelerator that is there, and the device with
            which a run began.

    Raises:
        UserError: E110 for another name.
    """

    device: str = "auto"

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            message = f'device is "{self.device}"'
            raise UserError("E110", message, 'give "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu"', path=("device",))


@record
class MemberTable(ModelTable):
    """One of several teachers.

    Args:
        share: weight of this teacher in the mean of the teachers' outputs.
    """

    share: Positive = 1.0


class Members(tuple[MemberTable, ...]):
    """The teachers of an ensemble."""

    __slots__ = ()

    @staticmethod
    def from_data(data: Any) -> Members:
        """Create the teachers from a list of tables."""
        if isinstance(data, Members):
            return data
        if not isinstance(data, (list, tuple)):
            raise UserError("E103", f"members must be a list of tables; got {data!r}", "write [[teacher.members]]")
        mistakes: list[UserError] = []
        members: list[MemberTable] = []
        for position, table in enumerate(data):
            with gathered(mistakes, position):
                members.append(table if isinstance(table, MemberTable) else records.build(MemberTable, table, "members"))
        raise_all(mistakes)
        return Members(members)

    def to_data(self) -> list[dict[str, Any]]:
        """The teachers as a list of tables."""
        return [fields_to_data(member) for member in self]


MembersField = Annotated[Sequence[MemberTable], PlainValidator(Members.from_data)]


@record
class TeacherTable:
    """`[teacher]`: the teacher with its weights or its training, or several teachers whose outputs are averaged.

    Args:
        factory: "package.module:function" or "./file.py:function", a function that returns a torch module; a file
            (.onnx, .keras, .h5); or a transformers model (a folder, "hf:organisation/model", "ms:organisation/model", or
            "package:name/folder" in an installed package).
        arguments: keyword arguments of the function; for a transformers model { head = "sequence-classification", labels = 2 }.
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a torch state dict.
        train: training of the teacher before it is used, if it is not trained yet.
        members: several teachers, [[teacher.members]], whose outputs are averaged; instead of the other keys.
    """

    factory: str | None = field(default=None, metadata={"key": "from"})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | StateDict | None = None
    train: Training | None = None
    members: MembersField = Members()

    def __post_init__(self) -> None:
        if (self.factory is None) == (not self.members):
            raise UserError("E111", "[teacher] needs either `from` or `members`", 'add, for example, from = "pkg.mod:function"')
        if self.members and (self.weights is not None or self.train is not None or self.arguments):
            message = "[teacher] has members, so it cannot have arguments, weights or a training of its own"
            raise UserError("E111", message, "move them to [[teacher.members]]")


@record
class TaskTable:
    """`[task]`: the data.

    Args:
        data: a built-in data set, a folder with one subfolder per class, a .csv or .npz file, or "./file.py:function", a
            function that returns a Task.
        arguments: settings of the data set, or keyword arguments of the function.
        augment: random changes of images during training.
    """

    data: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    augment: Augmentation | None = None


@record
class ArtifactTable:
    """`[artifact]`: how the result is packed.

    Args:
        codecs: user-defined codecs, "package.module:Codec" or "./file.py:Codec", tried in addition to the built-in ones.
    """

    codecs: tuple[str, ...] = ()


@record
class BaselineTable:
    """`[baseline]`: the training of the model before it is compressed, or its trained weights.

    Args:
        train: training of the model before it is compressed.
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a torch state dict.
    """

    train: Training | None = None
    weights: str | StateDict | None = None

    def __post_init__(self) -> None:
        if (self.train is None) == (self.weights is None):
            raise UserError("E111", "[baseline] needs either `train` or `weights`", "add, for example, train = { epochs = 10 }")
