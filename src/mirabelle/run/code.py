"""Compare the code that a run computes with that of the process that started it, or the last one with this Python.

Each process with another version of Python, or a run that is started, records an event "program": the digest of the code and
that of each of its parts, which name what changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mirabelle.errors import UserError
from mirabelle.run.journal import Journal, read_events

EVENT = "program"
_MOST_NAMES = 3  # in an error message
_CODE = ("class ", "function ")  # parts whose own code changed are named first


@dataclass(frozen=True)
class Code:
    """The code that a run computes.

    Args:
        python: the kind and version of Python, without which byte code cannot be compared.
        digest: of all parts.
        parts: name of a part, such as "class Net" -> digest.
    """

    python: str
    digest: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(text: str) -> Code:
        """The code that a recipe names as its text; the parts are unknown."""
        python, _, digest = text.rpartition(" ")
        return Code(python, digest)

    def __str__(self) -> str:
        return f"{self.python} {self.digest}"


def told(journal: Journal) -> list[Code]:
    """The code of the processes of a run, as its journal has it, oldest first."""
    found = [event for event in read_events(journal.folder) if event["event"] == EVENT]
    return [Code(event["python"], event["code"], event["parts"]) for event in found]


def compared(folder: Path, earlier: Sequence[Code], now: Code) -> str:
    """Compare the code of a run with that of earlier processes.

    Args:
        folder: of the run, for the message.
        earlier: the code of earlier processes, oldest first; parts may be unknown.
        now: the code of this process.

    Returns:
        "" if it is the same; a sentence if that cannot be said, since no earlier process had this version of Python.

    Raises:
        UserError: E150 if it is other code.
    """
    known = [one for one in earlier if one.python == now.python]
    if not known:
        first = earlier[0].python
        return f"the run was started with {first}, this is {now.python}: whether its code has changed cannot be compared"
    if known[-1].digest == now.digest:
        return ""
    parts: Mapping[str, str] = next((one.parts for one in reversed(known) if one.parts), {})
    changed = [name for name in {**parts, **now.parts} if parts.get(name) != now.parts.get(name)] if parts else ["its code"]
    changed.sort(key=lambda name: not name.startswith(_CODE))
    names = ", ".join(changed[:_MOST_NAMES]) + (", …" if len(changed) > _MOST_NAMES else "")
    message = f"{folder} contains a run of other code: {names} changed since it was started"
    raise UserError("E150", message, "undo the change to continue the run, or choose another --out")
