"""Models of transformers: from a folder, Hugging Face's hub or ModelScope, giving one tensor, and back as a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.records.record import Count, record
from mirabelle.sources.names import HUBS, path_of

_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
}
_ENDS = 2  # of an answer


@record
class Head:
    """What decides at the end of a model of transformers; layers that its weights lack are drawn anew, and want a training.

    Args:
        head: "sequence-classification", "token-classification", "question-answering", "masked-lm", "causal-lm",
            "image-classification" or "audio-classification"; by default the first architecture that config.json names.
        labels: outputs of a classifier; by default as config.json says.
    """

    head: (
        Literal[
            "sequence-classification",
            "token-classification",
            "question-answering",
            "masked-lm",
            "causal-lm",
            "image-classification",
            "audio-classification",
        ]
        | None
    ) = None
    labels: Count | None = None


class HuggingFaceModel(nn.Module):
    """A model of transformers that takes tensors by name and gives one tensor: its logits.

    Question answering gives (batch, tokens, 2), the logits of starts and ends; a model without a head gives its last hidden
    states.

    Args:
        model: of transformers.
        origin: the folder it came from; its tokenizer or processor goes back with it.
    """

    def __init__(self, model: nn.Module, origin: Path | None = None) -> None:
        super().__init__()
        self.model = model
        self.origin = origin
        self.eval()

    def forward(self, **inputs: Tensor) -> Tensor:
        return one_tensor(self.model(**inputs))

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """`huggingface/`: weights, config and tokenizer, for `from_pretrained`.

        Raises:
            UserError: E121 when the config cannot say the widths of a cut model.
        """
        from mirabelle.sources.models.saved_huggingface import save_pretrained

        with without_bars():
            save_pretrained(self.model, self.origin, model, folder / "huggingface")
        return "huggingface"


def one_tensor(given: Any) -> Tensor:
    """What a model of transformers decides, of all that it gives."""
    if isinstance(given, Tensor):
        return given
    if "start_logits" in given:
        return torch.stack([given["start_logits"], given["end_logits"]], dim=-1)
    for name in ("logits", "last_hidden_state"):
        if name in given:
            found: Tensor = given[name]
            return found
    raise UserError("E121", f"the model gives {', '.join(given)}, and no logits", "wrap it in a function that returns a tensor")


def module_from_huggingface(name: str, folder: Path, head: Head | None = None) -> HuggingFaceModel:
    """The model of a folder, or of the hub.

    Only safetensors are read, and no code that a model brings is run.

    Args:
        name: "hf:organisation/model" or, of ModelScope, "ms:organisation/model", with "@revision" behind it where one is meant;
            or the path of a folder with config.json.
        folder: against which paths are read.
        head: what decides at its end, where that is not what config.json names.

    Raises:
        UserError: E160 without transformers (or modelscope), E130 when there is no such model, E143 for weights that are a
            pickle, E121 for an architecture that is not known.
    """
    transformers = library()
    place, revision = place_of(name, folder)
    settings: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    try:
        with without_bars():
            config = transformers.AutoConfig.from_pretrained(place, **settings, **_labels(head))
            kind = _class_of(transformers, config, head)
            model = kind.from_pretrained(place, config=config, use_safetensors=True, **settings)
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "safetensors" in reason:
            raise UserError(
                "E143", f"{name} has no safetensors, and pickles are not read: {reason}", "save it with transformers 5"
            ) from error
        raise UserError("E130", f"transformers cannot read {name}: {reason}", "check the name, or download it first") from error
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # of earlier tokens, which nothing here goes on with
    return HuggingFaceModel(model.float(), Path(place) if Path(place).is_dir() else None)


def library() -> Any:
    """transformers.

    Raises:
        UserError: E160 when it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "E160", f"models of Hugging Face need transformers: {error}", "pip install 'mirabelle[huggingface]'"
        ) from error
    return transformers


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars that transformers draws over ours, and its tables of layers that are drawn anew."""
    logging = library().utils.logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def place_of(name: str, folder: Path) -> tuple[str, str | None]:
    """(what from_pretrained takes, the revision) of a folder, or of a model on a hub."""
    if not name.startswith(HUBS):
        return str(path_of(name, folder)), None
    hub, _, rest = name.partition(":")
    place, _, revision = rest.partition("@")
    return (_snapshot(place, revision or None), None) if hub == "ms" else (place, revision or None)


def _snapshot(place: str, revision: str | None) -> str:
    """The folder into which ModelScope has put a model."""
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        message = f"models of ModelScope need the package modelscope: {error}"
        raise UserError("E160", message, "pip install 'mirabelle[modelscope]'") from error
    try:
        found: str = snapshot_download(place, revision=revision)
    except Exception as error:
        reason = first_line(error)
        raise UserError("E130", f"ModelScope gives no {place}: {reason}", "check the name, or name a folder") from error
    return found


def _labels(head: Head | None) -> dict[str, int]:
    """The outputs that a head asks for; those of question answering are two, first and last token."""
    if head is None:
        return {}
    count = _ENDS if head.head == "question-answering" else head.labels
    return {} if count is None else {"num_labels": count}


def _class_of(transformers: Any, config: Any, head: Head | None) -> Any:
    """The class with a head, or that a config names: the first of its architectures."""
    if head is not None and head.head is not None:
        return getattr(transformers, _HEADS[head.head])
    names = list(config.architectures or ())
    if not names:
        raise UserError(
            "E121", "config.json names no architecture", 'add "architectures": ["BertForSequenceClassification"], say'
        )
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise UserError("E121", f'transformers has no "{names[0]}"', did_you_mean(names[0], dir(transformers)))
    return kind
