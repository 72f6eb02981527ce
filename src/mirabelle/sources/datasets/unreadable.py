"""Files that cannot be read: the first one ends the reading, or all of them are left out and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mirabelle.errors import UserError
from mirabelle.sources.datasets.places import Place
from mirabelle.sources.datasets.splits import Split

T = TypeVar("T")
P = TypeVar("P", bound=Place)
SKIP = "skip_unreadable = true"
_FEW = 5  # names in a sentence


class Unreadable:
    """The files of a data set that cannot be read.

    Args:
        skip: whether they are left out; otherwise the first one is an error.
        several: what the files are, in the plural, such as "images".
    """

    def __init__(self, *, skip: bool, several: str) -> None:
        self.skip, self.several = skip, several
        self.found: dict[Place, str] = {}  # with the reason

    def tried(self, read: Callable[[P], T], place: P) -> T | None:
        """What a function reads at a place; None if the file cannot be read and such files are left out.

        Raises:
            UserError: E131 if the file cannot be read and such files are not left out; any other error of the function.
        """
        try:
            return read(place)
        except UserError as error:
            if error.code != "E131":
                raise
            self.add(place, error)
            return None

    def add(self, place: Place, error: UserError) -> None:
        """Note a file that cannot be read; an error is raised if such files are not left out."""
        if not self.skip:
            raise with_way_out(error) from error
        self.found[place] = error.message

    def without(
        self, splits: Mapping[str, Split], places: Mapping[str, Sequence[Place]], labels: Sequence[str] = ()
    ) -> dict[str, Split]:
        """The splits without the files that cannot be read.

        Args:
            splits: (positions in `places`, targets) by name; a split without places of its own refers to those of "train".
            places: of the files, by split.
            labels: names of the classes, if targets are classes of samples.

        Raises:
            UserError: E131 if no file of a split, or of a class of the training data, is left.
        """
        if not self.found:
            return dict(splits)
        left: dict[str, Split] = {}
        for part, (index, targets) in splits.items():
            group = places[part if part in places else "train"]
            kept = np.array([group[k] not in self.found for k in index], bool)
            if not kept.any():
                first = next(iter(self.found.values()))
                raise UserError("E131", f"none of the {part} data can be read: {first}", f"give intact {self.several}")
            left[part] = (index[kept], targets[kept])
        lost = set(splits["train"][1].tolist()) - set(left["train"][1].tolist()) if labels else set()
        if lost:
            message = f'none of the training {self.several} of class "{labels[min(lost)]}" can be read'
            raise UserError("E131", message, f"give intact {self.several}")
        return left

    def sentences(self, places: Mapping[str, Sequence[Place]]) -> list[str]:
        """A sentence on the files that are left out, with the first names; none if all can be read."""
        every = [place for group in places.values() for place in group]
        names = [str(place) for place in every if place in self.found]
        if not names:
            return []
        shown = ", ".join(names[:_FEW]) + (", …" if len(names) > _FEW else "")
        return [f"{len(names):,} of {len(every):,} {self.several} cannot be read and are left out ({SKIP}): {shown}."]


def with_way_out(error: UserError) -> UserError:
    """The same error, whose remedy also names the setting by which such files are left out."""
    return UserError(error.code, error.message, f"{error.remedy}; or leave out what cannot be read: {SKIP}")
