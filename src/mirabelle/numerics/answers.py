"""How well an answer, a short text, says what one of several references says."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> list[str]:
    """The words of an answer that count: in lower case, without punctuation and articles.

    Example:
        >>> normalized("The Panthers' defense!")
        ['panthers', 'defense']

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1.
    """
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def answer_exact_match(found: str, references: Iterable[str]) -> float:
    """1 where the words that count are those of one of the references, else 0.

    Example:
        >>> answer_exact_match("the 308", ["308 points", "308"])
        1.0
    """
    return float(any(normalized(found) == normalized(reference) for reference in references))


def answer_f1(found: str, references: Iterable[str]) -> float:
    """2 · shared words / (words found + words due) with the reference for which it is highest; words as often as they occur.

    Without a word on either side 1 where both have none, else 0.

    Example:
        >>> answer_f1("Super Bowl 50", ["the Super Bowl", "a game"])
        0.8

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1.
    """
    return max(_overlap(normalized(found), normalized(reference)) for reference in references)


def _overlap(found: list[str], due: list[str]) -> float:
    if not found or not due:
        return float(found == due)
    shared = (Counter(found) & Counter(due)).total()
    return 2 * shared / (len(found) + len(due))
