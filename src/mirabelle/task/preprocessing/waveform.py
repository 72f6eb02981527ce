"""Preprocessing of recordings to waveforms, as models of transformers take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from mirabelle.errors import UserError
from mirabelle.records.record import Count, Positive, record
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.sound import SUFFIXES, Array, wav_samples

Normalize: TypeAlias = Literal["padded", "recording", "none"]
_QUIET = 1e-7  # added to the variance, so that silence can be divided by its root


@record
class Waveform(Preprocessing):
    """The samples of a recording: x[t] = (s[t] − mean(s)) / √(variance(s) + 10⁻⁷), float32, of the shape (samples,).

    Samples are in [−1, 1], channels are averaged. A longer recording is cut at its end, a shorter one padded with zeros.

    Args:
        sampling_rate: in Hz.
        seconds: length of a recording.
        normalize: over what mean and variance are taken: "padded", the whole input; "recording", the recording without the
            zeros that pad it, which stay zero; "none", samples stay as they are.

    Raises:
        UserError: E110 if a recording has no sample.

    Example:
        >>> Waveform(sampling_rate=4, seconds=1.0, normalize="recording").features(np.array([1.0, -1.0], np.float32))
        array([ 1., -1.,  0.,  0.], dtype=float32)

    Source: the feature extractor of Wav2Vec2 in transformers; Baevski et al. 2020, arXiv:2006.11477.
    """

    key: ClassVar[str] = "normalize"
    raw_inputs: ClassVar[str] = "recordings"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_content: ClassVar[str] = "a recording"
    folder_content: ClassVar[str] = "recording"

    sampling_rate: Count
    seconds: Positive
    normalize: Normalize = "padded"

    def __post_init__(self) -> None:
        if self._samples < 1:
            raise UserError("E110", f"a recording of {self.seconds} s has no sample", "give more seconds")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self._samples,),)

    @property
    def remedy(self) -> str:
        return "give a .wav or a folder of .wav files"

    @property
    def _samples(self) -> int:
        return round(self.seconds * self.sampling_rate)

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """(path, model input) of the recording in a file.

        Raises:
            UserError: E130 if the file is missing, E131 if it is no .wav file, or has another sampling rate.
        """
        yield str(path), self.features(wav_samples(path, self.sampling_rate))

    def features(self, samples: Array) -> Array:
        """The model input of a recording, (samples,)."""
        kept = samples[: self._samples].astype(np.float32)
        if self.normalize == "recording":
            kept = _normalized(kept)
        padded = np.zeros(self._samples, np.float32)
        padded[: len(kept)] = kept
        return _normalized(padded) if self.normalize == "padded" else padded

    def scaled(self, values: Array) -> Array:
        """Features as model inputs, which they are already."""
        return values

    def to_data(self) -> dict[str, Any]:
        return {"sampling_rate": self.sampling_rate, "seconds": self.seconds, "normalize": self.normalize}


def _normalized(samples: Array) -> Array:
    found: Array = ((samples - samples.mean()) / np.sqrt(samples.var() + _QUIET)).astype(np.float32)
    return found
