"""What a mistake of a person is: what is done, and what is promised to be told."""

from __future__ import annotations

from dataclasses import dataclass, field

RUN = ("run", "recipe.toml", "--out", "out", "--quiet")
BASELINE = "train = { epochs = 1, batch_size = 32, lr = 0.01 }"


@dataclass(frozen=True)
class Mistake:
    """What a person does, and what they are promised to read.

    Args:
        code: of the error.
        says: words of the first line.
        helps: words of the help line.
        change: (what stands in the recipe, what stands there instead).
        command: what is typed.
        at: "line:column" in the recipe, where the mistake has a place there.
        environment: variables that are set.
        files: contents of files in the working folder, by their paths.
    """

    code: str
    says: str
    helps: str
    change: tuple[str, str] = ("", "")
    command: tuple[str, ...] = RUN
    at: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def typed(*command: str) -> tuple[str, ...]:
    return command


def setting(text: str) -> tuple[str, ...]:
    return (*RUN, "--set", text)
