"""Folders of recordings as data, and their features: those that anybody can compute again."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal
from scipy.io import wavfile

from mirabelle import Task
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.task.preprocessing import Kaldi, Sound, Waveform, from_json, to_json
from mirabelle.task.preprocessing.sound import read_wav

RATE = 4000


def whistle(path: Path, pitch: float, seconds: float = 0.3, rate: int = RATE, seed: int = 0) -> Path:
    """A tone of a pitch in Hz among some noise, 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * math.pi * pitch * times) + 0.02 * np.random.default_rng(seed).normal(size=len(times))
    wavfile.write(path, rate, (32767 * np.clip(tone, -1, 1)).astype(np.int16))
    return path


@pytest.fixture
def whistles(tmp_path: Path) -> Path:
    for name, pitch in (("high", 1500), ("low", 300)):
        for k in range(20):
            whistle(tmp_path / "whistles" / name / f"{k:02}.wav", pitch + 10 * k, 0.2 + 0.005 * k, seed=k)
    return tmp_path / "whistles"


def task(path: Path, **arguments: object) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


def test_features_are_logarithms_of_bands_of_the_spectrum() -> None:
    sound = Sound(rate=8000, seconds=0.5, mels=20)
    samples = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 0.1
    found = sound.features(samples)
    assert found.shape == sound.shape == (1, 20, 48)
    window = np.hanning(200)
    _, _, spectrum = signal.stft(
        samples.astype(float),
        8000,
        window,
        nperseg=200,
        noverlap=120,
        nfft=256,
        boundary=None,
        padded=False,
        scaling="spectrum",
    )
    powers = np.abs(spectrum * window.sum()) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 22) / 2595) - 1)
    bank = np.array([np.interp(np.arange(129) * 8000 / 256, edges[m : m + 3], [0, 1, 0]) for m in range(20)])
    assert np.abs(found[0] - np.log(bank @ powers + 1e-6)).max() < 1e-4


def test_a_tone_is_loudest_in_its_band_and_silence_follows_it() -> None:
    sound = Sound(rate=8000, seconds=1.0)
    times = np.arange(4000) / 8000
    found = sound.features(np.sin(2 * math.pi * 1000 * times).astype(np.float32))[0]
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 42) / 2595) - 1)
    assert abs(edges[1 + int(found[:, 10].argmax())] - 1000) < 80
    assert found[:, -1] == pytest.approx(math.log(1e-6), abs=1e-5)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8", "float32"])
def test_samples_lie_between_minus_one_and_one(kind: str, tmp_path: Path) -> None:
    due = np.array([[0.5, 0.0], [-1.0, -0.5], [0.25, 0.25]])
    scale = {"int16": 2**15, "int32": 2**31, "uint8": 128, "float32": 1}[kind]
    wavfile.write(tmp_path / "x.wav", 100, (due * scale + (128 if kind == "uint8" else 0)).astype(kind))
    rate, samples = read_wav(tmp_path / "x.wav")
    assert rate == 100
    assert samples.dtype == np.float32
    assert samples.tolist() == [0.25, -0.75, 0.25]


def test_what_is_stored_comes_back() -> None:
    sound = Sound(rate=16000, seconds=1.5, mels=64, mean=(-3.25,), deviation=(2.5,))
    assert from_json(to_json(sound)) == sound
    with pytest.raises(UserError, match=r"E110.*from 2 to 800 samples.*got 1600"):
        Sound(rate=16000, seconds=0.05, window=0.1)


def test_a_folder_of_recordings_is_a_task(whistles: Path) -> None:
    found = task(whistles, mels=16)
    assert found.labels == ("high", "low")
    assert (len(found.train), len(found.validation), len(found.test)) == (28, 4, 8)
    assert isinstance(found.preprocessing, Sound)
    assert found.preprocessing.seconds == 0.295
    assert found.train.inputs.shape == (28, *found.preprocessing.shape)
    assert float(found.train.inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.train.inputs.std()) == pytest.approx(1, abs=1e-3)
    again = torch.from_numpy(found.preprocessing(whistles / "low" / "03.wav"))
    every = torch.cat([part.inputs for part in (found.train, found.validation, found.test)])
    assert sum(torch.equal(again, one) for one in every) == 1


def test_what_is_cut_off_or_not_read_is_told(whistles: Path) -> None:
    (whistles / "low" / "song.mp3").write_bytes(b"")
    unread, cut = task(whistles, mels=16, seconds=0.25).notes
    assert "1 × .mp3 are left out" in unread
    assert cut == "18 of 40 recordings are longer than 0.25 s, of which the rest is left out (`seconds`)."


