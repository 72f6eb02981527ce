"""Preprocessing of recordings to log-mel spectrograms."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError, first_line
from mirabelle.records.record import Count, Positive, record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.raw_inputs import Preprocessing

Array = npt.NDArray[np.float32]
SUFFIXES = (".wav",)
_UNKNOWN_LENGTH = 0x7FFFF000  # bytes of samples from which on the length in a header says nothing
_QUIET = 1e-6  # added to the power of each band, so that the logarithm of silence is finite


@record
class Sound(Preprocessing):
    """Log-mel spectrogram: x[0, m, t] = (log(Σ_k M[m, k] · |X_t[k]|² + 10⁻⁶) − mean) / deviation, float32.

    X_t is the discrete Fourier transform of frame t with a Hann window. M is a bank of triangular filters that overlap by half
    and are evenly spaced from 0 to rate / 2 on the mel scale 2595 · log₁₀(1 + f / 700). Samples are in [−1, 1], channels are
    averaged. A model input has the shape (1, mels, frames).

    Args:
        rate: sampling rate in Hz.
        seconds: length of a recording; a longer one is cut at the end, a shorter one is padded with silence.
        mels: number of mel bands.
        window: length of a frame in seconds.
        hop: time between the starts of two frames in seconds.
        mean: mean of the logarithms; one number, by default 0.
        deviation: standard deviation of the logarithms; one number, by default 1.

    Raises:
        UserError: E110 if a frame is longer than the recording or has fewer than two samples, or there is more than one mean or
            deviation.

    Example:
        >>> Sound(rate=8000, seconds=1.0).shape
        (1, 40, 98)

    Source: Davis, Mermelstein 1980, doi:10.1109/TASSP.1980.1163420, without the cosine transform.
    """

    key: ClassVar[str] = "rate"
    raw_inputs: ClassVar[str] = "recordings"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_content: ClassVar[str] = "a recording"
    folder_content: ClassVar[str] = "recording"

    rate: Count
    seconds: Positive
    mels: Count = 40
    window: Positive = 0.025
    hop: Positive = 0.01
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 < self._frame <= self._samples or self._step < 1:
            rule = f"window must be from 2 to {self._samples} samples, and hop at least 1"
            raise UserError("E110", f"{rule}; got {self._frame} and {self._step}", "give another window or hop")
        mean, deviation = scaling.settled(self.mean, self.deviation, 1, "channel")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, (1, mels, frames)."""
        return (1, self.mels, 1 + (self._samples - self._frame) // self._step)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)

    @property
    def remedy(self) -> str:
        return "give a .wav or a folder of .wav files"

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """(path, model input) of the recording in a file.

        Raises:
            UserError: E130 if the file is missing, E131 if it is no .wav file, or has another sampling rate.
        """
        yield str(path), self(path)

    @property
    def _samples(self) -> int:
        return round(self.seconds * self.rate)

    @property
    def _frame(self) -> int:
        return round(self.window * self.rate)

    @property
    def _step(self) -> int:
        return round(self.hop * self.rate)

    def __call__(self, path: Path) -> Array:
        """The model input of a .wav file.

        Raises:
            UserError: E130 if the file is missing, E131 if it is no .wav file, or has another sampling rate.
        """
        return self.scaled(self.features(wav_samples(path, self.rate)))

    def scaled(self, values: Array) -> Array:
        """Logarithms (..., mels, frames), standardized to model inputs."""
        scaled: Array = (values - np.float32(self.mean[0])) / np.float32(self.deviation[0])
        return scaled

    def features(self, samples: Array) -> Array:
        """The log-mel spectrogram of a recording before standardization, (1, mels, frames).

        Args:
            samples: (samples,) in [−1, 1].
        """
        padded = np.zeros(self._samples, np.float64)
        kept = samples[: self._samples]
        padded[: len(kept)] = kept
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._frame)[:: self._step]
        powers = np.abs(np.fft.rfft(frames * np.hanning(self._frame), self._points, axis=1)) ** 2
        found: Array = np.log(self._bank @ powers.T + _QUIET).astype(np.float32)[np.newaxis]
        return found

    @property
    def _points(self) -> int:
        return int(2 ** math.ceil(math.log2(self._frame)))

    @cached_property
    def _bank(self) -> npt.NDArray[np.float64]:
        """The triangular filters, (mels, frequencies)."""
        highest = 2595 * math.log10(1 + self.rate / 2 / 700)
        edges = 700 * (10 ** (np.linspace(0, highest, self.mels + 2) / 2595) - 1)
        frequencies = np.arange(self._points // 2 + 1) * self.rate / self._points
        rising = (frequencies - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
        falling = (edges[2:, np.newaxis] - frequencies) / np.diff(edges)[1:, np.newaxis]
        return np.clip(np.minimum(rising, falling), 0, None)

    def to_data(self) -> dict[str, Any]:
        data = {"rate": self.rate, "seconds": self.seconds, "mels": self.mels, "window": self.window, "hop": self.hop}
        return {**data, **scaling.to_data(self.mean, self.deviation)}


def wav_samples(path: Path, rate: int | None = None) -> Array:
    """The samples of a .wav file in [−1, 1], (samples,), averaged over channels.

    Args:
        path: the .wav file.
        rate: sampling rate in Hz that the file must have; None for any.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read, or has another sampling rate.
    """
    own, samples = read_wav(path)
    if rate not in (None, own):
        raise UserError("E131", f"{path} has a sampling rate of {own} Hz, not {rate} Hz", f"resample it to {rate} Hz")
    return samples


def wav_length(path: Path) -> tuple[int, int]:
    """(sampling rate in Hz, number of samples) of a .wav file, from its header if that is enough.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, values = wavfile.read(path, mmap=True)  # values are not read
    except Exception:  # noqa: BLE001 (a type of samples that cannot be mapped, or a damaged file, which is told)
        rate, values = read_wav(path)
    return int(rate), len(values)


def ends_early(path: Path) -> bool:
    """Whether a .wav file has fewer samples than its header says, as if it were cut off.

    Programs that write to a pipe do not know the length beforehand, and write the largest number; such files are whole.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        order: Literal["big", "little"] = "big" if file.read(12)[:4] == b"RIFX" else "little"
        while len(header := file.read(8)) == 8:  # noqa: PLR2004 (a name and a length of four bytes each)
            size = int.from_bytes(header[4:], order)
            if header[:4] == b"data":
                return size < _UNKNOWN_LENGTH and size > end - file.tell()
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def read_wav(path: Path) -> tuple[int, Array]:
    """(sampling rate in Hz, samples in [−1, 1]) of a .wav file, averaged over channels.

    Raises:
        UserError: E130 if the file is missing, E131 if it cannot be read.
    """
    from scipy.io import wavfile

    if not path.is_file():
        raise UserError("E130", f"no recording at {path}", "check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks, which are not needed
            rate, values = wavfile.read(path)
    except Exception as error:  # a damaged header may lead to any exception
        raise UserError(
            "E131", f"{path} cannot be read as a recording: {first_line(error)}", "give an intact .wav file"
        ) from error
    if not values.size:
        raise UserError("E131", f"{path} contains no samples", "remove the file")
    if values.dtype == np.uint8:
        samples = (values.astype(np.float32) - 128) / 128
    elif np.issubdtype(values.dtype, np.integer):
        samples = values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    else:
        samples = values.astype(np.float32)
    if not np.isfinite(samples).all():
        raise UserError("E131", f"{path} contains NaN or infinite samples", "record it again")
    return int(rate), samples.mean(axis=1) if samples.ndim > 1 else samples
