"""What a recipe says of a table: the features that its columns give, the network that takes them, and how to read it."""

from __future__ import annotations

from pathlib import Path

from mirabelle.errors import UserError

MODEL = "mirabelle.sources.zoo:table_mlp"
_READ = (
    '# arguments = { target = "…", ignore = [] }    # options for reading the data; by default the last column is the target'
)
_UNREAD = '# arguments = { target = "…", header = true }    # options for reading the data; without them: '
_KEYWORDS = "# arguments = { width = 32 }         # keyword arguments of that function"
_WIDTHS = "# arguments = { features = …, outputs = … }    # of the network; `mirabelle check` says how many the table needs"


def lines_of_table(data: str, *, proposed: bool) -> tuple[str, str]:
    """(lines on the model's arguments, lines on the data's arguments) for a recipe with a table.

    Args:
        data: name of the data.
        proposed: whether the model is the one that is proposed for tables.
    """
    from mirabelle.sources import task_from
    from mirabelle.task.preprocessing.table import Table

    try:
        task = task_from(data, {}, data_folder=None, folder=Path())
    except UserError as error:
        reason = " ".join(error.errors[0].message.split())
        return _WIDTHS if proposed else _KEYWORDS, _UNREAD + reason
    table = task.preprocessing
    assert isinstance(table, Table), "a table has columns"
    outputs = max(len(task.labels), 1)
    answers = f"one for each class: {', '.join(task.labels)}" if task.labels else "a number"
    told = f"# {table.sentence} It returns {outputs} output{'s' * (outputs > 1)}, {answers}.".replace("\n", " ")
    keywords = f"arguments = {{ features = {table.shape[0]}, outputs = {outputs} }}"
    return f"{told}\n{keywords if proposed else f'# {keywords}'}", _READ