def test_recordings_that_cannot_be_used_are_told(whistles: Path, tmp_path: Path) -> None:
    whistle(whistles / "low" / "zz.wav", 300, rate=8000)
    with pytest.raises(UserError, match=r"E131.*zz\.wav has a sampling rate of 8000 Hz, the other recordings of 4000 Hz"):
        task(whistles)
    (whistles / "low" / "zz.wav").write_bytes(b"RIFF1234WAVEno")
    with pytest.raises(UserError, match=r"E131.*zz\.wav cannot be read as a recording"):
        task(whistles)
    (whistles / "low" / "zz.wav").unlink()
    (whistles / "middle").mkdir()
    with pytest.raises(UserError, match=r'E131.*class "middle" in .* has no recording'):
        task(whistles)
    with pytest.raises(UserError, match="E102"):
        task(whistles, size=[8, 8])
    with pytest.raises(UserError, match="E130"):
        read_wav(tmp_path / "none.wav")


def test_names_may_tell_the_classes(tmp_path: Path) -> None:
    for k in range(20):
        whistle(tmp_path / "all" / f"{('low', 'high')[k % 2]}_{k}.wav", 300 + 900 * (k % 2))
    found = task(tmp_path / "all", pattern="([a-z]+)_")
    assert found.labels == ("high", "low")
    assert len(found.train) + len(found.validation) + len(found.test) == 20
    for pattern, words in (
        ("[a-z]+_", "E110.*no group"),
        ("(", "E110.*not a regular expression"),
        ("(low)_", r"E131.*the name of .*high_1\.wav does not match"),
        (".*(wav)", 'E131.*all recordings in .* have the class "wav"'),
    ):
        with pytest.raises(UserError, match=words):
            task(tmp_path / "all", pattern=pattern)


RECIPE = """
schema = 1
[model]
from = "./net.py:net"
[task]
data = "./whistles"
arguments = { mels = 16 }
[baseline]
train = { epochs = 8, batch_size = 7, lr = 1e-2, precision = "float32" }
[goal]
max_drop = "30pt"
[[step]]
use = "quantize.Static"
"""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(32, 2))
"""


def test_what_ships_takes_recordings(whistles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    new = [whistle(tmp_path / "new" / f"{name}.wav", pitch) for name, pitch in (("high", 1600), ("low", 350))]
    assert main.run(["predict", str(tmp_path / "run" / "model.mira"), str(tmp_path / "new"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["label"] for entry in found] == ["high", "low"]
    assert main.run(["predict", str(tmp_path / "run"), str(whistle(tmp_path / "fast.wav", 300, rate=8000))]) == 2
    assert "has a sampling rate of 8000 Hz" in capsys.readouterr().err
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "recipe.toml")]) == 2
    assert new[0].is_file()


@pytest.mark.parametrize("length", [300, 5_000, 16_000, 30_000])
def test_waveforms_and_features_of_kaldi_are_those_of_transformers(length: int) -> None:
    transformers = pytest.importorskip("transformers")
    samples = (0.1 * np.random.default_rng(length).standard_normal(length)).astype(np.float32)
    for masked in (False, True):
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked)
        settings = {"sampling_rate": 16_000, "padding": "max_length", "max_length": 16_000, "truncation": True}
        due = extractor(samples, **settings)["input_values"][0]
        own = Waveform(sampling_rate=16_000, seconds=1.0, normalize="recording" if masked else "padded")
        np.testing.assert_array_equal(own.features(samples), due)
        assert from_json(to_json(own)) == own
    if length < 400:
        return
    extractor = transformers.ASTFeatureExtractor(max_length=98, num_mel_bins=32)
    features = Kaldi(frames=98, mels=32, mean=(extractor.mean,), deviation=(2 * extractor.std,))
    found = features.scaled(features.features(samples))
    np.testing.assert_allclose(found, extractor(samples, sampling_rate=16_000)["input_values"][0], atol=2e-6)
    assert from_json(to_json(features)) == features


def test_a_folder_of_recordings_becomes_waveforms_or_features_of_kaldi(tmp_path: Path) -> None:
    for name in ("low", "high"):
        (tmp_path / "tones" / name).mkdir(parents=True)
        for k in range(6):
            samples = np.random.default_rng(k).integers(-9000, 9000, 8_000 + 100 * k).astype(np.int16)
            wavfile.write(tmp_path / "tones" / name / f"{k}.wav", 16_000, samples)
    read = partial(task_from, "./tones", data_folder=None, folder=tmp_path)
    task = read({"features": "waveform", "labels": ["low", "high"], "normalize": "recording", "seconds": 0.52})
    assert task.labels == ("low", "high")
    assert task.train.first(2).inputs.shape == (2, 8_320)
    assert [note for note in task.notes if "longer" in note or "zeros" in note] == [
        "4 of 12 recordings are longer than 0.52 s, of which the rest is left out (`seconds`).",
        "8 of 12 recordings are shorter than 0.52 s; the model sees the zeros behind them.",
    ]
    assert read({"features": "kaldi", "frames": 20, "mels": 16}).train.first(2).inputs.shape == (2, 20, 16)
    with pytest.raises(UserError, match='has a class "high", which is not in `labels`: low, loud'):
        read({"labels": ["low", "loud"]})
    with pytest.raises(UserError, match="has a sampling rate of 16000 Hz, not 8000 Hz"):
        read({"features": "waveform", "rate": 8_000})
