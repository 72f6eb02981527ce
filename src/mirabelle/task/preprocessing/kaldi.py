"""Preprocessing of recordings to the log-mel features of Kaldi, as models of transformers take them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mirabelle.records.record import Count, record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.sound import SUFFIXES, Array, wav_samples

_FRAME, _STEP, _POINTS = 400, 160, 512  # samples: 25 ms and 10 ms at 16 kHz, and the next power of two
RATE = 16_000  # Hz
_PRE_EMPHASIS = 0.97
_LOWEST = 20.0  # Hz
_FLOOR = 1.192092955078125e-07  # the smallest power of a band: the step of float32 at 1


@record
class Kaldi(Preprocessing):
    """Log-mel features: x[t, m] = (log max(Σ_k M[m, k] · |X_t[k]|², 2⁻²³) − mean) / deviation, float32, (frames, mels).

    X_t is the Fourier transform of frame t, of 400 samples every 160, at 16 kHz: its mean is subtracted, then 0.97 of the
    sample before, and it is weighted by a Hann window. M is a bank of filters from 20 Hz to 8 kHz that are triangular on the
    mel scale 1127 · ln(1 + f / 700). A longer recording is cut at its end; frames that are missing are 0 before mean and
    deviation.

    Args:
        frames: number of frames.
        mels: number of mel bands.
        mean: mean of the features; one number, by default 0.
        deviation: standard deviation by which they are divided; one number, by default 1.

    Raises:
        UserError: E110 if there is more than one mean or deviation.

    Example:
        >>> Kaldi(frames=1024, mels=128).shapes
        ((1024, 128),)

    Source: kaldi-asr.org, `compute-fbank-feats`; the feature extractor of AST in transformers, Gong et al. 2021,
        arXiv:2104.01778.
    """

    key: ClassVar[str] = "frames"
    raw_inputs: ClassVar[str] = "recordings"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_content: ClassVar[str] = "a recording"
    folder_content: ClassVar[str] = "recording"

    frames: Count
    mels: Count = 128
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        mean, deviation = scaling.settled(self.mean, self.deviation, 1, "channel")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.frames, self.mels),)

    @property
    def remedy(self) -> str:
        return "give a .wav or a folder of .wav files"

    @property
    def seconds(self) -> float:
        """The length of a recording that fills all frames."""
        return (_FRAME + (self.frames - 1) * _STEP) / RATE

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """(path, model input) of the recording in a file.

        Raises:
            UserError: E130 if the file is missing, E131 if it is no .wav file, or has another sampling rate.
        """
        yield str(path), self.scaled(self.features(wav_samples(path, RATE)))

    def features(self, samples: Array) -> Array:
        """The features of a recording before mean and deviation, (frames, mels)."""
        found = np.zeros((self.frames, self.mels), np.float32)
        if len(samples) < _FRAME:
            return found
        parts = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), _FRAME)[::_STEP][: self.frames]
        parts = parts - parts.mean(axis=1, keepdims=True)
        before = np.concatenate([parts[:, :1], parts[:, :-1]], axis=1)
        weighted = (parts - _PRE_EMPHASIS * before) * np.hanning(_FRAME)
        powers = np.abs(np.fft.rfft(weighted, _POINTS, axis=1)) ** 2
        found[: len(parts)] = np.log(np.maximum(powers @ self._bank.T, _FLOOR))
        return found

    def scaled(self, values: Array) -> Array:
        """Features, standardized to model inputs."""
        scaled: Array = (values - np.float32(self.mean[0])) / np.float32(self.deviation[0])
        return scaled

    @cached_property
    def _bank(self) -> npt.NDArray[np.float64]:
        """The triangular filters, (mels, frequencies)."""
        edges = np.linspace(_mel(_LOWEST), _mel(RATE / 2), self.mels + 2)
        places = np.array([_mel(k * RATE / _POINTS) for k in range(_POINTS // 2 + 1)])
        rising = (places - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
        falling = (edges[2:, np.newaxis] - places) / np.diff(edges)[1:, np.newaxis]
        filters: npt.NDArray[np.float64] = np.clip(np.minimum(rising, falling), 0, None)
        return filters

    def to_data(self) -> dict[str, Any]:
        return {"frames": self.frames, "mels": self.mels, **scaling.to_data(self.mean, self.deviation)}


def _mel(frequency: float) -> float:
    return 1127 * math.log(1 + frequency / 700)
