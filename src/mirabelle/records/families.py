"""Families of classes that recipes and saved files refer to by name, such as steps, scores and terms. Users can add members.

The name of a built-in member is "package.Class" ("prune.Weights"), in some families only "Class" ("Magnitude"). The name of a
user-defined member is "package.module:Class" or "./file.py:Class". A name in a recipe or in a command imports the user's
module. A name in a file written by a run never imports anything: its class must be in a module that is already imported.
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

PACKAGES_OF_STEPS = (
    "distill",
    "factorize",
    "prune",
    "quantize",
    "training",
)  # they export steps and the modules that steps insert


def subclass_of(kind: type) -> Callable[[Any], bool]:
    """A function that tells whether a class is a proper subclass of `kind`."""
    return lambda cls: isinstance(cls, type) and issubclass(cls, kind) and cls is not kind


@dataclass(frozen=True)
class Family:
    """A set of classes with a common contract, which are looked up by name.

    Args:
        noun: word for a member in messages, such as "step".
        packages: packages of Mirabelle that export the built-in members.
        is_member: whether a class fulfils the contract of the family.
        qualified: whether names of built-in members include the package, as in "prune.Weights".

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
        """The built-in members by name."""
        return dict(self._exported())

    def member(self, use: str, folder: Path = Path()) -> type:
        """Look up a class by a name given in a recipe or a command; imports the module of a user-defined class.

        Args:
            use: the name.
            folder: relative to which the path in "./file.py:Name" is resolved.

        Raises:
            UserError: E106 if there is no built-in member of this name, or the object is not a member; E120 if the user's
                module, or the name in it, is not found.
        """
        found = object_from(use, folder) if ":" in use else self._export(use)
        if not self._is_member(found):
            raise self._not_a_member(use) if ":" in use else self._unknown(use)
        return found  # type: ignore[no-any-return]  # a class

    def imported_member(self, use: str) -> type:
        """Look up a class by a name read from a saved file; imports no module of the user.

        Raises:
            UserError: E106 if there is no built-in member of this name, or the user's module has not been imported; E141 if
                the name refers to an object that is not a member.
        """
        found = _imported(use) if ":" in use else self._export(use)
        if self._is_member(found):
            return found  # type: ignore[no-any-return]  # a class
        if found is not None or (":" not in use and self.qualified and use.rpartition(".")[0] not in self.packages):
            error = self._not_a_member(use)
            raise UserError("E141", error.message, "restore the file")
        if ":" not in use:
            raise self._unknown(use)
        message = f'the {self.noun} "{use}" is user-defined, and its module is not imported'
        raise UserError("E106", message, f"import {use.rpartition(':')[0]} first: a name in a file never imports a module")

    def name_of(self, cls: type, *, with_path: bool = False) -> str:
        """The name by which `member` and `imported_member` find a class.

        Args:
            cls: a member.
            with_path: include the absolute path of a user's file, as recipes need it, instead of the file name alone.

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
                exported = vars(room).get(name)  # not getattr, which would import the heavy modules behind lazy exports
                if self._is_member(exported):
                    yield (f"{package}.{name}" if self.qualified else name), exported  # type: ignore[misc]  # a class

    def _export(self, use: str) -> Any:
        """The object that a package exports under this name; None if there is none."""
        package, _, name = use.rpartition(".") if self.qualified else (self.packages[0], "", use)
        room = importlib.import_module(f"mirabelle.{package}") if package in self.packages else None
        return getattr(room, name) if room is not None and name in room.__all__ else None

    def _is_member(self, found: Any) -> bool:
        return isinstance(found, type) and self.is_member(found)

    def _unknown(self, use: str) -> UserError:
        called = f'{self.noun} "{use}"' if self.qualified else f'"{self.packages[0]}.{use}"'
        return UserError("E106", f"{called} is not known", did_you_mean(use, self.known()))

    def _not_a_member(self, use: str) -> UserError:
        noun = f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"
        return UserError("E106", f'"{use}" is not {noun}', f"see mirabelle.testing for the contract of {noun}")


def _imported(use: str) -> Any:
    """The object of this name in a module that is already imported; None if there is none."""
    source, _, name = use.rpartition(":")
    stem = Path(source).stem
    modules = (f"{MODULE_OF_FILES}{stem}", stem, "__main__") if source.endswith(".py") else (source,)
    return next((getattr(sys.modules[one], name) for one in modules if hasattr(sys.modules.get(one), name)), None)
