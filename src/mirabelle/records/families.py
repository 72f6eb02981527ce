"""Families: kinds of things that recipes and records call by name, and that anybody may add to.

A member that Mirabelle ships is called by the package that exports it and its class ("prune.Weights"), in some families by its
class alone ("Magnitude"). A member of a user's own is called "package.module:Name" or "./file.py:Name". Its module is imported
only because the user names it, in a recipe or in a command: what a file that was written by a run names is looked for among the
modules that are imported already, and nowhere else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirabelle.errors import MODULE_OF_FILES, UserError, did_you_mean
from mirabelle.records.functions import object_from

PACKAGES_OF_STEPS = ("distill", "prune", "quantize", "training")  # which export steps, and the modules that these put in


def subclass_of(kind: type) -> Callable[[Any], bool]:
    """Whether a class is a subclass of `kind`, and not `kind` itself."""
    return lambda cls: isinstance(cls, type) and issubclass(cls, kind) and cls is not kind


@dataclass(frozen=True)
class Family:
    """A kind of thing that is called by name.

    Args:
        noun: what a member is called in messages.
        packages: of Mirabelle that export members.
        is_member: whether a class is one.
        qualified: whether members that Mirabelle ships are called with their package, as "prune.Weights" is.

    Example:
        >>> from mirabelle.step import STEPS
        >>> STEPS.member("prune.Weights").__name__
        'Weights'
    """

    noun: str
    packages: tuple[str, ...]
    is_member: Callable[[Any], bool]
    qualified: bool = True

    def known(self) -> dict[str, type]:
        """The members that Mirabelle ships, by name."""
        return dict(self._exported())

    def member(self, use: str, folder: Path = Path()) -> type:
        """The class of a name, from a recipe or a command; a user's module is imported.

        Args:
            use: the name.
            folder: against which "./file.py:Name" is read.

        Raises:
            UserError: E106 when Mirabelle has no such member, or the object is no member; E120 when the user's module or the
                name in it is not found.
        """
        found = object_from(use, folder) if ":" in use else self._export(use)
        if not self._is_member(found):
            raise self._not_a_member(use) if ":" in use else self._unknown(use)
        return found  # type: ignore[no-any-return]  # a class

    def imported_member(self, use: str) -> type:
        """The class of a name that a file gives; no module of a user's is imported.

        Raises:
            UserError: E106 when Mirabelle has no such member, or the user's module is not imported; E141 when the name is that
                of something else.
        """
        found = _imported(use) if ":" in use else self._export(use)
        if self._is_member(found):
            return found  # type: ignore[no-any-return]  # a class
        if found is not None or (":" not in use and self.qualified and use.rpartition(".")[0] not in self.packages):
            error = self._not_a_member(use)
            raise UserError("E141", error.message, "restore the file")
        if ":" not in use:
            raise self._unknown(use)
        message = f'the {self.noun} "{use}" is a user\'s own, and its module is not imported'
        raise UserError("E106", message, f"import {use.rpartition(':')[0]} first: nothing is imported because a file names it")

    def name_of(self, cls: type, *, with_path: bool = False) -> str:
        """The name under which a recipe or a record finds a class again.

        Args:
            cls: a member.
            with_path: give the whole path of a user's file, as a recipe needs it, instead of the file's name.

        Example:
            >>> from mirabelle.scores.score import SCORES
            >>> SCORES.name_of(SCORES.member("Taylor"))
            'Taylor'
        """
        package = next((one for one in self.packages if f"{cls.__module__}.".startswith(f"mirabelle.{one}.")), None)
        if package is not None:
            return f"{package}.{cls.__name__}" if self.qualified else cls.__name__
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if cls.__module__.startswith(MODULE_OF_FILES) and file is not None:
            return f"{Path(file).resolve() if with_path else Path(file).name}:{cls.__qualname__}"
        return f"{cls.__module__}:{cls.__qualname__}"

    def _exported(self) -> Iterator[tuple[str, type]]:
        for package in self.packages:
            room = importlib.import_module(f"mirabelle.{package}")
            for name in room.__all__:
                thing = vars(room).get(name)  # settings are there; what is heavy is imported when its own name is looked up
                if self._is_member(thing):
                    yield (f"{package}.{name}" if self.qualified else name), thing  # type: ignore[misc]  # a class

    def _export(self, use: str) -> Any:
        """What a package exports under a name, if one does."""
        package, _, name = use.rpartition(".") if self.qualified else (self.packages[0], "", use)
        room = importlib.import_module(f"mirabelle.{package}") if package in self.packages else None
        return getattr(room, name) if room is not None and name in room.__all__ else None

    def _is_member(self, found: Any) -> bool:
        return isinstance(found, type) and self.is_member(found)

    def _unknown(self, use: str) -> UserError:
        called = f'{self.noun} "{use}"' if self.qualified else f'"{self.packages[0]}.{use}"'
        return UserError("E106", f"{called} is not known", did_you_mean(use, self.known()))

    def _not_a_member(self, use: str) -> UserError:
        return UserError("E106", f'"{use}" is no {self.noun}', f"see mirabelle.testing for what a {self.noun} must do")


def _imported(use: str) -> Any:
    """What a name stands for among the modules that are imported, if anything."""
    place, _, name = use.rpartition(":")
    stem = Path(place).stem
    modules = (f"{MODULE_OF_FILES}{stem}", stem, "__main__") if place.endswith(".py") else (place,)
    return next((getattr(sys.modules[one], name) for one in modules if hasattr(sys.modules.get(one), name)), None)
