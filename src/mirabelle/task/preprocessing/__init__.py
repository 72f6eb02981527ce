"""Preprocessing of raw inputs to model inputs, as plain data that is stored with the model; one kind in each file.

Training and prediction call the same code, so that an image gives the same bits in both.
"""

from mirabelle.task.preprocessing.characters import Characters
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.kaldi import Kaldi
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.sound import Sound, wav_samples
from mirabelle.task.preprocessing.stored import from_json, to_json
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.text import Text
from mirabelle.task.preprocessing.waveform import Waveform

__all__ = [
    "Characters",
    "Image",
    "Kaldi",
    "Preprocessing",
    "Sound",
    "Table",
    "Text",
    "Waveform",
    "from_json",
    "to_json",
    "wav_samples",
]
