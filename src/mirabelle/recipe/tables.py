"""The tables of a recipe file that name models, data and teachers."""

from __future__ import annotations

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


@record
class ModelTable:
    """`[model]`: where a module comes from, and its weights.

    Args:
        factory: "package.module:function" or "./file.py:function" that returns a torch module; a file
            (.onnx, .keras, .h5); or a model of transformers (a folder, "hf:organisation/model", "ms:organisation/model",
            "package:name/folder" inside of an installed package).
        arguments: keywords of the function; of a model of transformers { head = "sequence-classification", labels = 2 }.
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a state dict of torch.
    """

    factory: str = field(metadata={"key": "from"})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | StateDict | None = None


@record
class MemberTable(ModelTable):
    """One of several teachers.

    Args:
        share: its weight in the mean of the teachers' outputs.
    """

    share: Positive = 1.0


class Members(tuple[MemberTable, ...]):
    """The teachers of an ensemble."""

    __slots__ = ()

    @staticmethod
    def from_data(data: Any) -> Members:
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
        return [fields_to_data(member) for member in self]


MembersField = Annotated[Sequence[MemberTable], PlainValidator(Members.from_data)]


@record
class TeacherTable:
    """`[teacher]`: where it comes from, its weights or its training; or the members of which it is the mean.

    Args:
        factory: "package.module:function" or "./file.py:function" that returns a torch module; a file
            (.onnx, .keras, .h5); or a model of transformers (a folder, "hf:organisation/model", "ms:organisation/model",
            "package:name/folder" inside of an installed package).
        arguments: keywords of the function; of a model of transformers { head = "sequence-classification", labels = 2 }.
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a state dict of torch.
        train: how it is trained first, if it is not trained yet.
        members: several teachers, [[teacher.members]], whose outputs are averaged; instead of the other keys.
    """

    factory: str | None = field(default=None, metadata={"key": "from"})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | StateDict | None = None
    train: Training | None = None
    members: MembersField = Members()

    def __post_init__(self) -> None:
        if (self.factory is None) == (not self.members):
            raise UserError("E111", "[teacher] needs `from` or `members`, one of them", 'from = "pkg.mod:function", say')
        if self.members and (self.weights is not None or self.train is not None or self.arguments):
            raise UserError("E111", "[teacher] has members, so arguments, weights and training are theirs", "move them there")


@record
class TaskTable:
    """`[task]`: which data.

    Args:
        data: a built-in set, a folder of class folders, a .csv or .npz file, or "./file.py:function" that returns a Task.
        arguments: keywords for them.
        augment: how images are changed while a model trains.
    """

    data: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    augment: Augmentation | None = None


@record
class ArtifactTable:
    """`[artifact]`: how the result is packed.

    Args:
        codecs: of your own, "package.module:Codec" or "./file.py:Codec", tried besides those that Mirabelle ships.
    """

    codecs: tuple[str, ...] = ()


@record
class BaselineTable:
    """`[baseline]`: how the start is trained, or where its weights lie.

    Args:
        train: how the model is trained before it is compressed (or give weights).
        weights: a .safetensors file with trained weights; or { pickle = "x.th" }, a state dict of torch.
    """

    train: Training | None = None
    weights: str | StateDict | None = None

    def __post_init__(self) -> None:
        if (self.train is None) == (self.weights is None):
            raise UserError("E111", "[baseline] needs `train` or `weights`, one of them", "train = { epochs = 10 }, say")
