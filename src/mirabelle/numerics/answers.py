"""Metrics that compare a short text, an answer, with several reference answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> list[str]:
    """Split an answer into words, in lower case and without punctuation and articles.

    Example:
        >>> normalized("The Panthers' defense!")
        ['panthers', 'defense']

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1.
    """
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def answer_exact_match(answer: str, references: Iterable[str]) -> float:
    """1 if the normalized words of the answer equal those of at least one reference, else 0.

    Example:
        >>> answer_exact_match("the 308", ["308 points", "308"])
        1.0
    """
    return float(any(normalized(answer) == normalized(reference) for reference in references))


def answer_f1(answer: str, references: Iterable[str]) -> float:
    """F1 score of the words of an answer against a reference; the highest over all references.

    F1 = 2 · shared words / (words of the answer + words of the reference), counting repeated words as often as they occur. If
    one of the two has no words, F1 is 1 if both have none, else 0.

    Example:
        >>> answer_f1("Super Bowl 50", ["the Super Bowl", "a game"])
        0.8

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1.
    """
    return max(_overlap(normalized(answer), normalized(reference)) for reference in references)


def _overlap(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))
