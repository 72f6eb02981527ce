"""How a raw input becomes one model input, as plain data that travels with the model: one kind a file.

What trains a model and what predicts with it call the same code, so an image that was trained on enters the shipped model with
the same bits.
"""

from mirabelle.task.preprocessing.characters import Characters
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.sound import Sound, wav_samples
from mirabelle.task.preprocessing.stored import from_json, to_json
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.text import Text

__all__ = ["Characters", "Image", "Preprocessing", "Sound", "Table", "Text", "from_json", "to_json", "wav_samples"]
