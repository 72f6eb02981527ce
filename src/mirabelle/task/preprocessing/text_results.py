"""What a model of texts says about them, in words: an answer, what follows, what is hidden, tags, another text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.task.preprocessing.raw_inputs import Array, PreparedInputs, Said

Tokens = npt.NDArray[np.int64]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]
DECODER = "decoder_input_ids"
_FOLLOWING = 20  # most tokens that are added to a text


@dataclass(frozen=True)
class Paragraphs(PreparedInputs):
    """Questions with their paragraphs, for outputs that score each token to be the first, and the last, of the answer.

    Args:
        paragraphs: the paragraph of each sample.
        places: start and end of each token in its paragraph, in characters, (samples, tokens, 2); −1 for other tokens.
    """

    paragraphs: Sequence[str]
    places: Tokens

    def answers(self, outputs: Sequence[Array], model: Path) -> list[str]:
        import torch

        from mirabelle.numerics.metrics import span_of

        scores, places = outputs[0], self.places
        if scores.shape != places.shape:
            message = (
                f"{model} gives outputs of shape {scores.shape} for {places.shape[1]} tokens, not scores of the first and last "
                "token of an answer"
            )
            raise UserError("E141", message, "download or copy the file again")
        spans = span_of(torch.from_numpy(scores), within=torch.from_numpy(places[:, :, 0] >= 0)).tolist()
        ends = [(place[first, 0], place[last, 1]) for place, (first, last) in zip(places, spans, strict=True)]
        return [paragraph[begin:end] for paragraph, (begin, end) in zip(self.paragraphs, ends, strict=True)]


@dataclass(frozen=True)
class Beginnings(PreparedInputs):
    """Texts that a causal language model continues, greedily, by at most 20 tokens or until its end symbol.

    Args:
        beginnings: the tokens of each text.
        tokenizer: of the package tokenizers.
        most: tokens that the model sees at once; of a longer text the end is used.
        fixed: whether every input must have that many.
        end: the end symbol, if there is one.
    """

    beginnings: Sequence[Sequence[int]]
    tokenizer: Any
    most: int
    fixed: bool
    end: int | None

    def said(self, run: Run, labels: Sequence[str], top: int) -> list[Said]:
        del labels
        rows: list[list[int]] = [list(tokens) for tokens in self.beginnings]
        first: list[Array] = []
        left = list(range(len(rows)))
        for step in range(_FOLLOWING):
            seen = [rows[k][-self.most :] for k in left]
            arrays = {name: self._padded(name, seen) for name in self.arrays}
            scores = run(arrays)[0][np.arange(len(seen)), [len(tokens) - 1 for tokens in seen]]
            first = first if step else list(scores)
            following = scores.argmax(-1).tolist()
            for k, token in zip(left, following, strict=True):
                rows[k].append(token)
            left = [k for k, token in zip(left, following, strict=True) if token != self.end]
            if not left:
                break
        pairs = zip(self.beginnings, rows, first, strict=True)
        return [Said(self._after(list(start), row), choices_of(self.tokenizer, one, top)) for start, row, one in pairs]

    def _padded(self, name: str, rows: Sequence[Sequence[int]]) -> Tokens:
        length = self.most if self.fixed else max(map(len, rows))
        found = np.zeros((len(rows), length), np.int64)
        for place, row in zip(found, rows, strict=True):
            place[: len(row)] = row if name == "input_ids" else name == "attention_mask"
        return found

    def _after(self, start: Sequence[int], row: Sequence[int]) -> str:
        whole, before = self.tokenizer.decode(list(row)), self.tokenizer.decode(list(start))
        return str(whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(list(row)[len(start) :]))


@dataclass(frozen=True)
class Gaps(PreparedInputs):
    """Texts with mask tokens, which a masked language model fills with the most probable tokens.

    Args:
        tokenizer: of the package tokenizers.
        mask: the mask token.
    """

    tokenizer: Any
    mask: int

    def said(self, run: Run, labels: Sequence[str], top: int) -> list[Said]:
        del labels
        tokens, scores = self.arrays["input_ids"], run(self.arrays)[0]
        found = []
        for row, own in zip(tokens, scores, strict=True):
            gaps = np.flatnonzero(row == self.mask)
            filled = np.where(row == self.mask, own.argmax(-1), row)
            found.append(Said(self.tokenizer.decode(filled.tolist()), choices_of(self.tokenizer, own[gaps[0]], top)))
        return found


@dataclass(frozen=True)
class Words(PreparedInputs):
    """Texts whose words a model tags: the tag of a word is that of its first token.

    Args:
        words: for each text its words with the position of their first token.
    """

    words: Sequence[Sequence[tuple[str, int]]]

    def said(self, run: Run, labels: Sequence[str], top: int) -> list[Said]:
        del top
        chosen = run(self.arrays)[0].argmax(-1)
        return [
            Said(" ".join(f"{word}/{labels[row[place]]}" for word, place in own))
            for own, row in zip(self.words, chosen.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Sources(PreparedInputs):
    """Texts for which a model of sequences writes another text, greedily.

    Args:
        tokenizer: of the package tokenizers.
        begin: the first symbol of the decoder.
        end: the end symbol.
    """

    tokenizer: Any
    begin: int
    end: int

    def said(self, run: Run, labels: Sequence[str], top: int) -> list[Said]:
        del labels, top
        import torch

        from mirabelle.task.generation import Generation

        def logits(inputs: Any) -> torch.Tensor:
            return torch.from_numpy(np.asarray(run({name: tensor.numpy() for name, tensor in inputs.items()})[0]))

        given = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        written = Generation(begin=self.begin, end=self.end, written=DECODER)(logits, given)
        return [Said(self.tokenizer.decode([token for token in row if token >= 0])) for row in written.tolist()]


def choices_of(tokenizer: Any, scores: Array, top: int) -> list[tuple[str, int, float]]:
    """(token, index, probability) of the most probable tokens, best first."""
    powers = np.exp(scores.astype(np.float64) - float(scores.max()))
    shares = powers / powers.sum()
    order = np.argsort(-shares, kind="stable")[:top].tolist()
    return [(tokenizer.decode([k], skip_special_tokens=False), k, float(shares[k])) for k in order]
