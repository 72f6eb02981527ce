"""What a recipe says of a table: the features that its columns give, and the network that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirabelle.task.task import Task

MODEL = "mirabelle.sources.zoo:table_mlp"
READ = '# arguments = { target = "…", ignore = [] }    # options for reading the data; by default the last column is the target'
UNREAD = '# arguments = { target = "…", header = true }    # options for reading the data; without them: '
WIDTHS = "# arguments = { features = …, outputs = … }    # of the network; `mirabelle check` says how many the table needs"


def arguments_of_table(task: Task) -> dict[str, Any]:
    """The arguments of the network that is proposed for a table.

    Args:
        task: read from the table.
    """
    return {"features": _table(task).shape[0], "outputs": max(len(task.labels), 1)}


def sentence_on_table(task: Task) -> str:
    """The features of a table, and what the network must return."""
    outputs = max(len(task.labels), 1)
    answers = f"one for each class: {', '.join(task.labels)}" if task.labels else "a number"
    return f"{_table(task).sentence} It returns {outputs} output{'s' * (outputs > 1)}, {answers}.".replace("\n", " ")


def _table(task: Task) -> Any:
    from mirabelle.task.preprocessing.table import Table

    assert isinstance(task.preprocessing, Table), "a table has columns"
    return task.preprocessing
